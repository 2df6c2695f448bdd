//! Benchmarks. Each prints a table for people, or with `--json` one JSON array; progress goes to
//! standard error. How to run and read them: `benches/README.md`.
//!
//! What must not be done here: deciding whether something is correct. Tests do that, and never by time.

mod codec;
mod colo;
mod copy;
mod disk;
mod epochs;
mod guest;
mod outage;
mod pause;
mod plot;
mod report;
mod stream;
mod suite;
mod surroundings;
mod table;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures Understudy.
#[derive(Debug, Parser)]
#[command(name = "understudy-benches", max_term_width = 100)]
struct Cli {
    /// Print one JSON array on standard output instead of a table.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Whole guests that rewrite memory: epochs per second, pause, acknowledgement, bytes, guest speed.
    ///
    /// Without any option about the guest, the suite of rows that benches/README.md describes.
    Epochs(epochs::Arguments),
    /// Streaming and counting clients under several shortest epochs (sync on output).
    Stream(stream::Arguments),
    /// A replicated disk, also one that is slow to flush, against no disk. Needs cc.
    Disk(disk::Arguments),
    /// Guests that lose their host, over and over, while clients stream and count.
    Outage(outage::Arguments),
    /// The first copy of a guest that is full of noise, against a plain sender.
    Copy(copy::Arguments),
    /// What the pause is made of, step by step, in one process.
    Pause(pause::Arguments),
    /// Whole parts of the report, or all of it: each benchmark with the options that it has there.
    ///
    /// Results go to files; `report` makes a document of them.
    Suite(suite::Arguments),
    /// Make docs/BENCHMARKS.md, with its charts, of the results of `suite`.
    Report(report::Arguments),
    /// Encoding and decoding pages of several kinds, against copying them.
    Codec(codec::Arguments),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let table = match &cli.bench {
        Bench::Epochs(arguments) => epochs::run(arguments)?,
        Bench::Stream(arguments) => stream::run(arguments)?,
        Bench::Disk(arguments) => disk::run(arguments)?,
        Bench::Outage(arguments) => outage::run(arguments)?,
        Bench::Copy(arguments) => copy::run(arguments)?,
        Bench::Pause(arguments) => pause::run(arguments)?,
        Bench::Codec(arguments) => codec::run(arguments)?,
        Bench::Suite(arguments) => return suite::run(arguments),
        Bench::Report(arguments) => return report::run(arguments),
    };
    if cli.json {
        println!("{}", table.json()?);
    } else {
        print!("{}", table.render());
    }
    Ok(())
}
