//! The asking side.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Answer, AnswerKind, ControlError, LINE_BYTES_MAX, Line, PATIENCE, Question, VERSION, system,
};
use crate::node::{NodeEvent, NodeStatus, Request};

/// How the node behind `path` is doing.
///
/// # Errors
/// If nobody answers there, the answer makes no sense, or it is just starting.
pub fn status(path: &Path) -> Result<NodeStatus, ControlError> {
    ask(path, Question::Status)
}

/// The last events of the node behind `path`, the oldest first.
///
/// # Errors
/// As [`status`].
pub fn events(path: &Path) -> Result<Vec<NodeEvent>, ControlError> {
    ask(path, Question::Events)
}

/// Makes a request of the node behind `path`.
///
/// # Errors
/// If nobody answers there, the answer makes no sense, or the request was denied.
pub fn request(path: &Path, request: Request) -> Result<(), ControlError> {
    ask(path, Question::Node(request))
}

/// Waits until the node behind `path`, and the program that serves it, have ended; says whether they have within
/// `patience`.
///
/// # Errors
/// If nobody answered there to begin with, or the answer makes no sense.
pub fn await_end(path: &Path, patience: Duration) -> Result<bool, ControlError> {
    let patience_ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
    let mut stream = send(
        path,
        Question::AwaitEnd { patience_ms },
        patience + PATIENCE,
    )?;
    let line = read_line(&mut stream, path);
    match line {
        // Ended in the middle of the answer.
        Ok(line) if !line.ends_with('\n') => Ok(true),
        Err(ControlError::System { source, .. })
            if source.kind() == std::io::ErrorKind::ConnectionReset =>
        {
            Ok(true)
        }
        line => {
            let ended = parse(&line?, path)?;
            if ended {
                // The program ends right afterwards, and its socket with it.
                stream
                    .set_read_timeout(Some(PATIENCE))
                    .map_err(system("use", path))?;
                let _ = stream.read(&mut [0]);
            }
            Ok(ended)
        }
    }
}

fn ask<T: DeserializeOwned>(path: &Path, question: Question) -> Result<T, ControlError> {
    let mut stream = send(path, question, PATIENCE)?;
    parse(&read_line(&mut stream, path)?, path)
}

fn send(path: &Path, question: Question, patience: Duration) -> Result<UnixStream, ControlError> {
    let mut stream = UnixStream::connect(path).map_err(system("connect to", path))?;
    stream
        .set_read_timeout(Some(patience))
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
    let mut line = String::new();
    BufReader::new(stream.take(LINE_BYTES_MAX))
        .read_line(&mut line)
        .map_err(system("read", path))?;
    Ok(line)
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
