//! Clients with the kernel's TCP stack that check what they get: every byte of a stream, every number of a counter.
//!
//! A client never connects again: that a connection breaks is a fault like a wrong byte.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use parking_lot::Mutex;
use serde::Serialize;
use understudy_workload::{COUNTER_PORT, STREAM_PORT, counter, pattern};

use crate::network::{GUEST, Network};

const STREAMS: usize = 2;
const COUNTERS: usize = 2;
/// How often a client that waits looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Between a counter's answer and its next request.
const THINK: Duration = Duration::from_millis(2);
/// How often a client asks whether its connection is still known while nothing comes, in seconds.
const KEEP_ALIVE_S: u32 = 2;
/// It waits for an answer for longer than any run takes.
const KEEP_ALIVES: u32 = 60;
/// A client that cannot connect for so long says so.
const CONNECT: Duration = Duration::from_secs(20);
/// Longest HTTP response header accepted.
const HEADER_BYTES_MAX: usize = 4096;
/// How far off bytes are looked for that are not where they belong.
const DISPLACED_MAX: u64 = 1 << 20;
/// The first bytes of what differs, by which it is recognised.
const WINDOW_BYTES: usize = 64;

/// What all clients saw that must not be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Losses {
    /// Bytes that never came although later ones did.
    pub(crate) bytes_lost: u64,
    /// Bytes that came again.
    pub(crate) bytes_repeated: u64,
    /// Answered INCRs that a later answer shows missing.
    pub(crate) writes_lost: u64,
    /// INCRs that were done twice.
    pub(crate) writes_repeated: u64,
}

impl Losses {
    pub(crate) fn add(&mut self, further: &Self) {
        self.bytes_lost += further.bytes_lost;
        self.bytes_repeated += further.bytes_repeated;
        self.writes_lost += further.writes_lost;
        self.writes_repeated += further.writes_repeated;
    }
}

/// What they saw in all.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) bytes: u64,
    pub(crate) writes: u64,
    pub(crate) losses: Losses,
    /// Connections that broke.
    pub(crate) broken: Vec<String>,
    /// What came and must not.
    pub(crate) wrong: Vec<String>,
}

/// Clients at work. They end when this is dropped.
#[derive(Debug)]
pub(crate) struct Clients {
    all: Vec<Client>,
    end: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Client {
    is_stream: bool,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    /// Bytes, or answers.
    progress: u64,
    /// When there last was some, or the gap was last forgotten.
    last: Instant,
    longest: Duration,
    /// How long each answer took, in microseconds.
    answers: Vec<u32>,
    losses: Losses,
    fault: Option<String>,
    /// The fault is what came, not that nothing came.
    is_wrong: bool,
}

impl Clients {
    /// Lets clients connect.
    pub(crate) fn start(network: &Arc<Network>) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let all = (0..STREAMS + COUNTERS).map(|number| {
            let is_stream = number < STREAMS;
            let work = Work::new(number, &end);
            let state = Arc::clone(&work.state);
            let network = Arc::clone(network);
            let thread = std::thread::spawn(move || {
                let done = network.clients.enter().and_then(|()| match is_stream {
                    true => work.stream(),
                    false => work.count(),
                });
                if let Err(error) = done {
                    work.state.lock().fault = Some(format!("{error:#}"));
                }
            });
            Client {
                is_stream,
                state,
                thread: Some(thread),
            }
        });
        Self {
            all: all.collect(),
            end,
        }
    }

    /// How far each is.
    pub(crate) fn progress(&self) -> Vec<u64> {
        let all = self.all.iter();
        all.map(|client| client.state.lock().progress).collect()
    }

    /// How long each answer took of which the gaps were not forgotten, in microseconds, the shortest first.
    pub(crate) fn answers(&self) -> Vec<u32> {
        let all = self.all.iter();
        let mut answers: Vec<u32> = all
            .flat_map(|client| client.state.lock().answers.clone())
            .collect();
        answers.sort_unstable();
        answers
    }

    /// Forgets how long anybody has waited so far.
    pub(crate) fn forget_gaps(&self) {
        for client in &self.all {
            let mut state = client.state.lock();
            state.answers.clear();
            state.longest = Duration::ZERO;
            state.last = Instant::now();
        }
    }

    /// Longest time without a byte or an answer, of any client, with those that wait now.
    pub(crate) fn longest_gap(&self) -> Duration {
        let all = self.all.iter();
        let gaps = all.map(|client| {
            let state = client.state.lock();
            state.longest.max(state.last.elapsed())
        });
        gaps.max().unwrap_or_default()
    }

    pub(crate) fn seen(&self) -> Seen {
        let mut seen = Seen::default();
        for (number, client) in self.all.iter().enumerate() {
            let state = client.state.lock();
            match client.is_stream {
                true => seen.bytes += state.progress,
                false => seen.writes += state.progress,
            }
            seen.losses.add(&state.losses);
            let kind = if client.is_stream {
                "stream"
            } else {
                "counter"
            };
            let faults = match state.is_wrong {
                true => &mut seen.wrong,
                false => &mut seen.broken,
            };
            let fault = state.fault.as_ref();
            faults.extend(fault.map(|fault| format!("client {number}, a {kind}: {fault}")));
        }
        seen
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        for client in &mut self.all {
            if let Some(thread) = client.thread.take() {
                // A panic was printed; the clients' figures are not asked for any more.
                let _ = thread.join();
            }
        }
    }
}

/// One client's thread.
struct Work {
    key: String,
    state: Arc<Mutex<State>>,
    end: Arc<AtomicBool>,
}

impl Work {
    fn new(number: usize, end: &Arc<AtomicBool>) -> Self {
        let state = State {
            progress: 0,
            last: Instant::now(),
            longest: Duration::ZERO,
            answers: Vec::new(),
            losses: Losses::default(),
            fault: None,
            is_wrong: false,
        };
        Self {
            key: format!("counter-{number}"),
            state: Arc::new(Mutex::new(state)),
            end: Arc::clone(end),
        }
    }

    fn connect(&self, port: u16) -> Result<TcpStream> {
        let address: SocketAddr = format!("{GUEST}:{port}").parse()?;
        let connection = TcpStream::connect_timeout(&address, CONNECT).context("cannot connect")?;
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(LOOK))?;
        // A client that only waits would never hear that there is another guest, which was started from its disk.
        setsockopt(&connection, sockopt::KeepAlive, &true)?;
        setsockopt(&connection, sockopt::TcpKeepIdle, &KEEP_ALIVE_S)?;
        setsockopt(&connection, sockopt::TcpKeepInterval, &KEEP_ALIVE_S)?;
        setsockopt(&connection, sockopt::TcpKeepCount, &KEEP_ALIVES)?;
        Ok(connection)
    }

    /// What has come; `None` if this client is to end.
    fn read(&self, connection: &mut TcpStream, buffer: &mut [u8]) -> Result<Option<usize>> {
        while !self.end.load(Ordering::Acquire) {
            match connection.read(buffer) {
                Ok(0) => anyhow::bail!("the guest closed the connection"),
                Ok(count) => return Ok(Some(count)),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("the connection broke"),
            }
        }
        Ok(None)
    }

    fn progressed(&self, by: u64) {
        let mut state = self.state.lock();
        let gap = state.last.elapsed();
        state.longest = state.longest.max(gap);
        state.last = Instant::now();
        state.progress += by;
    }

    fn stream(&self) -> Result<()> {
        let mut connection = self.connect(STREAM_PORT)?;
        connection.write_all(b"GET /stream HTTP/1.1\r\nHost: guest\r\n\r\n")?;
        let mut buffer = [0; 64 * 1024];
        let mut header = Vec::new();
        let mut body = loop {
            let Some(count) = self.read(&mut connection, &mut buffer)? else {
                return Ok(());
            };
            header.extend_from_slice(&buffer[..count]);
            if let Some(end) = header.windows(4).position(|window| window == b"\r\n\r\n") {
                break header.split_off(end + 4);
            }
            anyhow::ensure!(header.len() <= HEADER_BYTES_MAX, "a header without an end");
        };
        let answer = String::from_utf8_lossy(&header).into_owned();
        anyhow::ensure!(answer.starts_with("HTTP/1.1 200 "), "it answers {answer:?}");
        let mut position = 0;
        loop {
            self.check(position, &body)?;
            position += body.len() as u64;
            self.progressed(body.len() as u64);
            let Some(count) = self.read(&mut connection, &mut buffer)? else {
                return Ok(());
            };
            body = buffer[..count].to_vec();
        }
    }

    fn check(&self, position: u64, bytes: &[u8]) -> Result<()> {
        let Err(mismatch) = pattern::check(position, bytes) else {
            return Ok(());
        };
        let by = displacement(position, &bytes[..bytes.len().min(WINDOW_BYTES)]);
        let mut state = self.state.lock();
        state.is_wrong = true;
        let losses = &mut state.losses;
        match by {
            Some(by) if by > 0 => losses.bytes_lost += by.unsigned_abs(),
            Some(by) => losses.bytes_repeated += by.unsigned_abs(),
            None => {}
        }
        Err(anyhow::anyhow!(
            "{mismatch:?}; bytes that are displaced by {by:?}"
        ))
    }

    fn count(&self) -> Result<()> {
        let mut connection = self.connect(COUNTER_PORT)?;
        let request = format!("{}\n", counter::Request::Incr { key: &self.key });
        let mut buffer = [0; counter::LINE_BYTES_MAX];
        let mut line = Vec::new();
        let mut value = 0;
        loop {
            let asked = Instant::now();
            connection
                .write_all(request.as_bytes())
                .context("the connection broke")?;
            let end = loop {
                if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                    break end;
                }
                let Some(count) = self.read(&mut connection, &mut buffer)? else {
                    return Ok(());
                };
                line.extend_from_slice(&buffer[..count]);
            };
            let answer = line.drain(..=end).collect::<Vec<u8>>();
            self.answered(&answer[..end], value + 1)?;
            value += 1;
            let took = u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX);
            self.state.lock().answers.push(took);
            self.progressed(1);
            std::thread::sleep(THINK);
        }
    }

    fn answered(&self, line: &[u8], expected: u64) -> Result<()> {
        let got = match counter::Response::parse(line) {
            Ok(counter::Response::Value(value)) => value.parse::<u64>().ok(),
            _ => None,
        };
        let answer = String::from_utf8_lossy(line);
        if got == Some(expected) {
            return Ok(());
        }
        let mut state = self.state.lock();
        state.is_wrong = true;
        if let Some(got) = got {
            state.losses.writes_lost += expected.saturating_sub(got);
            state.losses.writes_repeated += got.saturating_sub(expected);
        }
        anyhow::bail!("INCR was answered by {answer:?}, expected {expected}")
    }
}

/// By how much the bytes at a position of the stream are ahead of where they belong; behind it if that is negative.
fn displacement(position: u64, window: &[u8]) -> Option<i64> {
    (1..DISPLACED_MAX).find_map(|by| {
        let is_at = |position| pattern::check(position, window).is_ok();
        let signed = i64::try_from(by).ok()?;
        if is_at(position + by) {
            Some(signed)
        } else if position >= by && is_at(position - by) {
            Some(-signed)
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client that has seen it says of it.
    fn losses(judge: impl FnOnce(&Work) -> Result<()>) -> Option<Losses> {
        let work = Work::new(0, &Arc::default());
        let judged = judge(&work);
        let state = work.state.lock();
        assert_eq!(judged.is_err(), state.is_wrong);
        state.is_wrong.then_some(state.losses)
    }

    #[test]
    fn a_number_that_was_lost_or_counted_twice_is_a_fault() {
        let answered = |line: &'static str| losses(|work| work.answered(line.as_bytes(), 8));
        assert_eq!(answered("VALUE 8"), None);
        let lost = answered("VALUE 6").unwrap();
        assert_eq!((lost.writes_lost, lost.writes_repeated), (2, 0));
        let repeated = answered("VALUE 9").unwrap();
        assert_eq!((repeated.writes_lost, repeated.writes_repeated), (0, 1));
        assert_eq!(answered("what?"), Some(Losses::default()));
    }

    #[test]
    fn bytes_that_were_lost_or_came_twice_are_a_fault() {
        let mut bytes = [0; 300];
        let mut at = |holds| {
            pattern::fill(holds, &mut bytes);
            losses(|work| work.check(10_000, &bytes))
        };
        assert_eq!(at(10_000), None);
        assert_eq!(at(10_007).unwrap().bytes_lost, 7);
        assert_eq!(at(9_000).unwrap().bytes_repeated, 1_000);
        pattern::fill(10_000, &mut bytes);
        bytes[299] ^= 1;
        assert!(losses(|work| work.check(10_000, &bytes)).is_some());
    }

    #[test]
    fn bytes_that_are_not_where_they_belong_are_found_elsewhere() {
        let mut window = [0; WINDOW_BYTES];
        for (holds, by) in [(5_000, -5_000), (10_007, 7)] {
            pattern::fill(holds, &mut window);
            assert_eq!(displacement(10_000, &window), Some(by));
        }
        assert_eq!(displacement(10, &[0; WINDOW_BYTES]), None);
    }
}
