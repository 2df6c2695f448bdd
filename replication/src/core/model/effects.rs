//! What the cores of the model do: their effects are carried out, and each is compared with the rules
//! it must keep.
//!
//! Must not be done here: correcting what a core does.

use std::sync::{Arc, OnceLock};

use super::Rule;
use super::arbiter::Ask;
use super::host::policy;
use super::link::{Memory, Wire, layout, state_of};
use super::world::{ALONE, Base, Side, Work, World};
use crate::arbiter::Verdict;
use crate::core::backup::{BackupCore, BackupEffect, BackupInput};
use crate::core::message::{Bye, Message};
use crate::core::primary::{PrimaryEffect, PrimaryInput, PrimaryPhase};
use crate::core::testing::NOW;
use crate::ids::EpochId;

fn memory() -> &'static Memory {
    static MEMORY: OnceLock<Memory> = OnceLock::new();
    MEMORY.get_or_init(|| Memory(layout()))
}

/// Why a core does something irrevocable.
enum Cause {
    Granted(u64),
    /// The arbiter names a later generation.
    Passed(u64),
    GuestStopped,
    /// This side's own disks failed before the copy of them was whole.
    DisksFailed,
    Hearsay,
}

impl Cause {
    fn of_verdict(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Granted(granted) => Self::Granted(granted.0),
            Verdict::Refused { current, .. } => Self::Passed(current.0),
        }
    }
}

impl World {
    // --- the primary ---

    pub(super) fn primary(&mut self, host: usize, input: PrimaryInput) {
        let stalled = std::mem::take(&mut self.hosts[host].stalled);
        let keeps_promise = self.bounds.promises;
        let Side::Primary(core) = &mut self.hosts[host].side else {
            return;
        };
        let cause = match &input {
            PrimaryInput::Verdict(verdict) => Cause::of_verdict(verdict),
            _ => Cause::Hearsay,
        };
        let core = Arc::make_mut(core);
        let before = core.generation().0;
        let jump = policy().heartbeat_timeout * u32::from(stalled);
        let effects = core.handle(NOW + jump, input);
        core.forget_time(keeps_promise);
        let (after, phase) = (core.generation().0, core.phase());
        if after != before && !matches!(cause, Cause::Granted(granted) if granted == after) {
            self.breaks(Rule::OnlyTheArbiter);
        }
        for effect in effects {
            self.primary_effect(host, effect, &cause, before);
        }
        match phase {
            PrimaryPhase::Fenced | PrimaryPhase::Stopped => self.go_down(host),
            _ => self.let_out(host),
        }
    }

    fn start_sync(&mut self, host: usize, past: bool, generation: u64) {
        self.arbiter.note_backup(past, generation, true);
        if self.bounds.disks {
            self.send_wire(host, generation, Wire::Plan);
        }
        self.hosts[host].work = Some(Work::Sync);
    }

    fn primary_effect(&mut self, host: usize, effect: PrimaryEffect, cause: &Cause, before: u64) {
        let past = self.hosts[host].sees_past;
        let Some(core) = self.hosts[host].primary() else {
            return;
        };
        let (generation, session) = (core.generation().0, core.session());
        match effect {
            PrimaryEffect::Send(message) => self.send(host, &message),
            PrimaryEffect::StartSync { .. } => self.start_sync(host, past, generation),
            PrimaryEffect::SyncRound => self.hosts[host].work = Some(Work::Sync),
            PrimaryEffect::Capture(epoch) => {
                if self.hosts[host].broke {
                    self.breaks(Rule::WholeEpochs);
                }
                self.hosts[host].work = Some(Work::Capture(epoch.0));
            }
            PrimaryEffect::WriteDisks(epoch) => {
                self.check_acked(session, epoch);
                self.hosts[host].work = Some(Work::WriteShared(epoch.0));
            }
            PrimaryEffect::Flushed(epoch) => {
                self.told = (session, epoch.0);
                if self.told > self.flushed {
                    self.breaks(Rule::KeepsFlushes);
                }
            }
            PrimaryEffect::Durable(_) | PrimaryEffect::Compared(_) | PrimaryEffect::Throttle(_) => {
            }
            PrimaryEffect::TakeOver { .. } => self.send_wire(host, generation, Wire::TakeOver),
            // Nothing comes in.
            PrimaryEffect::KeepArrivals | PrimaryEffect::SendArrivals => {}
            // As a node does: without a machine there is no guest.
            PrimaryEffect::NotHandedOver { .. } if self.hosts[host].broke => self.end_guest(host),
            // A process ends whose guest is left to the backup, as with every one that has stopped.
            PrimaryEffect::NotHandedOver { .. } | PrimaryEffect::LeftToBackup { .. } => {}
            PrimaryEffect::Release(epoch) => {
                self.check_acked(session, epoch);
                self.say(host, generation, (session, epoch.0));
            }
            PrimaryEffect::CloseLink => {
                self.forget_work(host);
                self.close(host);
            }
            PrimaryEffect::Claim { known, mark } => {
                if self.hosts[host].broke && !self.ended {
                    self.breaks(Rule::GivesWay);
                }
                let known = known.0;
                self.asks(host, Ask::Claim { known, mark });
            }
            PrimaryEffect::Confirm {
                generation,
                beat,
                mark,
            } => {
                let generation = generation.0;
                let ask = Ask::Confirm {
                    generation,
                    beat,
                    mark,
                };
                self.asks(host, ask);
            }
            PrimaryEffect::Takeover(outcome) => self.check_promise(outcome.is_ok()),
            PrimaryEffect::GoAlone { generation, .. } => {
                let generation = generation.0;
                if generation != before {
                    if !matches!(cause, Cause::Granted(granted) if *granted == generation) {
                        self.breaks(Rule::OnlyTheArbiter);
                    }
                    self.reign(host, generation, Base::Own);
                }
                self.arbiter.note_backup(past, generation, false);
                self.hosts[host].gate_open = true;
                self.hosts[host].work = Some(Work::Open);
            }
            PrimaryEffect::Fenced { .. } => self.check_passed(host, cause, before),
        }
    }

    /// While the gate is open, what the guest says leaves at once.
    pub(super) fn let_out(&mut self, host: usize) {
        if !self.hosts[host].gate_open {
            return;
        }
        if let Some(core) = self.hosts[host].primary() {
            let until = match core.phase() {
                PrimaryPhase::Alone => ALONE,
                _ => 0,
            };
            let (generation, session) = (core.generation().0, core.session());
            self.say(host, generation, (session, until));
        }
    }

    /// R1.
    fn check_acked(&mut self, session: u64, epoch: EpochId) {
        if (session, epoch.0) > self.acked {
            self.breaks(Rule::OutputCommit);
        }
    }

    /// R9.
    fn check_promise(&mut self, given: bool) {
        if given && self.bounds.apart {
            self.breaks(Rule::TruePromise);
        }
    }

    /// R10: this side gives up what it has only for somebody who was granted a later generation.
    fn check_passed(&mut self, host: usize, cause: &Cause, before: u64) {
        let me = self.process(host);
        let says_so = matches!(cause, Cause::Passed(current) if *current > before);
        if !says_so || !self.arbiter.has_passed(before, me) {
            self.breaks(Rule::OnlyTheArbiter);
        }
    }

    // --- the backup ---

    pub(super) fn backup(&mut self, host: usize, input: BackupInput) {
        let stalled = std::mem::take(&mut self.hosts[host].stalled);
        let keeps_promise = self.bounds.promises;
        let Side::Backup(core) = &mut self.hosts[host].side else {
            return;
        };
        let cause = match &input {
            BackupInput::Verdict(verdict) => Cause::of_verdict(verdict),
            BackupInput::Rehearsed(record) => Cause::Passed(record.generation.0),
            BackupInput::Received {
                message: Message::Bye(Bye::GuestStopped),
                ..
            } => Cause::GuestStopped,
            BackupInput::Persisted { outcome, .. } | BackupInput::Flushed { outcome, .. }
                if outcome.is_err() && !core.has_disks() =>
            {
                Cause::DisksFailed
            }
            BackupInput::Tick if core.storage_has_hung() && !core.has_disks() => Cause::DisksFailed,
            _ => Cause::Hearsay,
        };
        let core = Arc::make_mut(core);
        let before = core.generation().0;
        let had_copy = core.committed_epoch().is_some() || core.commit_is_due();
        let jump = policy().heartbeat_timeout * u32::from(stalled);
        let effects = core.handle(NOW + jump, input, memory());
        core.forget_time(keeps_promise);
        if self.bounds.trials {
            core.let_a_trial_be_due();
        }
        let after = core.generation().0;
        let says_so = match cause {
            Cause::Granted(of) | Cause::Passed(of) => of == after,
            Cause::GuestStopped | Cause::DisksFailed | Cause::Hearsay => false,
        };
        if after != before && !says_so {
            self.breaks(Rule::OnlyTheArbiter);
        }
        for effect in effects {
            self.backup_effect(host, effect, &cause, before, had_copy);
        }
    }

    fn backup_effect(
        &mut self,
        host: usize,
        effect: BackupEffect,
        cause: &Cause,
        before: u64,
        had_copy: bool,
    ) {
        let copies = matches!(
            effect,
            BackupEffect::BeginCopy(_) | BackupEffect::SyncDisk(_) | BackupEffect::Persist { .. }
        );
        if self.hosts[host].stranger
            && (copies || matches!(effect, BackupEffect::Send(Message::Ack { .. })))
        {
            self.breaks(Rule::OnlyTheArbiter);
        }
        match effect {
            BackupEffect::Send(message) => {
                if let Message::Ack { epoch, .. } = message {
                    self.acked = self.acked.max((self.session, epoch.0));
                }
                self.send(host, &message);
            }
            BackupEffect::Welcome { .. } => {
                if !self.hosts[host].stranger {
                    let generation = self.hosts[host].backup().map(BackupCore::generation);
                    self.send_wire(host, generation.unwrap_or_default().0, Wire::Welcome);
                }
            }
            BackupEffect::Persist { ticket, .. } => self.hosts[host].persisting = Some(ticket),
            BackupEffect::FlushJournal { ticket, epoch } => {
                self.hosts[host].flushing = Some((ticket, (self.session, epoch.0)));
            }
            BackupEffect::TryRestore { ticket, .. } => self.hosts[host].trying = Some(ticket),
            BackupEffect::CloseLink => match std::mem::take(&mut self.hosts[host].stranger) {
                true => {}
                false => self.close(host),
            },
            BackupEffect::Claim { known, mark } => {
                if self.hosts[host].trying.is_some() {
                    self.breaks(Rule::CanTakeOver);
                }
                let is_linked = self.link.as_ref().is_some_and(|it| it.ends[host].open);
                let can_go_on = is_linked && !self.hosts[1 - host].broke;
                // A claim that comes after a later grant is refused.
                let (latest, _) = self.arbiter.latest();
                let takes_it = known.0 == latest;
                if self.hosts[host].cannot_load && can_go_on && takes_it {
                    self.breaks(Rule::LeavesIt);
                }
                let known = known.0;
                self.asks(host, Ask::Claim { known, mark });
            }
            BackupEffect::Rehearse => self.asks(host, Ask::Rehearse),
            BackupEffect::Takeover(outcome) => self.check_promise(outcome.is_ok()),
            BackupEffect::Promote {
                generation, epoch, ..
            } => self.promote(host, generation.0, epoch.0, cause, before),
            BackupEffect::Stop => self.go_down(host),
            BackupEffect::Reset { .. } => {
                self.hosts[host].cannot_load = false;
                let is_own = matches!(cause, Cause::GuestStopped | Cause::DisksFailed);
                if had_copy && !is_own {
                    self.check_passed(host, cause, before);
                }
            }
            BackupEffect::Look
            | BackupEffect::Inquire
            | BackupEffect::ClaimWaits { .. }
            | BackupEffect::Doubtful { .. }
            | BackupEffect::CannotStart { .. }
            | BackupEffect::StartGuest { .. }
            | BackupEffect::BeginCopy(_)
            | BackupEffect::SyncDisk(_)
            | BackupEffect::Committed(_)
            | BackupEffect::Discarded { .. } => {}
        }
    }

    fn promote(&mut self, host: usize, generation: u64, epoch: u64, cause: &Cause, before: u64) {
        if !matches!(cause, Cause::Granted(granted) if *granted == generation) {
            self.breaks(Rule::OnlyTheArbiter);
        }
        let Some(core) = self.hosts[host].backup() else {
            return;
        };
        let state = core.committed_state().clone();
        let session = core.session();
        if state != state_of([before, session, epoch]) || self.hosts[host].persisting.is_some() {
            self.breaks(Rule::WholeEpochs);
        }
        // A link that fails, or a crash right after it, is one whose last message never arrives.
        self.backup(host, BackupInput::Runs);
        self.reign(host, generation, Base::Copy(before, (session, epoch)));
    }
}
