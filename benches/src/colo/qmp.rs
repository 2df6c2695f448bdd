//! QEMU's machine protocol: commands, their answers, and events with the time at which they happened.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two attempts to connect.
const LOOK: Duration = Duration::from_millis(10);

/// An event, and when it happened, by the wall clock.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) name: String,
    pub(super) at: Duration,
}

/// A connection to one QEMU.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: UnixStream,
    answers: Receiver<Value>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Qmp {
    /// Connects to a QEMU that is starting.
    pub(super) fn connect(path: &Path) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => std::thread::sleep(LOOK),
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("QEMU offers no {}", path.display()));
                }
            }
        };
        let (sender, answers) = channel();
        let events = Arc::default();
        let (read, heard) = (stream.try_clone()?, Arc::clone(&events));
        std::thread::spawn(move || listen(read, &sender, &heard));
        let qmp = Self {
            stream,
            answers,
            events,
        };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and returns its answer.
    pub(super) fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        (&self.stream)
            .write_all(line.as_bytes())
            .with_context(|| format!("QEMU does not take {command}"))?;
        let answer = self
            .answers
            .recv_timeout(PATIENCE)
            .with_context(|| format!("QEMU does not answer {command}"))?;
        match answer.get("error") {
            Some(error) => bail!("QEMU refuses {command}: {error}"),
            None => Ok(answer["return"].clone()),
        }
    }

    /// All events so far.
    pub(super) fn events(&self) -> Vec<Event> {
        let events = self.events.lock();
        events.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Sorts what QEMU says, until it says nothing more.
fn listen(stream: UnixStream, answers: &Sender<Value>, events: &Mutex<Vec<Event>>) {
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let Ok(said) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        if let Some(event) = event(&said) {
            let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
            events.push(event);
        } else if said.get("QMP").is_none() && answers.send(said).is_err() {
            return;
        }
    }
}

fn event(said: &Value) -> Option<Event> {
    let at = &said["timestamp"];
    Some(Event {
        name: said.get("event")?.as_str()?.to_owned(),
        at: Duration::from_secs(at["seconds"].as_u64()?)
            + Duration::from_micros(at["microseconds"].as_u64()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_from_answers_and_have_their_time() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (sender, answers) = channel();
        let events = Mutex::default();
        for line in [
            r#"{"QMP": {"version": {}}}"#,
            r#"{"timestamp": {"seconds": 5, "microseconds": 250}, "event": "STOP"}"#,
            r#"{"return": {"status": "colo"}}"#,
            "no JSON",
        ] {
            writeln!(&theirs, "{line}").unwrap();
        }
        drop(theirs);
        listen(ours, &sender, &events);
        let answers: Vec<Value> = answers.try_iter().collect();
        assert_eq!(answers, [json!({"return": {"status": "colo"}})]);
        let events = events.into_inner().unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].name, "STOP");
        assert_eq!(events[0].at, Duration::new(5, 250_000));
    }
}
