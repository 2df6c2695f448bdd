//! What the node's thread waits for: requests, what became of the machine and of the host's networks, and what
//! replication tells. Each has a
//! queue of its own, so that requests cannot crowd out the guest's end.

mod machine_events;

use std::io;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use tokio::runtime::Runtime;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use understudy_replication::runtime::{EventKind as ReplicationEvent, Events};

use self::machine_events::MachineEvents;
use super::networks::{NetworkSeen, Seen};
use super::request::{Denial, Request};
use crate::machine::MachineEvent;

/// Requests that wait; further ones are denied.
pub(super) const REQUESTS_MAX: usize = 64;

/// Where the answer to a request goes. Nobody may be waiting for it any more.
pub(super) type Answer = SyncSender<Result<(), Denial>>;

/// One thing to do.
pub(super) enum Item {
    Request(Request, Option<Answer>),
    Machine(MachineEvent),
    Replication(ReplicationEvent),
    Networks(Vec<NetworkSeen>),
}

/// Where things to do are put; never waits. Clones are the same.
#[derive(Clone)]
pub(super) struct Inbox {
    requests: Sender<(Request, Option<Answer>)>,
    machine_events: MachineEvents,
}

/// Where the node's thread finds them. Once it is dropped nothing is taken any more, and what waits is denied.
pub(super) struct Incoming {
    runtime: Runtime,
    requests: Receiver<(Request, Option<Answer>)>,
    machine_events: MachineEvents,
    /// Of the side that the node is, through all its roles.
    replication: Option<Events>,
    networks: Option<Seen>,
}

/// An inbox and its other end.
pub(super) fn inbox() -> io::Result<(Inbox, Incoming)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let (requests, requested) = channel(REQUESTS_MAX);
    let machine_events = MachineEvents::default();
    let incoming = Incoming {
        runtime,
        requests: requested,
        machine_events: machine_events.clone(),
        replication: None,
        networks: None,
    };
    let inbox = Inbox {
        requests,
        machine_events,
    };
    Ok((inbox, incoming))
}

impl Inbox {
    pub(super) fn request(&self, request: Request, answer: Option<Answer>) -> Result<(), Denial> {
        (self.requests.try_send((request, answer))).map_err(|refused| match refused {
            TrySendError::Full(_) => Denial::Busy,
            TrySendError::Closed(_) => Denial::Ended,
        })
    }

    /// From the machine's threads.
    pub(super) fn machine_event(&self, event: MachineEvent) {
        self.machine_events.put(event);
    }
}

impl Incoming {
    /// Listens to replication from now on, too.
    pub(super) fn listen(&mut self, events: Events) {
        self.replication = Some(events);
    }

    /// Hears of the guest's networks from now on, too.
    pub(super) fn watch(&mut self, networks: Seen) {
        self.networks = Some(networks);
    }

    /// Waits for the next thing to do; `None` if there is none until `deadline`.
    pub(super) fn next(&mut self, deadline: Option<Instant>) -> Option<Item> {
        let Self {
            runtime,
            requests,
            machine_events,
            replication,
            networks,
        } = self;
        let told = async {
            match replication {
                Some(events) => events.recv().await,
                None => std::future::pending().await,
            }
        };
        let seen = async {
            match networks {
                Some(networks) => {
                    networks.changed().await.ok()?;
                    networks.borrow_and_update().clone()
                }
                None => std::future::pending().await,
            }
        };
        let passed = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        runtime.block_on(async {
            tokio::select! {
                biased;
                // What became of the guest is why its role ends: it comes first.
                event = machine_events.next() => Some(Item::Machine(event)),
                Some(event) = told => Some(Item::Replication(event.kind)),
                Some(networks) = seen => Some(Item::Networks(networks)),
                Some((request, answer)) = requests.recv() => Some(Item::Request(request, answer)),
                () = passed => None,
            }
        })
    }

    /// Nothing is taken any more, and what waits is denied.
    pub(super) fn close(&mut self) {
        self.requests.close();
        while let Ok((_, answer)) = self.requests.try_recv() {
            // Who asked may have gone.
            let _ = answer.map(|answer| answer.try_send(Err(Denial::Ended)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn too_many_requests_are_denied_and_keep_out_no_event_of_the_guest() {
        let (inbox, mut incoming) = inbox().unwrap();
        for _ in 0..REQUESTS_MAX {
            inbox.request(Request::Checkpoint, None).unwrap();
        }
        assert_eq!(inbox.request(Request::Checkpoint, None), Err(Denial::Busy));
        inbox.machine_event(MachineEvent::GuestPoweredOff);
        let event = incoming.next(None);
        assert!(matches!(
            event,
            Some(Item::Machine(MachineEvent::GuestPoweredOff))
        ));
        for _ in 0..REQUESTS_MAX {
            assert!(matches!(incoming.next(None), Some(Item::Request(..))));
        }
        inbox.request(Request::Checkpoint, None).unwrap();
    }

    #[test]
    fn what_waits_at_the_end_is_denied_and_nothing_is_taken_any_more() {
        let (inbox, mut incoming) = inbox().unwrap();
        let (answer, answered) = sync_channel(1);
        inbox.request(Request::Stop, Some(answer)).unwrap();
        incoming.close();
        assert_eq!(answered.try_recv(), Ok(Err(Denial::Ended)));
        assert_eq!(inbox.request(Request::Stop, None), Err(Denial::Ended));
        assert!(incoming.next(Some(Instant::now())).is_none());
    }
}
