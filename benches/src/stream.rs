//! `stream`: sync on output under several shortest epochs. Clients stream and count over the local cluster's
//! network, while the guest also rewrites memory freely: what protection leaves of that speed is its
//! price, the counters' answer times are its worth.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use understudy_vmm::local_cluster::{ClusterOptions, LocalCluster, Network, VmmProcess};

use crate::guest::{self, Speedometer};
use crate::table::{Cell, Progress, Table, number, text};

const MEMORY_MIB: u64 = 256;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The `vmm` to measure; repeat to compare several in turn [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    binary: Vec<PathBuf>,
    /// Clients that stream.
    #[arg(long, value_name = "N", default_value_t = 20)]
    clients: usize,
    /// Clients that count: each sends a request as soon as the one before is answered.
    #[arg(long, value_name = "N", default_value_t = 5)]
    counters: usize,
    /// Options of both sides' vmm, such as "--overhead-percent 5"; repeat to compare several [default: none].
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    with: Vec<String>,
    /// How long each is watched.
    #[arg(long, value_name = "S", default_value_t = 10)]
    seconds: u64,
    /// How often each is run.
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: u32,
    /// What the guest does beside serving clients.
    #[arg(
        long,
        value_name = "OPTIONS",
        default_value = "dirty.pages=400 dirty.rate=0 dirty.mode=word dirty.pattern=random"
    )]
    dirty: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Table> {
    let binaries = guest::binaries(&arguments.binary)?;
    let progress = Progress::start()?;
    let mut table = Table::default();
    for _ in 0..arguments.repeat {
        for binary in &binaries {
            let alone = arguments.unprotected(binary, &progress)?;
            for with in guest::each_with(&arguments.with) {
                table.push(arguments.protected(binary, with, &alone, &progress)?);
            }
        }
    }
    Ok(table)
}

/// What the guest does unprotected.
struct Alone {
    iterations_per_s: f64,
    answer_us_p50: u64,
    answer_us_p99: u64,
}

impl Arguments {
    fn workload(&self) -> String {
        format!("workload=stream,counter,dirty {}", self.dirty)
    }

    /// A guest that serves the same clients unprotected.
    fn unprotected(&self, binary: &Path, progress: &Progress) -> Result<Alone> {
        progress.say(&format!("{}: unprotected", guest::label(binary)));
        let directory = guest::scratch()?;
        let port = directory.path().join("alone.net");
        let network = Network::start(&[&port])?;
        let arguments = guest::alone(MEMORY_MIB, &port, &self.workload());
        let _host = VmmProcess::start(binary, "alone", directory.path(), &arguments)?;
        let mut meter = Speedometer::start(&directory.path().join("alone.console"), 1)?;
        guest::connect(&network, self.clients, self.counters)?;
        meter.watch(Duration::from_secs(self.seconds.min(10)), |_| {});
        let figures = network.figures()?;
        Ok(Alone {
            iterations_per_s: meter.iterations_per_s(),
            answer_us_p50: figures.answer_us_p50,
            answer_us_p99: figures.answer_us_p99,
        })
    }

    fn protected(
        &self,
        binary: &Path,
        with: &str,
        alone: &Alone,
        progress: &Progress,
    ) -> Result<Vec<(&'static str, Cell)>> {
        progress.say(&format!("{}: protected {with}", guest::label(binary)));
        let directory = guest::scratch()?;
        let options = ClusterOptions {
            binary: binary.into(),
            memory_mib: MEMORY_MIB,
            vcpus: 1,
            workload: self.workload(),
            disk: None,
            arguments: with.split_whitespace().map(String::from).collect(),
        };
        let cluster = LocalCluster::start(directory.path(), &options)?;
        guest::connect(&cluster.network, self.clients, self.counters)?;
        let mut meter = Speedometer::start(&directory.path().join("primary.console"), 1)?;
        let status = || {
            cluster
                .primary
                .status()
                .context("the primary gives no status")
        };
        let (before, from, began) = (status()?, cluster.network.figures()?, Instant::now());
        meter.watch(Duration::from_secs(self.seconds), |_| {});
        let (after, to, seconds) = (
            status()?,
            cluster.network.figures()?,
            began.elapsed().as_secs_f64(),
        );
        if let Some(error) = to.errors.first() {
            bail!("the clients did not get what they should: {error}");
        }
        let speed = meter.iterations_per_s();
        let ms = |us: u64| number(us as f64 / 1e3, 2);
        let per_s = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
        Ok(vec![
            ("with", text(with)),
            ("vmm", text(guest::label(binary))),
            (
                "epochs_per_s",
                number(per_s(before.epochs, after.epochs), 0),
            ),
            ("pause_p50_ms", ms(after.pause_us.p50)),
            ("pause_p99_ms", ms(after.pause_us.p99)),
            ("ack_p50_ms", ms(after.ack_us.p50)),
            ("ack_p99_ms", ms(after.ack_us.p99)),
            ("dirty_pages_p50", number(after.dirty_pages.p50 as f64, 0)),
            ("answer_p50_ms_alone", ms(alone.answer_us_p50)),
            ("answer_p99_ms_alone", ms(alone.answer_us_p99)),
            ("answer_p50_ms", ms(to.answer_us_p50)),
            ("answer_p99_ms", ms(to.answer_us_p99)),
            (
                "answers_per_s",
                number(per_s(from.acked_writes, to.acked_writes), 0),
            ),
            ("longest_gap_ms", number(to.longest_gap_ms, 0)),
            (
                "stream_mb_per_s",
                number(per_s(from.bytes_checked, to.bytes_checked) / 1e6, 1),
            ),
            ("iterations_per_s_alone", number(alone.iterations_per_s, 0)),
            ("protected", number(speed, 0)),
            (
                "ratio",
                number(speed / alone.iterations_per_s.max(f64::MIN_POSITIVE), 2),
            ),
        ])
    }
}
