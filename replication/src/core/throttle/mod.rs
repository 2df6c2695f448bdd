//! How much of its time a guest may run, so that what it changes can be shipped in time.
//!
//! A guest may change memory faster than the logging channel, or the backup, takes the changes in. Each epoch then takes
//! longer than the one before, the guest changes more in that time, and output waits for seconds. So the vCPUs are
//! stopped for a part of the time, evenly: as large a part as it takes to have epochs acknowledged within
//! [`Policy::latency_target`](super::policy::Policy::latency_target), and no larger.
//!
//! - An epoch that is late halves the guest's share while it is awaited, and again and again: so what the next one
//!   consists of is bounded, however long it takes.
//! - An acknowledgement tells how long it takes to ship what the guest changes in a second of running. From that, and
//!   from what the epoch that runs now has in it already, follows the share with which the one after it is in time. What
//!   counts is the time for which the guest was let run: an epoch that was awaited for long holds what was changed
//!   before anybody knew.
//! - A round of the initial synchronisation that leaves nearly as much as there was before cuts it, too.
//!
//! What an epoch takes that holds next to nothing is not the guest's doing: the distance of the hosts, mostly. That much
//! is allowed on top of the target. While nothing is late the guest is not slowed at all.
//!
//! Must not be done here: looking at a clock, and stopping vCPUs.

use std::time::Duration;

/// An epoch that needs less on the wire says what any epoch takes.
const SMALL_BYTES: u64 = 64 << 10;
/// The weight of a new measurement of a small epoch that took longer: one part of so many.
const SMOOTH: u32 = 4;
/// A late epoch halves the share again whenever so many parts of the target have passed.
const LATE_PARTS: u32 = 2;
/// What a guest changes that is slowed is told by what it did in about so many times the target.
const SEEN_TARGETS: u32 = 4;
/// A share that may be smaller than it need be grows by one part of so many.
const PROBE_PARTS: u32 = 32;
/// An epoch cuts the share at most to one part of so many: it may have been bad luck. So does a round that leaves nearly
/// as much as there was.
const CUT_PARTS: u32 = 8;

/// The part of the time for which vCPUs may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunShare(u32);

impl RunShare {
    /// All of the time.
    pub const FULL: Self = Self(1 << 16);
    /// A 512th of it. A guest that changes memory as fast as processors can still fills a link of 50 Mbit/s.
    pub const LEAST: Self = Self(1 << 7);

    /// Whether it is all of the time.
    #[must_use]
    pub fn is_full(self) -> bool {
        self == Self::FULL
    }

    /// As a number from 0 to 1.
    #[must_use]
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(Self::FULL.0)
    }

    /// `part / whole`, within what is possible.
    fn of(part: Duration, whole: Duration) -> Self {
        let share = part.as_nanos() * u128::from(Self::FULL.0) / whole.as_nanos().max(1);
        let within = share.clamp(Self::LEAST.0.into(), Self::FULL.0.into());
        Self(within as u32)
    }

    /// One part of so many of this share, or the least.
    #[must_use]
    pub fn divided(self, parts: u32) -> Self {
        Self((self.0 / parts).max(Self::LEAST.0))
    }

    /// This share and one part of so many.
    fn grown(self, parts: u32) -> Self {
        Self((self.0 + (self.0 / parts).max(1)).min(Self::FULL.0))
    }

    /// This share times `to / from`.
    fn scaled(self, to: Duration, from: Duration) -> Self {
        let scaled = u128::from(self.0) * to.as_nanos() / from.as_nanos().max(1);
        Self(scaled.clamp(Self::LEAST.0.into(), Self::FULL.0.into()) as u32)
    }
}

/// An epoch that has ended.
#[derive(Debug, Clone, Copy)]
struct Awaited {
    ended_at: Duration,
    /// For how long the guest ran in it.
    ran: Duration,
}

/// For how long the guest ran of late, and how long shipping the changes took, the last epochs most of all: while a guest
/// is slowed, one epoch may have all that it does in a while, and the next ones nothing.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    took: Duration,
    ran: Duration,
}

impl Seen {
    /// Adds an epoch, `passed` after the one before.
    fn add(&mut self, took: Duration, ran: Duration, passed: Duration, target: Duration) {
        let window = target * SEEN_TARGETS;
        let kept = window.as_secs_f64() / (window + passed).as_secs_f64();
        self.took = self.took.mul_f64(kept) + took;
        self.ran = self.ran.mul_f64(kept) + ran;
    }
}

/// Decides the share of one guest.
#[derive(Debug, Clone)]
pub(crate) struct Throttle {
    /// Zero if the guest is never slowed.
    target: Duration,
    /// The longest time between the ends of two epochs if everything is in time.
    interval: Duration,
    /// What the acknowledged epochs call for.
    share: RunShare,
    /// How often it is halved because the present one is late.
    late: u32,
    /// What an epoch takes that holds next to nothing.
    least: Duration,
    /// What the last one took beyond that.
    took: Duration,
    /// When it was acknowledged.
    acked_at: Duration,
    seen: Seen,
    /// For how long the guest has run in the running epoch, until `counted_at`.
    ran: Duration,
    counted_at: Duration,
    awaited: Option<Awaited>,
    told: RunShare,
}

impl Throttle {
    pub(crate) fn new(target: Duration, interval: Duration) -> Self {
        Self {
            target,
            interval,
            share: RunShare::FULL,
            late: 0,
            least: Duration::ZERO,
            took: Duration::ZERO,
            acked_at: Duration::ZERO,
            seen: Seen::default(),
            ran: Duration::ZERO,
            counted_at: Duration::ZERO,
            awaited: None,
            told: RunShare::FULL,
        }
    }

    /// The share now.
    pub(crate) fn share(&self) -> RunShare {
        self.share.divided(1 << self.late.min(16))
    }

    /// The share, if it is another one than was last told.
    pub(crate) fn news(&mut self) -> Option<RunShare> {
        let share = self.share();
        (std::mem::replace(&mut self.told, share) != share).then_some(share)
    }

    /// The session is over, so nothing is to be shipped.
    pub(crate) fn end(&mut self) {
        *self = Self {
            told: self.told,
            ..Self::new(self.target, self.interval)
        };
    }

    /// Nothing was done for so long, which says nothing about what is awaited.
    pub(crate) fn slept(&mut self, jump: Duration) {
        self.counted_at += jump;
        self.acked_at += jump;
        if let Some(awaited) = &mut self.awaited {
            awaited.ended_at += jump;
        }
    }

    /// Whether the guest can be slowed no further.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.target.is_zero() || self.share() == RunShare::LEAST
    }

    /// Whether so much is soon enough.
    pub(crate) fn is_in_time(&self, takes: Duration) -> bool {
        self.target.is_zero() || takes <= self.wanted()
    }

    /// How long shipping takes of a guest that is slowed: a third of what it may. So little is late, and output that
    /// has to wait for the epoch in flight, and then for its own, is not late either.
    fn wanted(&self) -> Duration {
        self.target / 3
    }

    /// An epoch ends.
    pub(crate) fn ended(&mut self, now: Duration) {
        self.count(now);
        self.awaited = Some(Awaited {
            ended_at: now,
            ran: std::mem::take(&mut self.ran),
        });
    }

    /// The epoch did not end after all.
    pub(crate) fn not_ended(&mut self) {
        self.late = 0;
        if let Some(awaited) = self.awaited.take() {
            self.ran += awaited.ran;
        }
    }

    /// When the epoch that is awaited is late (again).
    pub(crate) fn late_at(&self) -> Option<Duration> {
        let awaited = self.awaited.filter(|_| !self.is_exhausted())?;
        let parts = LATE_PARTS + self.late;
        Some(awaited.ended_at + self.least + self.target * parts / LATE_PARTS)
    }

    /// It is late.
    pub(crate) fn late(&mut self, now: Duration) {
        self.count(now);
        self.late += 1;
    }

    /// It is acknowledged, and what the guest changed in it has needed so many bytes on the wire.
    pub(crate) fn acked(&mut self, now: Duration, bytes: u64) {
        let Some(awaited) = self.awaited.take().filter(|_| !self.target.is_zero()) else {
            return;
        };
        self.count(now);
        self.late = 0;
        let passed = now.saturating_sub(std::mem::replace(&mut self.acked_at, now));
        let took = now.saturating_sub(awaited.ended_at);
        let is_small = bytes <= SMALL_BYTES;
        if is_small {
            self.least = match took.checked_sub(self.least) {
                Some(longer) if !self.least.is_zero() => self.least + longer / SMOOTH,
                _ => took,
            };
        }
        let took = match is_small {
            true => Duration::ZERO,
            false => took.saturating_sub(self.least),
        };
        let is_growing = took > std::mem::replace(&mut self.took, took);
        if self.share.is_full() {
            // Its speed is what it was in that epoch, and not what it was before.
            self.seen = Seen::default();
        }
        self.seen.add(took, awaited.ran, passed, self.target);
        if self.share.is_full() && took <= self.target {
            return;
        }
        let fitting = self.fitting(took);
        self.share = if took > self.target || (took > self.wanted() && is_growing) {
            fitting.min(self.share).max(self.share.divided(CUT_PARTS))
        } else if took > self.wanted() {
            // It may be that no share makes any difference, as the guest changes the same pages again and again.
            self.share.grown(PROBE_PARTS)
        } else {
            // It doubles within the target at most, however many epochs that has.
            let passed = passed.min(self.target);
            let most = self.share.scaled(self.target + passed, self.target);
            fitting.clamp(self.share, most)
        };
    }

    /// The share with which the epoch after the running one is shipped in time, after one that took so long.
    fn fitting(&self, took: Duration) -> RunShare {
        let shipped = self.seen.took.as_secs_f64();
        let ran = self.seen.ran.as_secs_f64();
        if ran == 0.0 {
            return self.share;
        }
        if shipped == 0.0 {
            return RunShare::FULL;
        }
        let may_run = Duration::try_from_secs_f64(ran * self.wanted().as_secs_f64() / shipped);
        // It runs while the running epoch is shipped, which consists of what was changed so far.
        let next = Duration::try_from_secs_f64(self.ran.as_secs_f64() * shipped / ran);
        let (may_run, next) = (may_run.unwrap_or(Duration::MAX), next.unwrap_or(took));
        let runs = next.max(self.wanted()).saturating_add(self.least);
        RunShare::of(may_run, runs.max(self.interval))
    }

    /// Counts the time for which the guest has run.
    fn count(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.counted_at);
        self.ran += passed.mul_f64(self.share().fraction());
        self.counted_at = now;
    }

    /// A round of the initial synchronisation has shipped all that was changed before. What was changed meanwhile is the
    /// next one's, or the first epoch's.
    pub(crate) fn copied(&mut self, now: Duration) {
        (self.ran, self.counted_at) = (Duration::ZERO, now);
    }

    /// Another round follows one that took so long, as what is left would take `left`. The rounds become shorter, or the
    /// guest slower; if it is the last one, slower in any case.
    pub(crate) fn round(&mut self, took: Duration, left: Duration, is_last: bool) {
        let is_too_long = !self.is_in_time(left) && left > took / 2;
        if !self.target.is_zero() && (is_last || is_too_long) {
            self.share = self.share.divided(CUT_PARTS);
        }
    }
}

#[cfg(test)]
mod tests;
