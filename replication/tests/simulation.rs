//! Thousands of seeded schedules of faults over whole clusters that run exactly the library's core.
//!
//! `UNDERSTUDY_SIM_SEED=n cargo test -p understudy-replication --test simulation` replays one seed with
//! a trace; `UNDERSTUDY_SIM_SEEDS=n` sets how many the ordinary run takes.
#![forbid(unsafe_code)]
#![allow(missing_docs, unreachable_pub)]

mod sim;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use sim::world::settings;
use sim::{Report, World};

const SEEDS: u64 = 3000;

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("a number of a seed, or of seeds"))
}

fn run_seed(seed: u64, trace: bool) -> Report {
    match World::new(settings(seed, trace)).run() {
        Ok(report) => report,
        Err(violation) => panic!(
            "{violation}\nreplay: UNDERSTUDY_SIM_SEED={seed} \
             cargo test -p understudy-replication --test simulation any_schedule"
        ),
    }
}

#[test]
fn any_schedule_of_faults_keeps_the_rules() {
    if let Some(seed) = from_environment("UNDERSTUDY_SIM_SEED") {
        println!("{:#?}", run_seed(seed, true));
        return;
    }
    let seeds = from_environment("UNDERSTUDY_SIM_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let totals = Mutex::new(BTreeMap::<&'static str, u64>::new());
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    let report = run_seed(seed, false);
                    let mut totals = totals.lock().unwrap();
                    for (what, count) in report.counts {
                        *totals.entry(what).or_default() += count;
                    }
                    *totals.entry("outputs").or_default() += report.outputs;
                }
            });
        }
    });
    let totals = totals.into_inner().unwrap();
    println!("{seeds} seeds: {totals:#?}");
}
