//! The asking side.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Answer, AnswerKind, ControlError, LINE_BYTES_MAX, Line, PATIENCE, Question, VERSION, Verifying,
    system,
};
use crate::node::{NodeEvent, NodeStatus, Request, Verified, VerifyOptions};

/// Silence of a comparison of disks that is too long: a standby that does not answer has so long.
const VERIFY_PATIENCE: Duration = Duration::from_secs(90);

/// How the node behind `path` is doing.
///
/// # Errors
/// If nobody answers there, the answer makes no sense, or it is just starting.
pub fn status(path: &Path) -> Result<NodeStatus, ControlError> {
    ask(path, Question::Status, Duration::ZERO)
}

/// The last events of the node behind `path` whose number is above `after`, the oldest first. Waits for one up to
/// `patience`.
///
/// # Errors
/// If nobody answers there, or the answer makes no sense.
pub fn events(path: &Path, after: u64, patience: Duration) -> Result<Vec<NodeEvent>, ControlError> {
    let patience_ms = milliseconds(patience);
    ask(path, Question::Events { after, patience_ms }, patience)
}

/// Makes a request of the node behind `path`.
///
/// # Errors
/// If nobody answers there, the answer makes no sense, or the request was denied.
pub fn request(path: &Path, request: Request) -> Result<(), ControlError> {
    ask(path, Question::Node(request), Duration::ZERO)
}

/// Has the primary behind `path` compare its disks' images with the standby's. `progress` is told about once a second
/// how far it is. If this program ends before, the comparison does.
///
/// # Errors
/// If nobody answers there, the answer makes no sense, or the images are not compared to the end.
pub fn verify_disks(
    path: &Path,
    options: VerifyOptions,
    mut progress: impl FnMut(&Verifying),
) -> Result<Verified, ControlError> {
    let question = Question::VerifyDisks {
        bytes_per_second: options.bytes_per_second,
        repair: options.repair,
    };
    let stream = send(path, question, VERIFY_PATIENCE)?;
    let mut lines = BufReader::new(stream);
    loop {
        let now: Verifying = parse(&next_line(&mut lines, path)?, path)?;
        progress(&now);
        if now.done {
            return Ok(now.found);
        }
    }
}

/// A wait for an end that has begun. Whoever is about to bring that end about begins to wait first: afterwards there
/// may be nobody to ask any more.
#[derive(Debug)]
pub struct EndWatch {
    stream: UnixStream,
    path: PathBuf,
}

/// Begins to wait until the node behind `path`, and the program that serves it, have ended; at most for `patience`.
///
/// # Errors
/// If nobody is there.
pub fn watch_end(path: &Path, patience: Duration) -> Result<EndWatch, ControlError> {
    let question = Question::AwaitEnd {
        patience_ms: milliseconds(patience),
    };
    Ok(EndWatch {
        stream: send(path, question, patience)?,
        path: path.into(),
    })
}

impl EndWatch {
    /// Waits for it; says whether it has come in time.
    ///
    /// # Errors
    /// If the answer makes no sense.
    pub fn wait(mut self) -> Result<bool, ControlError> {
        let path = &self.path;
        let line = match read_line(&mut self.stream, path) {
            Err(ControlError::Gone { .. }) => return Ok(true),
            line => line?,
        };
        let ended = parse(&line, path)?;
        if ended {
            // The program ends right afterwards, and its socket with it.
            self.stream
                .set_read_timeout(Some(PATIENCE))
                .map_err(system("use", path))?;
            let _ = self.stream.read(&mut [0]);
        }
        Ok(ended)
    }
}

/// Asks a question whose answer may take `patience`.
fn ask<T: DeserializeOwned>(
    path: &Path,
    question: Question,
    patience: Duration,
) -> Result<T, ControlError> {
    let mut stream = send(path, question, patience)?;
    parse(&read_line(&mut stream, path)?, path)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn send(path: &Path, question: Question, patience: Duration) -> Result<UnixStream, ControlError> {
    let mut stream = UnixStream::connect(path).map_err(system("connect to", path))?;
    stream
        .set_read_timeout(Some(patience + PATIENCE))
        .map_err(system("use", path))?;
    let line = Line { request: question };
    let mut text = serde_json::to_string(&line).map_err(|error| malformed(path, error))?;
    text.push('\n');
    stream
        .write_all(text.as_bytes())
        .map_err(system("write to", path))?;
    Ok(stream)
}

fn read_line(stream: &mut UnixStream, path: &Path) -> Result<String, ControlError> {
    next_line(&mut BufReader::new(stream), path)
}

fn next_line(reader: &mut impl BufRead, path: &Path) -> Result<String, ControlError> {
    let mut line = String::new();
    let read = reader.take(LINE_BYTES_MAX).read_line(&mut line);
    match read {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => {
            Err(system("read", path)(error))
        }
        Ok(_) if line.ends_with('\n') => Ok(line),
        _ => Err(ControlError::Gone { path: path.into() }),
    }
}

fn parse<T: DeserializeOwned>(line: &str, path: &Path) -> Result<T, ControlError> {
    let value: Value = serde_json::from_str(line).map_err(|error| malformed(path, error))?;
    let found = value["version"].as_u64().map(|found| found as u32);
    if found != Some(VERSION) {
        let path = path.into();
        return Err(ControlError::OtherVersion { path, found });
    }
    let answer: Answer = serde_json::from_value(value).map_err(|error| malformed(path, error))?;
    match answer.what {
        AnswerKind::Ok(value) => {
            serde_json::from_value(value).map_err(|error| malformed(path, error))
        }
        AnswerKind::Denied(denial) => Err(ControlError::Denied(denial)),
        AnswerKind::Error(why) => Err(malformed(path, why)),
    }
}

fn malformed(path: &Path, why: impl std::fmt::Display) -> ControlError {
    ControlError::Malformed {
        path: path.into(),
        why: why.to_string(),
    }
}
