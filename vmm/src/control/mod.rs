//! The control socket: how `vmm status` and `vmm failover` reach a running `vmm`. A Unix stream
//! socket; one JSON object a line each way. A request is `{"command": "status"}`, an answer
//! `{"ok": …}` or `{"error": "…"}`.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;

mod report;
#[cfg(test)]
mod tests;

pub use report::{GuestNotes, GuestReport, Report, RunReport, Unprotected};

/// Longest line either side accepts.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// How long a client or the server waits for the other's line.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients served side by side; further ones are turned away.
const CLIENTS_MAX: usize = 16;

/// What can be asked of a running `vmm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// How things stand.
    Status,
    /// Promote this standby.
    Failover,
    /// Stop the guest, or the standby, cleanly.
    Stop,
    /// Press the guest's power button.
    #[serde(rename = "power-button")]
    PowerButton,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    command: Command,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Answer {
    Ok(Value),
    Error(String),
}

/// Why a control socket cannot be had, or gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another process serves it.
    #[error(
        "the control socket {} is in use by a running vmm; choose another with --control", path.display()
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has the socket's name.
    #[error("{} is there already and is no socket; choose another with --control", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {what} the control socket {}", path.display())]
    System {
        /// What was attempted.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The answer made no sense.
    #[error("the answer on {} is no vmm's: {why}", path.display())]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The running `vmm` refused.
    #[error("{0}")]
    Refused(String),
}

/// Answers requests; called on a thread of the request's own.
pub type Handler = Arc<dyn Fn(Command) -> Result<Value, String> + Send + Sync>;

/// A served control socket. Dropping it removes the socket's file; a request under way is finished.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
}

impl ControlServer {
    /// Serves `path`. A file left behind by a dead process is replaced.
    ///
    /// # Errors
    /// If a living process serves it, or it cannot be bound.
    pub fn start(path: &Path, handler: Handler) -> Result<Self, ControlError> {
        let system = |what| {
            move |source| ControlError::System {
                what,
                path: path.to_path_buf(),
                source,
            }
        };
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                let found = std::fs::symlink_metadata(path).map_err(system("replace"))?;
                if !found.file_type().is_socket() {
                    return Err(ControlError::NoSocket { path: path.into() });
                }
                match UnixStream::connect(path) {
                    Ok(_) => return Err(ControlError::InUse { path: path.into() }),
                    // Nobody listens any more.
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                    Err(error) => return Err(system("replace")(error)),
                }
                std::fs::remove_file(path).map_err(system("replace"))?;
                UnixListener::bind(path).map_err(system("bind"))?
            }
            bound => bound.map_err(system("bind"))?,
        };
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || serve(&listener, &handler))
            .map_err(system("serve"))?;
        Ok(Self { path: path.into() })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // Somebody else may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Each client has a thread, so that one that says nothing keeps nobody from asking for a failover.
fn serve(listener: &UnixListener, handler: &Handler) {
    let clients = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of descriptors: others are about to give some back.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        if clients.fetch_add(1, Ordering::AcqRel) >= CLIENTS_MAX {
            clients.fetch_sub(1, Ordering::AcqRel);
            tracing::debug!("a control client too many");
            continue;
        }
        let (handler, served) = (Arc::clone(handler), Arc::clone(&clients));
        let spawned = std::thread::Builder::new()
            .name("control-client".into())
            .spawn(move || {
                if let Err(error) = answer(stream, &handler) {
                    tracing::debug!(%error, "control client");
                }
                served.fetch_sub(1, Ordering::AcqRel);
            });
        if let Err(error) = spawned {
            clients.fetch_sub(1, Ordering::AcqRel);
            tracing::debug!(%error, "control client");
        }
    }
}

/// Reads a whole line within [`PATIENCE`], however slowly it drips.
fn read_request(stream: &UnixStream) -> std::io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut reader = BufReader::new(stream.take(LINE_BYTES_MAX));
    let mut line = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let bytes = match reader.fill_buf() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = bytes.iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
        let (taken, is_last) = (bytes.len(), end.is_some() || bytes.is_empty());
        if is_last {
            return String::from_utf8(line)
                .map_err(|error| std::io::Error::new(ErrorKind::InvalidData, error));
        }
        reader.consume(taken);
    }
}

fn answer(mut stream: UnixStream, handler: &Handler) -> std::io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let line = read_request(&stream)?;
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(request) => match handler(request.command) {
            Ok(value) => Answer::Ok(value),
            Err(why) => Answer::Error(why),
        },
        Err(error) => Answer::Error(format!("not a request: {error}")),
    };
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    stream.write_all(text.as_bytes())
}

/// Asks the `vmm` behind `path`.
///
/// # Errors
/// If nobody answers there, the answer makes no sense, or the request was refused.
pub fn ask(path: &Path, command: Command) -> Result<Value, ControlError> {
    let system = |what| {
        move |source| ControlError::System {
            what,
            path: path.to_path_buf(),
            source,
        }
    };
    let mut stream = UnixStream::connect(path).map_err(system("connect to"))?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .map_err(system("use"))?;
    let malformed = |why: String| ControlError::Malformed {
        path: path.into(),
        why,
    };
    let mut text = serde_json::to_string(&Request { command })
        .map_err(|error| malformed(error.to_string()))?;
    text.push('\n');
    stream
        .write_all(text.as_bytes())
        .map_err(system("write to"))?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX))
        .read_line(&mut line)
        .map_err(system("read"))?;
    match serde_json::from_str(&line).map_err(|error| malformed(error.to_string()))? {
        Answer::Ok(value) => Ok(value),
        Answer::Error(why) => Err(ControlError::Refused(why)),
    }
}
