//! What the exhaustive model needs of a primary: how to tell its states apart, and how to let time
//! pass. There is no measure of time in the model. Any time-out may expire at any moment, whatever
//! else has happened, so a state remembers only what is waited for and what is due.
//!
//! Must not be done here: deciding anything. All that a primary does, it does in `handle`.

use std::hash::{Hash, Hasher};

pub(in crate::core) use super::deadlines::Timer;
use super::{Phase, PrimaryCore};
use crate::arbiter::Mark;
use crate::core::testing::{AGE, NOW, forget_when};

impl PrimaryCore {
    /// Forgets all times.
    pub(in crate::core) fn forget_time(&mut self, keeps_promise: bool) {
        let now = self.now;
        let ask_at = [
            self.ending.as_mut().map(|it| &mut it.ask_at),
            self.dismissal.as_mut().map(|it| &mut it.ask_at),
            self.doubt.as_mut().map(|it| &mut it.ask_at),
            Some(&mut self.confirm_at),
        ];
        for at in ask_at.into_iter().flatten() {
            forget_when(at, now);
        }
        if let Some(dismissal) = &mut self.dismissal {
            dismissal.forget_cause();
        }
        if let Some(ending) = &mut self.ending {
            ending.set_since(NOW);
        }
        if let Some(handover) = &mut self.handover {
            handover.forget(NOW);
        }
        match &mut self.phase {
            Phase::Claiming { cause, ask_at } => {
                cause.clear();
                forget_when(ask_at, now);
            }
            Phase::Syncing {
                capture_at,
                round_at,
                ..
            } => {
                forget_when(capture_at, now);
                *round_at = NOW;
            }
            Phase::Protected(epochs) => epochs.forget_time(NOW),
            _ => {}
        }
        self.confirm_asked_at = NOW - AGE;
        self.marked_at = NOW;
        self.mark_before.1 = NOW;
        if !keeps_promise {
            self.mark_before.0 = Mark::default();
        }
        self.promise.forget_time(NOW, keeps_promise);
        self.link_up_at = NOW;
        self.link_heard_at = NOW;
        self.message_at = NOW;
        self.beat_heard_at = NOW;
        self.beat_sent_at = NOW;
        self.now = NOW;
        self.arm_timers();
    }

    /// What may expire, apart from heartbeats. `Unacked` ends as `Silence` does.
    pub(in crate::core) fn waits(&self) -> impl Iterator<Item = Timer> {
        let is_dull = |timer: &Timer| matches!(timer, Timer::Beat | Timer::Unacked | Timer::Late);
        self.timers.armed().filter(move |timer| !is_dull(timer))
    }

    /// Lets this time-out expire before anything else happens.
    pub(in crate::core) fn let_expire(&mut self, timer: Timer) {
        match timer {
            Timer::AllSaid | Timer::Beat | Timer::Unacked | Timer::Late => {}
            Timer::HandOver => {
                if let Some(handover) = &mut self.handover {
                    handover.forget(NOW - AGE);
                }
            }
            Timer::LastAnswer => {
                if let Some(ending) = &mut self.ending {
                    ending.set_since(NOW - AGE);
                }
            }
            Timer::Handshake => self.link_up_at -= AGE,
            Timer::Silence => {
                self.link_heard_at -= AGE;
                self.beat_heard_at -= AGE;
            }
            Timer::Capture => match &mut self.phase {
                Phase::Syncing { capture_at, .. } => *capture_at = Some(NOW),
                Phase::Protected(epochs) => epochs.forget_time(NOW - AGE),
                _ => {}
            },
            Timer::Ask => {
                if let Some((ask_at, _)) = self.next_question() {
                    *ask_at = Some(NOW);
                }
            }
            Timer::Promise => self.promise.age(AGE),
        }
    }

    /// Nothing has come over the link for long.
    pub(in crate::core) fn hush(&mut self) {
        self.message_at -= AGE;
    }

    /// The number of the mark that the next question would write, if it would write one.
    pub(in crate::core) fn next_beat(&self) -> Option<u64> {
        let confirms = self.doubt.is_none() && self.dismissal.is_none() && self.ending.is_none();
        let marks = self.has_link() && self.backup_node.is_some();
        (confirms && marks).then(|| self.mark.next().beat)
    }
}

/// All that decides what this side will do.
impl Hash for PrimaryCore {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            policy: _,
            timers: _,
            introduction: _,
            disks_first,
            generation,
            now: _,
            phase,
            opening,
            ending,
            dismissal,
            handover,
            machine_broke,
            question,
            doubt,
            confirm_at,
            confirm_asked_at,
            mark,
            marked_at,
            mark_before,
            beat_written,
            promise,
            // The model's guests are never slowed.
            throttle: _,
            backup_node,
            backup_host: _,
            // It decides nothing here.
            backup_troubles: _,
            link_up_at,
            link_heard_at,
            message_at,
            beat_heard_at,
            // In the model nothing is heard often enough to conclude anything from it.
            patience: _,
            beat_sent_at,
        } = self;
        (disks_first, generation, phase, opening, ending).hash(state);
        (
            dismissal,
            handover,
            machine_broke,
            question,
            doubt,
            confirm_at,
            confirm_asked_at,
        )
            .hash(state);
        (mark, marked_at, mark_before, beat_written, promise).hash(state);
        (backup_node, link_up_at, link_heard_at, message_at).hash(state);
        (beat_heard_at, beat_sent_at).hash(state);
    }
}
