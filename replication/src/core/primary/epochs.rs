//! The rhythm of epochs on the primary: when the running epoch ends, which one is in flight, which
//! one is acked. Knows neither links nor the arbiter.

use std::time::Duration;

use super::Pause;
use crate::core::policy::Policy;
use crate::core::violation::ProtocolViolation;
use crate::ids::EpochId;

/// After a time with few pauses, so much of the time that has yet to pass counts as passed: a burst of short
/// epochs is welcome if it does not last.
const ADVANCE: Duration = Duration::from_millis(20);

/// The epochs of one session with one backup. One is running; at most one is being captured or in
/// flight.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(super) struct Epochs {
    /// The last one acked; 0 until epoch 1 is acked.
    acked: EpochId,
    /// The last one whose output was released.
    released: EpochId,
    /// The last one whose writes to shared disks were released.
    writing: EpochId,
    /// The last one whose writes to shared disks are all done.
    written: EpochId,
    /// The last one that is durable on the backup's images.
    durable: EpochId,
    /// The last one whose disk writes the backup's host is known to hold durably.
    flushed: EpochId,
    boundary: Boundary,
    /// What the last one that was shipped needed on the wire.
    bytes: u64,
    /// An epoch has just been acked.
    just_acked: bool,
    /// When the running epoch began, that is, when the guest ran again.
    began: Duration,
    /// When the timer of the running epoch started. The timer keeps its beat: neither the pause nor
    /// a late look at it delays the end of the next epoch.
    beat: Duration,
    /// Since when output has been waiting for the end of the running epoch.
    output_at: Option<Duration>,
    /// How long the pause before it was.
    paused: Duration,
    /// When the pauses so far will be no more than their part of the guest's time.
    paid_at: Duration,
    wanted: bool,
    failures: u32,
}

/// Where the last epoch that ended is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(Hash))]
enum Boundary {
    /// Acked, or no epoch has ended yet.
    Passed,
    /// Being captured.
    Capturing(EpochId),
    /// Captured and on its way to the backup.
    InFlight {
        epoch: EpochId,
        since: Duration,
        shipped: bool,
        /// The ack has arrived, perhaps before the report that the epoch is shipped.
        acked: bool,
    },
}

/// The runtime reported something that it was not asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} of {epoch} was reported out of order")]
pub(super) struct OutOfOrder {
    what: &'static str,
    epoch: EpochId,
}

impl Epochs {
    /// The state before epoch 1, which ends now, after `failures` failed attempts at it.
    pub(super) fn new(now: Duration, failures: u32) -> Self {
        Self {
            acked: EpochId(0),
            released: EpochId(0),
            writing: EpochId(0),
            written: EpochId(0),
            durable: EpochId(0),
            flushed: EpochId(0),
            boundary: Boundary::Passed,
            bytes: 0,
            just_acked: false,
            began: now,
            beat: now,
            output_at: None,
            paused: Duration::ZERO,
            paid_at: now,
            wanted: true,
            failures,
        }
    }

    /// The epoch that the guest runs in.
    pub(super) fn running(&self) -> EpochId {
        match self.boundary {
            Boundary::Passed => self.acked.next(),
            Boundary::Capturing(epoch) => epoch,
            Boundary::InFlight { epoch, .. } => epoch.next(),
        }
    }

    /// The next epoch that will be captured from its beginning: not one whose capture is in
    /// progress.
    pub(super) fn next_captured(&self) -> EpochId {
        match self.boundary {
            Boundary::Capturing(epoch) => epoch.next(),
            _ => self.running(),
        }
    }

    /// The last epoch whose output was released.
    pub(super) fn released(&self) -> EpochId {
        self.released
    }

    pub(super) fn acked(&self) -> EpochId {
        self.acked
    }

    pub(super) fn in_flight(&self) -> Option<EpochId> {
        match self.boundary {
            Boundary::InFlight { epoch, .. } => Some(epoch),
            _ => None,
        }
    }

    /// Since when an epoch has been in flight.
    pub(super) fn in_flight_since(&self) -> Option<Duration> {
        match self.boundary {
            Boundary::InFlight { since, .. } => Some(since),
            _ => None,
        }
    }

    /// What the epoch needed on the wire that has just been acked; once for each.
    pub(super) fn take_acked(&mut self) -> Option<u64> {
        std::mem::take(&mut self.just_acked).then_some(self.bytes)
    }

    /// Whether nothing of epoch 1 can have left yet.
    pub(super) fn before_first(&self) -> bool {
        self.acked.0 == 0 && self.boundary == Boundary::Passed
    }

    /// When the running epoch ends; `None` while the one before is not acked.
    pub(super) fn ends_at(&self, policy: &Policy) -> Option<Duration> {
        if self.boundary != Boundary::Passed {
            return None;
        }
        if self.wanted {
            return Some(self.began);
        }
        let timer = self.beat + policy.epoch_interval;
        // However long captures take, the guest runs between them.
        let timer = timer.max(self.began + policy.epoch_interval / 2);
        let output_at = self.output_at.filter(|_| policy.overhead_percent > 0);
        let output = output_at.map(|at| at.max(self.paid_at.saturating_sub(ADVANCE)));
        // A guest that waits for a disk only looks idle.
        let soonest = self.began + self.paused;
        Some(output.map_or(timer, |at| at.max(soonest).min(timer)))
    }

    /// Ends the running epoch and returns it, to be captured.
    pub(super) fn end(&mut self, now: Duration, policy: &Policy) -> EpochId {
        let epoch = self.running();
        let timer = self.beat + policy.epoch_interval;
        // If this is much later than the timer, something slower sets the pace. Catching up would
        // only make very short epochs.
        let on_beat = (timer..timer + policy.epoch_interval / 2).contains(&now);
        self.beat = if on_beat { timer } else { now };
        self.boundary = Boundary::Capturing(epoch);
        self.wanted = false;
        epoch
    }

    /// The guest runs again. What waits from here on waits for the next epoch.
    pub(super) fn captured(
        &mut self,
        epoch: EpochId,
        pause: Pause,
        now: Duration,
        policy: &Policy,
    ) -> Result<(), OutOfOrder> {
        if self.boundary != Boundary::Capturing(epoch) {
            return Err(OutOfOrder {
                what: "capture",
                epoch,
            });
        }
        self.boundary = Boundary::InFlight {
            epoch,
            since: now,
            shipped: false,
            acked: false,
        };
        self.began = now;
        self.output_at = None;
        self.pay(pause, now, policy);
        self.failures = 0;
        Ok(())
    }

    /// Counts the pause before the running epoch.
    fn pay(&mut self, pause: Pause, now: Duration, policy: &Policy) {
        self.paused = pause.took;
        let lost = if pause.idle {
            Duration::ZERO
        } else {
            pause.took
        };
        if let Some(part) = (lost * 100).checked_div(policy.overhead_percent.min(100)) {
            // More debt than the timer waits for would only outlive the load that made it.
            let latest = now + policy.epoch_interval + ADVANCE;
            self.paid_at = (self.paid_at.max(now) + part).min(latest);
        }
    }

    /// The capture is to be tried again. Returns how many have failed in a row.
    pub(super) fn capture_failed(
        &mut self,
        epoch: EpochId,
        now: Duration,
    ) -> Result<u32, OutOfOrder> {
        if self.boundary != Boundary::Capturing(epoch) {
            return Err(OutOfOrder {
                what: "failed capture",
                epoch,
            });
        }
        self.boundary = Boundary::Passed;
        self.began = now;
        self.beat = now;
        // It waits for the timer, so that attempts do not follow each other at once.
        self.output_at = None;
        self.failures += 1;
        Ok(self.failures)
    }

    pub(super) fn shipped(&mut self, reported: EpochId, bytes: u64) -> Result<(), OutOfOrder> {
        match &mut self.boundary {
            Boundary::InFlight { epoch, shipped, .. } if *epoch == reported && !*shipped => {
                *shipped = true;
                self.bytes = bytes;
                self.settle();
                Ok(())
            }
            _ => Err(OutOfOrder {
                what: "shipping",
                epoch: reported,
            }),
        }
    }

    /// Takes an acknowledgement. Returns whether it says that more is durable than before.
    pub(super) fn ack(
        &mut self,
        received: EpochId,
        durable: EpochId,
    ) -> Result<bool, ProtocolViolation> {
        let in_flight = self.in_flight();
        if durable > received || durable < self.durable {
            let before = self.durable;
            return Err(ProtocolViolation::Durable {
                acked: received,
                durable,
                before,
            });
        }
        match &mut self.boundary {
            Boundary::InFlight { epoch, acked, .. } if *epoch == received && !*acked => {
                *acked = true;
                self.settle();
                Ok(std::mem::replace(&mut self.durable, durable) < durable)
            }
            _ => Err(ProtocolViolation::Ack {
                acked: received,
                in_flight,
            }),
        }
    }

    /// Takes the word that the backup holds the disk writes of an epoch durably.
    pub(super) fn flushed(&mut self, flushed: EpochId) -> Result<(), ProtocolViolation> {
        // The report that an epoch is shipped may come after what the backup says of it.
        let acked = match self.boundary {
            Boundary::InFlight {
                epoch, acked: true, ..
            } => epoch,
            _ => self.acked,
        };
        let before = self.flushed;
        if flushed > acked || flushed <= before {
            return Err(ProtocolViolation::Flushed {
                flushed,
                acked,
                before,
            });
        }
        self.flushed = flushed;
        Ok(())
    }

    /// An epoch counts as acked once it is both shipped and acknowledged, in whichever order the
    /// two are reported.
    fn settle(&mut self) {
        if let Boundary::InFlight {
            epoch,
            shipped: true,
            acked: true,
            ..
        } = self.boundary
        {
            self.acked = epoch;
            self.just_acked = true;
            self.boundary = Boundary::Passed;
        }
    }

    /// The epoch through which writes to shared disks may now go, if it is a new one.
    pub(super) fn write_disks(&mut self) -> Option<EpochId> {
        (self.writing < self.acked).then(|| {
            self.writing = self.acked;
            self.acked
        })
    }

    /// All writes to shared disks through this epoch are done.
    pub(super) fn disks_written(&mut self, epoch: EpochId) -> Result<(), OutOfOrder> {
        if epoch != self.writing || epoch == self.written {
            let what = "writing to shared disks";
            return Err(OutOfOrder { what, epoch });
        }
        self.written = epoch;
        Ok(())
    }

    /// The epoch through which output may now leave, if it is a new one. With `disks_first`, its
    /// writes to shared disks must be done first.
    pub(super) fn release(&mut self, disks_first: bool) -> Option<EpochId> {
        let through = if disks_first {
            self.written
        } else {
            self.acked
        };
        (self.released < through).then(|| {
            self.released = through;
            through
        })
    }

    /// Whether output of an acked epoch has not been released yet.
    pub(super) fn is_releasing(&self) -> bool {
        self.released < self.acked
    }

    /// Whether everything that was captured is acked, and its output has left.
    pub(super) fn has_nothing_under_way(&self) -> bool {
        self.boundary == Boundary::Passed && !self.is_releasing()
    }

    pub(super) fn output_waiting(&mut self, now: Duration) {
        self.output_at.get_or_insert(now);
    }

    pub(super) fn want_checkpoint(&mut self) {
        self.wanted = true;
    }

    /// For the model: everything happened at this time.
    #[cfg(test)]
    pub(super) fn forget_time(&mut self, now: Duration) {
        (self.began, self.beat, self.paid_at) = (now, now, now);
        (self.bytes, self.just_acked) = (0, false);
        if let Boundary::InFlight { since, .. } = &mut self.boundary {
            *since = now;
        }
    }
}
