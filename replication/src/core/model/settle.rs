//! A run from any state in which nothing more goes wrong: messages arrive, calls come back, what
//! hangs goes on. Whoever may still run the guest must speak in the end, and its guest be told of its flushes.
//!
//! Must not be done here: hiding a fault that a host would have to live with, such as a dead peer.

use super::arbiter::{Answer, Call, Stage};
use super::world::{Action, Moment, Side, World};
use crate::core::backup::transitions::for_model::Timer as BackupTimer;
use crate::core::primary::transitions::for_model::Timer as PrimaryTimer;

/// More rounds than any way to the next word takes.
const ROUNDS_MAX: usize = 40;

impl World {
    /// Whether somebody speaks in the end, if somebody who has the guest lives.
    pub(super) fn settles(&self) -> bool {
        if self.broken.is_some() || !self.somebody_should_speak() {
            return true;
        }
        let mut world = self.clone();
        world.left = Default::default();
        world.bounds.epochs = u64::MAX;
        world.arbiter.put_right();
        let (before, told) = (world.said, world.told);
        for _ in 0..ROUNDS_MAX {
            if world.speaks(&before) && world.flushes(told) || world.ended {
                return true;
            }
            let moved = world.round();
            if !moved {
                world.time_passes();
            }
        }
        false
    }

    /// Whoever was granted the guest last should speak while it lives, and if it does not, whoever
    /// has its copy.
    fn somebody_should_speak(&self) -> bool {
        let (latest, holder) = self.arbiter.latest();
        // Who starts the guest and gets no answer ends, and is started again by a person.
        let is_lost = |call: Call| call.stage == Stage::Answered(Answer::Silent);
        let host = &self.hosts[holder.host];
        let gives_up = matches!(host.side, Side::Starting) && host.call.is_some_and(is_lost);
        // Whoever has a machine that has broken has nothing to go on with.
        if self.lives(holder) && !gives_up && !host.broke {
            return true;
        }
        self.hosts.iter().any(|host| {
            host.backup().is_some_and(|core| {
                core.committed_epoch().is_some() && core.generation().0 == latest
            })
        })
    }

    fn speaks(&self, before: &[Option<Moment>]) -> bool {
        self.said != *before || self.hosts.iter().any(|host| host.gate_open)
    }

    /// Without a backup, a flush waits for nobody else.
    fn flushes(&self, before: Moment) -> bool {
        !self.bounds.disks || self.told != before || self.hosts.iter().any(|host| host.gate_open)
    }

    /// Everything that is under way happens. Returns whether anything did.
    fn round(&mut self) -> bool {
        let mut moved = false;
        for host in 0..2 {
            if let Some(call) = self.hosts[host].call {
                moved = true;
                match call.stage {
                    Stage::Answered(_) => self.arbiter_answers(host),
                    _ => self.arbiter_step(host),
                }
            }
            if self.hosts[host].work.is_some() {
                moved = true;
                self.work_done(host);
            }
            if self.hosts[host].trying.is_some() {
                moved = true;
                self.restore_tried(host, Ok(()));
            }
            if self.hosts[host].persisting.is_some() {
                moved = true;
                self.persisted(host, Ok(()));
            }
            if self.hosts[host].flushing.is_some() {
                moved = true;
                self.journal_flushed(host, Ok(()));
            }
            while self
                .link
                .as_ref()
                .is_some_and(|link| !link.ends[host].inbox.is_empty())
            {
                moved = true;
                self.deliver(host);
            }
            if self
                .link
                .as_ref()
                .is_some_and(|link| link.is_gone_for(host))
            {
                moved = true;
                self.link_gone(host);
            }
        }
        moved
    }

    /// Nothing more happens by itself: time-outs expire, but not those of a peer that lives and is
    /// heard.
    fn time_passes(&mut self) {
        let is_linked = self
            .link
            .as_ref()
            .is_some_and(|link| !link.severed && link.ends.iter().all(|end| end.open));
        for host in 0..2 {
            match &self.hosts[host].side {
                Side::Primary(core) => {
                    let may = |timer: &PrimaryTimer| {
                        !is_linked
                            || !matches!(timer, PrimaryTimer::Silence | PrimaryTimer::Handshake)
                    };
                    let timers: Vec<_> = core.waits().filter(may).collect();
                    for timer in timers {
                        self.act(Action::PrimaryTimeout(host, timer));
                    }
                }
                Side::Backup(core) => {
                    let is_linked = is_linked && !self.hosts[host].stranger;
                    let may = |timer: &BackupTimer| {
                        !is_linked
                            || !matches!(timer, BackupTimer::Silence | BackupTimer::Handshake)
                    };
                    let timers: Vec<_> = core.waits().filter(may).collect();
                    for timer in timers {
                        self.act(Action::BackupTimeout(host, timer));
                    }
                }
                Side::Down | Side::Starting => {}
            }
        }
    }
}
