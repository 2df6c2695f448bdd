//! `epochs`: a primary and its standby, each a `vmm` process, whose guest rewrites memory.
//!
//! Each row runs the guest unprotected first and protected then, so that its speed under protection is
//! a ratio of one run. Several `--binary` are measured in turn, row by row.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use understudy_replication::runtime::Status;
use understudy_vmm::local_cluster::{ClusterOptions, LocalCluster, VmmProcess};

use crate::guest::{self, Speedometer};
use crate::table::{Cell, Progress, Table, number, text};

/// Rows of the suite other than the first run for this part of `--seconds`.
const SUITE_PART: u64 = 4;
/// The unprotected guest is watched at most so long, in seconds.
const UNPROTECTED_S_MAX: u64 = 10;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The `vmm` to measure; repeat to compare several in turn [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    binary: Vec<PathBuf>,
    /// Memory of the guest in MiB [default: 256].
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<u64>,
    /// Number of vCPUs [default: 1].
    #[arg(long, value_name = "N")]
    vcpus: Option<u8>,
    /// Pages rewritten by each iteration of the guest, over all vCPUs [default: 1000].
    #[arg(long, value_name = "N")]
    pages: Option<u32>,
    /// Whole pages of noise, or one word of each page [default: word].
    #[arg(long)]
    mode: Option<Mode>,
    /// Which pages [default: sequential].
    #[arg(long)]
    pattern: Option<Pattern>,
    /// Iterations per second; 0 runs freely [default: one per epoch].
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// Longest epoch in milliseconds [default: 25].
    #[arg(long, value_name = "MS")]
    epoch_ms: Option<u64>,
    /// How long the protected guest is watched. In the suite only the first row takes so long, the
    /// others a quarter.
    #[arg(long, value_name = "S", default_value_t = 60)]
    seconds: u64,
    /// How often each row is run.
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Word,
    Page,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pattern {
    Sequential,
    Random,
    Hotcold,
}

/// What one row measures.
#[derive(Debug, Clone)]
struct Scenario {
    memory_mib: u64,
    vcpus: u8,
    pages: u32,
    mode: Mode,
    pattern: Pattern,
    /// Iterations per second; 0 is as many as the guest can.
    rate: u32,
    epoch_ms: u64,
    seconds: u64,
}

fn value_name(value: impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

pub(crate) fn run(arguments: &Arguments) -> Result<Table> {
    let binaries = guest::binaries(&arguments.binary)?;
    let progress = Progress::start()?;
    let mut table = Table::default();
    for scenario in scenarios(arguments) {
        for _ in 0..arguments.repeat {
            for binary in &binaries {
                table.push(scenario.measure(binary, &progress)?);
            }
        }
    }
    Ok(table)
}

fn scenarios(arguments: &Arguments) -> Vec<Scenario> {
    let epoch_ms = arguments.epoch_ms.unwrap_or(25).max(1);
    let one_per_epoch = u32::try_from(1000 / epoch_ms).unwrap_or(0).max(1);
    let given = Scenario {
        memory_mib: arguments.memory_mib.unwrap_or(256),
        vcpus: arguments.vcpus.unwrap_or(1).max(1),
        pages: arguments.pages.unwrap_or(1000),
        mode: arguments.mode.unwrap_or(Mode::Word),
        pattern: arguments.pattern.unwrap_or(Pattern::Sequential),
        rate: arguments.rate.unwrap_or(one_per_epoch),
        epoch_ms,
        seconds: arguments.seconds.max(2),
    };
    let about_the_guest = arguments.memory_mib.is_some()
        || arguments.vcpus.is_some()
        || arguments.pages.is_some()
        || arguments.mode.is_some()
        || arguments.pattern.is_some()
        || arguments.rate.is_some()
        || arguments.epoch_ms.is_some();
    if about_the_guest {
        return vec![given];
    }
    let rest = Scenario {
        seconds: (given.seconds / SUITE_PART).max(2),
        ..given.clone()
    };
    let with = |change: &dyn Fn(&mut Scenario)| {
        let mut scenario = rest.clone();
        change(&mut scenario);
        scenario
    };
    vec![
        given,
        with(&|s| s.mode = Mode::Page),
        with(&|s| s.pages = 100),
        with(&|s| s.pages = 10_000),
        with(&|s| (s.pages, s.mode) = (10_000, Mode::Page)),
        with(&|s| s.memory_mib = 1024),
        with(&|s| s.vcpus = 4),
        with(&|s| s.rate = 0),
        with(&|s| (s.rate, s.mode) = (0, Mode::Page)),
    ]
}

impl Scenario {
    fn workload(&self) -> String {
        format!(
            "workload=dirty dirty.pages={} dirty.mode={} dirty.pattern={} dirty.rate={}",
            (self.pages / u32::from(self.vcpus)).max(1),
            value_name(self.mode),
            value_name(self.pattern),
            self.rate
        )
    }

    fn name(&self) -> String {
        let rate = match self.rate {
            0 => "free".into(),
            rate => format!("{rate}/s"),
        };
        format!(
            "{} MiB, {} vCPU, {} {} {}, {rate}, {} ms",
            self.memory_mib,
            self.vcpus,
            self.pages,
            value_name(self.mode),
            value_name(self.pattern),
            self.epoch_ms
        )
    }

    fn measure(&self, binary: &Path, progress: &Progress) -> Result<Vec<(&'static str, Cell)>> {
        let name = self.name();
        progress.say(&format!("{name}: {}: unprotected", guest::label(binary)));
        let directory = tempfile::Builder::new()
            .prefix("understudy-bench-")
            .tempdir()?;
        let alone = self.unprotected(binary, directory.path(), progress)?;
        progress.say(&format!("{name}: {}: protected", guest::label(binary)));
        let (before, after, seconds, speed) = self.protected(binary, directory.path(), progress)?;
        let per_s = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
        let mib_per_s = |from, to| per_s(from, to) / f64::from(1 << 20);
        let raw = mib_per_s(before.raw_dirty_bytes, after.raw_dirty_bytes);
        let wire = mib_per_s(before.wire_bytes, after.wire_bytes);
        let ms = |us: u64| number(us as f64 / 1e3, 2);
        Ok(vec![
            ("scenario", text(name)),
            ("vmm", text(guest::label(binary))),
            (
                "epochs_per_s",
                number(per_s(before.epochs, after.epochs), 1),
            ),
            ("pause_p50_ms", ms(after.pause_us.p50)),
            ("p90", ms(after.pause_us.p90)),
            ("p99", ms(after.pause_us.p99)),
            ("max", ms(after.pause_us.max)),
            ("ack_p50_ms", ms(after.ack_us.p50)),
            ("ack_p99_ms", ms(after.ack_us.p99)),
            ("dirty_pages_p50", number(after.dirty_pages.p50 as f64, 0)),
            ("raw_mib_per_s", number(raw, 1)),
            ("wire_mib_per_s", number(wire, 1)),
            ("raw_by_wire", number(raw / wire.max(f64::MIN_POSITIVE), 1)),
            ("iterations_per_s_alone", number(alone, 0)),
            ("protected", number(speed, 0)),
            ("ratio", number(speed / alone.max(f64::MIN_POSITIVE), 2)),
        ])
    }

    fn unprotected(&self, binary: &Path, directory: &Path, progress: &Progress) -> Result<f64> {
        let arguments: Vec<String> = [
            "run",
            "--memory-mib",
            &self.memory_mib.to_string(),
            "--vcpus",
            &self.vcpus.to_string(),
            "--rng",
            "--cmdline",
            &self.workload(),
        ]
        .iter()
        .map(ToString::to_string)
        .collect();
        let _host = VmmProcess::start(binary, "alone", directory, &arguments)?;
        let mut meter = Speedometer::start(&directory.join("alone.console"), self.vcpus)?;
        let time = Duration::from_secs(self.seconds.clamp(2, UNPROTECTED_S_MAX));
        meter.watch(time, |done| {
            progress.show(&format!(
                "{}: unprotected, {} s",
                self.name(),
                done.as_secs()
            ));
        });
        Ok(meter.iterations_per_s())
    }

    fn protected(
        &self,
        binary: &Path,
        directory: &Path,
        progress: &Progress,
    ) -> Result<(Status, Status, f64, f64)> {
        let options = ClusterOptions {
            binary: binary.into(),
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            workload: self.workload(),
            disk: None,
            arguments: vec!["--epoch-ms".into(), self.epoch_ms.to_string()],
        };
        let cluster = LocalCluster::start(directory, &options)?;
        let mut meter = Speedometer::start(&directory.join("primary.console"), self.vcpus)?;
        let status = || {
            cluster
                .primary
                .status()
                .context("the primary gives no status")
        };
        let (before, began) = (status()?, Instant::now());
        meter.watch(Duration::from_secs(self.seconds), |done| {
            progress.show(&format!("{}: protected, {} s", self.name(), done.as_secs()));
        });
        let (after, seconds) = (status()?, began.elapsed().as_secs_f64());
        Ok((before, after, seconds, meter.iterations_per_s()))
    }
}
