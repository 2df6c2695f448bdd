//! What happens next. Everything happens in the order of (time, number of the event).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use understudy_replication::core::heartbeats::Heartbeat;
use understudy_replication::core::message::Message;
use understudy_replication::ids::Generation;
use understudy_replication::output::SealedOutput;

use super::backup_host::{Flushing, Persisting};
use super::faults::Fault;
use super::outside::{Answer, Process, Question};
use super::primary_host::Work;

pub enum Event {
    GuestStep(Process),
    Deliver(usize, usize),
    BeatTimer(Process),
    /// A heartbeat reaches a host.
    Beat(usize, Heartbeat),
    Connect(Process),
    /// All that was held when a side went alone has left.
    Opened(Process),
    Work(Process, u64, Work),
    Ask(Process, Question),
    Answer(Process, Answer),
    /// The output of the last committed epoch is sent once more.
    Repeat(Process, SealedOutput),
    Run(Process),
    /// The journal has taken an epoch's disk writes, or cannot.
    Persisted(Process, Persisting),
    /// The journal is on the disk, or cannot be.
    Flushed(Process, Flushing),
    /// A state was loaded on trial, or cannot be.
    RestoreTried(Process, u64, bool),
    /// The journal goes to the image.
    Destage(Process),
    /// A promoted side tries to get the lock of the shared disk.
    Lock(Process, Generation),
    Restart(Process),
    Thaw(Process),
    Fault(Fault),
    /// A stranger says the next thing over this link.
    Stranger(usize, VecDeque<(Generation, Message)>),
    /// Somebody sends a heartbeat again that was sent before.
    Replay,
    /// Whether all is well again is looked at.
    Check,
}

impl Event {
    /// The process that it is for; if that is gone, the event means nothing. `None` if it is for
    /// whoever is there.
    pub fn process(&self) -> Option<Process> {
        match self {
            Self::GuestStep(who)
            | Self::BeatTimer(who)
            | Self::Connect(who)
            | Self::Opened(who)
            | Self::Work(who, ..)
            | Self::Answer(who, _)
            | Self::Repeat(who, _)
            | Self::Persisted(who, _)
            | Self::Flushed(who, _)
            | Self::Destage(who)
            | Self::RestoreTried(who, ..)
            | Self::Lock(who, _)
            | Self::Run(who) => Some(*who),
            _ => None,
        }
    }
}

/// The events to come. An event is in `events`, at the place that its key names.
#[derive(Default)]
pub struct Queue {
    keys: BinaryHeap<Reverse<u128>>,
    events: Vec<Option<Event>>,
    vacant: Vec<u32>,
    number: u32,
}

impl Queue {
    pub fn push(&mut self, at: Duration, event: Event) {
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() as u32 - 1
        });
        self.events[place as usize] = Some(event);
        self.number += 1;
        let key = at.as_nanos() << 64 | u128::from(self.number) << 32 | u128::from(place);
        self.keys.push(Reverse(key));
    }

    /// When the next event is due.
    pub fn next_at(&self) -> Option<Duration> {
        let Reverse(key) = self.keys.peek()?;
        Some(Duration::from_nanos((key >> 64) as u64))
    }

    pub fn pop(&mut self) -> Option<Event> {
        let Reverse(key) = self.keys.pop()?;
        let place = key as u32;
        self.vacant.push(place);
        self.events[place as usize].take()
    }
}
