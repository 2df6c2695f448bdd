//! `cargo xtask simulate`: many seeds of the simulator, in a release build.

use anyhow::Result;
use clap::Args;

use crate::workspace::run as run_command;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many seeds to run.
    #[arg(long, default_value_t = 20_000)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Replay this seed alone, and print what happens in it.
    #[arg(long, conflicts_with_all = ["seeds", "from"])]
    replay: Option<u64>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let arguments = [
        "test",
        "--release",
        "--locked",
        "-p",
        "understudy-replication",
        "--test",
        "simulation",
        "--",
        "--nocapture",
        "any_schedule",
    ];
    let (seeds, from) = (options.seeds.to_string(), options.from.to_string());
    let seed = options.replay.map(|seed| seed.to_string());
    let environment = match &seed {
        Some(seed) => vec![("UNDERSTUDY_SIM_SEED", seed.as_str())],
        None => vec![
            ("UNDERSTUDY_SIM_SEEDS", seeds.as_str()),
            ("UNDERSTUDY_SIM_FROM", from.as_str()),
        ],
    };
    run_command("cargo", &arguments, &environment)
}
