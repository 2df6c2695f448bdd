//! `cargo xtask mutants --generated`: has cargo-mutants change a room of the library in every way it knows, and run the
//! room's tests after each. Survivors that nobody could notice are named in `.cargo/mutants.toml`, with the reason.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::copy_tree;
use crate::workspace::root;

/// Name, files below `replication/src`, and what the tests that cover them are called.
const ROOMS: &str = "
    arbiter      | arbiter/file/*.rs                         | arbiter:: --skip interleavings
    output       | output/**/*.rs                            | output::
    core-wire    | core/{codec,disk,message}/**/*.rs         | core::codec core::disk core::message
    core-start   | core/{heartbeats,promise,start,timers}.rs | core:: --skip core::model
    core-backup  | core/{backup,epoch}/**/*.rs               | core::backup core::epoch
    core-primary | core/primary/**/*.rs                      | core::primary
    disk-backup  | disk/{backup,image}/*.rs                  | disk::tests
    disk-primary | disk/primary/*.rs                         | disk::tests --skip crashes";

/// Runs the rooms whose name begins with `name`.
pub(super) fn run(name: &str) -> Result<()> {
    let installed = Command::new("cargo")
        .args(["mutants", "--version"])
        .output();
    ensure!(
        installed.is_ok_and(|it| it.status.success()),
        "cargo-mutants is not installed, so NOTHING WAS TESTED: `cargo install cargo-mutants --locked`"
    );
    let copy = root().join("target/mutants");
    copy_tree(&copy)?;
    let (mut rooms, mut bad) = (0, Vec::new());
    for line in ROOMS.trim().lines().map(str::trim) {
        let columns: Vec<_> = line.split('|').map(str::trim).collect();
        if !line.starts_with(name) {
            continue;
        }
        let files = format!("replication/src/{}", columns[1]);
        let status = Command::new("cargo")
            .args([
                "mutants",
                "--in-place",
                "--cargo-arg=--lib",
                "--timeout",
                "120",
            ])
            .args(["--package", "understudy-replication", "--file", &files])
            .arg("--output")
            .arg(root().join("target/mutants-generated").join(columns[0]))
            .args(["--", "--"])
            .args(columns[2].split(' '))
            .current_dir(&copy)
            .env("CARGO_TARGET_DIR", root().join("target"))
            // Most of a mutant's time is its build.
            .envs([("CARGO_INCREMENTAL", "1"), ("CARGO_PROFILE_DEV_DEBUG", "0")])
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
            .status();
        rooms += 1;
        bad.extend((!status.context("cannot run cargo")?.success()).then_some(columns[0]));
    }
    ensure!(rooms > 0, "no room is called like {name:?}:{ROOMS}");
    ensure!(
        bad.is_empty(),
        "not all are caught in {bad:?}: see target/mutants-generated/ROOM/mutants.out"
    );
    Ok(())
}
