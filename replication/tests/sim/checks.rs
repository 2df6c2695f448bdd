//! What is checked while a world runs, and when everything must be well again.

use std::time::Duration;

use understudy_replication::core::primary::PrimaryPhase;
use understudy_replication::ids::{EpochId, Generation};

use super::guest::Output;
use super::ms;
use super::primary_host::PrimaryHost;
use super::world::{Side, World};

/// The time from the last fault until everything must be well again.
pub const CALM: Duration = ms(900);
/// How long everything must stay well, with epochs that advance.
const WELL: Duration = ms(100);
/// No flush takes more epochs than this while all is well.
const FLUSH_EPOCHS: u64 = 20;
/// How often that is looked at.
pub const CHECKS: Duration = ms(20);

impl World {
    pub fn outputs(&mut self, host: usize, generation: Generation, outputs: Vec<Output>) {
        let who = self.process(host);
        for output in outputs {
            let heard = self.client.hear(who, generation, output, &self.arbiter);
            if let Err(violation) = heard {
                self.violate(violation);
            }
            if self.client.late > 0 && !self.settings.may_repeat_late {
                self.violate(format!(
                    "R4: {who:?} speaks in {generation} after its successor"
                ));
            }
        }
    }

    /// R9: a side that says that its guest is protected has a backup that has looked at the arbiter
    /// a moment ago.
    pub fn check_protected(&mut self, host: usize) {
        let Side::Primary(node) = &self.hosts[host].side else {
            return;
        };
        if !node.core.is_protected() {
            return;
        }
        let Some(link) = self.hosts[host].link else {
            return self.violate(format!("R9: host {host} is protected without a backup"));
        };
        let backup = self.links[link].backup.0;
        let seen_at = self.rehearsed.get(&backup).copied();
        let oldest = self
            .now
            .saturating_sub(self.settings.policy.arbiter_check * 2);
        if seen_at.is_none_or(|seen_at| seen_at < oldest) {
            self.violate(format!(
                "R9: host {host} calls its guest protected at {:?}, host {backup} last saw the \
                 arbiter at {seen_at:?}",
                self.now
            ));
        }
    }

    /// The guest is told of its flushes in `epoch`.
    pub fn check_told(&mut self, host: usize, epoch: EpochId) {
        let Some(link) = self.hosts[host].link else {
            return;
        };
        if self.flushed.get(&link) < Some(&epoch) {
            self.violate(format!(
                "R1: host {host} tells its guest of a flush in {epoch} that its backup has not done"
            ));
        }
    }

    /// R10: nobody is fenced, and no copy is given up, unless another one was granted the guest.
    pub fn check_fenced(&mut self, host: usize, generation: Generation) {
        if self.arbiter.current <= generation {
            self.violate(format!(
                "R10: host {host} is fenced in {generation}, the last that was granted"
            ));
        }
    }

    /// The same for a copy of `generation`. Two things cost it without the arbiter: the guest's end,
    /// and disks that fail, or hang, before their copy is whole.
    pub fn check_given_up(&mut self, host: usize, generation: Generation) {
        let (disk, hangs) = (&self.hosts[host].disk, &self.hosts[host].hangs);
        let is_of_no_use = !disk.whole && (disk.failed || hangs.has_storage(self.now));
        let may = self.farewells.contains(&generation) || is_of_no_use;
        if !may && self.arbiter.current <= generation {
            self.violate(format!(
                "R10: host {host} gives its copy of {generation} up, the last that was granted"
            ));
        }
    }

    /// All is well once it has been for a while, and epochs have advanced meanwhile.
    pub fn check(&mut self) {
        if self.trouble().is_some() || !self.all_are_up() {
            self.well_since = None;
            return;
        }
        let acked = self.acked_by(self.arbiter.holder().0);
        let (since, acked_then) = *self.well_since.get_or_insert((self.now, acked));
        let advances = acked > acked_then || !self.runs_guest();
        self.finished = advances && self.now >= since + WELL;
        if self.finished && self.nobody_has_the_guest() {
            self.count("holder died without standby");
        }
    }

    fn acked_by(&self, host: usize) -> Option<EpochId> {
        match &self.hosts[host].side {
            Side::Primary(node) => node.core.acked(),
            _ => None,
        }
    }

    fn all_are_up(&self) -> bool {
        let hosts = &self.hosts[..self.settings.hosts];
        let is_up = |side: &Side| match side {
            Side::Down => false,
            Side::Primary(_) | Side::Backup(_) => true,
        };
        self.has_ended().is_some() || hosts.iter().all(|host| is_up(&host.side) && !host.frozen)
    }

    fn runs_guest(&self) -> bool {
        self.hosts
            .iter()
            .any(|host| matches!(&host.side, Side::Primary(node) if node.running))
    }

    fn nobody_has_the_guest(&self) -> bool {
        let holder = self.arbiter.holder();
        self.has_ended().is_none()
            && (self.process(holder.0) != holder || matches!(self.hosts[holder.0].side, Side::Down))
    }

    /// What is not well after the faults: somebody must run the guest, protected.
    pub fn trouble(&self) -> Option<String> {
        if let Some(ended) = self.has_ended() {
            return self.trouble_at_end(ended);
        }
        let holder = self.arbiter.holder();
        let generation = self.arbiter.current;
        if self.nobody_has_the_guest() {
            // The holder died. Who could have taken over must have.
            let could = |side: &Side| {
                matches!(side, Side::Backup(node) if node.core.generation() == generation
                    && node.core.committed_epoch().is_some())
            };
            let host = self.hosts.iter().position(|host| could(&host.side))?;
            return Some(format!("host {host} could run the guest and does not"));
        }
        for (host, other) in self.hosts.iter().enumerate() {
            if let Side::Primary(node) = &other.side
                && node.running
                && host != holder.0
            {
                return Some(format!(
                    "host {host} runs the guest, the holder is {holder:?}"
                ));
            }
        }
        match &self.hosts[holder.0].side {
            Side::Primary(node) if node.running => {
                let phase = node.core.phase();
                if phase != PrimaryPhase::Protected || !node.core.is_protected() {
                    return Some(format!("no progress: holder {holder:?} is {phase:?}"));
                }
                let awaited = node.disks.awaits()?;
                let latest = EpochId(awaited.0 + FLUSH_EPOCHS);
                (node.core.acked() > Some(latest))
                    .then(|| format!("no progress: the guest still waits for a flush in {awaited}"))
            }
            _ => Some(format!(
                "no progress: holder {holder:?} does not run the guest"
            )),
        }
    }

    /// The host whose guest has powered itself off, if nobody runs it any more. One that was started
    /// before the present guest does not count.
    fn has_ended(&self) -> Option<usize> {
        let starts = self.client.starts;
        let with = |wanted: fn(&PrimaryHost) -> bool| {
            self.hosts.iter().position(|host| {
                matches!(&host.side, Side::Primary(node)
                    if node.guest.start == starts && wanted(node))
            })
        };
        with(|node| node.guest.ended).filter(|_| with(|node| node.running).is_none())
    }

    /// When faults have been over for long, so is the guest's end, and all that it said was heard.
    fn trouble_at_end(&self, host: usize) -> Option<String> {
        let Side::Primary(node) = &self.hosts[host].side else {
            return None;
        };
        let (phase, said, heard) = (node.core.phase(), node.guest.number, self.client.heard());
        if phase != PrimaryPhase::Stopped {
            Some(format!("no end: host {host} is {phase:?}"))
        } else if heard != said {
            Some(format!(
                "the guest said {said} things before its end, {heard} were heard"
            ))
        } else {
            None
        }
    }

    /// Everything is whole again: links and paths work, nobody sleeps, the arbiter answers.
    pub fn heal(&mut self) {
        self.arbiter.available = true;
        self.arbiter.went_back = false;
        self.beats_cut.clear();
        self.settings.capture_failures_permille = 0;
        self.settings.persist_failures_permille = 0;
        self.settings.sync_failures_permille = 0;
        self.settings.answers_lost_permille = 0;
        for number in 0..self.links.len() {
            for side in [self.links[number].primary.0, self.links[number].backup.0] {
                self.links[number].incoming(side).stalled_until = Duration::ZERO;
                self.schedule_delivery(number, side);
            }
        }
        for host in 0..self.hosts.len() {
            if self.hosts[host].frozen {
                self.thaw(host);
            }
        }
        self.recorded.over = true;
        self.heal_hangs();
    }
}
