//! `outage`: a protected guest loses its host, over and over, while clients stream and count.
//!
//! The times are the promoted side's own (from the fault to the guest's first instruction there) and the clients'
//! (longest wait for a byte). Beside QEMU's COLO, which has no detector: a program sends it the command at once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use nix::time::{ClockId, clock_gettime};
use understudy_vmm::local_cluster::{ClusterOptions, LocalCluster};

use crate::colo;
use crate::guest::{self, Speedometer};
use crate::table::{Cell, Progress, Table, number, text};

/// A standby that does not take over in this time never will.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long everything runs before the fault, and clients are watched after it.
const STEADY: Duration = Duration::from_millis(700);
/// COLO has made so many checkpoints before its primary dies.
const CHECKPOINTS: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The `vmm` to measure; repeat to compare several in turn [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    binary: Vec<PathBuf>,
    /// Memory of the guest in MiB; several in turn.
    #[arg(long, value_name = "MIB", value_delimiter = ',', default_value = "256")]
    memory_mib: Vec<u64>,
    /// What happens to the primary; several in turn.
    #[arg(long, value_delimiter = ',', default_value = "kill,freeze")]
    fault: Vec<Fault>,
    /// Clients that stream; a quarter as many count.
    #[arg(long, value_name = "N", default_value_t = 20)]
    clients: usize,
    /// Options of both sides' vmm, such as "--lock-memory all", by which the process holds all of the guest's memory when
    /// it dies; repeat to compare several [default: none].
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    with: Vec<String>,
    /// How often.
    #[arg(long, value_name = "N", default_value_t = 20)]
    runs: usize,
    /// Measure QEMU's COLO, too: the command that starts QEMU 7.2. It is only ever killed.
    #[arg(long, value_name = "COMMAND")]
    colo: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// SIGKILL: the process is gone, as if its host had lost power, but its connections are closed.
    Kill,
    /// SIGSTOP: silence.
    Freeze,
}

/// The times of all runs of a kind, in milliseconds.
#[derive(Debug, Default)]
struct Times {
    reaction: Vec<f64>,
    recovery: Vec<f64>,
    outage: Vec<f64>,
    client_gap: Vec<f64>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Table> {
    let binaries = guest::binaries(&arguments.binary)?;
    let progress = Progress::start()?;
    let mut table = Table::default();
    for memory_mib in &arguments.memory_mib {
        for fault in &arguments.fault {
            arguments.compare(*memory_mib, *fault, &binaries, &progress, &mut table)?;
        }
    }
    Ok(table)
}

impl Arguments {
    fn compare(
        &self,
        memory_mib: u64,
        fault: Fault,
        binaries: &[PathBuf],
        progress: &Progress,
        table: &mut Table,
    ) -> Result<()> {
        let compared: Vec<(&Path, &str)> = binaries
            .iter()
            .flat_map(|binary| guest::each_with(&self.with).map(move |with| (&**binary, with)))
            .collect();
        let mut times: Vec<Times> = compared.iter().map(|_| Times::default()).collect();
        let colo = self.colo.as_deref().filter(|_| fault == Fault::Kill);
        let mut of_colo = Times::default();
        // In turn, so that all have the same neighbours.
        for run in 1..=self.runs {
            for ((binary, with), times) in compared.iter().zip(&mut times) {
                progress.say(&format!(
                    "{memory_mib} MiB, {fault:?}, {} {with}: {run} of {}",
                    guest::label(binary),
                    self.runs
                ));
                self.fail(memory_mib, fault, binary, with, times)?;
            }
            if let Some(qemu) = colo {
                progress.say(&format!("{memory_mib} MiB, COLO: {run} of {}", self.runs));
                of_colo.outage.push(self.fail_colo(memory_mib, qemu)?);
            }
        }
        let scenario = format!("{memory_mib} MiB, {}", guest::word(fault));
        for ((binary, with), times) in compared.iter().zip(times) {
            table.push(times.row(&scenario, &guest::label(binary), with));
        }
        if colo.is_some() {
            table.push(of_colo.row(&scenario, "QEMU", "COLO"));
        }
        Ok(())
    }

    fn fail(
        &self,
        memory_mib: u64,
        fault: Fault,
        binary: &Path,
        with: &str,
        times: &mut Times,
    ) -> Result<()> {
        let directory = guest::scratch()?;
        let options = ClusterOptions {
            binary: binary.into(),
            memory_mib,
            vcpus: 1,
            workload: "workload=stream,counter".into(),
            disk: None,
            arguments: with.split_whitespace().map(String::from).collect(),
        };
        let mut cluster = LocalCluster::start(directory.path(), &options)?;
        guest::connect(
            &cluster.network,
            self.clients,
            self.clients.div_ceil(4).max(1),
        )?;
        std::thread::sleep(STEADY);
        let failed_ns = monotonic_ns()?;
        match fault {
            Fault::Kill => cluster.primary.kill()?,
            Fault::Freeze => cluster.primary.freeze()?,
        }
        let status = cluster.await_promotion(PATIENCE)?;
        let Some(figures) = status.failover else {
            bail!("the promoted side tells nothing of its failover");
        };
        std::thread::sleep(STEADY);
        let seen = cluster.network.figures()?;
        if let Some(error) = seen.errors.first() {
            bail!("the clients did not get what they should: {error}");
        }
        let since = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e6;
        let (detected, running) = (figures.detected_monotonic_ns, figures.running_monotonic_ns);
        times.reaction.push(since(failed_ns, detected));
        times.recovery.push(since(detected, running));
        times.outage.push(since(failed_ns, running));
        times.client_gap.push(seen.longest_gap_ms);
        Ok(())
    }

    fn fail_colo(&self, memory_mib: u64, qemu: &str) -> Result<f64> {
        let directory = guest::scratch()?;
        let pair = colo::Pair {
            qemu,
            directory: directory.path(),
            memory_mib,
            vcpus: 1,
            workload: "workload=dirty dirty.mode=word dirty.pages=100 dirty.rate=40",
        };
        let mut colo = pair.start()?;
        // It runs.
        Speedometer::start(&pair.console(), 1)?;
        colo.protect(Duration::from_millis(25))?;
        colo.await_checkpoints(CHECKPOINTS)?;
        Ok(colo.fail_over()?.as_secs_f64() * 1e3)
    }
}

impl Times {
    fn row(self, scenario: &str, vmm: &str, with: &str) -> Vec<(&'static str, Cell)> {
        let runs = self.outage.len();
        let [reaction, recovery, outage, gap] =
            [self.reaction, self.recovery, self.outage, self.client_gap].map(Sorted::new);
        vec![
            ("scenario", text(scenario)),
            ("vmm", text(vmm)),
            ("with", text(with)),
            ("runs", number(runs as f64, 0)),
            ("outage_p50_ms", outage.part(0.5)),
            ("outage_p90_ms", outage.part(0.9)),
            ("outage_p99_ms", outage.part(0.99)),
            ("outage_max_ms", outage.part(1.0)),
            ("reaction_p50_ms", reaction.part(0.5)),
            ("reaction_max_ms", reaction.part(1.0)),
            ("recovery_p50_ms", recovery.part(0.5)),
            ("recovery_max_ms", recovery.part(1.0)),
            ("client_gap_p50_ms", gap.part(0.5)),
            ("client_gap_max_ms", gap.part(1.0)),
        ]
    }
}

struct Sorted(Vec<f64>);

impl Sorted {
    fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// The value that a part of all do not exceed.
    fn part(&self, part: f64) -> Cell {
        let rank = (self.0.len() as f64 * part).ceil() as usize;
        match self.0.get(rank.saturating_sub(1)) {
            Some(value) => number(*value, 1),
            None => Cell::Unknown,
        }
    }
}

/// On the clock by which the promoted side tells its times.
fn monotonic_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(Duration::from(now).as_nanos())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_values_that_were_measured() {
        let sorted = Sorted::new(vec![4.0, 1.0, 3.0, 2.0]);
        for (part, expected) in [(0.5, 2.0), (0.75, 3.0), (0.99, 4.0), (1.0, 4.0)] {
            assert!(matches!(sorted.part(part), Cell::Number(value, 1) if value == expected));
        }
        assert!(matches!(Sorted::new(Vec::new()).part(0.5), Cell::Unknown));
    }
}
