//! Clients that check what they get: stream clients compare every byte with the pattern, counter
//! clients know what every acknowledged INCR must have done.

use std::time::{Duration, Instant};

use serde::Serialize;
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use smoltcp::wire::Ipv4Address;
use understudy_workload::{COUNTER_PORT, STREAM_PORT, counter, pattern};

use super::stack::Stack;

/// Longest HTTP response header accepted.
const HEADER_BYTES_MAX: usize = 4096;
/// Pause between a counter's answer and its next request, so that counters show latency and do not
/// measure throughput.
const THINK: Duration = Duration::from_millis(2);

/// Longest answer time that is told from longer ones. A histogram that grows by itself would clamp to
/// its first, tiny range instead.
const ANSWER_US_MAX: u64 = 60_000_000;

/// What a client saw that must not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientError {
    /// The connection broke.
    #[error("{client}: connection lost in state {state}")]
    Reset {
        /// The client.
        client: String,
        /// Its TCP state.
        state: String,
    },
    /// A stream byte differs.
    #[error("{client}: byte {position} differs")]
    Differs {
        /// The client.
        client: String,
        /// Its position in the stream.
        position: u64,
    },
    /// An answer made no sense.
    #[error("{client}: unexpected answer {answer:?}")]
    Answer {
        /// The client.
        client: String,
        /// The answer.
        answer: String,
    },
    /// An acknowledged INCR is missing, or one was done twice.
    #[error("{client}: INCR gave {got}, expected {expected}")]
    Count {
        /// The client.
        client: String,
        /// The answer.
        got: u64,
        /// What it had to be.
        expected: u64,
    },
}

/// What all clients saw so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Clients that have got their first byte or answer.
    pub clients_served: usize,
    /// What each client has got, stream clients first: bytes, or answers.
    pub progress: Vec<u64>,
    /// Stream bytes compared.
    pub bytes_checked: u64,
    /// Stream bytes that never came although later ones did.
    pub bytes_lost: u64,
    /// Stream bytes that came again.
    pub bytes_repeated: u64,
    /// INCRs answered.
    pub acked_writes: u64,
    /// Acknowledged INCRs that a later answer shows missing.
    pub acked_writes_missing: u64,
    /// Longest time a stream client waited for the next byte.
    pub longest_gap_ms: f64,
    /// Median and 99th percentile of the counters' answer times, in microseconds.
    pub answer_us_p50: u64,
    /// See `answer_us_p50`.
    pub answer_us_p99: u64,
    /// What happened and must not.
    pub errors: Vec<ClientError>,
}

/// All clients of a run.
pub(super) struct Clients {
    streams: Vec<StreamClient>,
    counters: Vec<CounterClient>,
    answer_us: hdrhistogram::Histogram<u64>,
}

struct StreamClient {
    name: String,
    socket: SocketHandle,
    asked: bool,
    header: Option<Vec<u8>>,
    position: u64,
    last_byte: Option<Instant>,
    longest_gap: Duration,
    failed: Option<ClientError>,
    lost: u64,
    repeated: u64,
}

struct CounterClient {
    name: String,
    socket: SocketHandle,
    line: Vec<u8>,
    /// When the request under way was sent.
    asked: Option<Instant>,
    answered: Option<Instant>,
    value: u64,
    missing: u64,
    failed: Option<ClientError>,
}

impl Clients {
    /// Connects `streams` stream clients and `counters` counter clients to the guest at `address`.
    pub(super) fn connect(
        stack: &mut Stack,
        address: Ipv4Address,
        streams: usize,
        counters: usize,
    ) -> Result<Self, tcp::ConnectError> {
        let streams = (0..streams)
            .map(|number| {
                Ok(StreamClient {
                    name: format!("stream client {number}"),
                    socket: stack.connect(address, STREAM_PORT)?,
                    asked: false,
                    header: Some(Vec::new()),
                    position: 0,
                    last_byte: None,
                    longest_gap: Duration::ZERO,
                    failed: None,
                    lost: 0,
                    repeated: 0,
                })
            })
            .collect::<Result<_, _>>()?;
        let counters = (0..counters)
            .map(|number| {
                Ok(CounterClient {
                    name: format!("counter-{number}"),
                    socket: stack.connect(address, COUNTER_PORT)?,
                    line: Vec::new(),
                    asked: None,
                    answered: None,
                    value: 0,
                    missing: 0,
                    failed: None,
                })
            })
            .collect::<Result<_, _>>()?;
        let answer_us = hdrhistogram::Histogram::new_with_max(ANSWER_US_MAX, 3)
            .expect("range and three digits are valid");
        Ok(Self {
            streams,
            counters,
            answer_us,
        })
    }

    /// Lets every client send and read what it can without waiting.
    pub(super) fn step(&mut self, stack: &mut Stack) {
        let now = Instant::now();
        for client in &mut self.streams {
            if client.failed.is_none() {
                client.failed = client.step(stack.sockets.get_mut(client.socket), now).err();
            }
        }
        for client in &mut self.counters {
            if client.failed.is_none() {
                let step = client.step(stack.sockets.get_mut(client.socket), now);
                client.failed = match step {
                    Ok(Some(answer)) => {
                        let us = u64::try_from(answer.as_micros()).unwrap_or(u64::MAX);
                        self.answer_us.saturating_record(us);
                        None
                    }
                    Ok(None) => None,
                    Err(error) => Some(error),
                };
            }
        }
    }

    /// When the next counter wants to ask again.
    pub(super) fn next_step(&self) -> Option<Duration> {
        self.counters
            .iter()
            .filter(|client| client.asked.is_none())
            .map(|_| THINK)
            .min()
    }

    /// What the clients saw so far. A client that waits for its next byte counts with its wait.
    pub(super) fn figures(&self) -> Figures {
        let now = Instant::now();
        let gaps = self
            .streams
            .iter()
            .map(|client| client.gap(now))
            .max()
            .unwrap_or_default();
        Figures {
            clients_served: self
                .streams
                .iter()
                .filter(|client| client.last_byte.is_some())
                .count()
                + self
                    .counters
                    .iter()
                    .filter(|client| client.value > 0)
                    .count(),
            progress: (self.streams.iter().map(|client| client.position))
                .chain(self.counters.iter().map(|client| client.value))
                .collect(),
            bytes_checked: self.streams.iter().map(|client| client.position).sum(),
            bytes_lost: self.streams.iter().map(|client| client.lost).sum(),
            bytes_repeated: self.streams.iter().map(|client| client.repeated).sum(),
            acked_writes: self.counters.iter().map(|client| client.value).sum(),
            acked_writes_missing: self.counters.iter().map(|client| client.missing).sum(),
            longest_gap_ms: gaps.as_secs_f64() * 1e3,
            answer_us_p50: self.answer_us.value_at_quantile(0.5),
            answer_us_p99: self.answer_us.value_at_quantile(0.99),
            errors: (self
                .streams
                .iter()
                .filter_map(|client| client.failed.clone()))
            .chain(
                self.counters
                    .iter()
                    .filter_map(|client| client.failed.clone()),
            )
            .collect(),
        }
    }
}

impl Figures {
    /// How many clients have got nothing since `earlier`.
    #[must_use]
    pub fn stuck_since(&self, earlier: &Self) -> usize {
        let got = |number: usize| earlier.progress.get(number).copied().unwrap_or(0);
        let now = self.progress.iter().enumerate();
        now.filter(|(number, now)| **now <= got(*number)).count()
    }
}

impl StreamClient {
    fn gap(&self, now: Instant) -> Duration {
        let waiting = self
            .last_byte
            .map(|last| now.duration_since(last))
            .unwrap_or_default();
        self.longest_gap.max(waiting)
    }

    fn step(&mut self, socket: &mut tcp::Socket<'_>, now: Instant) -> Result<(), ClientError> {
        if !self.asked && socket.can_send() {
            let request = b"GET /stream HTTP/1.1\r\nHost: guest\r\n\r\n";
            self.asked = matches!(socket.send_slice(request), Ok(sent) if sent == request.len());
        }
        while socket.can_recv() {
            let taken = socket.recv(|bytes| (bytes.len(), self.take(bytes)));
            match taken {
                Ok(Ok(true)) => {
                    self.longest_gap = self.gap(now);
                    self.last_byte = Some(now);
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => break,
            }
        }
        alive(&self.name, socket)
    }

    /// Takes bytes as they came; returns whether stream bytes were among them.
    fn take(&mut self, bytes: &[u8]) -> Result<bool, ClientError> {
        let Some(header) = &mut self.header else {
            return self.check(bytes).map(|()| true);
        };
        header.extend_from_slice(bytes);
        if let Some(end) = header.windows(4).position(|window| window == b"\r\n\r\n") {
            let header = self.header.take().unwrap_or_default();
            if !header.starts_with(b"HTTP/1.1 200 ") {
                let answer = String::from_utf8_lossy(&header[..end]).into_owned();
                return Err(ClientError::Answer {
                    client: self.name.clone(),
                    answer,
                });
            }
            let body = &header[end + 4..];
            return self.check(body).map(|()| !body.is_empty());
        }
        if header.len() > HEADER_BYTES_MAX {
            let answer = format!("{HEADER_BYTES_MAX} bytes without end of header");
            return Err(ClientError::Answer {
                client: self.name.clone(),
                answer,
            });
        }
        Ok(false)
    }

    fn check(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        if pattern::check(self.position, bytes).is_ok() {
            self.position += bytes.len() as u64;
            return Ok(());
        }
        // TCP hides loss and repetition; if the guest went back or ahead, the bytes are those of
        // another position: say which.
        let window = &bytes[..bytes.len().min(64)];
        for distance in 1..1 << 20 {
            if pattern::check(self.position + distance, window).is_ok() {
                self.lost += distance;
                break;
            }
            if distance <= self.position && pattern::check(self.position - distance, window).is_ok()
            {
                self.repeated += distance;
                break;
            }
        }
        Err(ClientError::Differs {
            client: self.name.clone(),
            position: self.position,
        })
    }
}

impl CounterClient {
    /// Returns the answer time when an answer came.
    fn step(
        &mut self,
        socket: &mut tcp::Socket<'_>,
        now: Instant,
    ) -> Result<Option<Duration>, ClientError> {
        let rested = self
            .answered
            .is_none_or(|at| now.duration_since(at) >= THINK);
        if self.asked.is_none() && rested && socket.can_send() {
            let request = format!("{}\n", counter::Request::Incr { key: &self.name });
            match socket.send_slice(request.as_bytes()) {
                Ok(sent) if sent == request.len() => self.asked = Some(now),
                // The send buffer holds many requests and only one is under way.
                _ => return Err(self.unexpected(b"the request was not taken")),
            }
        }
        let mut answer_time = None;
        if socket.can_recv() {
            let _ = socket.recv(|bytes| (bytes.len(), self.line.extend_from_slice(bytes)));
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.line.drain(..=end).collect();
                line.pop();
                self.answer(&line)?;
                answer_time = self.asked.take().map(|asked| now.duration_since(asked));
                self.answered = Some(now);
            } else if self.line.len() > counter::LINE_BYTES_MAX {
                return Err(self.unexpected(&self.line));
            }
        }
        alive(&self.name, socket)?;
        Ok(answer_time)
    }

    fn answer(&mut self, line: &[u8]) -> Result<(), ClientError> {
        let expected = self.value + 1;
        let got = match counter::Response::parse(line) {
            Ok(counter::Response::Value(value)) => value.parse::<u64>().ok(),
            _ => None,
        };
        match got {
            Some(got) if got == expected => {
                self.value = got;
                Ok(())
            }
            Some(got) => {
                self.missing += expected.saturating_sub(got);
                Err(ClientError::Count {
                    client: self.name.clone(),
                    got,
                    expected,
                })
            }
            None => Err(self.unexpected(line)),
        }
    }

    fn unexpected(&self, answer: &[u8]) -> ClientError {
        let answer = String::from_utf8_lossy(answer).into_owned();
        ClientError::Answer {
            client: self.name.clone(),
            answer,
        }
    }
}

fn alive(name: &str, socket: &tcp::Socket<'_>) -> Result<(), ClientError> {
    match socket.state() {
        tcp::State::SynSent | tcp::State::SynReceived | tcp::State::Established => Ok(()),
        state => Err(ClientError::Reset {
            client: name.into(),
            state: state.to_string(),
        }),
    }
}
