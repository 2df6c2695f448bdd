//! What fails in a run, when, and for how long: a function of the run's seed and nothing else.
//!
//! What must not be done here: make anything fail.

use std::fmt;
use std::time::Duration;

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// What can fail. The primary's host is the one that runs the guest when the run begins, whatever comes later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Failure {
    /// SIGKILL; the process is started again at the end.
    PrimaryKilled,
    StandbyKilled,
    /// SIGTERM, as a service manager or a shutdown sends it: the guest is handed over. Never in a pair, because a primary
    /// that cannot hand its guest over stops it.
    PrimaryStopped,
    /// SIGSTOP, then SIGCONT.
    PrimaryFrozen,
    StandbyFrozen,
    /// Nothing that one of the hosts sends on the logging channel arrives.
    ChannelCutOneWay,
    ChannelCut,
    /// Both ways of the separate path for heartbeats.
    HeartbeatsCut,
    /// The uplink of the primary's host is down.
    ClientsCut,
    /// The file system with the arbiter's directory is frozen.
    ArbiterHung,
    /// Another, empty directory is in the arbiter's place.
    ArbiterAway,
    /// There is no room for a further file.
    ArbiterFull,
    /// The file system with the images, maps and journals is frozen.
    PrimaryStorageHung,
    /// It has no room.
    PrimaryStorageFails,
    /// Its device is gone: all fails with EIO. At the end the process is killed and started again with the device.
    PrimaryStorageEio,
    StandbyStorageHung,
    StandbyStorageFails,
    StandbyStorageEio,
    /// Connections and datagrams that make no sense, to both hosts' ports.
    Flood,
    /// Memory of the primary's process is scarce.
    MemoryPressure,
}

/// A failure of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Planned {
    pub(crate) failure: Failure,
    /// When it begins, after the first one has.
    pub(crate) begins_ms: u64,
    pub(crate) lasts_ms: u64,
    /// For what can go wrong in one of two directions.
    pub(crate) from_primary: bool,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Schedule {
    pub(crate) seed: u64,
    /// How long the guest works undisturbed before.
    pub(crate) lead_ms: u64,
    /// One or two, in the order in which they begin.
    pub(crate) failures: Vec<Planned>,
}

const LEAD_MS: std::ops::Range<u64> = 100..1000;
/// How far apart the beginnings of two failures are at most: the first has been noticed then, or not yet.
const APART_MS: u64 = 1500;
/// From shorter than any time-out to longer than each that somebody acts on.
const LASTS_MS: std::ops::Range<u64> = 100..5000;
/// A prime that divides no number of combinations: consecutive seeds go through all of them.
const STEP: u64 = 1_000_003;

/// What may fail in a run.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) failures: Vec<Failure>,
    /// One failure a run, not two.
    pub(crate) singles: bool,
}

impl Choice {
    /// All single failures, and all pairs of different ones that can be.
    fn combinations(&self) -> Vec<Vec<Failure>> {
        let of = &self.failures;
        let singles = of.iter().map(|failure| vec![*failure]);
        let mut in_pairs = of.clone();
        in_pairs.retain(|failure| *failure != Failure::PrimaryStopped);
        let pairs = in_pairs.iter().enumerate().flat_map(|(number, first)| {
            let others = in_pairs[number + 1..].iter();
            others.map(|second| vec![*first, *second])
        });
        let pairs = pairs.take(if self.singles { 0 } else { usize::MAX });
        singles.chain(pairs).collect()
    }
}

impl Schedule {
    /// The run that `seed` stands for.
    pub(crate) fn new(seed: u64, choice: &Choice) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let all = choice.combinations();
        let number = seed.wrapping_mul(STEP) % all.len() as u64;
        let mut failing = all[number as usize].clone();
        if random.random() {
            failing.reverse();
        }
        let lead_ms = random.random_range(LEAD_MS);
        let failures = failing.into_iter().enumerate().map(|(number, failure)| {
            let begins_ms = match number {
                0 => 0,
                _ => random.random_range(0..=APART_MS),
            };
            Planned {
                failure,
                begins_ms,
                lasts_ms: random.random_range(LASTS_MS),
                from_primary: random.random(),
            }
        });
        Self {
            seed,
            lead_ms,
            failures: failures.collect(),
        }
    }

    /// What fails, in a fixed order: runs with the same are told of together.
    pub(crate) fn title(&self) -> String {
        let mut failures: Vec<Failure> = self.failures.iter().map(|one| one.failure).collect();
        failures.sort_unstable();
        let names: Vec<String> = failures.iter().map(ToString::to_string).collect();
        names.join(" + ")
    }
}

impl Planned {
    pub(crate) fn begins(&self) -> Duration {
        Duration::from_millis(self.begins_ms)
    }

    pub(crate) fn ends(&self) -> Duration {
        Duration::from_millis(self.begins_ms + self.lasts_ms)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = clap::ValueEnum::to_possible_value(self);
        f.write_str(name.as_ref().map_or("", |name| name.get_name()))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}, after {} ms:", self.seed, self.lead_ms)?;
        for one in &self.failures {
            let Planned {
                failure,
                begins_ms,
                lasts_ms,
                ..
            } = one;
            write!(f, " {failure} at {begins_ms} ms for {lasts_ms} ms")?;
            if *failure == Failure::ChannelCutOneWay {
                let from = match one.from_primary {
                    true => "primary",
                    false => "standby",
                };
                write!(f, " (what the {from} sends)")?;
            }
            f.write_str(";")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use clap::ValueEnum;

    use super::*;

    fn choice(failures: &[Failure], singles: bool) -> Choice {
        Choice {
            failures: failures.to_vec(),
            singles,
        }
    }

    fn all(singles: bool) -> Choice {
        choice(Failure::value_variants(), singles)
    }

    fn passed(choice: &Choice, seeds: std::ops::Range<u64>) -> BTreeMap<String, u64> {
        let mut passed = BTreeMap::new();
        for seed in seeds {
            *passed
                .entry(Schedule::new(seed, choice).title())
                .or_insert(0) += 1;
        }
        passed
    }

    #[test]
    fn consecutive_seeds_go_through_all_singles_and_pairs_equally() {
        let number = Failure::value_variants().len() as u64;
        let in_pairs = number - 1;
        let pairs = in_pairs * (in_pairs - 1) / 2;
        for (singles, count) in [(true, number), (false, number + pairs)] {
            let passed = passed(&all(singles), 1000..1000 + 2 * count);
            assert_eq!(passed.len() as u64, count);
            assert!(passed.values().all(|times| *times == 2), "{passed:?}");
        }
    }

    #[test]
    fn a_seed_is_always_the_same_run() {
        let all = all(false);
        for seed in 0..100 {
            assert_eq!(Schedule::new(seed, &all), Schedule::new(seed, &all));
        }
        let times = |seed| Schedule::new(seed, &all).failures[0].lasts_ms;
        assert!((1..100).any(|seed| times(seed) != times(0)));
    }

    #[test]
    fn a_pair_overlaps_or_follows_closely_in_either_order() {
        let two = choice(&[Failure::PrimaryKilled, Failure::ChannelCut], false);
        let mut first = BTreeMap::new();
        for seed in 0..200 {
            let schedule = Schedule::new(seed, &two);
            assert_eq!(schedule.failures[0].begins_ms, 0);
            if let [one, other] = schedule.failures[..] {
                assert_ne!(one.failure, other.failure);
                assert!(other.begins_ms <= APART_MS);
                *first.entry(one.failure).or_insert(0) += 1;
            }
        }
        assert!(
            first.len() == 2 && first.values().all(|times| *times > 10),
            "{first:?}"
        );
    }

    #[test]
    fn one_named_failure_is_that_one_alone() {
        for seed in 0..10 {
            let schedule = Schedule::new(seed, &choice(&[Failure::Flood], false));
            assert_eq!(schedule.title(), "flood");
        }
    }
}
