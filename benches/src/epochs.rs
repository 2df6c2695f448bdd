//! `epochs`: a primary and its standby, each a `vmm` process, whose guest rewrites memory.
//!
//! Each scenario runs the guest unprotected first and protected then, so that its speed under protection is
//! a ratio of one run. Several `--binary`, several `--with` and QEMU's COLO are measured in turn, row by row.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use understudy_vmm::local_cluster::{ClusterOptions, LocalCluster, VmmProcess};

use crate::colo;
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
    /// Pages rewritten by each iteration of the guest, over all vCPUs; several in turn [default: 1000].
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pages: Vec<u32>,
    /// Whole pages of noise, or one word of each page; both in turn [default: word].
    #[arg(long, value_delimiter = ',')]
    mode: Vec<Mode>,
    /// Which pages; several in turn [default: sequential].
    #[arg(long, value_delimiter = ',')]
    pattern: Vec<Pattern>,
    /// Iterations per second; 0 runs freely [default: one per epoch].
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// Longest epoch in milliseconds; several in turn [default: 25].
    #[arg(long, value_name = "MS", value_delimiter = ',', value_parser = clap::value_parser!(u64).range(1..))]
    epoch_ms: Vec<u64>,
    /// How long the protected guest is watched. In the suite only the first row takes so long, the
    /// others a quarter.
    #[arg(long, value_name = "S", default_value_t = 60)]
    seconds: u64,
    /// Options of both sides' vmm, such as "--checkpointing remus"; repeat to compare several [default: none].
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    with: Vec<String>,
    /// Measure QEMU's COLO, too: the command that starts QEMU 7.2, as "env LD_LIBRARY_PATH=… qemu-system-x86_64 -L …".
    #[arg(long, value_name = "COMMAND")]
    colo: Option<String>,
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

pub(crate) fn run(arguments: &Arguments) -> Result<Table> {
    let binaries = guest::binaries(&arguments.binary)?;
    let progress = Progress::start()?;
    let mut table = Table::default();
    for scenario in scenarios(arguments) {
        for _ in 0..arguments.repeat {
            for binary in &binaries {
                scenario.measure(
                    binary,
                    guest::each_with(&arguments.with),
                    &progress,
                    &mut table,
                )?;
            }
            if let Some(qemu) = &arguments.colo {
                table.push(scenario.colo(qemu, &progress)?);
            }
        }
    }
    Ok(table)
}

fn scenarios(arguments: &Arguments) -> Vec<Scenario> {
    let about_the_guest = arguments.memory_mib.is_some()
        || arguments.vcpus.is_some()
        || !arguments.pages.is_empty()
        || !arguments.mode.is_empty()
        || !arguments.pattern.is_empty()
        || arguments.rate.is_some()
        || !arguments.epoch_ms.is_empty();
    let mut given = Vec::new();
    for mode in or(&arguments.mode, Mode::Word) {
        for pattern in or(&arguments.pattern, Pattern::Sequential) {
            for pages in or(&arguments.pages, 1000) {
                for epoch_ms in or(&arguments.epoch_ms, 25) {
                    let one_per_epoch = u32::try_from(1000 / epoch_ms).unwrap_or(0).max(1);
                    given.push(Scenario {
                        memory_mib: arguments.memory_mib.unwrap_or(256),
                        vcpus: arguments.vcpus.unwrap_or(1).max(1),
                        pages,
                        mode,
                        pattern,
                        rate: arguments.rate.unwrap_or(one_per_epoch),
                        epoch_ms,
                        seconds: arguments.seconds.max(2),
                    });
                }
            }
        }
    }
    match given.first() {
        Some(first) if !about_the_guest => suite(first.clone()),
        _ => given,
    }
}

fn or<T: Copy>(given: &[T], default: T) -> Vec<T> {
    match given {
        [] => vec![default],
        given => given.to_vec(),
    }
}

/// What is measured if nothing is said about the guest.
fn suite(given: Scenario) -> Vec<Scenario> {
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
            guest::word(self.mode),
            guest::word(self.pattern),
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
            guest::word(self.mode),
            guest::word(self.pattern),
            self.epoch_ms
        )
    }

    /// Adds a row for each `with`.
    fn measure<'a>(
        &self,
        binary: &Path,
        withs: impl Iterator<Item = &'a str>,
        progress: &Progress,
        table: &mut Table,
    ) -> Result<()> {
        let name = self.name();
        progress.say(&format!("{name}: {}: unprotected", guest::label(binary)));
        let directory = guest::scratch()?;
        let alone = self.unprotected(binary, directory.path(), progress)?;
        for with in withs {
            progress.say(&format!(
                "{name}: {}: protected {with}",
                guest::label(binary)
            ));
            let row = self.protected(binary, with, progress)?;
            table.push(row.cells(self, alone));
        }
        Ok(())
    }

    /// The same guest in QEMU.
    fn colo(&self, qemu: &str, progress: &Progress) -> Result<Vec<(&'static str, Cell)>> {
        let name = self.name();
        progress.say(&format!("{name}: QEMU COLO"));
        let directory = guest::scratch()?;
        let workload = self.workload();
        let pair = colo::Pair {
            qemu,
            directory: directory.path(),
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            workload: &workload,
        };
        let colo = pair.start()?;
        let mut meter = Speedometer::start(&pair.console(), self.vcpus)?;
        meter.watch(self.unprotected_time(), |_| {});
        let alone = meter.iterations_per_s();
        colo.protect(Duration::from_millis(self.epoch_ms))?;
        colo.await_checkpoints(3)?;
        let mut meter = Speedometer::start(&pair.console(), self.vcpus)?;
        let (mark, began) = (colo.mark(), Instant::now());
        meter.watch(Duration::from_secs(self.seconds), |_| {});
        let (figures, seconds) = (colo.since(mark), began.elapsed().as_secs_f64());
        let row = Row {
            vmm: "QEMU".into(),
            with: "COLO".into(),
            epochs_per_s: figures.checkpoints as f64 / seconds,
            pause_us: [0.5, 0.9, 0.99, 1.0].map(|part| figures.pause(part).as_secs_f64() * 1e6),
            shipped: None,
            speed: meter.iterations_per_s(),
        };
        Ok(row.cells(self, alone))
    }

    fn unprotected_time(&self) -> Duration {
        Duration::from_secs(self.seconds.clamp(2, UNPROTECTED_S_MAX))
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
        meter.watch(self.unprotected_time(), |done| {
            progress.show(&format!(
                "{}: unprotected, {} s",
                self.name(),
                done.as_secs()
            ));
        });
        Ok(meter.iterations_per_s())
    }

    fn protected(&self, binary: &Path, with: &str, progress: &Progress) -> Result<Row> {
        let directory = guest::scratch()?;
        let mut arguments = vec!["--epoch-ms".into(), self.epoch_ms.to_string()];
        arguments.extend(with.split_whitespace().map(String::from));
        let options = ClusterOptions {
            binary: binary.into(),
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            workload: self.workload(),
            disk: None,
            arguments,
        };
        let cluster = LocalCluster::start(directory.path(), &options)?;
        let console = directory.path().join("primary.console");
        let mut meter = Speedometer::start(&console, self.vcpus)?;
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
        let per_s = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
        let mib_per_s = |from, to| per_s(from, to) / f64::from(1 << 20);
        let pause = &after.pause_us;
        Ok(Row {
            vmm: guest::label(binary),
            with: with.into(),
            epochs_per_s: per_s(before.epochs, after.epochs),
            pause_us: [pause.p50, pause.p90, pause.p99, pause.max].map(|us| us as f64),
            shipped: Some(Shipped {
                ack_us: [after.ack_us.p50, after.ack_us.p99].map(|us| us as f64),
                dirty_pages_p50: after.dirty_pages.p50 as f64,
                raw_mib_per_s: mib_per_s(before.raw_dirty_bytes, after.raw_dirty_bytes),
                wire_mib_per_s: mib_per_s(before.wire_bytes, after.wire_bytes),
            }),
            speed: meter.iterations_per_s(),
        })
    }
}

/// What a protected guest showed.
struct Row {
    vmm: String,
    with: String,
    epochs_per_s: f64,
    /// p50, p90, p99 and the longest.
    pause_us: [f64; 4],
    /// What only ours tells.
    shipped: Option<Shipped>,
    speed: f64,
}

struct Shipped {
    /// p50 and p99.
    ack_us: [f64; 2],
    dirty_pages_p50: f64,
    raw_mib_per_s: f64,
    wire_mib_per_s: f64,
}

impl Row {
    fn cells(self, scenario: &Scenario, alone: f64) -> Vec<(&'static str, Cell)> {
        let ms = |us: f64| number(us / 1e3, 2);
        let [p50, p90, p99, max] = self.pause_us.map(ms);
        let shipped =
            |value: &dyn Fn(&Shipped) -> Cell| self.shipped.as_ref().map_or(Cell::Unknown, value);
        vec![
            ("scenario", text(scenario.name())),
            ("vmm", text(self.vmm)),
            ("with", text(self.with)),
            ("epochs_per_s", number(self.epochs_per_s, 1)),
            ("pause_p50_ms", p50),
            ("p90", p90),
            ("p99", p99),
            ("max", max),
            ("ack_p50_ms", shipped(&|it| ms(it.ack_us[0]))),
            ("ack_p99_ms", shipped(&|it| ms(it.ack_us[1]))),
            (
                "dirty_pages_p50",
                shipped(&|it| number(it.dirty_pages_p50, 0)),
            ),
            ("raw_mib_per_s", shipped(&|it| number(it.raw_mib_per_s, 1))),
            (
                "wire_mib_per_s",
                shipped(&|it| number(it.wire_mib_per_s, 1)),
            ),
            (
                "raw_by_wire",
                shipped(&|it| {
                    number(
                        it.raw_mib_per_s / it.wire_mib_per_s.max(f64::MIN_POSITIVE),
                        1,
                    )
                }),
            ),
            ("iterations_per_s_alone", number(alone, 0)),
            ("protected", number(self.speed, 0)),
            (
                "ratio",
                number(self.speed / alone.max(f64::MIN_POSITIVE), 4),
            ),
        ]
    }
}
