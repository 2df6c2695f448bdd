//! The serving side: hands questions to a node.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::{Mode, fchmod};
use parking_lot::{Condvar, Mutex};
use serde::Serialize;
use serde_json::Value;
use understudy_replication::LogThinning;

use super::clients::{Client, Clients};
use super::{
    Answer, AnswerKind, ControlError, Line, PATIENCE, Question, VERSION, Verifying, system,
};
use crate::node::{Denial, NodeHandle, VerifyOptions};

/// Longest line taken from a client.
const QUESTION_BYTES_MAX: u64 = 4 << 10;
/// Who may use the socket: whoever may can stop the guest.
const MODE: u32 = 0o600;
/// Longest wait that one question may ask for.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest wait, at the end, for answers under way.
const ANSWERS_PATIENCE: Duration = Duration::from_millis(500);
/// How often somebody who has disks compared is told how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// A control socket that nobody serves yet, but that is this process' already.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    server: ControlServer,
}

/// A served control socket. Dropping it removes the socket's file, and waits a moment for answers under way.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    unanswered: Arc<Unanswered>,
}

/// Counts the questions that have been read and not answered.
#[derive(Debug, Default)]
struct Unanswered {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Unanswered {
    fn add(self: &Arc<Self>) -> Counted {
        *self.count.lock() += 1;
        Counted(Arc::clone(self))
    }

    fn wait_for_none(&self, deadline: Instant) {
        let mut count = self.count.lock();
        while *count > 0 && !self.changed.wait_until(&mut count, deadline).timed_out() {}
    }
}

/// A question that counts until this is dropped.
struct Counted(Arc<Unanswered>);

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.count.lock() -= 1;
        self.0.changed.notify_all();
    }
}

impl ControlSocket {
    /// Takes `path`. A file left behind by a dead process is replaced.
    ///
    /// # Errors
    /// If a living process serves it, or it cannot be bound.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let listener = match bind_private(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                let found = std::fs::symlink_metadata(path).map_err(system("replace", path))?;
                if !found.file_type().is_socket() {
                    return Err(ControlError::NoSocket { path: path.into() });
                }
                match UnixStream::connect(path) {
                    Ok(_) => return Err(ControlError::InUse { path: path.into() }),
                    // Nobody listens any more.
                    Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                    Err(error) => return Err(system("replace", path)(error)),
                }
                std::fs::remove_file(path).map_err(system("replace", path))?;
                bind_private(path).map_err(system("bind", path))?
            }
            bound => bound.map_err(system("bind", path))?,
        };
        let server = ControlServer {
            path: path.into(),
            unanswered: Arc::default(),
        };
        Ok(Self { listener, server })
    }

    /// Serves it from now on.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn serve(self, node: NodeHandle) -> Result<ControlServer, ControlError> {
        let Self { listener, server } = self;
        let unanswered = Arc::clone(&server.unanswered);
        std::thread::Builder::new()
            .name("control".into())
            .spawn(move || serve(&listener, &node, &unanswered))
            .map_err(system("serve", &server.path))?;
        Ok(server)
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // Somebody else may have removed it already.
        let _ = std::fs::remove_file(&self.path);
        let deadline = Instant::now() + ANSWERS_PATIENCE;
        self.unanswered.wait_for_none(deadline);
    }
}

/// Listens on a new socket that is nobody else's from its first moment on, whatever the umask says.
fn bind_private(path: &Path) -> std::io::Result<UnixListener> {
    let (family, kind) = (AddressFamily::Unix, SockType::Stream);
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // The file gets what the socket has, less the umask.
    fchmod(&socket, Mode::from_bits_truncate(MODE))?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    std::fs::set_permissions(path, Permissions::from_mode(MODE))?;
    listen(&socket, Backlog::MAXCONN)?;
    Ok(UnixListener::from(socket))
}

/// Each client has a thread, so that one that says nothing keeps nobody from asking for a failover.
fn serve(listener: &UnixListener, node: &NodeHandle, unanswered: &Arc<Unanswered>) {
    let clients = Arc::new(Clients::default());
    let mut log = LogThinning::default();
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of descriptors: others are about to give some back.
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        let Some(client) = clients.enter(&stream) else {
            if let Some(left_out) = log.line("too many") {
                tracing::warn!(left_out, "all places at the control socket are taken");
            }
            // What is in the way of this small answer is the client's loss.
            let _ = stream.set_nonblocking(true);
            let _ = tell(&stream, AnswerKind::Denied(Denial::Busy));
            continue;
        };
        let (node, unanswered) = (node.clone(), Arc::clone(unanswered));
        let spawned = std::thread::Builder::new()
            .name("control-client".into())
            .spawn(move || {
                if let Err(error) = answer(stream, &client, &node, &unanswered) {
                    tracing::debug!(%error, "control client");
                }
            });
        if let Err(error) = spawned
            && let Some(left_out) = log.line("thread")
        {
            tracing::warn!(%error, left_out, "cannot serve a control client");
        }
    }
}

/// Reads a whole line within [`PATIENCE`], however slowly it drips.
fn read_question(stream: &UnixStream) -> std::io::Result<String> {
    let deadline = Instant::now() + PATIENCE;
    let mut reader = BufReader::new(stream.take(QUESTION_BYTES_MAX));
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

fn answer(
    mut stream: UnixStream,
    client: &Client,
    node: &NodeHandle,
    unanswered: &Arc<Unanswered>,
) -> std::io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let line = read_question(&stream)?;
    client.asks();
    let counted = unanswered.add();
    let question = serde_json::from_str::<Line>(&line).map(|line| line.request);
    let what = match &question {
        Ok(question) if question.waits() && !client.may_wait() => AnswerKind::Denied(Denial::Busy),
        Ok(Question::VerifyDisks {
            bytes_per_second,
            repair,
        }) => verify(
            &stream,
            node,
            VerifyOptions {
                bytes_per_second: *bytes_per_second,
                repair: *repair,
            },
        )?,
        Ok(question) => match ask(node, *question) {
            Ok(value) => AnswerKind::Ok(value?),
            Err(denial) => AnswerKind::Denied(denial),
        },
        Err(error) => AnswerKind::Error(format!("not a request: {error}")),
    };
    client.is_told();
    tell(&stream, what)?;
    drop(counted);
    if matches!(question, Ok(Question::AwaitEnd { .. })) {
        // Whoever waits for the end of the node reads on, to see that of the process.
        stream.set_read_timeout(Some(PATIENCE))?;
        let _ = stream.read(&mut [0]);
    }
    Ok(())
}

fn tell(mut stream: &UnixStream, what: AnswerKind) -> std::io::Result<()> {
    let answer = Answer {
        version: VERSION,
        what,
    };
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    stream.write_all(text.as_bytes())
}

/// Has the disks compared, and tells how far it is. It is given up when nobody listens any more.
fn verify(
    stream: &UnixStream,
    node: &NodeHandle,
    options: VerifyOptions,
) -> std::io::Result<AnswerKind> {
    let value = |done, found| serde_json::to_value(Verifying { done, found });
    let mut told_at = Instant::now();
    let found = node.verify_disks(options, &mut |found| {
        if told_at.elapsed() < PROGRESS_INTERVAL {
            return true;
        }
        told_at = Instant::now();
        value(false, found.clone()).is_ok_and(|now| tell(stream, AnswerKind::Ok(now)).is_ok())
    });
    Ok(match found {
        Ok(found) => AnswerKind::Ok(value(true, found)?),
        Err(denial) => AnswerKind::Denied(denial),
    })
}

fn deadline(patience_ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(patience_ms).min(WAIT_MAX)
}

type Made = serde_json::Result<Value>;

fn ask(node: &NodeHandle, question: Question) -> Result<Made, Denial> {
    fn made(value: impl Serialize) -> Made {
        serde_json::to_value(value)
    }
    match question {
        Question::Status => node.status().map(made),
        Question::Events { after, patience_ms } => {
            let deadline = match node.watch().now().ended {
                Some(_) => Instant::now(),
                None => deadline(patience_ms),
            };
            Ok(made(node.events_after(after, deadline)))
        }
        Question::AwaitEnd { patience_ms } => {
            let deadline = deadline(patience_ms);
            let ended = node.watch().wait_until(deadline, |now| now.ended.is_some());
            Ok(made(ended.is_some()))
        }
        Question::VerifyDisks { .. } => Err(Denial::Busy),
        Question::Node(request) => node.request(request).map(made),
    }
}
