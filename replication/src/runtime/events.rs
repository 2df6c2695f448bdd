//! What happens to a protected guest, as it happens: for logs, control sockets and programs that
//! react.
//!
//! Must not be done here: waiting for a listener. A slow listener misses events and is told how
//! many. The status in [`status`](super::status) is always complete.

use std::time::SystemTime;

use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::broadcast::{Receiver, Sender, channel};

use crate::core::message::Trouble;
use crate::ids::{EpochId, Generation};

/// How many events a listener may be behind.
const BEHIND_MAX: usize = 256;

/// Something that happened to one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// When.
    pub at: SystemTime,
    /// The virtual machine.
    pub vm: String,
    /// The name of the side where it happened.
    pub node: String,
    /// The generation at that time.
    pub generation: Generation,
    /// What.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum EventKind {
    /// The guest would now survive the loss of the primary's host. A standby says so, too.
    Protected,
    /// The guest would not survive it. A primary that was protected holds the guest's output until
    /// it is known which side goes on.
    Unprotected,
    /// The guest goes on without a backup, by the arbiter's grant.
    GoingAlone {
        /// Why the backup is lost.
        cause: String,
    },
    /// The standby has taken over: the guest runs here.
    Promoted {
        /// The epoch that it continues from.
        epoch: EpochId,
        /// Why the primary counted as lost.
        cause: String,
        /// Its machine had broken. If the one here soon breaks, too, it is the guest that breaks it.
        machine_broke: bool,
    },
    /// A primary knows now what fails on the backup's host of what the guest would need there.
    BackupHealth {
        /// All of it; `None` if the backup has not said so, or there is none any more.
        troubles: Option<Vec<Trouble>>,
    },
    /// The guest was to be handed over to the backup, or its machine has broken, and it stays here.
    NotHandedOver {
        /// Why, for people.
        why: String,
    },
    /// Another side owns the guest, which is stopped here.
    Fenced {
        /// The reason, for people.
        reason: String,
    },
    /// This side's work has ended. This is the last event.
    Ended,
    /// Something else is wrong; the text says what. The same alarm may be repeated while the cause
    /// remains.
    Alarm(String),
    /// The listener was too slow: this many events before the next one are lost.
    Missed(u64),
}

/// A listener's view of what happens. The first event is the state at the subscription:
/// [`Protected`](EventKind::Protected), [`Unprotected`](EventKind::Unprotected) or
/// [`Ended`](EventKind::Ended). A slow listener misses events.
#[derive(Debug)]
pub struct Events {
    /// The state at the subscription, until it is delivered.
    first: Option<Event>,
    receiver: Receiver<Event>,
    /// The end has been delivered.
    over: bool,
    vm: String,
    node: String,
    /// The generation of the last event delivered.
    generation: Generation,
}

impl Events {
    /// The next event; `None` once no more can come. Cancel safe.
    pub async fn recv(&mut self) -> Option<Event> {
        let received = match self.known() {
            Some(known) => known,
            None => self.receiver.recv().await,
        };
        self.told(received)
    }

    /// The same for a thread, which it blocks. Must not be called from within an asynchronous
    /// runtime.
    pub fn blocking_recv(&mut self) -> Option<Event> {
        let known = self.known();
        let received = known.unwrap_or_else(|| self.receiver.blocking_recv());
        self.told(received)
    }

    /// An event that has already happened and was not delivered yet.
    pub fn try_recv(&mut self) -> Option<Event> {
        let received = match self.known() {
            Some(known) => known,
            None => match self.receiver.try_recv() {
                Ok(event) => Ok(event),
                Err(TryRecvError::Lagged(missed)) => Err(RecvError::Lagged(missed)),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
            },
        };
        self.told(received)
    }

    /// What can be delivered without waiting.
    fn known(&mut self) -> Option<Result<Event, RecvError>> {
        if self.over {
            return Some(Err(RecvError::Closed));
        }
        self.first.take().map(Ok)
    }

    fn told(&mut self, received: Result<Event, RecvError>) -> Option<Event> {
        match received {
            Ok(event) => {
                self.generation = event.generation;
                self.over = event.kind == EventKind::Ended;
                Some(event)
            }
            Err(RecvError::Closed) => None,
            Err(RecvError::Lagged(missed)) => {
                let (vm, node) = (self.vm.clone(), self.node.clone());
                let kind = EventKind::Missed(missed);
                Some(Event::now(vm, node, self.generation, kind))
            }
        }
    }
}

impl Event {
    fn now(vm: String, node: String, generation: Generation, kind: EventKind) -> Self {
        Self {
            at: SystemTime::now(),
            vm,
            node,
            generation,
            kind,
        }
    }
}

/// Where events come from. Never waits.
#[derive(Debug)]
pub(super) struct EventSource(Sender<Event>);

impl EventSource {
    pub(super) fn new() -> Self {
        Self(channel(BEHIND_MAX).0)
    }

    /// A view that begins with `first`.
    pub(super) fn subscribe(
        &self,
        vm: &str,
        node: &str,
        generation: u64,
        first: EventKind,
    ) -> Events {
        let (vm, node, generation) = (vm.to_owned(), node.to_owned(), Generation(generation));
        Events {
            first: Some(Event::now(vm.clone(), node.clone(), generation, first)),
            receiver: self.0.subscribe(),
            over: false,
            vm,
            node,
            generation,
        }
    }

    pub(super) fn tell(&self, vm: &str, node: &str, generation: u64, kind: EventKind) {
        let event = Event::now(vm.into(), node.into(), Generation(generation), kind);
        // Fails only without listeners.
        let _ = self.0.send(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_slow_is_told_how_much_was_missed_and_hears_the_rest() {
        let source = EventSource::new();
        let mut events = source.subscribe("vm", "a", 0, EventKind::Unprotected);
        for number in 0..BEHIND_MAX as u64 + 3 {
            source.tell("vm", "a", number, EventKind::Protected);
        }
        assert_eq!(events.try_recv().unwrap().kind, EventKind::Unprotected);
        let missed = events.try_recv().unwrap();
        assert_eq!(missed.kind, EventKind::Missed(3));
        let next = events.try_recv().unwrap();
        assert_eq!(next.generation, Generation(3));
        drop(source);
        let rest = std::iter::from_fn(|| events.blocking_recv()).count();
        assert_eq!(rest, BEHIND_MAX - 1);
    }
}
