//! The logging channel of the simulation: two directions of bytes, cut into frames by the
//! transport's own code, that can be slow, stall, break, and damage what they carry.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use understudy_replication::core::message::Message;
use understudy_replication::ids::Generation;
use understudy_transport::{Frame, FrameDecoder, Limits};

use super::outside::Process;

/// One direction.
pub struct Pipe {
    queue: VecDeque<(Duration, Chunk)>,
    last_due: Duration,
    /// When the last byte sent has left.
    busy_until: Duration,
    sequence: u64,
    decoder: FrameDecoder,
    pub stalled_until: Duration,
    /// What happens to the next frame.
    pub damage: Option<Damage>,
    ended: bool,
}

enum Chunk {
    Bytes(Vec<u8>),
    End,
}

/// Damage to a frame on its way.
#[derive(Debug, Clone, Copy)]
pub enum Damage {
    /// A byte is flipped: which one, and how.
    Flip(u64, u8),
    /// Only so much of it arrives, and nothing after it.
    Cut(u64),
}

/// What arrives at the end of a pipe.
pub enum Arrival {
    Message(Generation, Box<Message>),
    /// The peer closed or reset the link.
    Closed,
    /// What arrived is malformed.
    Broken(String),
}

impl Pipe {
    fn new() -> Self {
        Self {
            queue: VecDeque::new(),
            last_due: Duration::ZERO,
            busy_until: Duration::ZERO,
            sequence: 0,
            decoder: FrameDecoder::new(Limits::default()),
            stalled_until: Duration::ZERO,
            damage: None,
            ended: false,
        }
    }

    /// Sends a message at `now` that takes `latency`, behind the one before.
    pub fn send(
        &mut self,
        now: Duration,
        latency: Duration,
        byte_ns: u64,
        generation: Generation,
        message: &Message,
    ) {
        let (kind, epoch, body) = message.encode();
        let frame = Frame {
            kind,
            generation: generation.0,
            epoch,
            body,
        };
        let header = frame.encode_header(self.sequence, Limits::default());
        let mut bytes = header.expect("bounded").to_vec();
        self.sequence += 1;
        bytes.extend(&frame.body);
        let sending = Duration::from_nanos(byte_ns * bytes.len() as u64);
        self.busy_until = self.busy_until.max(now) + sending;
        let due = self.busy_until + latency;
        match self.damage.take() {
            Some(Damage::Flip(at, with)) => {
                let at = at as usize % bytes.len();
                bytes[at] ^= with.max(1);
            }
            Some(Damage::Cut(at)) => {
                bytes.truncate(at as usize % bytes.len());
                self.push(due, Chunk::Bytes(bytes));
                self.close(due);
                return;
            }
            None => {}
        }
        self.push(due, Chunk::Bytes(bytes));
    }

    /// Closes this direction behind what was sent.
    pub fn close(&mut self, due: Duration) {
        self.push(due, Chunk::End);
        self.ended = true;
    }

    /// Resets it: what is on its way is lost.
    pub fn reset(&mut self, due: Duration) {
        self.queue.clear();
        self.ended = false;
        self.last_due = Duration::ZERO;
        self.close(due);
    }

    /// Nothing more arrives, not even an end: the host is gone.
    pub fn lose(&mut self) {
        self.queue.clear();
        self.ended = true;
    }

    fn push(&mut self, due: Duration, chunk: Chunk) {
        if !self.ended {
            self.last_due = self.last_due.max(due);
            self.queue.push_back((self.last_due, chunk));
        }
    }

    /// When something may arrive next.
    pub fn next_due(&self) -> Option<Duration> {
        let (due, _) = self.queue.front()?;
        Some((*due).max(self.stalled_until))
    }

    /// What has arrived by `now`, one thing at a time.
    pub fn arrive(&mut self, now: Duration) -> Option<Arrival> {
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Some(decode(frame)),
                Ok(None) => {}
                Err(error) => return Some(Arrival::Broken(error.to_string())),
            }
            if self.next_due()? > now {
                return None;
            }
            match self.queue.pop_front()?.1 {
                Chunk::Bytes(bytes) => self.decoder.feed(&bytes),
                Chunk::End => return Some(Arrival::Closed),
            }
        }
    }
}

fn decode(frame: Frame) -> Arrival {
    let body: Bytes = frame.body;
    match Message::decode(frame.kind, frame.epoch, body) {
        Ok(message) => Arrival::Message(Generation(frame.generation), Box::new(message)),
        Err(error) => Arrival::Broken(error.to_string()),
    }
}

/// A connection of a primary to a backup.
pub struct Link {
    pub primary: Process,
    pub backup: Process,
    pub to_backup: Pipe,
    pub to_primary: Pipe,
}

impl Link {
    pub fn new(primary: Process, backup: Process) -> Self {
        Self {
            primary,
            backup,
            to_backup: Pipe::new(),
            to_primary: Pipe::new(),
        }
    }

    /// The pipe that `host` reads.
    pub fn incoming(&mut self, host: usize) -> &mut Pipe {
        if host == self.backup.0 {
            &mut self.to_backup
        } else {
            &mut self.to_primary
        }
    }

    /// The pipe that `host` writes.
    pub fn outgoing(&mut self, host: usize) -> &mut Pipe {
        if host == self.backup.0 {
            &mut self.to_primary
        } else {
            &mut self.to_backup
        }
    }

    pub fn peer(&self, host: usize) -> Process {
        if host == self.backup.0 {
            self.primary
        } else {
            self.backup
        }
    }
}
