//! Chaos: a protected guest streams, counts and writes its disk while its hosts, networks, storage and arbiter fail, one at
//! a time and two at once, on real KVM. `cargo xtask chaos` runs it; docs/SAFETY.md says what it checks.
//!
//! ```text
//!   schedule   what fails, when, for how long: from a seed
//!   run        one run: protected, failures, protected again, a takeover; what it showed
//!   hosts      two `vmm` processes with all that they use; network, storage, pressure, flood: parts of that
//!   failures   how each is made and undone
//!   clients    check every byte and every number;  speakers: check who sends
//!   report     figures of all runs
//!   links      instead of all that: what clients see of a guest that changes more than a slow link ships
//!   stalls     instead of all that: how often a pair acts although its hosts only stood still for a while
//! ```

mod clients;
mod failures;
mod flood;
mod hosts;
mod links;
mod network;
mod pressure;
mod programs;
mod report;
mod run;
mod schedule;
mod speakers;
mod stalls;
mod storage;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use parking_lot::Mutex;

use crate::pressure::MemoryGroup;
use crate::report::Report;
use crate::run::Outcome;
use crate::schedule::{Choice, Failure, Schedule};

/// Tries a protected pair hard, on real KVM. `cargo xtask` calls it.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Call {
    /// Where runs have their files; what a failing one leaves is kept there.
    #[arg(long, value_name = "DIR", hide = true)]
    directory: PathBuf,
    /// The `vmm` to try.
    #[arg(long, value_name = "PATH", hide = true)]
    binary: PathBuf,
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Chaos(Options),
    Links(links::Options),
    Stalls(stalls::Options),
}

/// Lets a protected guest's hosts, networks, storage and arbiter fail, and checks what its clients see.
#[derive(Debug, Args)]
struct Options {
    /// How many runs.
    #[arg(long, value_name = "N", required_unless_present = "minutes")]
    runs: Option<u64>,
    /// Begin no further run after so many minutes.
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// The seed of the first run; the next one has the next seed.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Only these failures, alone and in pairs.
    #[arg(long, value_name = "FAILURE", value_delimiter = ',')]
    only: Vec<Failure>,
    /// One failure a run, no pairs.
    #[arg(long)]
    singles: bool,
    /// How many runs at the same time.
    #[arg(long, value_name = "N", default_value_t = 2)]
    jobs: usize,
    /// Write all figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Where runs are made, and of which `vmm`.
#[derive(Debug)]
pub(crate) struct Place {
    work: PathBuf,
    kept: PathBuf,
    vmm: PathBuf,
}

fn main() -> Result<()> {
    let call = Call::parse();
    let place = Place {
        work: call.directory.join("work"),
        kept: call.directory.join("failed"),
        vmm: call.binary,
    };
    for directory in [&place.work, &place.kept] {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    // So that no run waits for this machine's disk, which others use. What is unmounted there goes from the mount namespaces
    // of all processes.
    let work = place.work.display().to_string();
    let options = ["--make-shared", "-t", "tmpfs", "tmpfs", &work];
    programs::run("mount", &options)?;
    let done = match &call.task {
        Task::Chaos(options) => chaos(options, &place),
        Task::Links(options) => links::run(options, &place),
        Task::Stalls(options) => stalls::run(options, &place),
    };
    programs::run("umount", &["--lazy", &work])?;
    done
}

fn chaos(options: &Options, place: &Place) -> Result<()> {
    let choice = choice_of(options)?;
    let report = Report::new(run_all(options, &choice, place));
    println!("{}", report.render());
    if let Some(path) = &options.json {
        write_json(path, &report)?;
    }
    match report.failed() {
        0 => Ok(()),
        failed => bail!(
            "{failed} runs failed; their logs are in {}",
            place.kept.display()
        ),
    }
}

fn write_json(path: &Path, figures: &impl serde::Serialize) -> Result<()> {
    std::fs::write(path, serde_json::to_string_pretty(figures)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// What is to fail.
fn choice_of(options: &Options) -> Result<Choice> {
    let mut failures = match options.only.is_empty() {
        true => Failure::value_variants().to_vec(),
        false => options.only.clone(),
    };
    failures.sort_unstable();
    failures.dedup();
    let needs_groups = failures.contains(&Failure::MemoryPressure);
    ensure!(
        !needs_groups || MemoryGroup::new("trial").is_some(),
        "there are no cgroups for memory here, or this user may not make one, and memory-pressure needs them: name all other \
         failures with --only"
    );
    Ok(Choice {
        failures,
        singles: options.singles,
    })
}

fn run_all(options: &Options, choice: &Choice, place: &Place) -> Vec<Outcome> {
    let end = options
        .minutes
        .map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let (next, outcomes) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let is_over = end.is_some_and(|end| Instant::now() >= end);
                    if is_over || options.runs.is_some_and(|runs| number >= runs) {
                        return;
                    }
                    let schedule = Schedule::new(options.seed + number, choice);
                    let outcome = one(options, &schedule, place);
                    outcomes.lock().push(outcome);
                }
            });
        }
    });
    outcomes.into_inner()
}

/// One run, with a line about it.
fn one(options: &Options, schedule: &Schedule, place: &Place) -> Outcome {
    let seed = schedule.seed;
    let directory = place.work.join(seed.to_string());
    let mut outcome = Outcome::default();
    match std::fs::create_dir(&directory) {
        Ok(()) => outcome = run::run(schedule, &directory, &place.vmm),
        Err(error) => outcome
            .faults
            .push(format!("cannot make {}: {error}", directory.display())),
    }
    if outcome.faults.is_empty() {
        let ms = |time: Option<f64>| time.map_or("-".to_owned(), |ms| format!("{ms:.0} ms"));
        let over = outcome.started_over.unwrap_or_default();
        eprintln!(
            "seed {seed}: {}: outage {}, protected again after {}; at the end {} {over}",
            outcome.title,
            ms(outcome.outage_ms),
            ms(outcome.repair_ms),
            ms(outcome.last_outage_ms),
        );
    } else {
        let kept = place.kept.join(seed.to_string());
        let was_kept = keep(&directory, &kept, schedule, &outcome);
        let only: Vec<String> = options.only.iter().map(ToString::to_string).collect();
        let mut chosen = match only.is_empty() {
            true => String::new(),
            false => format!(" --only {}", only.join(",")),
        };
        if options.singles {
            chosen += " --singles";
        }
        eprintln!(
            "seed {seed}: FAILED: {}\n  {schedule}\n  logs: {}\n  again: cargo xtask chaos --runs 1 --seed {seed}{chosen}",
            outcome.faults.join("; "),
            was_kept.map_or_else(
                |error| format!("{error:#}"),
                |()| kept.display().to_string()
            ),
        );
    }
    // On a file system in memory that goes with this program.
    let _ = std::fs::remove_dir_all(&directory);
    outcome
}

/// Keeps the logs and consoles of a run.
fn keep(directory: &Path, place: &Path, schedule: &Schedule, outcome: &Outcome) -> Result<()> {
    std::fs::create_dir_all(place).with_context(|| format!("cannot make {}", place.display()))?;
    let said = format!("{schedule}\n{}\n", outcome.faults.join("\n"));
    std::fs::write(place.join("faults"), said)?;
    for file in std::fs::read_dir(directory)? {
        let path = file?.path();
        let is_text = path
            .extension()
            .is_some_and(|it| it == "log" || it == "console");
        if is_text && let Some(name) = path.file_name() {
            std::fs::copy(&path, place.join(name))?;
        }
    }
    Ok(())
}
