//! How often a pair acts although nothing has failed: its processes stand still for a while, other programs want all
//! processors, or memory is scarce. With several time-outs, that is a curve by which one can be chosen.
//!
//! Whoever acts asks the arbiter, which counts: each generation after the first one is a failover, or a standby that was
//! given up.

use std::fmt::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::clients::Clients;
use crate::hosts::{Guest, World};
use crate::network::Side;
use crate::run::{await_some, protect};
use crate::{Place, write_json};

/// How much longer than it must the guest may work undisturbed before each disturbance.
const LEAD_MS: std::ops::Range<u64> = 0..200;
/// After it, whoever was about to act has asked the arbiter.
const SETTLE: Duration = Duration::from_millis(300);
/// Within which a pair that acted is one again.
const REPAIR: Duration = Duration::from_secs(20);
/// Threads that compute without end, for each processor.
const HOGS: usize = 4;
/// The contrary of what a process asks of its host by default.
const PLAIN: [&str; 4] = ["--priority", "normal", "--lock-memory", "off"];

/// Counts failovers that nobody needed: of hosts that stand still for a while, are busy, or short of memory.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Time-outs to try (`replication.timeout_ms`), of three heartbeats (30 ms) at least.
    #[arg(
        long,
        value_name = "MS",
        value_delimiter = ',',
        default_value = "60,100,150,250"
    )]
    timeouts: Vec<u64>,
    /// How long a process stands still.
    #[arg(
        long,
        value_name = "MS",
        value_delimiter = ',',
        default_value = "10,20,40,80,120,150,200,300,500"
    )]
    stalls: Vec<u64>,
    /// How often each process stands still for each of these.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=15))]
    rounds: u64,
    /// How long the guest works undisturbed before each of them at least. After three seconds, both hosts have heard enough
    /// heartbeats to know how they come.
    #[arg(long, value_name = "MS", default_value_t = 100)]
    lead_ms: u64,
    /// How long the processors are wanted by others, and how long memory is scarce.
    #[arg(long, value_name = "S", default_value_t = 20)]
    seconds: u64,
    /// Write all figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What goes on in the hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Disturbance {
    PrimaryStalls(u64),
    StandbyStalls(u64),
    BusyProcessors,
    /// The same, for processes that ask for no priority and lock no memory.
    BusyProcessorsPlain,
    ScarceMemory,
    ScarceMemoryPlain,
}

impl Disturbance {
    fn is_plain(self) -> bool {
        matches!(self, Self::BusyProcessorsPlain | Self::ScarceMemoryPlain)
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PrimaryStalls(ms) => write!(f, "the primary stands still for {ms} ms"),
            Self::StandbyStalls(ms) => write!(f, "the standby stands still for {ms} ms"),
            Self::BusyProcessors => f.write_str("others want the processors"),
            Self::BusyProcessorsPlain => {
                f.write_str("others want the processors; no priority, nothing locked")
            }
            Self::ScarceMemory => f.write_str("the primary's memory is scarce"),
            Self::ScarceMemoryPlain => {
                f.write_str("the primary's memory is scarce; no priority, nothing locked")
            }
        }
    }
}

/// What one disturbance came to with one time-out.
#[derive(Debug, Serialize)]
struct Row {
    timeout_ms: u64,
    disturbance: Disturbance,
    /// How often; for what goes on all the time, how many seconds.
    times: u64,
    /// The standby took over.
    failovers: usize,
    /// The primary went on alone.
    given_up: usize,
}

pub(crate) fn run(options: &Options, place: &Place) -> Result<()> {
    let stalls = options.stalls.iter();
    let stalls = stalls.flat_map(|ms| {
        [
            Disturbance::PrimaryStalls(*ms),
            Disturbance::StandbyStalls(*ms),
        ]
    });
    let lasting = [
        Disturbance::BusyProcessors,
        Disturbance::BusyProcessorsPlain,
        Disturbance::ScarceMemory,
        Disturbance::ScarceMemoryPlain,
    ];
    let all: Vec<_> = stalls.chain(lasting).collect();
    let mut rows = Vec::new();
    for &timeout_ms in &options.timeouts {
        for &disturbance in &all {
            let number = rows.len();
            let row = one(options, place, timeout_ms, disturbance, number)
                .with_context(|| format!("time-out {timeout_ms} ms, {disturbance}"))?;
            eprintln!("{}", cells(&row));
            rows.push(row);
        }
    }
    println!("{}", render(&rows));
    options
        .json
        .as_deref()
        .map_or(Ok(()), |path| write_json(path, &rows))
}

/// A pair of its own is disturbed again and again.
fn one(
    options: &Options,
    place: &Place,
    timeout_ms: u64,
    disturbance: Disturbance,
    number: usize,
) -> Result<Row> {
    let directory = place.work.join(format!("stalls-{number}"));
    std::fs::create_dir(&directory)?;
    let mut further = vec!["--timeout-ms".to_owned(), timeout_ms.to_string()];
    if disturbance.is_plain() {
        further.extend(PLAIN.map(str::to_owned));
    }
    let mut world = World::new(&directory, &place.vmm, Guest::default(), &further)?;
    protect(&mut world)?;
    let clients = Clients::start(&world.network);
    let mut random = ChaCha8Rng::seed_from_u64(number as u64);
    let (mut rounds, mut times) = (options.rounds, options.rounds);
    if !matches!(
        disturbance,
        Disturbance::PrimaryStalls(_) | Disturbance::StandbyStalls(_)
    ) {
        (rounds, times) = (1, options.seconds);
    }
    for _ in 0..rounds {
        let primary = await_some(&mut world, REPAIR, World::primary)?
            .with_context(|| format!("not protected again within {REPAIR:?}"))?;
        let lead = Duration::from_millis(options.lead_ms + random.random_range(LEAD_MS));
        await_some(&mut world, lead, |_| None::<()>)?;
        disturb(&mut world, disturbance, primary, options.seconds)?;
        await_some(&mut world, SETTLE, |_| None::<()>)?;
    }
    let seen = clients.seen();
    let faults: Vec<_> = seen.broken.into_iter().chain(seen.wrong).collect();
    ensure!(faults.is_empty(), "clients have found faults: {faults:?}");
    let granted = world.granted();
    let taken_over = |pair: &&[Side]| pair[0] != pair[1];
    let failovers = granted.windows(2).filter(taken_over).count();
    drop(clients);
    drop(world);
    std::fs::remove_dir_all(&directory)?;
    Ok(Row {
        timeout_ms,
        disturbance,
        times,
        failovers,
        given_up: granted.len() - 1 - failovers,
    })
}

fn disturb(world: &mut World, disturbance: Disturbance, primary: Side, seconds: u64) -> Result<()> {
    let lasting = Duration::from_secs(seconds);
    match disturbance {
        Disturbance::PrimaryStalls(ms) => stall(world, primary, ms),
        Disturbance::StandbyStalls(ms) => stall(world, primary.other(), ms),
        Disturbance::BusyProcessors | Disturbance::BusyProcessorsPlain => {
            let end = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let processors = std::thread::available_parallelism().map_or(1, usize::from);
                for _ in 0..HOGS * processors {
                    scope.spawn(|| {
                        while !end.load(Ordering::Relaxed) {
                            std::hint::spin_loop()
                        }
                    });
                }
                let done = await_some(world, lasting, |_| None::<()>);
                end.store(true, Ordering::Relaxed);
                done.map(|_| ())
            })
        }
        Disturbance::ScarceMemory | Disturbance::ScarceMemoryPlain => {
            world.set_memory_scarce(primary, true)?;
            await_some(world, lasting, |_| None::<()>)?;
            world.set_memory_scarce(primary, false)
        }
    }
}

fn stall(world: &mut World, side: Side, ms: u64) -> Result<()> {
    world.set_frozen(side, true)?;
    // Nobody looks after the processes meanwhile: that would take time.
    std::thread::sleep(Duration::from_millis(ms));
    world.set_frozen(side, false)
}

fn cells(row: &Row) -> String {
    let Row {
        timeout_ms,
        disturbance,
        times,
        failovers,
        given_up,
    } = row;
    let unit = match disturbance {
        Disturbance::PrimaryStalls(_) | Disturbance::StandbyStalls(_) => "times",
        _ => "s",
    };
    format!("| {timeout_ms} | {disturbance} | {times} {unit} | {failovers} | {given_up} |")
}

/// For a person.
fn render(rows: &[Row]) -> String {
    let mut text = "| time-out, ms | what goes on | how long | failovers | standbys given up |\n\
                    | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for row in rows {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", cells(row));
    }
    text
}
