//! `vmm demo`: the main job, end to end, on this machine alone. Two `vmm` processes are the hosts;
//! switch and clients live in this process.

mod report;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use understudy_vmm::config::DiskMode;
use understudy_vmm::host;
use understudy_vmm::local_cluster::{
    ClusterOptions, Figures, GuestDiskProgress, LocalCluster, VmmProcess,
};
use understudy_vmm::node::Status;

use self::report::Report;
use super::signals::Signals;
use crate::args::{DemoArgs, Fault};
use crate::exit::FAILED;
use crate::say;

/// Longest wait for things that normally take less than a second.
const PATIENCE: Duration = Duration::from_secs(20);
const WORKLOAD: &str = "workload=stream,counter,dirty dirty.pages=400 dirty.rate=40 dirty.mode=word dirty.pattern=random";

pub(crate) fn demo(arguments: &DemoArgs) -> Result<()> {
    if arguments.disk == Some(DiskMode::Shared) && arguments.fault == Fault::Freeze {
        bail!(
            "--disk shared goes with --fault kill: a frozen primary keeps the lock of the shared image, and the \
             standby waits for it before it touches the image"
        );
    }
    // Both hosts would say so too, each in its own log.
    host::check_kvm()?;
    let temporary = tempfile::Builder::new()
        .prefix("understudy-demo-")
        .tempdir()?;
    end_on_signals(temporary.path().into())?;
    let directory: PathBuf = match &arguments.keep {
        Some(directory) => {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("cannot create {}", directory.display()))?;
            directory.clone()
        }
        None => temporary.path().into(),
    };
    let done = Demo::new(arguments, &directory).and_then(Demo::run);
    if IS_ENDING.load(Ordering::Acquire) {
        // Its hosts were killed; the thread that did so says why, and ends the process.
        loop {
            std::thread::park();
        }
    }
    let report = done?;
    if arguments.json {
        say::line(serde_json::to_string(&report)?)?;
    } else {
        say::print(report.render())?;
    }
    if !report.ok {
        bail!("the run was not exact: {}", report.faults.join("; "));
    }
    Ok(())
}

/// A signal is ending the demo.
static IS_ENDING: AtomicBool = AtomicBool::new(false);

/// A demo that is ended early leaves neither hosts nor files behind.
fn end_on_signals(directory: PathBuf) -> Result<()> {
    Signals::listen()?.each(move |signal| {
        IS_ENDING.store(true, Ordering::Release);
        VmmProcess::end_all();
        // Whatever the hosts had open is closed; the demo's own thread may still be making a file.
        let _ = (0..3).find(|_| std::fs::remove_dir_all(&directory).is_ok());
        say::complain(format_args!("vmm: {signal} has ended the demo early"));
        std::process::exit(i32::from(FAILED));
    })
}

struct Demo<'a> {
    arguments: &'a DemoArgs,
    counters: usize,
    cluster: LocalCluster,
    progress: ProgressBar,
}

impl<'a> Demo<'a> {
    fn new(arguments: &'a DemoArgs, directory: &Path) -> Result<Self> {
        let progress = if arguments.json || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            ProgressBar::new_spinner()
        };
        progress.set_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
        let say = |text: &str| {
            progress.set_message(text.to_owned());
            if !arguments.json && progress.is_hidden() {
                say::complain(text);
            }
        };
        say("starting two hosts, booting the guest, copying it to the standby");
        let options = ClusterOptions {
            binary: std::env::current_exe().context("cannot find this program")?,
            memory_mib: arguments.memory_mib,
            vcpus: 1,
            workload: match arguments.disk {
                Some(_) => WORKLOAD.replacen("dirty", "dirty,disk", 1),
                None => WORKLOAD.into(),
            },
            disk: arguments.disk,
            arguments: Vec::new(),
        };
        let cluster = LocalCluster::start(directory, &options)?;
        say("the guest is protected; connecting clients");
        let counters = usize::from(arguments.clients).div_ceil(4);
        cluster
            .network
            .connect(usize::from(arguments.clients), counters)?;
        Ok(Self {
            arguments,
            counters,
            cluster,
            progress,
        })
    }

    fn run(mut self) -> Result<Report> {
        self.await_clients()?;
        let half = Duration::from_millis(self.arguments.seconds * 500);
        self.watch(half, "primary", |cluster| cluster.primary.status())?;
        let before = self
            .cluster
            .primary
            .status()
            .context("the primary gives no status")?;
        // Answer times of the protected half only: after the fault nothing is held any more.
        let protected = self.cluster.network.figures()?;
        self.say(match self.arguments.fault {
            Fault::Kill => "killing the primary (SIGKILL)",
            Fault::Freeze => "freezing the primary (SIGSTOP)",
        });
        let failed_ns = monotonic_ns();
        match self.arguments.fault {
            Fault::Kill => self.cluster.primary.kill()?,
            Fault::Freeze => self.cluster.primary.freeze()?,
        }
        let after = self.cluster.await_promotion(PATIENCE)?;
        let taken_over = self.cluster.network.figures()?;
        let fenced = match self.arguments.fault {
            Fault::Kill => None,
            Fault::Freeze => Some(self.thaw()?),
        };
        self.watch(half, "promoted standby", |cluster| cluster.standby.status())?;
        let figures = self.await_all_since(&taken_over)?;
        let end = (self.cluster.standby.status()).context("the promoted side gives no status")?;
        let disk = self.check_disk()?;
        self.progress.finish_and_clear();
        Ok(Report::new(
            self.arguments,
            self.clients(),
            failed_ns,
            [&before, &after, &end],
            [&protected, &taken_over, &figures],
            fenced,
            disk,
        ))
    }

    /// Ends the promoted side, and holds what its guest said against the image.
    fn check_disk(&mut self) -> Result<Option<report::DiskFindings>> {
        let Some(disk) = &self.cluster.standby_disk else {
            return Ok(None);
        };
        self.cluster.standby.kill()?;
        let mut fault = None;
        let mut flushed = 0;
        for host in [&self.cluster.primary, &self.cluster.standby] {
            match GuestDiskProgress::latest(&host.console()) {
                Ok(words) => flushed = flushed.max(words.map_or(0, |words| words.flushed)),
                Err(line) => fault = Some(line),
            }
        }
        let highest = match disk.check_exact(flushed) {
            Ok(found) => found.highest,
            Err(bad) => {
                fault.get_or_insert(bad.to_string());
                0
            }
        };
        Ok(Some(report::DiskFindings {
            flushed_writes: flushed,
            found_writes: highest,
            fault,
        }))
    }

    /// Waits, if that is still needed, until every client has got something since `earlier`. The report
    /// says if one has not.
    fn await_all_since(&self, earlier: &Figures) -> Result<Figures> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let figures = self.cluster.network.figures()?;
            let is_over = Instant::now() > deadline || !figures.errors.is_empty();
            if figures.stuck_since(earlier) == 0 || is_over {
                return Ok(figures);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn clients(&self) -> usize {
        usize::from(self.arguments.clients) + self.counters
    }

    fn say(&self, text: &str) {
        self.progress.set_message(text.to_owned());
        if !self.arguments.json && self.progress.is_hidden() {
            say::complain(text);
        }
    }

    fn await_clients(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let figures = self.cluster.network.figures()?;
            if figures.clients_served == self.clients() {
                return Ok(());
            }
            if let Some(error) = figures.errors.first() {
                bail!("{error}");
            }
            if Instant::now() > deadline {
                bail!(
                    "{} of {} clients were served within {PATIENCE:?}; run again with --keep DIR and \
                     look at the consoles there",
                    figures.clients_served,
                    self.clients()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Shows one side's work for a while.
    fn watch(
        &self,
        time: Duration,
        side: &str,
        status: impl Fn(&LocalCluster) -> Option<Status>,
    ) -> Result<()> {
        let end = Instant::now() + time;
        let mut last: Option<(Instant, u64, u64)> = None;
        loop {
            let figures = self.cluster.network.figures()?;
            if let Some(status) = status(&self.cluster) {
                let now = (Instant::now(), status.epochs, figures.bytes_checked);
                if let Some(last) = last.replace(now) {
                    self.progress
                        .set_message(live_line(side, &status, &figures, last, now));
                }
            }
            let Some(rest) = end.checked_duration_since(Instant::now()) else {
                return Ok(());
            };
            std::thread::sleep(rest.min(Duration::from_millis(250)));
        }
    }

    /// The old primary wakes up after the promotion: it must release nothing, and end with a reason.
    fn thaw(&mut self) -> Result<report::Fenced> {
        let frames_before = self.cluster.network.counts()?[0].frames_in;
        self.say("continuing the old primary (SIGCONT)");
        self.cluster.primary.thaw()?;
        let exit = self.cluster.primary.await_exit(PATIENCE)?;
        let frames_after = self.cluster.network.counts()?[0].frames_in;
        let log = self.cluster.primary.log();
        Ok(report::Fenced {
            exit_code: exit.code(),
            frames_released: frames_after - frames_before,
            reason: log
                .lines()
                .rev()
                .find(|line| line.contains("fenced"))
                .map(str::to_owned),
        })
    }
}

fn live_line(
    side: &str,
    status: &Status,
    figures: &Figures,
    last: (Instant, u64, u64),
    now: (Instant, u64, u64),
) -> String {
    let seconds = now.0.duration_since(last.0).as_secs_f64();
    let rate = |from: u64, to: u64| to.saturating_sub(from) as f64 / seconds;
    format!(
        "{side}: {:.0} epochs/s, pause {:.2} ms, acked in {:.2} ms, clients get {:.1} MB/s, {} INCRs, \
         longest gap {:.0} ms",
        rate(last.1, now.1),
        status.pause_us.p50 as f64 / 1e3,
        status.ack_us.p50 as f64 / 1e3,
        rate(last.2, now.2) / 1e6,
        figures.acked_writes,
        figures.longest_gap_ms,
    )
}

fn monotonic_ns() -> u64 {
    // Cannot fail: every Linux has this clock.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000
            + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}
