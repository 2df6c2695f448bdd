//! `pause`: a real primary with its guest, and its standby, in this process; the spans that the
//! runtime and the machine open inside the pause are timed one by one.
//!
//! The spans cost nothing unless somebody listens, as this does. What a step costs here contains the
//! two clock readings of its span, less than 0.1 µs.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use hdrhistogram::Histogram;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use understudy_replication::arbiter::FileArbiter;
use understudy_replication::core::policy::Policy;
use understudy_replication::runtime::{Origin, Primary, Standby, Status};
use understudy_vmm::machine::{Discovery, Kernel, Machine, MachineConfig};

use crate::table::{Cell, Progress, Table, number};

/// Target of the spans; `replication` and `vmm` use the same.
const TARGET: &str = "understudy::pause";
/// The spans in the order of the pause.
const STEPS: [&str; 7] = [
    "stop_vcpus",
    "lock_devices",
    "harvest",
    "copy",
    "save",
    "seal",
    "resume",
];
/// Columns of the table, in the same order.
const COLUMNS: [&str; 7] = [
    "stop_vcpus_us",
    "lock_devices_us",
    "harvest_us",
    "copy_us",
    "save_us",
    "seal_us",
    "resume_us",
];
/// Longest step that is told from longer ones, in nanoseconds.
const NS_MAX: u64 = 10_000_000_000;
/// Longest wait for anything that takes a moment.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Pages that the guest dirties in each epoch.
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "0,100,1000,10000"
    )]
    pages: Vec<u32>,
    /// Pauses of each row.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pauses: u64,
    /// Memory of the guest in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    memory_mib: u64,
    /// Number of vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    vcpus: u8,
    /// Length of an epoch in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 25)]
    epoch_ms: u64,
}

/// Times spans by their name. At most one span of a name is open at a time, as one thread pauses one
/// machine; so a span's number is that of its name.
#[derive(Clone)]
struct Stopwatch(Arc<Inner>);

struct Inner {
    counting: AtomicBool,
    steps: [Mutex<Step>; STEPS.len()],
}

struct Step {
    began: Option<Instant>,
    ns: Histogram<u64>,
}

impl Stopwatch {
    fn new() -> Result<Self> {
        let ns = Histogram::<u64>::new_with_max(NS_MAX, 3)?;
        let step = |_| {
            Mutex::new(Step {
                began: None,
                ns: ns.clone(),
            })
        };
        Ok(Self(Arc::new(Inner {
            counting: AtomicBool::new(false),
            steps: std::array::from_fn(step),
        })))
    }

    fn step(&self, number: usize) -> MutexGuard<'_, Step> {
        let step = &self.0.steps[number];
        step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self) {
        for number in 0..STEPS.len() {
            self.step(number).ns.reset();
        }
        self.0.counting.store(true, Ordering::SeqCst);
    }

    fn stop(&self) {
        self.0.counting.store(false, Ordering::SeqCst);
    }

    fn medians_us(&self) -> [f64; STEPS.len()] {
        std::array::from_fn(|number| self.step(number).ns.value_at_quantile(0.5) as f64 / 1e3)
    }
}

fn number_of(id: &Id) -> usize {
    usize::try_from(id.into_u64()).unwrap_or(usize::MAX) - 1
}

impl Subscriber for Stopwatch {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target() == TARGET && STEPS.contains(&metadata.name())
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let name = span.metadata().name();
        let number = STEPS.iter().position(|step| *step == name).unwrap_or(0);
        Id::from_u64(number as u64 + 1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, id: &Id) {
        self.step(number_of(id)).began = Some(Instant::now());
    }

    fn exit(&self, id: &Id) {
        let mut step = self.step(number_of(id));
        if let Some(began) = step.began.take()
            && self.0.counting.load(Ordering::SeqCst)
        {
            let ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            step.ns.saturating_record(ns);
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<Table> {
    let stopwatch = Stopwatch::new()?;
    tracing::subscriber::set_global_default(stopwatch.clone())
        .context("somebody else listens to spans already")?;
    let progress = Progress::start()?;
    let mut table = Table::default();
    for pages in &arguments.pages {
        progress.say(&format!("{pages} pages: {} pauses", arguments.pauses));
        table.push(arguments.measure(*pages, &stopwatch, &progress)?);
    }
    Ok(table)
}

impl Arguments {
    fn machine(&self, pages: u32) -> Result<Machine> {
        let workload = match pages {
            0 => "workload=idle".into(),
            pages => format!(
                "workload=dirty dirty.mode=word dirty.pages={} dirty.rate={}",
                (pages / u32::from(self.vcpus.max(1))).max(1),
                1000 / self.epoch_ms.clamp(1, 1000)
            ),
        };
        Ok(Machine::build(MachineConfig {
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            kernel: Some(Kernel::Bytes(understudy_guest_images::BUILTIN.to_vec())),
            cmdline: workload,
            discovery: Discovery::CommandLine,
            rng: true,
            ..MachineConfig::default()
        })?)
    }

    fn measure(
        &self,
        pages: u32,
        stopwatch: &Stopwatch,
        progress: &Progress,
    ) -> Result<Vec<(&'static str, Cell)>> {
        let directory = tempfile::tempdir()?;
        let arbiter = Arc::new(FileArbiter::open(directory.path().join("arbiter"))?);
        let channel = endpoint(directory.path())?;
        let policy = Policy {
            epoch_interval: Duration::from_millis(self.epoch_ms),
            // Both sides share this machine with whatever else it does: a stall is no loss here.
            heartbeat_timeout: PATIENCE,
            ..Policy::default()
        };
        let standby = Standby::builder(self.machine(pages)?)
            .arbiter(arbiter.clone())
            .policy(policy.clone())
            .listen(channel.parse()?)
            .start()?;
        let protection = Primary::attach(Origin::Fresh(self.machine(pages)?))
            .arbiter(arbiter)
            .policy(policy)
            .backup(channel.parse()?)
            .protect()?;
        let (handle, standby_handle) = (protection.handle(), standby.handle());
        let waiter = std::thread::spawn(move || standby.await_promotion().map(drop));
        let measured = (|| {
            let before = await_epochs(|| handle.status(), 40)?;
            stopwatch.start();
            let end = before.epochs + self.pauses;
            let after = await_epochs(
                || {
                    let status = handle.status();
                    progress.show(&format!(
                        "{pages} pages: {} pauses left",
                        end.saturating_sub(status.epochs)
                    ));
                    status
                },
                end,
            );
            stopwatch.stop();
            after
        })();
        handle.guest_stopped();
        protection.wait()?;
        standby_handle.stop();
        let ended = waiter.join();
        let status = measured?;
        match ended {
            Ok(ended) => ended?,
            Err(_) => bail!("the standby's thread panicked"),
        }
        let mut row = vec![
            ("pages", number(f64::from(pages), 0)),
            ("dirty_p50", number(status.dirty_pages.p50 as f64, 0)),
        ];
        let medians = stopwatch.medians_us();
        row.extend(
            COLUMNS
                .iter()
                .zip(medians)
                .map(|(name, median)| (*name, number(median, 1))),
        );
        row.push(("sum_us", number(medians.iter().sum(), 0)));
        row.push(("pause_p50_us", number(status.pause_us.p50 as f64, 0)));
        row.push(("pause_p99_us", number(status.pause_us.p99 as f64, 0)));
        row.push(("ack_p50_us", number(status.ack_us.p50 as f64, 0)));
        Ok(row)
    }
}

fn endpoint(directory: &Path) -> Result<String> {
    let path = directory.join("channel");
    let path = path
        .to_str()
        .context("the temporary directory's name is not text")?;
    Ok(format!("unix:{path}"))
}

fn await_epochs(status: impl Fn() -> Status, epochs: u64) -> Result<Status> {
    let (mut last, mut moved) = (0, Instant::now());
    loop {
        let status = status();
        if status.epochs >= epochs {
            return Ok(status);
        }
        if status.epochs != last {
            (last, moved) = (status.epochs, Instant::now());
        }
        if moved.elapsed() > PATIENCE {
            bail!(
                "no epoch within {PATIENCE:?}; last alarm: {:?}",
                status.alarm
            );
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
