//! What waits for the node's thread: requests, what became of the machine, and how a role ended, in the order in
//! which they came. Each kind is bounded for itself, so that requests cannot crowd out the guest's end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use understudy_replication::runtime::Promoted;

use super::NodeError;
use super::core::RoleEnd;
use super::request::{Denial, Request};
use crate::machine::{Machine, MachineEvent};

/// Requests that wait; further ones are denied.
pub(super) const REQUESTS_MAX: usize = 64;
/// Events of the machine that wait; what comes after is dropped. Each kind comes at most a few times in a
/// machine's life.
const MACHINE_EVENTS_MAX: usize = 64;

/// Where the answer to a request goes. Nobody may be waiting for it any more.
pub(super) type Answer = SyncSender<Result<(), Denial>>;

/// One thing to do.
pub(super) enum Item {
    Request(Request, Option<Answer>),
    Machine(MachineEvent),
    RoleOver(RoleOver),
}

/// How a role came to its end.
pub(super) enum RoleOver {
    Promoted(Box<Promoted<Machine>>),
    Ended(RoleEnd),
    Failed(NodeError),
}

/// Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Inbox(Arc<Inner>);

#[derive(Default)]
struct Inner {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    items: VecDeque<Item>,
    requests: usize,
    machine_events: usize,
    /// The node's thread takes nothing any more.
    is_closed: bool,
}

impl Inbox {
    pub(super) fn request(&self, request: Request, answer: Option<Answer>) -> Result<(), Denial> {
        let mut waiting = self.0.waiting.lock();
        if waiting.is_closed {
            return Err(Denial::Ended);
        }
        if waiting.requests == REQUESTS_MAX {
            return Err(Denial::Busy);
        }
        waiting.requests += 1;
        waiting.items.push_back(Item::Request(request, answer));
        self.0.arrived.notify_one();
        Ok(())
    }

    /// From the machine's threads; waits for nothing.
    pub(super) fn machine_event(&self, event: MachineEvent) {
        let mut waiting = self.0.waiting.lock();
        if waiting.is_closed || waiting.machine_events == MACHINE_EVENTS_MAX {
            return;
        }
        waiting.machine_events += 1;
        waiting.items.push_back(Item::Machine(event));
        self.0.arrived.notify_one();
    }

    /// There is one role at a time, so this is bounded.
    pub(super) fn role_over(&self, over: RoleOver) {
        let mut waiting = self.0.waiting.lock();
        waiting.items.push_back(Item::RoleOver(over));
        self.0.arrived.notify_one();
    }

    /// The next thing to do; `None` if there is none until `deadline`.
    pub(super) fn next(&self, deadline: Option<Instant>) -> Option<Item> {
        let mut waiting = self.0.waiting.lock();
        while waiting.items.is_empty() {
            match deadline {
                None => self.0.arrived.wait(&mut waiting),
                Some(deadline) => {
                    let waited = self.0.arrived.wait_until(&mut waiting, deadline);
                    if waited.timed_out() && waiting.items.is_empty() {
                        return None;
                    }
                }
            }
        }
        let item = waiting.items.pop_front()?;
        match item {
            Item::Request(..) => waiting.requests -= 1,
            Item::Machine(_) => waiting.machine_events -= 1,
            Item::RoleOver(_) => {}
        }
        Some(item)
    }

    /// Nothing is taken any more; what waits is denied.
    pub(super) fn close(&self) {
        let mut waiting = self.0.waiting.lock();
        waiting.is_closed = true;
        for item in waiting.items.drain(..) {
            if let Item::Request(_, Some(answer)) = item {
                // Who asked may have gone.
                let _ = answer.try_send(Err(Denial::Ended));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn too_many_requests_are_denied_and_keep_out_no_event_of_the_guest() {
        let inbox = Inbox::default();
        for _ in 0..REQUESTS_MAX {
            inbox.request(Request::Checkpoint, None).unwrap();
        }
        assert_eq!(inbox.request(Request::Checkpoint, None), Err(Denial::Busy));
        inbox.machine_event(MachineEvent::GuestPoweredOff);
        for _ in 0..REQUESTS_MAX {
            assert!(matches!(inbox.next(None), Some(Item::Request(..))));
        }
        let event = inbox.next(None);
        assert!(matches!(
            event,
            Some(Item::Machine(MachineEvent::GuestPoweredOff))
        ));
        inbox.request(Request::Checkpoint, None).unwrap();
    }

    #[test]
    fn what_waits_at_the_end_is_denied_and_nothing_is_taken_any_more() {
        let inbox = Inbox::default();
        let (answer, answered) = sync_channel(1);
        inbox.request(Request::Stop, Some(answer)).unwrap();
        inbox.close();
        assert_eq!(answered.recv().unwrap(), Err(Denial::Ended));
        assert_eq!(inbox.request(Request::Stop, None), Err(Denial::Ended));
        inbox.machine_event(MachineEvent::GuestReset);
        assert!(inbox.next(Some(Instant::now())).is_none());
    }
}
