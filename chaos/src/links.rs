//! What clients see of a protected guest that changes memory faster than a slow logging channel ships it: before, while
//! its memory is first copied, and afterwards.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use understudy_replication::runtime::Status;

use crate::clients::Clients;
use crate::hosts::{Guest, World};
use crate::network::{Side, Way};
use crate::run::await_some;
use crate::{Place, write_json};

/// How long the guest may take to boot and serve its clients.
const START: Duration = Duration::from_secs(60);
/// How long the first copy may take, besides twelve times what the rewritten part takes.
const COPY_S: u64 = 60;
const MIB: u64 = 1 << 20;

/// Measures what clients see of a guest that changes memory faster than the logging channel ships it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What the channel ships, each way.
    #[arg(
        long,
        value_name = "MBIT",
        value_delimiter = ',',
        default_value = "100,200,1000",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    mbit: Vec<u64>,
    /// The guest's memory.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory_mib: u64,
    /// How much of it is rewritten, as fast as the guest can.
    #[arg(long, value_name = "MIB", default_value_t = 200)]
    rewritten_mib: u64,
    /// What is rewritten of each page: `word`, which is a byte or two on the wire, or `page`, all of it and with noise.
    #[arg(long, value_name = "MODE", default_value = "page")]
    mode: String,
    /// How long to look once the guest is protected.
    #[arg(long, value_name = "S", default_value_t = 30)]
    seconds: u64,
    /// Further options of both sides' vmm, such as "--latency-target-ms 0".
    #[arg(
        long,
        value_name = "OPTIONS",
        default_value = "",
        allow_hyphen_values = true
    )]
    with: String,
    /// Write all figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What clients waited, in milliseconds.
#[derive(Debug, Default, Serialize)]
struct Waits {
    answer_p50: f64,
    answer_p99: f64,
    /// Of any client, for a byte or an answer.
    longest_gap: f64,
}

#[derive(Debug, Serialize)]
struct Row {
    mbit: u64,
    /// From the connection to the standby until the guest was protected.
    copy_s: f64,
    copying: Waits,
    protected: Waits,
    pause_p50_ms: f64,
    pause_p99_ms: f64,
    ack_p50_ms: f64,
    ack_p99_ms: f64,
    epochs: u64,
    slowed_percent: f64,
    /// At the end.
    is_protected: bool,
}

pub(crate) fn run(options: &Options, place: &Place) -> Result<()> {
    let mut rows = Vec::new();
    for &mbit in &options.mbit {
        let row = one(options, place, mbit).with_context(|| format!("{mbit} Mbit/s"))?;
        eprintln!("{}", cells(&row));
        rows.push(row);
    }
    println!("{}", render(&rows));
    options
        .json
        .as_deref()
        .map_or(Ok(()), |path| write_json(path, &rows))
}

fn one(options: &Options, place: &Place, mbit: u64) -> Result<Row> {
    let directory = place.work.join(format!("links-{mbit}"));
    std::fs::create_dir(&directory)?;
    let guest = Guest {
        memory_mib: options.memory_mib,
        workload: format!(
            "workload=stream,counter,dirty stream.rate=262144 dirty.pages={} dirty.rate=0 dirty.mode={}",
            options.rewritten_mib * MIB / 4096,
            options.mode
        ),
    };
    let further: Vec<String> = options.with.split_whitespace().map(String::from).collect();
    let mut world = World::new(&directory, &place.vmm, guest, &further)?;
    world.network.set_rate(Way::Channel, mbit)?;
    world.start(Side::A)?;
    let clients = Clients::start(&world.network);
    await_some(&mut world, START, |_| {
        clients.progress().iter().all(|it| *it > 0).then_some(())
    })?
    .with_context(|| format!("not all clients are served within {START:?}"))?;

    clients.forget_gaps();
    let began = Instant::now();
    world.start(Side::B)?;
    let patience = Duration::from_secs(COPY_S + 100 * options.rewritten_mib / mbit);
    await_some(&mut world, patience, World::primary)?
        .with_context(|| format!("the guest is not protected within {patience:?}"))?;
    let copy_s = began.elapsed().as_secs_f64();
    let copying = waits(&clients);

    clients.forget_gaps();
    await_some(&mut world, Duration::from_secs(options.seconds), |_| {
        None::<()>
    })?;
    let protected = waits(&clients);
    let status = world
        .status(Side::A)
        .context("the primary gives no status")?;
    let seen = clients.seen();
    let faults: Vec<_> = seen.broken.into_iter().chain(seen.wrong).collect();
    ensure!(faults.is_empty(), "clients have found faults: {faults:?}");
    drop(clients);
    drop(world);
    std::fs::remove_dir_all(&directory)?;
    Ok(row(mbit, copy_s, copying, protected, &status))
}

fn row(mbit: u64, copy_s: f64, copying: Waits, protected: Waits, status: &Status) -> Row {
    Row {
        mbit,
        copy_s,
        copying,
        protected,
        pause_p50_ms: status.pause_us.p50 as f64 / 1e3,
        pause_p99_ms: status.pause_us.p99 as f64 / 1e3,
        ack_p50_ms: status.ack_us.p50 as f64 / 1e3,
        ack_p99_ms: status.ack_us.p99 as f64 / 1e3,
        epochs: status.epochs,
        slowed_percent: status.slowed_percent,
        is_protected: status.protected,
    }
}

fn waits(clients: &Clients) -> Waits {
    let answers = clients.answers();
    let at = |percent: usize| {
        let index = answers.len() * percent / 100;
        answers
            .get(index.min(answers.len().saturating_sub(1)))
            .map_or(f64::NAN, |us| f64::from(*us) / 1e3)
    };
    Waits {
        answer_p50: at(50),
        answer_p99: at(99),
        longest_gap: clients.longest_gap().as_secs_f64() * 1e3,
    }
}

fn cells(row: &Row) -> String {
    let Waits {
        answer_p50,
        answer_p99,
        longest_gap,
    } = row.protected;
    let copying = &row.copying;
    format!(
        "| {} | {:.1} | {:.1}, {:.0} | {:.0} | {answer_p50:.1}, {answer_p99:.0} | {longest_gap:.0} | {:.1}, {:.1} | {:.0}, {:.0} | {} | {} % | {} |",
        row.mbit,
        row.copy_s,
        copying.answer_p50,
        copying.answer_p99,
        copying.longest_gap,
        row.pause_p50_ms,
        row.pause_p99_ms,
        row.ack_p50_ms,
        row.ack_p99_ms,
        row.epochs,
        row.slowed_percent,
        row.is_protected
    )
}

/// For a person.
fn render(rows: &[Row]) -> String {
    let mut text = "| Mbit/s | first copy, s | answer then, p50, p99, ms | longest gap then | answer protected, p50, p99 | \
                    longest gap | pause p50, p99 | ack p50, p99 | epochs | slowed by | protected |\n\
                    | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    for row in rows {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", cells(row));
    }
    text
}
