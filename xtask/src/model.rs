//! `cargo xtask model`: explores the models of the cores within larger bounds than the tests do, in a
//! release build. The models are in `replication/src/core/model/tests.rs`.

use anyhow::Result;

use crate::workspace::run;

/// Explores the models whose test's name contains `filter`.
pub(crate) fn explore(filter: &str) -> Result<()> {
    let tests = format!("core::model::tests::{filter}");
    let arguments = [
        "test",
        "--locked",
        "--release",
        "--package",
        "understudy-replication",
        "--lib",
        &tests,
        "--",
        "--nocapture",
        "--test-threads",
        "1",
    ];
    run("cargo", &arguments, &[("UNDERSTUDY_MODEL", "large")])
}
