//! Clients that write to the Linux guest's disk until they are told to stop, over one connection each, and count
//! what was acknowledged. What must not be done here: count a write before its answer is there.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use understudy_guest_tool::fsync;

use super::network::GUEST;
use super::wait::{say, until};

/// Longest wait for an answer, a failover included.
const PATIENCE: Duration = Duration::from_secs(90);
const REDIS_PORT: u16 = 6379;
/// Writes on the way at a time.
const BATCH: u64 = 4;
/// Reads on the way at a time.
const READ_BATCH: usize = 256;

/// A load under way.
pub(super) struct Load {
    name: &'static str,
    thread: JoinHandle<Result<()>>,
    acked: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    /// Why it ended.
    failure: Arc<Mutex<String>>,
}

impl Load {
    /// Appends records that are acknowledged after `fsync`.
    pub(super) fn fsync() -> Result<Self> {
        Self::start("fsync", |acked, stop| {
            let address = address(fsync::PORT)?;
            let mut client = until("the fsync service", PATIENCE, || {
                Ok(fsync::Client::connect(address, PATIENCE).ok())
            })?;
            while !stop.load(Ordering::Relaxed) {
                client.append(BATCH, |number| acked.store(number + 1, Ordering::Relaxed))?;
            }
            Ok(())
        })
    }

    /// Sets keys in Redis, which fsyncs each before it answers.
    fn redis() -> Result<Self> {
        Self::start("redis", |acked, stop| {
            let mut redis = until("redis", PATIENCE, || Ok(Redis::greet().ok()))?;
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let answer = redis.ask(&format!("SET key:{number} {}\r\n", value(number)))?;
                ensure!(
                    answer == "+OK",
                    "redis answered {answer:?} to write {number}"
                );
                acked.store(number + 1, Ordering::Relaxed);
            }
            Ok(())
        })
    }

    fn start(
        name: &'static str,
        work: impl FnOnce(&AtomicU64, &AtomicBool) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let acked = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let failure = Arc::new(Mutex::new("without an error".to_owned()));
        let (counted, told, noted) = (Arc::clone(&acked), Arc::clone(&stop), Arc::clone(&failure));
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let outcome = work(&counted, &told);
                if let Err(error) = &outcome {
                    *noted.lock() = format!("{error:#}");
                }
                outcome
            })?;
        Ok(Self {
            name,
            thread,
            acked,
            stop,
            failure,
        })
    }

    /// Waits until that many more writes than now are acknowledged.
    pub(super) fn await_more(&self, writes: u64) -> Result<()> {
        let enough = self.acked.load(Ordering::Relaxed) + writes;
        until(
            &format!("{writes} more writes of {}", self.name),
            PATIENCE,
            || {
                let acked = self.acked.load(Ordering::Relaxed);
                ensure!(
                    !self.thread.is_finished(),
                    "{} ended after {acked} writes: {}",
                    self.name,
                    self.failure.lock()
                );
                Ok((acked >= enough).then_some(()))
            },
        )
    }

    /// Ends it; returns how many writes were acknowledged. A connection that broke is an error.
    pub(super) fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(outcome) => outcome.with_context(|| format!("{} client", self.name))?,
            Err(_) => bail!("the {} client panicked", self.name),
        }
        Ok(self.acked.load(Ordering::Relaxed))
    }
}

/// Both loads at once: what databases are tried with.
pub(super) struct Loads {
    fsync: Load,
    redis: Load,
}

impl Loads {
    pub(super) fn start() -> Result<Self> {
        let (fsync, redis) = (Load::fsync()?, Load::redis()?);
        Ok(Self { fsync, redis })
    }

    /// See [`Load::await_more`]: one after the other.
    pub(super) fn await_more(&self, writes: u64) -> Result<()> {
        self.fsync.await_more(writes)?;
        self.redis.await_more(writes)
    }

    /// Ends both; everything that was acknowledged must be there. Returns how many records that are.
    pub(super) fn verify(self) -> Result<u64> {
        let (records, keys) = (self.fsync.stop()?, self.redis.stop()?);
        verify_fsync(records)?;
        verify_redis(keys)?;
        say(format_args!(
            "{records} records and {keys} keys were acknowledged, and are there"
        ));
        Ok(records)
    }
}

/// Has the guest look through the records, of which `acked` were acknowledged.
pub(super) fn verify_fsync(acked: u64) -> Result<()> {
    fsync::Client::connect(address(fsync::PORT)?, PATIENCE)?.verify(acked)?;
    Ok(())
}

/// Reads every key whose write was acknowledged.
fn verify_redis(acked: u64) -> Result<()> {
    let mut redis = Redis::connect()?;
    // Many at a time, as each answer waits for an epoch.
    let numbers: Vec<u64> = (0..acked).collect();
    for batch in numbers.chunks(READ_BATCH) {
        let asked: String = (batch.iter())
            .map(|number| format!("GET key:{number}\r\n"))
            .collect();
        redis.0.get_mut().write_all(asked.as_bytes())?;
        for number in batch {
            let length = redis.line()?;
            ensure!(
                length.starts_with('$') && length != "$-1",
                "redis lost key {number} of {acked}"
            );
            let found = redis.line()?;
            ensure!(
                found == value(*number),
                "redis has {found:?} as key {number}"
            );
        }
    }
    Ok(())
}

fn value(number: u64) -> String {
    format!("value-{number}-{}", "x".repeat(100))
}

fn address(port: u16) -> Result<SocketAddr> {
    Ok(format!("{GUEST}:{port}").parse()?)
}

/// A connection that speaks Redis' protocol, as far as simple commands go.
struct Redis(BufReader<TcpStream>);

impl Redis {
    fn connect() -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address(REDIS_PORT)?, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Connects to one that is ready.
    fn greet() -> Result<Self> {
        let mut redis = Self::connect()?;
        let answer = redis.ask("PING\r\n")?;
        ensure!(answer == "+PONG", "redis answered {answer:?} to a greeting");
        Ok(redis)
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        self.0.get_mut().write_all(command.as_bytes())?;
        self.line()
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let count = self.0.read_line(&mut line)?;
        ensure!(count > 0, "redis closed the connection");
        Ok(line.trim_end().to_owned())
    }
}
