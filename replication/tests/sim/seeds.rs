//! Runs many seeds on all processors: what they did together, and which of them failed.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::world::settings;
use super::{Report, World};

/// After so many failures the rest is not run.
const FAILURES_MAX: usize = 20;
/// How often a long run says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

/// Seeds `from` to below `to`.
pub struct Seeds {
    pub from: u64,
    pub to: u64,
    /// Whether to keep a digest of all decisions of each seed.
    pub digests: bool,
}

#[derive(Default)]
pub struct Outcome {
    pub totals: BTreeMap<&'static str, u64>,
    pub digests: BTreeMap<u64, u64>,
    /// Seeds, and what each of them broke.
    pub failures: Vec<(u64, String)>,
    next: u64,
    done: u64,
    said_at: Option<Instant>,
}

impl Seeds {
    pub fn run(&self) -> Outcome {
        let outcome = Mutex::new(Outcome {
            next: self.from,
            ..Outcome::default()
        });
        let began = Instant::now();
        let workers = std::thread::available_parallelism().map_or(2, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| while self.run_next(&outcome, began) {});
            }
        });
        outcome.into_inner().unwrap()
    }

    /// Returns false if there is nothing more to run.
    fn run_next(&self, outcome: &Mutex<Outcome>, began: Instant) -> bool {
        let seed = {
            let mut outcome = outcome.lock().unwrap();
            if outcome.next >= self.to || outcome.failures.len() >= FAILURES_MAX {
                return false;
            }
            outcome.next += 1;
            outcome.next - 1
        };
        let mut settings = settings(seed, false);
        settings.digests = self.digests;
        // A panic of a core is as bad as a broken rule, and its seed is wanted, too.
        let run = std::panic::catch_unwind(|| World::new(settings).run());
        let mut outcome = outcome.lock().unwrap();
        match run {
            Ok(Ok(report)) => outcome.add(seed, &report, self.digests),
            Ok(Err(violation)) => outcome.fail(seed, violation),
            Err(_) => outcome.fail(seed, "a panic, see above".into()),
        }
        outcome.done += 1;
        let said_at = outcome.said_at.unwrap_or(began);
        if said_at.elapsed() >= PROGRESS {
            outcome.said_at = Some(Instant::now());
            self.say(&outcome, began);
        }
        true
    }

    fn say(&self, outcome: &Outcome, began: Instant) {
        let (done, all) = (outcome.done, self.to - self.from);
        let seconds = began.elapsed().as_secs_f64();
        let left = seconds / done as f64 * (all - done) as f64;
        println!(
            "{done} of {all} seeds, {} failed, {seconds:.0} s, {left:.0} s to go",
            outcome.failures.len()
        );
    }
}

impl Outcome {
    fn add(&mut self, seed: u64, report: &Report, digests: bool) {
        for (what, count) in &report.counts {
            *self.totals.entry(what).or_default() += count;
        }
        *self.totals.entry("outputs").or_default() += report.outputs;
        *self.totals.entry("outputs repeated").or_default() += report.repeated;
        *self.totals.entry("outputs repeated late").or_default() += report.late;
        if digests {
            self.digests.insert(seed, report.digest);
        }
    }

    fn fail(&mut self, seed: u64, violation: String) {
        println!("seed {seed}: {violation}");
        self.failures.push((seed, violation));
    }
}
