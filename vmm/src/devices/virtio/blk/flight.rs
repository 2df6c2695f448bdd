//! The requests of a disk that are in flight: taken from the ring and not answered.
//!
//! What must not be done here: input or output, or touching guest memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use understudy_replication::disk::GuestFlush;
use vm_memory::GuestAddress;

use super::request::{QUEUE_SIZE, Segments};
use super::work::Failure;
use super::workers::Ticket;

/// No request is taken while those in flight hold this much memory. A driver that keeps to the limits it is told
/// stays below.
const BYTES_MAX: usize = 4 << 20;

/// Where the answer goes.
pub(super) struct Answer {
    pub(super) head: u16,
    pub(super) status_at: GuestAddress,
    pub(super) to: Asked,
}

/// What was asked for, as far as the answer depends on it.
pub(super) enum Asked {
    Read { into: Segments },
    Write { bytes: u64 },
    Flush,
    Range { is_discard: bool },
}

impl Asked {
    /// What moves together: reads from a cache say nothing of writes.
    fn kind(&self) -> usize {
        match self {
            Self::Read { .. } => 0,
            Self::Write { .. } | Self::Range { .. } => 1,
            Self::Flush => 2,
        }
    }
}

/// A request that the storage has failed. Whether the guest hears of it is yet to be decided.
pub(super) struct Held {
    pub(super) place: Answer,
    pub(super) failure: Failure,
}

/// How old requests in flight are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ages {
    /// The oldest.
    pub(super) oldest: Option<Duration>,
    /// For how long no read was answered although one is in flight, or no change, or no flush: the longest of these.
    pub(super) unmoved: Option<Duration>,
}

struct Request {
    ticket: Ticket,
    since: Instant,
    bytes: usize,
    kind: usize,
    /// `None` after a reset: nobody waits for it any more, but the storage may still be at it.
    answer: Option<Answer>,
}

/// The requests in flight.
#[derive(Default)]
pub(super) struct Flight {
    /// In the order in which they were taken.
    requests: Vec<Request>,
    /// Heads of chains that were in flight on the other host. They are yet to be given to the storage of this one.
    again: VecDeque<u16>,
    held: Vec<Held>,
    /// The storage of this host has done them. The guest waits for the other one.
    awaiting: Vec<(Answer, GuestFlush)>,
    /// When a request of each kind was answered last.
    moved: [Option<Instant>; 3],
    bytes: usize,
    last_ticket: Ticket,
    waiting: Waiting,
}

impl Flight {
    /// Whether another request may be taken. If not, the end of one changes that.
    pub(super) fn has_room(&self) -> bool {
        // What a driver asked for before its reset must not happen after something that it asks for now.
        let is_clear = self.requests.iter().all(|request| request.answer.is_some());
        let count = self.requests.len() + self.held.len() + self.awaiting.len();
        is_clear && count < usize::from(QUEUE_SIZE) && self.bytes < BYTES_MAX
    }

    pub(super) fn contains(&self, head: u16) -> bool {
        self.heads().any(|other| other == head)
    }

    /// Heads of all chains that must come back, oldest first.
    pub(super) fn heads(&self) -> impl Iterator<Item = u16> {
        let answers = self
            .requests
            .iter()
            .filter_map(|request| request.answer.as_ref());
        let held = self.held.iter().map(|held| &held.place);
        let awaiting = self.awaiting.iter().map(|(place, _)| place);
        answers
            .chain(held)
            .chain(awaiting)
            .map(|answer| answer.head)
            .chain(self.again.iter().copied())
    }

    pub(super) fn begin(&mut self, answer: Answer, bytes: usize) -> Ticket {
        self.last_ticket += 1;
        self.bytes += bytes;
        self.requests.push(Request {
            ticket: self.last_ticket,
            since: Instant::now(),
            bytes,
            kind: answer.to.kind(),
            answer: Some(answer),
        });
        self.tell();
        self.last_ticket
    }

    /// The request is over. Returns how long it took, and where the answer goes if somebody waits for it.
    pub(super) fn end(&mut self, ticket: Ticket) -> Option<(Duration, Option<Answer>)> {
        let mut requests = self.requests.iter();
        let at = requests.position(|request| request.ticket == ticket)?;
        let request = self.requests.remove(at);
        self.bytes -= request.bytes;
        self.moved[request.kind] = Some(Instant::now());
        self.tell();
        Some((request.since.elapsed(), request.answer))
    }

    /// Nobody waits for any of them any more. Those in `cancelled` are over.
    pub(super) fn disown(&mut self, cancelled: &[Ticket]) {
        self.again.clear();
        self.held.clear();
        self.awaiting.clear();
        for request in &mut self.requests {
            request.answer = None;
        }
        for ticket in cancelled {
            self.end(*ticket);
        }
        self.tell();
    }

    /// These chains were in flight on the other host.
    pub(super) fn set_again(&mut self, heads: impl IntoIterator<Item = u16>) {
        self.again = heads.into_iter().collect();
    }

    pub(super) fn take_again(&mut self) -> Option<u16> {
        self.again.pop_front()
    }

    /// The storage has failed it.
    pub(super) fn hold(&mut self, place: Answer, failure: Failure) {
        self.held.push(Held { place, failure });
    }

    /// The guest waits for this flush on the other host.
    pub(super) fn wait_for(&mut self, place: Answer, flush: GuestFlush) {
        self.awaiting.push((place, flush));
    }

    /// Takes those whose flush is done.
    pub(super) fn take_flushed(&mut self, is_done: impl Fn(GuestFlush) -> bool) -> Vec<Answer> {
        let done = self.awaiting.extract_if(.., |(_, flush)| is_done(*flush));
        done.map(|(place, _)| place).collect()
    }

    pub(super) fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    pub(super) fn take_held(&mut self) -> Vec<Held> {
        std::mem::take(&mut self.held)
    }

    /// What is held is done again. Returns what cannot be: a flush that failed may have lost what was written before it,
    /// which the host says once, so another one proves nothing.
    pub(super) fn retry_held(&mut self) -> Vec<Held> {
        let is_flush = |held: &Held| matches!(held.place.to, Asked::Flush);
        let (flushes, others): (Vec<_>, Vec<_>) = self.take_held().into_iter().partition(is_flush);
        self.again.extend(others.iter().map(|held| held.place.head));
        flushes
    }

    pub(super) fn ages(&self) -> Ages {
        let now = Instant::now();
        let unmoved = |kind: usize| {
            let mut requests = self.requests.iter();
            let oldest = requests.find(|request| request.kind == kind)?;
            let since = Some(oldest.since).max(self.moved[kind]);
            since.map(|since| now.saturating_duration_since(since))
        };
        Ages {
            oldest: self.requests.first().map(|oldest| now - oldest.since),
            unmoved: (0..self.moved.len()).filter_map(unmoved).max(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.requests.len() + self.held.len() + self.awaiting.len() + self.again.len()
    }

    pub(super) fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    fn tell(&self) {
        let oldest = self.requests.first().map(|request| request.since);
        *self.waiting.0.lock() = oldest;
    }
}

impl Drop for Flight {
    /// Nobody waits for a disk that is gone.
    fn drop(&mut self) {
        *self.waiting.0.lock() = None;
    }
}

/// For how long a disk's oldest request has been in flight. Whoever asks waits neither for storage nor for the device.
/// Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Waiting(Arc<Mutex<Option<Instant>>>);

impl Waiting {
    /// `None` if no request is in flight.
    #[must_use]
    pub fn longest(&self) -> Option<Duration> {
        self.0.lock().map(|since| since.elapsed())
    }
}
