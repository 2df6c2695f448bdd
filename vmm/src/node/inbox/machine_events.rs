//! What became of a machine, until the node's thread takes it. Nothing is dropped, whoever tells it never waits, and no
//! more of it is kept than there are devices to tell of: of a device only the newest state counts, and what waits already
//! is not told twice.
//!
//! What must not be done here: decide what follows.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::machine::MachineEvent;

/// Clones are the same.
#[derive(Clone, Default)]
pub(super) struct MachineEvents(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// Held only to put one in, or to take one out.
    waiting: Mutex<VecDeque<MachineEvent>>,
    came: Notify,
}

/// What a device's event is about.
#[derive(Debug, PartialEq, Eq)]
enum Topic {
    Connection,
    Failure,
    Held,
    Stall,
    Hang,
}

/// `None`: it is about the guest, or the whole machine. These stand still with most of what they tell, so that there are
/// few of them.
fn subject(event: &MachineEvent) -> Option<(&str, Topic)> {
    match event {
        MachineEvent::BackendLost { device, .. } => Some((device, Topic::Connection)),
        MachineEvent::DiskFailed { device, .. } => Some((device, Topic::Failure)),
        MachineEvent::DiskHolds { device, .. } => Some((device, Topic::Held)),
        MachineEvent::DiskStalls { device, .. } | MachineEvent::DiskMoves { device } => {
            Some((device, Topic::Stall))
        }
        MachineEvent::DiskHangs { device, .. } | MachineEvent::DiskAnswers { device, .. } => {
            Some((device, Topic::Hang))
        }
        MachineEvent::GuestReset
        | MachineEvent::GuestCrashed { .. }
        | MachineEvent::WatchdogFired
        | MachineEvent::GuestPanicked { .. }
        | MachineEvent::ResetFailed { .. }
        | MachineEvent::GuestPoweredOff
        | MachineEvent::GuestShutdown { .. }
        | MachineEvent::CaptureHangs { .. }
        | MachineEvent::BrokeBefore { .. }
        | MachineEvent::MachineBroke { .. } => None,
    }
}

impl MachineEvents {
    pub(super) fn put(&self, event: MachineEvent) {
        let mut waiting = self.0.waiting.lock();
        let subject = subject(&event);
        let is_same = |other: &&mut MachineEvent| match &subject {
            Some(_) => self::subject(other) == subject,
            None => **other == event,
        };
        match waiting.iter_mut().find(is_same) {
            Some(older) => *older = event,
            None => waiting.push_back(event),
        }
        drop(waiting);
        self.0.came.notify_one();
    }

    /// The oldest one, once there is one. Nothing is lost if this is given up.
    pub(super) async fn next(&self) -> MachineEvent {
        loop {
            if let Some(event) = self.0.waiting.lock().pop_front() {
                return event;
            }
            self.0.came.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Item, inbox};
    use super::*;

    fn stalls(disk: usize) -> MachineEvent {
        MachineEvent::DiskStalls {
            device: format!("disk{disk}"),
            what: "a write".into(),
        }
    }

    fn moves(disk: usize) -> MachineEvent {
        let device = format!("disk{disk}");
        MachineEvent::DiskMoves { device }
    }

    /// All that wait, in their order.
    fn told(events: &[MachineEvent]) -> Vec<MachineEvent> {
        let (inbox, mut incoming) = inbox().unwrap();
        (events.iter().cloned()).for_each(|event| inbox.machine_event(event));
        let past = Some(std::time::Instant::now());
        std::iter::from_fn(|| match incoming.next(past)? {
            Item::Machine(event) => Some(event),
            _ => panic!("something else"),
        })
        .collect()
    }

    #[test]
    fn no_news_of_a_device_are_lost_however_many_there_are() {
        let disks = || 0..500;
        let mut events: Vec<_> = disks().map(stalls).collect();
        events.push(MachineEvent::GuestReset);
        assert_eq!(told(&events), events);
    }

    #[test]
    fn of_a_device_that_tells_much_the_newest_state_counts() {
        let flaps = (0..1000).flat_map(|_| [stalls(0), moves(0), stalls(1)]);
        let events: Vec<_> = flaps.collect();
        assert_eq!(told(&events), [moves(0), stalls(1)]);
        // Different topics of one device are kept apart.
        let (device, what) = ("disk0".to_owned(), "no space".to_owned());
        let failed = MachineEvent::DiskFailed { device, what };
        let events = [failed.clone(), stalls(0), failed.clone(), moves(0)];
        assert_eq!(told(&events), [failed, moves(0)]);
    }

    #[test]
    fn what_became_of_the_guest_is_told_once_and_nothing_else_takes_its_place() {
        let panicked = |crash_kernel| MachineEvent::GuestPanicked { crash_kernel };
        let mut events = vec![panicked(false), panicked(true)];
        let once = events.clone();
        events.extend((0..1000).map(|_| panicked(true)));
        assert_eq!(told(&events), once);
    }
}
