//! `cargo xtask demos N`: the demo many times in a row, as a table.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace::root;

const CLIENTS: &str = "20";
const SECONDS: &str = "4";

pub(crate) fn run(times: usize) -> Result<()> {
    crate::workspace::run(
        "cargo",
        &["build", "--release", "--locked", "--bin", "vmm"],
        &[],
    )?;
    for fault in ["kill", "freeze"] {
        series(fault, times)?;
    }
    Ok(())
}

fn series(fault: &str, times: usize) -> Result<()> {
    println!("fault {fault}, {CLIENTS} clients, {SECONDS} s each");
    println!("  run  outage  reaction  recovery  client gap  pause p50/p99      bytes checked");
    let mut gaps = Vec::new();
    let mut outages = Vec::new();
    for number in 1..=times {
        let report = demo(fault)?;
        let figure = |key: &str| report[key].as_f64().unwrap_or(f64::NAN);
        println!(
            "  {number:>3}  {:>6.1}  {:>8.1}  {:>8.1}  {:>10.1}  {:>5.2} / {:>5.2} ms  {:>13}",
            figure("outage_ms"),
            figure("reaction_ms"),
            figure("recovery_ms"),
            figure("longest_client_gap_ms"),
            figure("pause_us_p50") / 1e3,
            figure("pause_us_p99") / 1e3,
            report["bytes_checked"],
        );
        if report["ok"] != Value::Bool(true) {
            bail!("run {number} was not exact: {report}");
        }
        gaps.push(figure("longest_client_gap_ms"));
        outages.push(figure("outage_ms"));
    }
    println!(
        "  {times} of {times} exact; median outage {:.1} ms, median longest client gap {:.1} ms\n",
        median(&mut outages),
        median(&mut gaps)
    );
    Ok(())
}

fn demo(fault: &str) -> Result<Value> {
    let output = Command::new(root().join("target/release/vmm"))
        .args([
            "demo",
            "--json",
            "--clients",
            CLIENTS,
            "--seconds",
            SECONDS,
            "--fault",
            fault,
        ])
        .output()
        .context("cannot run the demo")?;
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "the demo printed no report: {}",
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
