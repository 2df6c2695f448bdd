//! The backup's side of disks: what may be written when, and what an epoch waits for.
//!
//! Must not be done here: I/O. This module decides what may be written; the runtime writes it.

use std::time::Duration;

use bytes::Bytes;

use super::{BackupCore, Effect, Phase};
use crate::core::disk::{self, DiskSyncPlan};
use crate::core::message::{Bye, EpochSummary, Message};
use crate::core::policy::FIRST_STORAGE_TIMEOUTS;
use crate::core::violation::ProtocolViolation;
use crate::ids::EpochId;

/// The state of the disks in one session.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone, Hash))]
pub(super) struct Disks {
    /// The primary has said what it will copy.
    planned: bool,
    /// The ticket whose report the whole epoch waits for.
    persisting: Option<u64>,
    /// Since when it waits.
    persisting_since: Duration,
    /// It was said that a claim waits for it.
    claim_waits: bool,
    /// The flush of the journal that is under way.
    flushing: Option<Flushing>,
    /// The last epoch that the guest flushed in, if the journal is still to be flushed for it.
    flush_wanted: Option<EpochId>,
    /// Since when nothing is read from the link because the storage takes no more.
    full_since: Option<Duration>,
    /// The last epoch that is durable on the images.
    durable: EpochId,
}

/// A flush of the journal.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(test, derive(Hash))]
struct Flushing {
    ticket: u64,
    epoch: EpochId,
    since: Duration,
}

#[cfg(test)]
impl Disks {
    /// For the model.
    pub(super) fn has_durable(&self) -> bool {
        self.durable > EpochId(0)
    }

    /// For the model.
    pub(super) fn forget_time(&mut self, at: Duration) {
        self.persisting_since = at;
        if let Some(flushing) = &mut self.flushing {
            flushing.since = at;
        }
        if let Some(since) = &mut self.full_since {
            *since = at;
        }
    }
}

impl BackupCore {
    /// Whether a whole epoch waits for its disk writes to be persisted.
    pub(super) fn is_persisting(&self) -> bool {
        self.disks.persisting.is_some()
    }

    /// Since when an epoch waits for the storage to take it, and how long it may.
    fn persisting_waits(&self) -> Option<(Duration, Duration)> {
        let patience = self.storage_patience(matches!(self.phase, Phase::Syncing));
        self.is_persisting()
            .then_some((self.disks.persisting_since, patience))
    }

    /// Since when the storage keeps something waiting, and how long it may: of several, what will
    /// have waited too long first.
    fn storage_waits(&self) -> Option<(Duration, Duration)> {
        // What the first flush makes safe may be much of the copy.
        let flush = self.disks.flushing.map(|flushing| {
            let is_first = flushing.epoch == EpochId(1);
            (flushing.since, self.storage_patience(is_first))
        });
        let full = self.disks.full_since;
        let full = full.map(|since| (since, self.storage_patience(true)));
        let waits = [self.persisting_waits(), flush, full].into_iter().flatten();
        waits.min_by_key(|(since, patience)| *since + *patience)
    }

    fn storage_patience(&self, is_copying: bool) -> Duration {
        let patience = self.policy.storage_timeout;
        match is_copying {
            true => patience * FIRST_STORAGE_TIMEOUTS,
            false => patience,
        }
    }

    /// When the storage counts as failed. An epoch that waits for it keeps the guest's output, and a
    /// flush the guest itself: the primary must not wait for that longer than for a host that is gone.
    ///
    /// Not while claiming: whether the epoch that waits is the guest's last state, only the storage
    /// can tell. Then a person should know.
    pub(super) fn storage_hangs_at(&self) -> Option<Duration> {
        let keeps_claim = self.is_claim_kept() && !self.disks.claim_waits;
        let waits = match self.sends_beats() {
            true => self.storage_waits(),
            false => self.persisting_waits().filter(|_| keeps_claim),
        };
        waits.map(|(since, patience)| since + patience)
    }

    /// Whether this side is to claim the guest, and has not asked for it.
    fn is_claim_kept(&self) -> bool {
        matches!(self.phase, Phase::Claiming { asked: false, .. })
    }

    /// This side has failed; the primary goes on alone. What the storage does at last still counts:
    /// memory and disks stay of one epoch.
    pub(super) fn storage_hangs(&mut self, out: &mut Vec<Effect>) {
        if self.is_claim_kept() {
            self.disks.claim_waits = true;
            let why = "its storage has not taken the last epoch's disk writes yet".into();
            return out.push(Effect::ClaimWaits { why });
        }
        if let Some((since, _)) = self.storage_waits() {
            let waited = self.now.saturating_sub(since).as_secs_f64();
            let error = format!("its storage has not answered for {waited:.1} s");
            self.disks_failed(error, out);
        }
    }

    /// The storage takes no more; the driver says so again and again.
    pub(super) fn not_reading(&mut self) {
        self.disks.full_since.get_or_insert(self.now);
    }

    /// It takes more.
    pub(super) fn is_reading(&mut self) {
        self.disks.full_since = None;
    }

    /// This process slept: that was not the storage.
    pub(super) fn disks_slept(&mut self, time: Duration) {
        self.disks.persisting_since += time;
        if let Some(flushing) = &mut self.disks.flushing {
            flushing.since += time;
        }
        if let Some(since) = &mut self.disks.full_since {
            *since += time;
        }
    }

    pub(super) fn sync_disks(
        &mut self,
        plan: Vec<DiskSyncPlan>,
        out: &mut Vec<Effect>,
    ) -> Result<(), ProtocolViolation> {
        if self.disks.planned || self.staging.has_begun() || !matches!(self.phase, Phase::Syncing) {
            return Err(ProtocolViolation::Unexpected {
                message: "SyncDisks",
                phase: self.phase().name(),
            });
        }
        let mine = self.identity.disks.len();
        if plan.is_empty() || plan.len() != mine {
            let text = format!("a plan for {} disks, there are {mine}", plan.len());
            return Err(ProtocolViolation::Disks(text));
        }
        self.disks.planned = true;
        out.push(Effect::BeginCopy(plan));
        Ok(())
    }

    pub(super) fn sync_disk(
        &mut self,
        batch: Bytes,
        out: &mut Vec<Effect>,
    ) -> Result<(), ProtocolViolation> {
        if self.staging.has_begun() || !matches!(self.phase, Phase::Syncing) {
            return Err(ProtocolViolation::Unexpected {
                message: "SyncDisk",
                phase: self.phase().name(),
            });
        }
        self.expect_plan()?;
        disk::decode_batch(&batch, &self.identity.disks, drop)
            .map_err(|error| ProtocolViolation::Disks(error.to_string()))?;
        out.push(Effect::SyncDisk(batch));
        Ok(())
    }

    pub(super) fn epoch_disk(
        &mut self,
        epoch: EpochId,
        batch: Bytes,
    ) -> Result<(), ProtocolViolation> {
        self.expect_plan()?;
        Ok(self.staging.disk(epoch, batch, &self.identity.disks)?)
    }

    /// Without a plan it is not known which parts of the images can be trusted.
    fn expect_plan(&self) -> Result<(), ProtocolViolation> {
        if self.disks.planned {
            return Ok(());
        }
        let text = String::from("nobody said what was going to be copied");
        Err(ProtocolViolation::Disks(text))
    }

    /// A whole epoch has arrived and is verified. Step ⑧ happens here or at
    /// [`BackupCore::persisted`].
    pub(super) fn epoch_ended(
        &mut self,
        epoch: EpochId,
        summary: EpochSummary,
        out: &mut Vec<Effect>,
    ) -> Result<(), ProtocolViolation> {
        if !self.identity.disks.is_empty() {
            self.expect_plan()?;
        }
        if summary.written_through >= epoch {
            // If this side believed it, it would forget writes that exist nowhere else.
            let through = summary.written_through;
            let text = format!("{through} is said to be on shared images at the end of {epoch}");
            return Err(ProtocolViolation::Disks(text));
        }
        self.staging.end(epoch, summary)?;
        if summary.flush {
            self.disks.flush_wanted = Some(epoch);
        }
        let batches = self.staging.take_disk_batches();
        if epoch == EpochId(1) {
            self.try_first(out);
        }
        // The first epoch also says that the copy is complete.
        let first = epoch == EpochId(1) && self.disks.planned;
        if batches.is_empty() && !summary.flush && !first {
            if !self.is_trying_first() {
                self.acknowledge(epoch, out);
            }
            return Ok(());
        }
        self.ticket += 1;
        self.disks.persisting = Some(self.ticket);
        self.disks.persisting_since = self.now;
        self.disks.claim_waits = false;
        out.push(Effect::Persist {
            ticket: self.ticket,
            epoch,
            batches,
            written_through: summary.written_through,
        });
        Ok(())
    }

    /// The guest's output waits for this, so it comes before a flush.
    pub(super) fn acknowledge(&mut self, epoch: EpochId, out: &mut Vec<Effect>) {
        let durable = self.disks.durable.min(epoch);
        out.push(Effect::Send(Message::Ack { epoch, durable }));
        self.begin_flush(out);
    }

    /// Begins the next flush of the journal, if one is wanted and none is under way. The last epoch
    /// that has arrived is acknowledged.
    fn begin_flush(&mut self, out: &mut Vec<Effect>) {
        if self.disks.flushing.is_some() {
            return;
        }
        let Some(epoch) = self.disks.flush_wanted.take() else {
            return;
        };
        self.ticket += 1;
        let ticket = self.ticket;
        self.disks.flushing = Some(Flushing {
            ticket,
            epoch,
            since: self.now,
        });
        out.push(Effect::FlushJournal { ticket, epoch });
    }

    /// From the claim on, nothing is said any more, as with acknowledgements.
    pub(super) fn flushed(
        &mut self,
        ticket: u64,
        outcome: Result<(), String>,
        out: &mut Vec<Effect>,
    ) {
        let is_this = |flushing: &mut Flushing| flushing.ticket == ticket;
        let Some(Flushing { epoch, .. }) = self.disks.flushing.take_if(is_this) else {
            return;
        };
        if let Err(error) = outcome {
            return self.disks_failed(error, out);
        }
        if !self.sends_beats() {
            return;
        }
        out.push(Effect::Send(Message::Flushed(epoch)));
        if !self.is_persisting() && !self.is_trying_first() {
            self.begin_flush(out);
        }
    }

    pub(super) fn persisted(
        &mut self,
        ticket: u64,
        outcome: Result<(), String>,
        out: &mut Vec<Effect>,
    ) {
        if self.disks.persisting != Some(ticket) {
            return;
        }
        self.disks.persisting = None;
        match outcome {
            // It is committed at the next call. From the claim on, nothing is acked any more.
            Ok(()) if self.sends_beats() && !self.is_trying_first() => {
                self.acknowledge(self.staging.epoch(), out);
            }
            Ok(()) => {}
            Err(error) => {
                self.discard(&error, out);
                self.disks_failed(error, out);
            }
        }
    }

    pub(super) fn disks_durable(&mut self, epoch: EpochId) {
        self.disks.durable = self.disks.durable.max(epoch);
    }

    /// From the claim on, nothing is said any more, as with acknowledgements.
    pub(super) fn compared(&mut self, differ: Vec<bool>, out: &mut Vec<Effect>) {
        if self.disks.planned && self.sends_beats() {
            out.push(Effect::Send(Message::Compared(differ)));
        }
    }

    /// The copy cannot go on. The committed state stays valid until the arbiter has named another
    /// side, unless the copy of the disks is not whole yet: what came before the first epoch is
    /// nowhere but on the images that failed. The guest cannot go on from that, so this side must
    /// not take it from a primary that lives.
    pub(super) fn disks_failed(&mut self, error: String, out: &mut Vec<Effect>) {
        let reason = format!("this side cannot keep its copy: {error}");
        if self.sends_beats() {
            out.push(Effect::Send(Message::Bye(Bye::Unable(error))));
            self.cut_off(reason.clone(), false, out);
        }
        let may_reset = match self.phase {
            Phase::Standby { .. } => true,
            // What was asked for may have been granted.
            Phase::Claiming { asked, .. } => !asked,
            Phase::Listening | Phase::Syncing | Phase::Promoted => false,
        };
        if may_reset && self.disks.durable == EpochId(0) {
            self.reset(format!("{reason}, which was not whole yet"), out);
        }
    }
}
