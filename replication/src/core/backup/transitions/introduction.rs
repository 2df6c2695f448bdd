//! The handshake from the backup's side: which primaries it accepts.

use std::time::Duration;

use super::disks::Disks;
use super::{BackupCore, Effect, Link, Phase};
use crate::arbiter::{Mark, Record};
use crate::core::message::{Hello, Message, Refusal, session_number};
use crate::core::violation::ProtocolViolation;
use crate::fingerprint::Difference;
use crate::ids::{EpochId, Generation};

/// In so many checks' time, a primary has written its first mark, and this side has found it.
const PROOF_CHECKS: u32 = 2;

impl BackupCore {
    /// The arbiter is asked before anything else is done: anyone can say anything (R10).
    pub(super) fn introduced(
        &mut self,
        generation: Generation,
        hello: Hello,
        session: u64,
        out: &mut Vec<Effect>,
    ) {
        if generation.0 == 0 || hello.session == 0 {
            return self.violated(&ProtocolViolation::NoGeneration, out);
        }
        if let Some(refusal) = self.objection(generation, &hello) {
            return self.refuse(refusal, out);
        }
        let hello = Box::new(hello);
        self.link = Link::Introduced {
            generation,
            hello,
            session,
        };
        self.rehearsal_wanted = true;
    }

    /// Accepts the primary if the arbiter's record says that it may run the guest.
    pub(super) fn welcome(
        &mut self,
        generation: Generation,
        hello: Hello,
        session: u64,
        record: &Record,
        out: &mut Vec<Effect>,
    ) {
        self.link = Link::Welcomed;
        if record.generation != generation {
            let current = record.generation;
            return self.refuse(
                if current > generation {
                    Refusal::Stale { current }
                } else {
                    let arbiter = record.arbiter.clone();
                    Refusal::OtherArbiter { arbiter, current }
                },
                out,
            );
        }
        if self.committed.is_some() {
            // A later generation goes on, so what is committed here is outdated.
            self.link = Link::Down;
            let reason = format!("{} introduced itself: {generation}", hello.node);
            self.reset(reason, out);
            self.link = Link::Welcomed;
        }
        self.generation = generation;
        self.phase = Phase::Syncing;
        self.staging.restart(EpochId(1));
        self.primary_node = Some(hello.node);
        self.told = Mark {
            session: session_number(hello.session, session),
            beat: 0,
        };
        self.promise.begin(self.now);
        self.welcomed_at = self.now;
        self.heard_at = self.now;
        self.beat_sent_at = self.now;
        self.disks = Disks::default();
        self.restorable.end();
        out.push(Effect::Welcome { session });
    }

    /// Whether the primary has written a mark of this session to the record of this side's arbiter.
    pub(super) fn is_proven(&self) -> bool {
        self.promise.is_proven()
    }

    /// Until when the primary must have shown that.
    pub(super) fn proof_ends_at(&self) -> Option<Duration> {
        let waits = self.link == Link::Welcomed
            && matches!(self.phase, Phase::Syncing)
            && !self.is_proven();
        waits.then(|| self.welcomed_at + self.policy.arbiter_check * PROOF_CHECKS)
    }

    /// Whoever was welcomed is perhaps not the primary. Nothing of it was taken.
    pub(super) fn give_up_unproven(&mut self, why: String, out: &mut Vec<Effect>) {
        let refusal = Refusal::NoArbiter(why.clone());
        out.push(Effect::Send(Message::Refuse(refusal)));
        self.cut_off(why, false, out);
    }

    pub(super) fn refuse_for_lack_of_arbiter(&mut self, why: String, out: &mut Vec<Effect>) {
        self.refuse(Refusal::NoArbiter(why), out);
    }

    pub(super) fn refuse(&mut self, refusal: Refusal, out: &mut Vec<Effect>) {
        out.push(Effect::Send(Message::Refuse(refusal)));
        self.close_link(out);
    }

    fn objection(&self, generation: Generation, hello: &Hello) -> Option<Refusal> {
        let mine = &self.identity;
        if hello.vm != mine.vm {
            return Some(Refusal::OtherVm {
                vm: mine.vm.clone(),
            });
        }
        let mut differences = hello.fingerprint.differences(&mine.fingerprint);
        if hello.layout != mine.layout {
            differences.push(Difference::Unequal {
                key: "memory".into(),
                primary: Some(hello.layout.to_string()),
                backup: Some(mine.layout.to_string()),
            });
        }
        if !differences.is_empty() {
            return Some(Refusal::Differs(differences));
        }
        let current = self.generation;
        if hello.arbiter != mine.arbiter {
            let arbiter = mine.arbiter.clone();
            return Some(Refusal::OtherArbiter { arbiter, current });
        }
        if generation < current {
            return Some(Refusal::Stale { current });
        }
        if self.restorable.is_away() {
            let why = "a trial of an earlier state has its machine, and has not come to an end";
            return Some(Refusal::Busy(why.into()));
        }
        (generation == current && self.committed.is_some()).then(|| {
            Refusal::Busy(format!(
                "holds a committed epoch of {current}; who goes on needs the next generation"
            ))
        })
    }
}

/// What a peer may say that has not shown yet that it is the primary.
pub(super) fn may_come_unproven(message: &Message) -> bool {
    matches!(
        message,
        Message::Marked(_) | Message::NoArbiter(_) | Message::Heartbeat | Message::Bye(_)
    )
}
