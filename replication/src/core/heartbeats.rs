//! Which heartbeats count, which the runtime and the simulator ask before a heartbeat is put into a
//! core, and how long none may come, by how they came until now.
//!
//! Must not be done here: concluding anything from a heartbeat, or from none. The cores do that.

use std::time::Duration;

use super::policy::Policy;
use crate::ids::Generation;

/// A heartbeat, as it was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// From a side that runs the guest.
    pub from_primary: bool,
    /// The session that it says it belongs to.
    pub session: u64,
    /// The sender's generation.
    pub generation: Generation,
    /// Counts the sender's heartbeats.
    pub sequence: u64,
}

/// Lets heartbeats of the present session pass, each once and in order. Anyone who has seen one
/// could otherwise keep a dead side alive with it.
#[derive(Debug)]
pub struct HeartbeatFilter {
    /// Whether this side runs the guest.
    is_primary: bool,
    /// The last heartbeat that passed, by kind of sender: session and sequence.
    last: [Option<(u64, u64)>; 2],
}

impl HeartbeatFilter {
    /// A filter for a side that runs the guest, or for one that keeps the copy.
    #[must_use]
    pub fn new(is_primary: bool) -> Self {
        Self {
            is_primary,
            last: [None; 2],
        }
    }

    /// Whether a heartbeat counts while this side is in `session`; 0 if it is in none.
    ///
    /// A backup hears primaries only, because another backup would keep a dead primary alive. A
    /// primary also hears primaries: one may have been promoted.
    pub fn admits(&mut self, heartbeat: &Heartbeat, session: u64) -> bool {
        if session == 0 || heartbeat.session != session {
            // It is not remembered either: a stranger's would make an old one look new.
            return false;
        }
        if !heartbeat.from_primary && !self.is_primary {
            return false;
        }
        let last = &mut self.last[usize::from(heartbeat.from_primary)];
        if last.is_some_and(|(of, sequence)| of == session && heartbeat.sequence <= sequence) {
            return false;
        }
        *last = Some((session, heartbeat.sequence));
        true
    }
}

/// So many heartbeats show how they come. Before, the longest time is allowed.
const ENOUGH: u32 = 200;
/// For so many minutes a gap is remembered.
const MINUTES: usize = 10;
const MINUTE: Duration = Duration::from_secs(60);
/// So many times the largest gap that was seen is allowed.
const MARGIN: u32 = 2;

/// How long the other side may be silent before it counts as lost: twice as long as it was at most in the
/// last ten minutes, between [`Policy::shortest_timeout`] and [`Policy::heartbeat_timeout`]. The largest gap is the
/// quantile that counts: a host that stands still does so seldom, and for long.
///
/// Nothing but the time at which somebody asks depends on it.
#[derive(Debug, Clone)]
pub struct Patience {
    shortest: Duration,
    longest: Duration,
    /// Heartbeats on the path of their own, in a row.
    heartbeats: u32,
    /// When the last of them came.
    beat_at: Duration,
    /// The largest gaps of the last minutes, the present one first.
    largest: [Duration; MINUTES],
    minute_began: Duration,
}

impl Patience {
    /// Nothing was heard yet.
    #[must_use]
    pub fn new(policy: &Policy, now: Duration) -> Self {
        Self {
            shortest: policy.shortest_timeout(),
            longest: policy.heartbeat_timeout,
            heartbeats: 0,
            beat_at: now,
            largest: [Duration::ZERO; MINUTES],
            minute_began: now,
        }
    }

    /// A sign of life came `gap` after the last one, on whatever path. Time that this side slept is not part of it.
    pub fn heard(&mut self, gap: Duration, now: Duration) {
        if now.saturating_sub(self.minute_began) >= MINUTE {
            self.largest.rotate_right(1);
            self.largest[0] = Duration::ZERO;
            self.minute_began = now;
        }
        self.largest[0] = self.largest[0].max(gap);
        if now.saturating_sub(self.beat_at) > self.longest {
            self.heartbeats = 0;
        }
    }

    /// It was a heartbeat on the path of their own. Without that path, also if it was there before, a long frame on a slow
    /// link is silence, too: nothing is concluded from what is heard on the link alone.
    pub fn heartbeat(&mut self, now: Duration) {
        self.heartbeats = self.heartbeats.saturating_add(1);
        self.beat_at = now;
    }

    /// The silence that is allowed now.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        if self.heartbeats < ENOUGH {
            return self.longest;
        }
        let largest = self.largest.iter().max().copied().unwrap_or_default();
        (largest * MARGIN).clamp(self.shortest, self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: u64 = 7;

    fn beat(from_primary: bool, session: u64, sequence: u64) -> Heartbeat {
        Heartbeat {
            from_primary,
            session,
            generation: Generation(1),
            sequence,
        }
    }

    const MS: Duration = Duration::from_millis(1);

    /// After enough heartbeats, each of them `gap` after the one before.
    fn patience(gap: Duration) -> (Patience, Duration) {
        let (mut patience, mut now) = (Patience::new(&Policy::default(), MINUTE), MINUTE);
        for _ in 0..ENOUGH {
            assert_eq!(patience.timeout(), Policy::default().heartbeat_timeout);
            now += gap;
            patience.heard(gap, now);
            patience.heartbeat(now);
        }
        (patience, now)
    }

    #[test]
    fn heartbeats_that_come_in_time_allow_the_shortest_time_out() {
        let policy = Policy::default();
        let (patience, _) = patience(policy.heartbeat_interval);
        assert_eq!(patience.timeout(), policy.shortest_timeout());
        let bears = 40 * MS + policy.heartbeat_interval;
        assert!(patience.timeout() >= bears + 20 * MS, "a stall of 40 ms");
    }

    #[test]
    fn a_host_that_stalls_has_the_longer_time_until_that_is_ten_minutes_ago() {
        let policy = Policy::default();
        let (mut patience, mut now) = patience(10 * MS);
        patience.heard(55 * MS, now);
        assert_eq!(patience.timeout(), 110 * MS);
        patience.heard(90 * MS, now);
        assert_eq!(patience.timeout(), policy.heartbeat_timeout);
        for _ in 0..MINUTES {
            assert_eq!(patience.timeout(), policy.heartbeat_timeout);
            now += MINUTE;
            patience.heard(10 * MS, now);
            (0..ENOUGH).for_each(|_| patience.heartbeat(now));
        }
        assert_eq!(patience.timeout(), policy.shortest_timeout());
    }

    #[test]
    fn nothing_is_concluded_from_the_link_alone() {
        let policy = Policy::default();
        let mut patience = Patience::new(&policy, MINUTE);
        for _ in 0..10 * ENOUGH {
            patience.heard(10 * MS, MINUTE);
        }
        assert_eq!(patience.timeout(), policy.heartbeat_timeout);
    }

    #[test]
    fn without_heartbeats_of_their_own_the_longest_time_is_allowed_again() {
        let policy = Policy::default();
        let (mut patience, mut now) = patience(10 * MS);
        let end = now + policy.heartbeat_timeout;
        while now < end {
            assert_eq!(patience.timeout(), policy.shortest_timeout());
            now += 10 * MS;
            patience.heard(10 * MS, now);
        }
        now += 10 * MS;
        patience.heard(10 * MS, now);
        assert_eq!(patience.timeout(), policy.heartbeat_timeout);
        patience.heartbeat(now);
        assert_eq!(patience.timeout(), policy.heartbeat_timeout);
    }

    #[test]
    fn a_short_time_out_is_not_made_shorter() {
        for ms in [10, 60, 70, 100, 10_000] {
            let policy = Policy {
                heartbeat_timeout: ms * MS,
                ..Policy::default()
            };
            let least = (70 * MS).min(policy.heartbeat_timeout);
            let shortest = policy.shortest_timeout();
            assert!(shortest >= least && shortest <= policy.heartbeat_timeout);
        }
    }

    #[test]
    fn each_counts_once_and_in_order() {
        let mut filter = HeartbeatFilter::new(false);
        assert!(filter.admits(&beat(true, SESSION, 0), SESSION));
        assert!(!filter.admits(&beat(true, SESSION, 0), SESSION), "repeated");
        assert!(filter.admits(&beat(true, SESSION, 2), SESSION));
        assert!(
            !filter.admits(&beat(true, SESSION, 1), SESSION),
            "overtaken"
        );
    }

    #[test]
    fn those_of_other_sessions_do_not_count_and_do_not_make_old_ones_new() {
        let mut filter = HeartbeatFilter::new(false);
        assert!(filter.admits(&beat(true, SESSION, 5), SESSION));
        assert!(!filter.admits(&beat(true, 8, 0), SESSION), "a stranger's");
        assert!(!filter.admits(&beat(true, SESSION, 5), SESSION), "recorded");
        assert!(filter.admits(&beat(true, 8, 0), 8), "the next session");
    }

    #[test]
    fn without_a_session_none_counts() {
        let mut filter = HeartbeatFilter::new(true);
        assert!(!filter.admits(&beat(true, 0, 0), 0));
        assert!(!filter.admits(&beat(true, SESSION, 0), 0));
    }

    #[test]
    fn a_backup_hears_no_backups_and_a_primary_hears_both_kinds() {
        let mut filter = HeartbeatFilter::new(false);
        assert!(!filter.admits(&beat(false, SESSION, 1), SESSION));
        let mut filter = HeartbeatFilter::new(true);
        assert!(filter.admits(&beat(false, SESSION, 1), SESSION));
        assert!(filter.admits(&beat(true, SESSION, 1), SESSION));
    }
}
