//! `cargo xtask bench`: builds what is measured and what it is compared with, measures, and writes the report.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::debian::{self, Release, install};
use crate::workspace::{root, run as run_command};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Parts to measure: speed, pause, answers, streams, outage, copy, codec [default: all].
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Measure this revision, too, in turn with the working tree; repeat for several.
    #[arg(long, value_name = "REV")]
    compare: Vec<String>,
    /// Leave QEMU's COLO out.
    #[arg(long)]
    no_colo: bool,
    /// Where the document goes, with its charts beside it [default: docs/BENCHMARKS.md; with --compare, or only some parts,
    /// target/bench/BENCHMARKS.md].
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// Programs that it calls, or files that it needs, and the Debian package of each.
const NEEDED: [(&str, &str); 3] = [
    ("git", "git"),
    ("setpriv", "util-linux"),
    (TYPEFACE, "fonts-dejavu-core"),
];

/// The typeface of charts.
const TYPEFACE: &str = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf";

/// COLO is in QEMU 7.2, which is Debian 12's; 10.0 never gets past the first copy.
const QEMU: [&str; 4] = [
    "qemu-system-x86",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];

const PACKAGES: [&str; 4] = ["-p", "understudy-vmm", "-p", "understudy-benches"];

pub(crate) fn run(options: &Options) -> Result<()> {
    install(&NEEDED)?;
    let results = root().join("target/bench");
    let mut build = vec!["build", "--release", "--locked"];
    build.extend(PACKAGES);
    run_command("cargo", &build, &[])?;
    let built = root().join("target/release");
    let mut suite = Command::new(built.join("understudy-benches"));
    suite
        .arg("suite")
        .args(&options.names)
        .arg("--results")
        .arg(&results)
        .arg("--revision")
        .arg(revision()?)
        .arg("--binary")
        .arg(built.join("vmm"));
    for revision in &options.compare {
        suite.arg("--binary").arg(earlier(revision, &results)?);
    }
    if !options.no_colo {
        suite.arg("--colo").arg(colo()?);
    }
    succeed(suite)?;
    let whole = options.names.is_empty() && options.compare.is_empty();
    let to = options.to.clone().unwrap_or_else(|| match whole {
        true => root().join("docs/BENCHMARKS.md"),
        false => results.join("BENCHMARKS.md"),
    });
    let mut report = Command::new(built.join("understudy-benches"));
    report.arg("report").arg("--results").arg(&results);
    report.args(["--font", TYPEFACE]).arg("--to").arg(&to);
    succeed(report)?;
    println!("{}", to.display());
    Ok(())
}

fn succeed(mut command: Command) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.current_dir(root()).status();
    let status = status.with_context(|| format!("cannot run {name}"))?;
    ensure!(status.success(), "measuring failed ({status})");
    Ok(())
}

/// The working tree's revision, as people write it.
fn revision() -> Result<String> {
    let describe = ["describe", "--always", "--dirty"];
    let said = debian::quiet(git().args(describe))?;
    Ok(said.trim().to_owned())
}

fn git() -> Command {
    let mut git = Command::new("git");
    git.current_dir(root());
    git
}

/// Builds an earlier revision's `vmm` in a checkout of its own, and returns a copy that is named after it.
fn earlier(revision: &str, results: &Path) -> Result<PathBuf> {
    let commit = debian::quiet(
        git()
            .args(["rev-parse", "--short", "--verify"])
            .arg(format!("{revision}^{{commit}}")),
    )
    .with_context(|| format!("there is no revision {revision}"))?;
    let commit = commit.trim();
    let binary = results.join(format!("vmm-{commit}"));
    if binary.exists() {
        return Ok(binary);
    }
    let tree = results.join("earlier");
    if tree.exists() {
        debian::quiet(git().args(["worktree", "remove", "--force"]).arg(&tree))?;
    }
    debian::quiet(
        git()
            .args(["worktree", "add", "--force", "--detach"])
            .arg(&tree)
            .arg(commit),
    )?;
    let target = results.join("earlier-target");
    let status = Command::new("cargo")
        .args(["build", "--release", "--locked", "-p", "understudy-vmm"])
        .current_dir(&tree)
        .env("CARGO_TARGET_DIR", &target)
        .status()
        .context("cannot run cargo")?;
    debian::quiet(git().args(["worktree", "remove", "--force"]).arg(&tree))?;
    ensure!(status.success(), "{revision} does not build ({status})");
    std::fs::copy(target.join("release/vmm"), &binary)
        .with_context(|| format!("cannot write {}", binary.display()))?;
    Ok(binary)
}

/// Provides QEMU with COLO, and returns the command that starts it.
fn colo() -> Result<String> {
    let directory = root().join("target/debian/qemu-colo");
    debian::provide_programs(&QEMU, Release::Stable, &directory)?;
    let libraries = debian::libraries(&directory);
    let libraries = libraries.to_str().context("a path is not UTF-8")?;
    let at = debian::text_of(&directory)?;
    Ok(format!(
        "env LD_LIBRARY_PATH={libraries} {at}/usr/bin/qemu-system-x86_64 -L {at}/usr/share/qemu -L {at}/usr/share/seabios"
    ))
}
