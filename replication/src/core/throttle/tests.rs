//! Guests that change memory at a certain speed, and links that ship so much.

use super::*;

const MS: Duration = Duration::from_millis(1);
const TARGET: Duration = Duration::from_millis(100);
/// The timer of epochs.
const EPOCH: Duration = Duration::from_millis(25);
const PAGE: f64 = 4096.0;

/// A pair, with the epochs that follow each other.
struct Pair {
    throttle: Throttle,
    now: Duration,
    /// How many pages the guest can change in a second.
    pages_per_s: f64,
    /// How many there are that it changes.
    pages: f64,
    /// Bytes a second.
    link: f64,
    /// What any epoch takes.
    distance: Duration,
    /// The vCPUs run for so long at a time at least, and are late with it.
    slice: Duration,
    /// For how long they may have run and have not yet.
    due: Duration,
    dirty: f64,
}

impl Pair {
    /// A guest that rewrites 200 MiB as fast as it can, and a link of so many Mbit/s.
    fn busy(mbit_per_s: f64) -> Self {
        Self {
            throttle: Throttle::new(TARGET, EPOCH),
            now: Duration::ZERO,
            pages_per_s: 400_000.0,
            pages: 51_200.0,
            link: mbit_per_s * 1e6 / 8.0,
            distance: MS,
            slice: Duration::ZERO,
            due: Duration::ZERO,
            dirty: 0.0,
        }
    }

    fn run(&mut self, time: Duration) {
        self.due += time.mul_f64(self.throttle.share().fraction());
        let ran = match self.due >= self.slice {
            true => std::mem::take(&mut self.due),
            false => Duration::ZERO,
        };
        let changed = self.pages_per_s * ran.as_secs_f64();
        self.dirty = (self.dirty + changed).min(self.pages);
        self.now += time;
    }

    /// Lets an epoch end and be acknowledged. Returns how long it took.
    fn epoch(&mut self) -> Duration {
        let bytes = self.dirty * PAGE + 4096.0;
        self.dirty = 0.0;
        let took = self.distance + Duration::from_secs_f64(bytes / self.link);
        let acked_at = self.now + took;
        self.throttle.ended(self.now);
        while let Some(late_at) = self.throttle.late_at()
            && late_at < acked_at
        {
            self.run(late_at - self.now);
            self.throttle.late(self.now);
        }
        self.run(acked_at - self.now);
        self.throttle.acked(self.now, bytes as u64);
        self.run(EPOCH.saturating_sub(took));
        took
    }

    fn epochs(&mut self, count: usize) -> Vec<Duration> {
        (0..count).map(|_| self.epoch()).collect()
    }
}

/// An epoch in which the guest ran for its whole time, and which takes so long.
fn epoch(throttle: &mut Throttle, took: Duration, bytes: u64) {
    let now = throttle.counted_at + EPOCH;
    throttle.ended(now);
    throttle.acked(now + took, bytes);
}

#[test]
fn a_guest_that_changes_more_than_the_link_ships_is_slowed_until_its_epochs_are_in_time() {
    for mbit_per_s in [100.0, 200.0, 1_000.0, 10_000.0] {
        let mut pair = Pair::busy(mbit_per_s);
        pair.run(EPOCH);
        let first: Vec<Duration> = pair.epochs(12);
        let later: Vec<Duration> = pair.epochs(100);
        let longest = later.iter().max().expect("a hundred");
        assert!(
            *longest <= TARGET,
            "{mbit_per_s} Mbit/s: {first:?}, {later:?}"
        );
        let slowed = pair.throttle.share();
        assert!(!slowed.is_full(), "{mbit_per_s} Mbit/s");
        // And no more than that: the link is not idle for most of the time.
        let median = later[50];
        assert!(median >= TARGET / 5, "{mbit_per_s} Mbit/s: {median:?}");
    }
}

#[test]
fn vcpus_that_run_in_long_slices_are_slowed_evenly_too() {
    let mut pair = Pair::busy(200.0);
    pair.slice = MS;
    pair.run(EPOCH);
    pair.epochs(30);
    let later = pair.epochs(300);
    let shipped = later.iter().filter(|took| **took > 2 * MS).count();
    // A slice takes 66 ms to ship, and most epochs have none.
    assert!(shipped >= 30, "{later:?}");
    let longest = later.iter().max().expect("many");
    assert!(*longest <= TARGET, "{longest:?} of {later:?}");
}

#[test]
fn what_a_guest_changes_while_an_epoch_is_awaited_is_bounded_however_long_that_takes() {
    let mut pair = Pair::busy(100.0);
    pair.pages = f64::INFINITY;
    // Ten seconds' worth.
    pair.dirty = 10.0 * pair.link / PAGE;
    let took = pair.epoch();
    assert!(took > 9 * Duration::from_secs(1), "{took:?}");
    // Twice the target at full speed, and what the least share comes to.
    let least = took.mul_f64(RunShare::LEAST.fraction());
    let bound = pair.pages_per_s * (2 * TARGET + least).as_secs_f64();
    assert!(pair.dirty <= bound, "{} of {bound} pages", pair.dirty);
}

#[test]
fn a_guest_whose_epochs_are_in_time_is_not_slowed() {
    let mut pair = Pair::busy(10_000.0);
    pair.pages = 10_000.0;
    for _ in 0..100 {
        assert!(pair.epoch() <= TARGET);
        assert_eq!(pair.throttle.share(), RunShare::FULL);
    }
}

#[test]
fn a_guest_that_has_become_quiet_runs_at_full_speed_again() {
    let mut pair = Pair::busy(100.0);
    pair.epochs(100);
    assert!(pair.throttle.share().fraction() < 0.05);
    pair.pages_per_s = 100.0;
    let epochs = (0..).take_while(|_| {
        pair.epoch();
        !pair.throttle.share().is_full()
    });
    assert!(epochs.count() < 40);
}

#[test]
fn the_distance_of_the_hosts_is_not_held_against_the_guest() {
    let mut pair = Pair::busy(10_000.0);
    (pair.pages, pair.distance) = (100.0, 300 * MS);
    for epoch in 0..50 {
        pair.pages = if epoch % 5 == 0 { 1.0 } else { 100.0 };
        pair.epoch();
    }
    assert_eq!(pair.throttle.share(), RunShare::FULL);
    // Now it changes too much.
    (pair.pages, pair.link) = (f64::INFINITY, 12_500_000.0);
    pair.epochs(50);
    let took = pair.epoch();
    assert!(!pair.throttle.share().is_full());
    assert!(
        took >= pair.distance && took <= pair.distance + 2 * TARGET,
        "{took:?}"
    );
}

#[test]
fn what_an_epoch_costs_whatever_the_guest_does_slows_it_for_a_moment_only() {
    // A standby that makes each epoch safe in 120 ms, and a guest that writes a little.
    let mut pair = Pair::busy(10_000.0);
    (pair.pages, pair.distance) = (64.0, 120 * MS);
    let slow = (0..300).filter(|_| {
        pair.epoch();
        pair.throttle.share().fraction() < 0.9
    });
    assert!(slow.count() < 30);
    assert_eq!(pair.throttle.share(), RunShare::FULL);
}

#[test]
fn one_bad_epoch_does_not_bring_a_guest_to_a_standstill() {
    let mut pair = Pair::busy(10_000.0);
    pair.pages = 1_000.0;
    pair.epochs(10);
    pair.distance = 300 * MS;
    pair.epoch();
    pair.distance = MS;
    assert!(pair.throttle.share() >= RunShare::FULL.divided(CUT_PARTS));
    pair.epochs(20);
    assert_eq!(pair.throttle.share(), RunShare::FULL);
}

#[test]
fn a_small_epoch_that_takes_long_slows_nobody() {
    let mut throttle = Throttle::new(TARGET, EPOCH);
    epoch(&mut throttle, 10 * TARGET, SMALL_BYTES);
    assert_eq!(throttle.share(), RunShare::FULL);
    // A single one does not tell how far apart the hosts are for long, either.
    epoch(&mut throttle, MS, SMALL_BYTES);
    epoch(&mut throttle, 5 * TARGET, SMALL_BYTES + 1);
    assert!(!throttle.share().is_full());
}

#[test]
fn a_round_that_leaves_nearly_as_much_as_there_was_slows_the_guest() {
    let mut throttle = Throttle::new(TARGET, EPOCH);
    throttle.round(1000 * MS, 400 * MS, false);
    assert_eq!(
        throttle.share(),
        RunShare::FULL,
        "the rounds become shorter"
    );
    throttle.round(60 * MS, TARGET / 3, false);
    assert_eq!(throttle.share(), RunShare::FULL, "what is left is little");
    throttle.round(1000 * MS, 900 * MS, false);
    assert_eq!(throttle.share(), RunShare::FULL.divided(CUT_PARTS));
    for _ in 0..5 {
        throttle.round(1000 * MS, 900 * MS, false);
    }
    assert_eq!(throttle.share(), RunShare::LEAST);
    assert!(throttle.is_exhausted());
}

#[test]
fn each_change_is_told_once_and_ends_with_the_session() {
    let mut throttle = Throttle::new(TARGET, EPOCH);
    assert_eq!(throttle.news(), None);
    throttle.late(MS);
    let half = RunShare::FULL.divided(2);
    assert_eq!((throttle.news(), throttle.news()), (Some(half), None));
    throttle.end();
    assert_eq!(throttle.news(), Some(RunShare::FULL));
    assert_eq!(throttle.news(), None);
}

#[test]
fn without_a_target_nobody_is_slowed() {
    let mut throttle = Throttle::new(Duration::ZERO, EPOCH);
    epoch(&mut throttle, 100 * TARGET, 1 << 30);
    throttle.round(100 * TARGET, 100 * TARGET, true);
    assert_eq!(throttle.share(), RunShare::FULL);
    assert_eq!(throttle.late_at(), None);
    assert!(throttle.is_in_time(100 * TARGET));
}
