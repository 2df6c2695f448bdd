//! `cargo xtask fuzz`: builds the fuzz targets and runs each for a while.
//!
//! Uses the project's own toolchain: libFuzzer needs only that the compiler counts edges, and stable
//! compilers do that if LLVM is told to.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::debian::install;
use crate::workspace::{root, run};

const MANIFEST: &str = "fuzz/Cargo.toml";
/// Another target than the host's, by name: then build scripts are not instrumented.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const TARGET_DIRECTORY: &str = "target/fuzz";
/// What makes LLVM count edges and compare operands for libFuzzer. `debug-assertions` makes overflows panics.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions=on --cfg fuzzing";
/// More than any input can need, and little enough to show one that needs too much.
const MEMORY_MIB: u32 = 1024;

/// What to fuzz, and for how long.
#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Only those targets whose name contains this.
    #[arg(default_value = "")]
    filter: String,
    /// How long each target runs, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Only build the targets.
    #[arg(long)]
    build_only: bool,
}

pub(crate) fn command(arguments: &FuzzArgs) -> Result<()> {
    install(&[("g++", "g++")])?;
    let targets = targets(&arguments.filter)?;
    let build = [
        "build",
        "--locked",
        "--manifest-path",
        MANIFEST,
        "--target-dir",
        TARGET_DIRECTORY,
        "--target",
        TRIPLE,
    ];
    let mut build = Vec::from(build);
    for target in &targets {
        build.extend(["--bin", target]);
    }
    run("cargo", &build, &[("RUSTFLAGS", FLAGS)])?;
    if arguments.build_only {
        return Ok(());
    }
    for target in &targets {
        fuzz(target, arguments.seconds)?;
    }
    Ok(())
}

/// The names of the files in the folder of targets.
fn targets(filter: &str) -> Result<Vec<String>> {
    let folder = root().join("fuzz/fuzz_targets");
    let mut targets = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("reading {folder:?}"))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        targets.extend(name.filter(|name| name.contains(filter)).map(String::from));
    }
    targets.sort();
    if targets.is_empty() {
        bail!("no fuzz target is called like {filter:?}");
    }
    Ok(targets)
}

/// Inputs that reach something new are kept for the next time, those that crash in `artifacts`.
fn fuzz(target: &str, seconds: u32) -> Result<()> {
    let corpus = PathBuf::from("fuzz/corpus").join(target);
    let artifacts = PathBuf::from("fuzz/artifacts").join(target);
    for directory in [&corpus, &artifacts] {
        std::fs::create_dir_all(root().join(directory))
            .with_context(|| format!("making {directory:?}"))?;
    }
    let program = root().join(format!("{TARGET_DIRECTORY}/{TRIPLE}/debug/{target}"));
    let artifacts = format!("-artifact_prefix={}/", artifacts.display());
    run(
        &program.display().to_string(),
        &[
            &corpus.display().to_string(),
            &artifacts,
            &format!("-max_total_time={seconds}"),
            &format!("-rss_limit_mb={MEMORY_MIB}"),
            "-timeout=10",
            "-verbosity=0",
            "-print_final_stats=1",
        ],
        &[],
    )
}
