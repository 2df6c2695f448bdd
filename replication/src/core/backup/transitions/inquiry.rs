//! What a side that is to start the guest is told about this one, and how this one starts it itself:
//! see [`start`](crate::core::start).

use std::time::Duration;

use super::{BackupCore, Effect, Link};
use crate::arbiter::{Claim, Record};
use crate::core::backup::BackupPhase;
use crate::core::message::{Holdings, Inquiry, Message, Refusal};
use crate::core::start::{Own, Starts, Step};

/// For so many looks at the arbiter, a question from outside counts as a wish for the guest.
const ASKED_FOR_LOOKS: u32 = 10;
/// After so many looks that found nobody who runs the guest, people are told.
const ENDED_LOOKS: u32 = 10;

/// How this side, which has no copy, comes to start the guest.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct ToStart {
    /// When it next looks whether somebody runs the guest.
    pub(super) look_at: Option<Duration>,
    /// The other side is being asked, in view of this record.
    asking: Option<Record>,
    /// When somebody last asked for the guest.
    asked_for_at: Option<Duration>,
    /// Looks in a row that found that the guest ran here last, and nobody runs it.
    found_ended: u32,
    /// Why it could not start the guest, as people were told.
    told: Option<String>,
}

impl ToStart {
    /// The question could not even be asked.
    pub(super) fn not_asked(&mut self) {
        self.asking = None;
    }
}

impl BackupCore {
    /// A peer asks what there is of the guest here. What it says of itself has no other effect than
    /// that this side looks whether it is to start the guest (R10).
    pub(super) fn asked(&mut self, inquiry: &Inquiry, out: &mut Vec<Effect>) {
        let mine = &self.identity;
        if inquiry.vm != mine.vm {
            let vm = mine.vm.clone();
            return self.refuse(Refusal::OtherVm { vm }, out);
        }
        if inquiry.arbiter != mine.arbiter {
            let (arbiter, current) = (mine.arbiter.clone(), self.generation);
            return self.refuse(Refusal::OtherArbiter { arbiter, current }, out);
        }
        self.to_start.asked_for_at = Some(self.now);
        let copy = self.committed_epoch();
        out.push(Effect::Send(Message::Holdings(Holdings {
            node: self.identity.node.clone(),
            host: self.identity.host.clone(),
            copy: copy.map(|epoch| (self.generation, epoch)),
        })));
        self.close_link(out);
    }

    /// Whether nobody is served and there is no copy.
    fn is_idle(&self) -> bool {
        self.phase() == BackupPhase::Listening && self.link == Link::Down
    }

    /// When to look at the arbiter's record in order to start the guest.
    pub(super) fn looks_at(&self) -> Option<Duration> {
        let looks = self.is_idle()
            && self.identity.starts != Starts::Never
            && self.to_start.asking.is_none();
        looks.then(|| self.to_start.look_at.unwrap_or(self.now))
    }

    fn own(&self) -> Own<'_> {
        Own {
            node: &self.identity.node,
            host: self.identity.host.as_deref(),
            has_replicated: self.identity.has_replicated,
        }
    }

    pub(super) fn looked(&mut self, record: Record, holder_lives: bool, out: &mut Vec<Effect>) {
        if self.question != Some(super::Question::Look) {
            return;
        }
        if record.generation < self.generation {
            let why = format!("its record went back to {}", record.generation);
            return self.arbiter_unavailable(why, out);
        }
        self.question = None;
        let fresh = self.policy.arbiter_check * ASKED_FOR_LOOKS;
        let asked_for_at = self.to_start.asked_for_at;
        let is_asked_for = asked_for_at.is_some_and(|at| self.now < at + fresh);
        let starts = self.identity.starts;
        let is_to_start = self
            .own()
            .is_to_start(starts, &record, holder_lives, is_asked_for);
        if !self.is_idle() {
            return;
        }
        if is_to_start {
            self.to_start.asking = Some(record);
            return out.push(Effect::Inquire);
        }
        let has_ended = record.generation.0 > 0 && !holder_lives && self.own().ran_here(&record);
        self.to_start.found_ended = match has_ended {
            true => self.to_start.found_ended.saturating_add(1),
            false => 0,
        };
        if self.to_start.found_ended == ENDED_LOOKS {
            let why = "it ran here last, and may have ended on purpose; if not, start this side as \
                       the primary";
            self.cannot_start(why.into(), out);
        }
    }

    /// Tells people, once for each reason.
    fn cannot_start(&mut self, why: String, out: &mut Vec<Effect>) {
        if self.to_start.told.as_ref() != Some(&why) {
            self.to_start.told = Some(why.clone());
            out.push(Effect::CannotStart { why });
        }
    }

    /// The other side has said what it has, or cannot be asked; this side's disks could be run, or
    /// not.
    pub(super) fn inquired(
        &mut self,
        theirs: Result<Holdings, String>,
        disks: Result<(), String>,
        out: &mut Vec<Effect>,
    ) {
        let Some(record) = self.to_start.asking.take() else {
            return;
        };
        if !self.is_idle() {
            return;
        }
        let started = theirs.and_then(|theirs| match self.own().next_step(&record, &theirs) {
            Step::Claim(Claim::Restart { known }) => disks.map(|()| Some(known)),
            Step::CopyElsewhere => Err(format!(
                "{} may have a copy of it, and was not asked",
                record.backup.as_deref().unwrap_or("a third host")
            )),
            // The other side goes on.
            _ => Ok(None),
        });
        match started {
            Ok(Some(known)) => out.push(Effect::StartGuest { known }),
            Ok(None) => {}
            Err(why) => self.cannot_start(why, out),
        }
    }
}
