//! Calls that hang, for a while or for ever: whatever a side began there ends late or not at all,
//! while the rest of it goes on.

use std::time::Duration;

use super::events::Event;
use super::faults::Fault;
use super::primary_host::Work;
use super::rng::Rng;
use super::world::{Side, World};

/// What hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Capture,
    /// The copy of disks and memory before epoch 1.
    Copy,
    Ship,
    SharedDisk,
    Journal,
    Flush,
    Destage,
    /// A question on its way to the arbiter, and an answer on its way back: the arbiter decides
    /// late, or has decided long ago.
    Question,
    Answer,
    Restore,
}

const ALL: [What; 10] = [
    What::Capture,
    What::Copy,
    What::Ship,
    What::SharedDisk,
    What::Journal,
    What::Flush,
    What::Destage,
    What::Question,
    What::Answer,
    What::Restore,
];

impl What {
    fn is_storage(self) -> bool {
        matches!(
            self,
            Self::Copy | Self::Journal | Self::Flush | Self::Destage
        )
    }

    pub fn any(rng: &mut Rng) -> Self {
        ALL[rng.below(ALL.len() as u64) as usize]
    }
}

/// Of one process.
#[derive(Default)]
pub struct Hangs {
    now: Vec<(What, bool)>,
    stuck: Vec<(What, Event)>,
    /// When storage last did at last what it had left undone.
    storage_back_at: Option<Duration>,
}

impl Hangs {
    /// Whether storage has left something undone that was asked of it, or has done it just now: its answer
    /// and the time-out may come at the same time, in either order.
    pub fn has_storage(&self, now: Duration) -> bool {
        self.storage_back_at == Some(now) || self.stuck.iter().any(|(what, _)| what.is_storage())
    }
}

impl Event {
    /// What could keep it from happening, and where.
    fn could_hang(&self) -> Option<(usize, u64, What)> {
        let ((host, starts), what) = match self {
            Self::Work(who, _, work) => {
                let what = match work {
                    Work::Capture(_) => What::Capture,
                    Work::Sync | Work::SyncShipped => What::Copy,
                    Work::Ship(..) | Work::Shipped(..) => What::Ship,
                    Work::WriteShared(_) => What::SharedDisk,
                };
                (who, what)
            }
            Self::Persisted(who, _) => (who, What::Journal),
            Self::Flushed(who, _) => (who, What::Flush),
            Self::Destage(who) => (who, What::Destage),
            Self::Ask(who, _) => (who, What::Question),
            Self::Answer(who, _) => (who, What::Answer),
            Self::Repeat(who, _) | Self::Run(who) | Self::RestoreTried(who, ..) => {
                (who, What::Restore)
            }
            _ => return None,
        };
        Some((*host, *starts, what))
    }
}

impl World {
    /// Keeps an event back if it hangs.
    pub fn hang_on(&mut self, event: Event) -> Option<Event> {
        let Some((host, starts, what)) = event.could_hang() else {
            return Some(event);
        };
        let host = &mut self.hosts[host];
        if host.starts != starts || !host.hangs.now.iter().any(|(hanging, _)| *hanging == what) {
            return Some(event);
        }
        host.hangs.stuck.push((what, event));
        self.count("calls that hung");
        None
    }

    /// `None`: for ever.
    pub fn hang(&mut self, host: usize, what: What, time: Option<Duration>) {
        if matches!(self.hosts[host].side, Side::Down) {
            return;
        }
        let process = self.process(host);
        self.hosts[host].hangs.now.push((what, time.is_none()));
        if let Some(time) = time {
            self.after(time, Event::Fault(Fault::HangEnds(process, what)));
        }
    }

    pub fn end_hang(&mut self, host: usize, what: What) {
        self.hosts[host]
            .hangs
            .now
            .retain(|(it, ever)| *it != what || *ever);
        if self.hosts[host].hangs.now.iter().any(|(it, _)| *it == what) {
            return;
        }
        let stuck = std::mem::take(&mut self.hosts[host].hangs.stuck);
        let (free, stuck): (Vec<_>, _) = stuck.into_iter().partition(|(it, _)| *it == what);
        self.hosts[host].hangs.stuck = stuck;
        if what.is_storage() && !free.is_empty() {
            self.hosts[host].hangs.storage_back_at = Some(self.now);
        }
        for (_, event) in free {
            self.at(self.now, event);
        }
    }

    /// Of a process that ends: a question may still reach the arbiter.
    pub fn drop_hangs(&mut self, host: usize) {
        for (_, event) in std::mem::take(&mut self.hosts[host].hangs).stuck {
            if matches!(event, Event::Ask(..)) && self.rng.chance(500) {
                self.soon(0, 100_000, event);
            }
        }
    }

    /// The end of all hangs. No deadline ends one that lasts for ever (docs/SAFETY.md has that among
    /// what is not promised): somebody ends the process.
    pub fn heal_hangs(&mut self) {
        for host in 0..self.settings.hosts {
            for what in ALL {
                self.end_hang(host, what);
            }
            if !self.hosts[host].hangs.stuck.is_empty() {
                self.count("processes ended because they hung");
                self.soon(0, 50_000, Event::Fault(Fault::KillProcess(host)));
            }
            self.hosts[host].hangs.now.clear();
        }
    }
}
