//! `copy`: the first copy of a guest whose memory is full of noise, against a plain sender of as many bytes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use understudy_replication::runtime::Status;
use understudy_vmm::local_cluster::{ClusterOptions, LocalCluster};

use crate::guest;
use crate::table::{Cell, Progress, Table, number, text};

/// What is copied is done in this time, or never.
const PATIENCE: Duration = Duration::from_secs(300);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// The plain sender hands over as much at once.
const PIECE_BYTES: usize = 256 << 10;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The `vmm` to measure; repeat to compare several in turn [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    binary: Vec<PathBuf>,
    /// How much noise there is, in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=2048))]
    noise_mib: u32,
    /// How often.
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: u32,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Table> {
    let binaries = guest::binaries(&arguments.binary)?;
    let progress = Progress::start()?;
    let mut table = Table::default();
    for _ in 0..arguments.repeat {
        progress.say("a plain sender");
        let plain = plain(u64::from(arguments.noise_mib) << 20)?;
        for binary in &binaries {
            progress.say(&format!("{}: a first copy", guest::label(binary)));
            table.push(arguments.measure(binary, plain)?);
        }
    }
    Ok(table)
}

impl Arguments {
    fn measure(&self, binary: &Path, plain: Duration) -> Result<Vec<(&'static str, Cell)>> {
        let directory = guest::scratch()?;
        let options = ClusterOptions {
            binary: binary.into(),
            // Beside the noise, what the guest itself needs.
            memory_mib: u64::from(self.noise_mib) + 64,
            vcpus: 1,
            workload: format!(
                "workload=dirty dirty.mode=page dirty.pages={} dirty.iterations=1",
                self.noise_mib << 8
            ),
            disk: None,
            arguments: Vec::new(),
        };
        let mut cluster = LocalCluster::start(directory.path(), &options)?;
        // The guest has to be done with its noise before the copy that counts.
        let deadline = Instant::now() + PATIENCE;
        while !cluster.primary.console().contains("vcpu=0 iterations=1 ") {
            if Instant::now() > deadline {
                bail!("the guest does not get done: {}", cluster.primary.console());
            }
            std::thread::sleep(LOOK);
        }
        cluster.standby.kill()?;
        let is = |wanted| move |status: &Status| status.protected == wanted;
        let primary = &mut cluster.primary;
        let before = primary.await_status("alone", PATIENCE, is(false))?;
        cluster.restart_standby()?;
        let began = await_beginning(&cluster, before.sync_bytes)?;
        let primary = &mut cluster.primary;
        let after = primary.await_status("protected", PATIENCE, is(true))?;
        let took = began.elapsed();
        let bytes = after.sync_bytes - before.sync_bytes;
        let mb_per_s = |bytes: u64, took: Duration| bytes as f64 / 1e6 / took.as_secs_f64();
        let (ours, sender) = (
            mb_per_s(bytes, took),
            mb_per_s(u64::from(self.noise_mib) << 20, plain),
        );
        Ok(vec![
            ("noise_mib", number(f64::from(self.noise_mib), 0)),
            ("vmm", text(guest::label(binary))),
            ("copied_mb", number(bytes as f64 / 1e6, 0)),
            ("took_ms", number(took.as_secs_f64() * 1e3, 0)),
            ("mb_per_s", number(ours, 0)),
            ("plain_mb_per_s", number(sender, 0)),
            ("by_plain", number(ours / sender, 2)),
        ])
    }
}

/// When the copy began, as near as a look every few milliseconds tells.
fn await_beginning(cluster: &LocalCluster, sync_bytes: u64) -> Result<Instant> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = cluster.primary.status();
        let status = status.context("the primary gives no status")?;
        if status.phase == "syncing" || status.sync_bytes > sync_bytes || status.protected {
            return Ok(Instant::now());
        }
        if Instant::now() > deadline {
            bail!("no copy begins");
        }
        std::thread::sleep(LOOK);
    }
}

/// How long it takes to send so many bytes out of memory through a Unix socket, and into memory on the other side.
fn plain(bytes: u64) -> Result<Duration> {
    let bytes = usize::try_from(bytes)?;
    let from = vec![0xa5_u8; bytes];
    // Present before, like the guest's.
    let mut to = vec![1_u8; bytes];
    let (mut near, mut far) = UnixStream::pair()?;
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for piece in from.chunks(PIECE_BYTES) {
                if near.write_all(piece).is_err() {
                    return;
                }
            }
        });
        far.read_exact(&mut to)
    })
    .context("the plain sender")?;
    Ok(began.elapsed())
}
