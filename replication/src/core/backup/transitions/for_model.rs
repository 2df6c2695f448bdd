//! What the exhaustive model needs of a backup: how to tell its states apart, and how to let time
//! pass. See the file of this name beside the primary's core.
//!
//! Must not be done here: deciding anything. All that a backup does, it does in `handle`.

use std::hash::{Hash, Hasher};

pub(in crate::core) use super::deadlines::Timer;
use super::{BackupCore, Link, Phase};
use crate::core::testing::{AGE, NOW, forget_when};
use crate::output::KeptOutput;

impl BackupCore {
    /// Forgets all times.
    pub(in crate::core) fn forget_time(&mut self, keeps_promise: bool) {
        let now = self.now;
        match &mut self.phase {
            Phase::Claiming { cause, ask_at, .. } => {
                cause.clear();
                forget_when(ask_at, now);
            }
            Phase::Standby { cut: Some(cut) } => cut.clear(),
            _ => {}
        }
        if let Link::Stranger { since, .. } = &mut self.link {
            *since = NOW;
        }
        self.welcomed_at = NOW;
        self.disks.forget_time(NOW);
        self.promise.forget_time(NOW, keeps_promise);
        self.heard_at = NOW;
        self.beat_sent_at = NOW;
        self.restorable.forget_time(NOW, NOW + AGE);
        self.now = NOW;
        self.arm_timers();
    }

    /// What may expire, apart from heartbeats.
    pub(in crate::core) fn waits(&self) -> impl Iterator<Item = Timer> {
        self.timers.armed().filter(|timer| *timer != Timer::Beat)
    }

    /// Lets this time-out expire before anything else happens.
    pub(in crate::core) fn let_expire(&mut self, timer: Timer) {
        match timer {
            Timer::Commit | Timer::Beat => {}
            Timer::Handshake => {
                if let Link::Stranger { since, .. } = &mut self.link {
                    *since -= AGE;
                }
                self.welcomed_at -= AGE;
            }
            Timer::Silence => self.heard_at -= AGE,
            Timer::Ask => match &mut self.phase {
                Phase::Claiming { ask_at, .. } => *ask_at = Some(NOW),
                _ => self.rehearsal_wanted = true,
            },
            Timer::Promise => self.promise.age(AGE),
            Timer::Storage => self.disks.forget_time(NOW - AGE),
            Timer::Trial => self.restorable.forget_time(NOW - AGE, NOW + AGE),
        }
    }

    /// The next state that is committed will be tried.
    pub(in crate::core) fn let_a_trial_be_due(&mut self) {
        self.restorable.forget_time(NOW, NOW);
    }

    /// Whether the images have all that was copied before the first epoch.
    pub(in crate::core) fn has_disks(&self) -> bool {
        self.disks.has_durable()
    }

    /// Whether the storage has left something undone for too long.
    pub(in crate::core) fn storage_has_hung(&self) -> bool {
        self.storage_hangs_at().is_some_and(|at| at <= NOW)
    }

    /// Whether nobody is connected.
    pub(in crate::core) fn has_room(&self) -> bool {
        self.link == Link::Down
    }
}

/// All that decides what this side will do.
impl Hash for BackupCore {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            policy: _,
            timers: _,
            identity: _,
            generation,
            now: _,
            phase,
            link,
            staging,
            committed,
            disks,
            restorable,
            ticket: _,
            kept: KeptOutput { .. },
            // Nobody in the model asks a backup to start the guest.
            to_start: _,
            // Nor does anybody say how the hosts are.
            health: _,
            no_state: _,
            primary_node,
            question,
            rehearsal_wanted,
            told,
            promise,
            welcomed_at: _,
            heard_at,
            // In the model nothing is heard often enough to conclude anything from it.
            patience: _,
            beat_sent_at,
            // A process that has stopped is gone.
            stopped: _,
        } = self;
        (generation, phase, disks, restorable, primary_node, question).hash(state);
        (rehearsal_wanted, told, promise, heard_at, beat_sent_at).hash(state);
        match link {
            Link::Down => 0_u64.hash(state),
            Link::Stranger { since, session } => (1_u64, since, session).hash(state),
            Link::Introduced {
                generation,
                hello,
                session,
            } => {
                (2_u64, generation, hello.session, session).hash(state);
            }
            Link::Welcomed => 3_u64.hash(state),
        }
        // An epoch comes in two pieces in the model: what has begun has all but its end.
        (staging.epoch(), staging.has_begun(), staging.is_whole()).hash(state);
        committed
            .as_ref()
            .map(|it| (it.epoch, &it.state))
            .hash(state);
    }
}
