//! The thread behind a console: what it writes together, and what it drops.

use std::io;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;

use super::DEADLINE;
use crate::output::ConsoleSink;
use crate::output::writer::ConsoleWriter;

type Writes = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

/// Notes each write, and takes its time: one permit for each.
struct Noting {
    begun: mpsc::Sender<()>,
    permits: mpsc::Receiver<()>,
    writes: Writes,
}

impl ConsoleSink for Noting {
    fn position(&mut self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn append(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        // Nobody waits for the later ones to begin.
        let _ = self.begun.send(());
        let permit = self.permits.recv_timeout(DEADLINE);
        permit.map_err(io::Error::other)?;
        self.writes.lock().push((position, bytes.to_vec()));
        Ok(())
    }
}

/// A writer whose first write, of `"a"` at 0, is under way until the first permit.
fn busy_writer() -> (Arc<ConsoleWriter>, mpsc::Sender<()>, Writes) {
    let (permit, permits) = mpsc::channel();
    let (begun, has_begun) = mpsc::channel();
    let writes = Writes::default();
    let sink = Noting {
        begun,
        permits,
        writes: Arc::clone(&writes),
    };
    let writer = ConsoleWriter::spawn(0, Box::new(sink), Arc::new(|| ()), 1 << 20).unwrap();
    writer.push(0, b"a");
    has_begun.recv_timeout(DEADLINE).unwrap();
    (writer, permit, writes)
}

fn queued(writer: &ConsoleWriter) -> usize {
    let mut bytes = 0;
    writer.refuses(|queued| {
        bytes = queued;
        false
    });
    bytes
}

fn all_written(
    writer: &ConsoleWriter,
    permit: &mpsc::Sender<()>,
    writes: &Writes,
) -> Vec<(u64, Vec<u8>)> {
    for _ in 0..10 {
        permit.send(()).unwrap();
    }
    assert!(writer.wait_idle(DEADLINE));
    assert_eq!(queued(writer), 0);
    let written = std::mem::take(&mut *writes.lock());
    writer.close();
    written
}

#[test]
fn bytes_that_follow_each_other_are_written_together_and_others_where_they_belong() {
    let (writer, permit, writes) = busy_writer();
    for (position, text) in [(1, "b"), (2, "cd"), (10, "k"), (11, "l")] {
        writer.push(position, text.as_bytes());
    }
    let expected = [(0, "a"), (1, "bcd"), (10, "kl")].map(|(at, text)| (at, text.into()));
    assert_eq!(all_written(&writer, &permit, &writes), expected);
}

#[test]
fn no_more_than_64_kib_are_written_together() {
    let (writer, permit, writes) = busy_writer();
    for (position, bytes) in [
        (1, 60 << 10),
        (1 + (60 << 10), 4 << 10),
        (1 + (64 << 10), 1),
    ] {
        writer.push(position, &vec![b'x'; bytes]);
    }
    let written = all_written(&writer, &permit, &writes);
    let lengths: Vec<_> = written.iter().map(|(_, bytes)| bytes.len()).collect();
    assert_eq!(lengths, [1, 64 << 10, 1]);
}

#[test]
fn once_it_is_shut_only_the_write_in_progress_is_finished() {
    let (writer, permit, writes) = busy_writer();
    writer.push(1, b"never");
    assert!(!writer.shut(Duration::ZERO), "a write is in progress");
    assert_eq!(queued(&writer), 1);
    writer.push(6, b"nor this");
    assert_eq!(queued(&writer), 1);
    permit.send(()).unwrap();
    assert!(writer.shut(DEADLINE), "nothing is left");
    assert_eq!(*writes.lock(), [(0, b"a".to_vec())]);
    assert_eq!(queued(&writer), 0);
}
