//! `disk`: what a replicated disk costs a protected guest's pauses and its clients, and what they and the disk have if
//! storage is slow to flush. A client counts over the local cluster's network while the guest rewrites memory and, with a disk,
//! writes that, with a flush after every few writes.
//!
//! Storage is made slow by a small library that is loaded into both processes: each fsync and fdatasync, whatever it is for,
//! takes that much longer. (strace can delay calls, too, but stops every thread at every signal: pauses were longer for that alone.)

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use understudy_replication::disk::DiskMode;
use understudy_vmm::local_cluster::{
    ClusterOptions, GuestDiskProgress, LocalCluster, Network, VmmProcess, WorkloadDisk,
};

use crate::guest;
use crate::table::{Cell, Progress, Table, number, text};

const MEMORY_MIB: u64 = 256;
/// Blocks of 4 KiB that the guest uses, as in the local cluster.
const BLOCKS: u32 = 2048;
const BLOCK_BYTES: u64 = 4096;
const IMAGE_BYTES: u64 = 64 << 20;
/// Pause between two looks at what the guest says.
const LOOK: Duration = Duration::from_millis(5);
/// Longest wait for a guest to begin.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The `vmm` to measure; repeat to compare several in turn [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    binary: Vec<PathBuf>,
    /// By how much a flush is slower, in milliseconds; each in turn.
    #[arg(long, value_name = "MS", value_delimiter = ',', default_value = "0,50")]
    flush_ms: Vec<u32>,
    /// Writes of the guest between two flushes.
    #[arg(long, value_name = "N", default_value_t = 8)]
    flush_every: u32,
    /// Writes of the guest in a second, at most; 0 for as many as can be.
    #[arg(long, value_name = "N", default_value_t = 100)]
    rate: u32,
    /// Clients that count: each sends a request as soon as the one before is answered.
    #[arg(long, value_name = "N", default_value_t = 1)]
    counters: usize,
    /// How long each row is watched.
    #[arg(long, value_name = "S", default_value_t = 10)]
    seconds: u64,
    /// How often each row is run.
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeat: u32,
    /// What the guest does beside all that.
    #[arg(
        long,
        value_name = "OPTIONS",
        default_value = "dirty.pages=400 dirty.rate=40 dirty.mode=word dirty.pattern=random"
    )]
    dirty: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Table> {
    let binaries = guest::binaries(&arguments.binary)?;
    let progress = Progress::start()?;
    let mut table = Table::default();
    for _ in 0..arguments.repeat {
        for binary in &binaries {
            for flush_ms in &arguments.flush_ms {
                let alone = arguments.unprotected(binary, *flush_ms, &progress)?;
                for disk in [None, Some(DiskMode::Replicated)] {
                    table.push(arguments.protected(binary, *flush_ms, disk, alone, &progress)?);
                }
            }
        }
    }
    Ok(table)
}

/// Makes flushes slow in every process that it is loaded into.
const SLOW_FLUSHES: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
static int slow(const char *name, int fd) {
    int done = ((int (*)(int))dlsym(RTLD_NEXT, name))(fd);
    long ms = atol(getenv("SLOW_FLUSHES_MS"));
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, 0);
    return done;
}
int fsync(int fd) { return slow("fsync", fd); }
int fdatasync(int fd) { return slow("fdatasync", fd); }
"#;

/// A program that is `vmm`, whose flushes take so much longer.
fn slow(directory: &Path, binary: &Path, flush_ms: u32) -> Result<PathBuf> {
    let [source, library, path] = ["slow.c", "slow.so", "vmm.sh"].map(|name| directory.join(name));
    std::fs::write(&source, SLOW_FLUSHES)?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O2", "-o"]);
    let compiled = compiler.args([&library, &source]).arg("-ldl").status();
    let compiled = compiled.context("cc makes the library that delays the flushes")?;
    ensure!(compiled.success(), "cc cannot compile {}", source.display());
    let script = format!(
        "#!/bin/sh\nSLOW_FLUSHES_MS={flush_ms} LD_PRELOAD=\"{}\" exec \"{}\" \"$@\"\n",
        library.display(),
        binary.display()
    );
    std::fs::write(&path, script)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    Ok(path)
}

fn directory() -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    Ok(builder.prefix("understudy-bench-").tempdir()?)
}

/// Watches how many blocks the guest writes in a second.
fn writes_per_s(console: &Path, time: Duration) -> Result<f64> {
    let look = || {
        let said =
            String::from_utf8_lossy(&std::fs::read(console).unwrap_or_default()).into_owned();
        let progress = GuestDiskProgress::latest(&said);
        progress.map_err(|line| anyhow::anyhow!("the guest says: {line}"))
    };
    // From one line of the guest to another one: each is seen when it has just been said.
    let (began, mut first, mut last) = (Instant::now(), None, None);
    while first.is_none() || began.elapsed() < time {
        if began.elapsed() > time + PATIENCE {
            bail!("the guest writes nothing");
        }
        std::thread::sleep(LOOK);
        let Some(now) = look()? else { continue };
        if last.is_none_or(|(_, writes)| writes != now.writes) {
            if last.is_some() {
                first = first.or(Some((Instant::now(), now.writes)));
            }
            last = Some((Instant::now(), now.writes));
        }
    }
    let (Some((from, before)), Some((to, after))) = (first, last) else {
        bail!("the guest writes nothing");
    };
    let seconds = to.duration_since(from).as_secs_f64();
    ensure!(seconds > 0.0, "the guest says too little of its disk");
    Ok((after - before) as f64 / seconds)
}

impl Arguments {
    fn workload(&self, has_disk: bool) -> String {
        let (rate, flush_every) = (self.rate, self.flush_every);
        let disk = match has_disk {
            true => format!(",disk disk.rate={rate} disk.flush_every={flush_every}"),
            false => String::new(),
        };
        format!("workload=counter,dirty{disk} {}", self.dirty)
    }

    /// Writes in a second of a guest that nobody protects.
    fn unprotected(&self, binary: &Path, flush_ms: u32, progress: &Progress) -> Result<f64> {
        progress.say(&format!("{}: unprotected", guest::label(binary)));
        let directory = directory()?;
        let at = directory.path();
        let slow = slow(at, binary, flush_ms)?;
        let port = at.join("alone.net");
        let network = Network::start(&[&port])?;
        let image = WorkloadDisk::create(&at.join("alone.disk"), IMAGE_BYTES, BLOCKS)?;
        let disk = format!(
            "{} disk.blocks={BLOCKS} disk.log_ms=100",
            self.workload(true)
        );
        let mut arguments = guest::alone(MEMORY_MIB, &port, &disk);
        arguments.extend(["--drive".into(), format!("path={}", image.path().display())]);
        let _host = VmmProcess::start(&slow, "alone", at, &arguments)?;
        guest::connect(&network, 0, self.counters)?;
        writes_per_s(&at.join("alone.console"), Duration::from_secs(self.seconds))
    }

    fn protected(
        &self,
        binary: &Path,
        flush_ms: u32,
        disk: Option<DiskMode>,
        writes_per_s_alone: f64,
        progress: &Progress,
    ) -> Result<Vec<(&'static str, Cell)>> {
        let what = disk.map_or("none", DiskMode::name);
        let label = guest::label(binary);
        progress.say(&format!("{label}: disk {what}, flush {flush_ms} ms"));
        let directory = directory()?;
        let options = ClusterOptions {
            binary: slow(directory.path(), binary, flush_ms)?,
            memory_mib: MEMORY_MIB,
            vcpus: 1,
            workload: self.workload(disk.is_some()),
            disk,
            arguments: Vec::new(),
        };
        let cluster = LocalCluster::start(directory.path(), &options)?;
        guest::connect(&cluster.network, 0, self.counters)?;
        let status = || {
            let status = cluster.primary.status();
            status.context("the primary gives no status")
        };
        let time = Duration::from_secs(self.seconds);
        let (before, from, began) = (status()?, cluster.network.figures()?, Instant::now());
        let writes = match disk {
            Some(_) => writes_per_s(&directory.path().join("primary.console"), time)?,
            None => {
                std::thread::sleep(time);
                0.0
            }
        };
        let (after, to) = (status()?, cluster.network.figures()?);
        let seconds = began.elapsed().as_secs_f64();
        if let Some(error) = to.errors.first() {
            bail!("the clients did not get what they should: {error}");
        }
        ensure!(after.protected, "it is not protected any more: {after:?}");
        let ms = |us: u64| number(us as f64 / 1e3, 2);
        let per_s = |from: u64, to: u64| number(to.saturating_sub(from) as f64 / seconds, 0);
        let mut row = vec![
            ("vmm", text(label)),
            ("flush_ms", number(f64::from(flush_ms), 0)),
            ("disk", text(what)),
            ("epochs_per_s", per_s(before.epochs, after.epochs)),
            ("pause_p50_ms", ms(after.pause_us.p50)),
            ("pause_p99_ms", ms(after.pause_us.p99)),
            ("ack_p50_ms", ms(after.ack_us.p50)),
            ("ack_p99_ms", ms(after.ack_us.p99)),
            ("answer_p50_ms", ms(to.answer_us_p50)),
            ("answer_p99_ms", ms(to.answer_us_p99)),
            ("answers_per_s", per_s(from.acked_writes, to.acked_writes)),
        ];
        for (name, writes) in [
            ("disk_mb_per_s_alone", writes_per_s_alone),
            ("disk_mb_per_s", writes),
        ] {
            let megabytes = writes * BLOCK_BYTES as f64 / 1e6;
            row.push((name, number(megabytes, 2)));
        }
        Ok(row)
    }
}
