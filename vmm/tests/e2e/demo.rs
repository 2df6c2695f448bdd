//! `vmm demo --json`: the object that scripts and the documentation rely on.

use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{binary, turn, vmm_says, wait_for};

fn demo(fault: &str) -> Value {
    let _turn = turn();
    let text = vmm_says(&[
        "demo",
        "--json",
        "--seconds",
        "2",
        "--clients",
        "4",
        "--memory-mib",
        "64",
        "--fault",
        fault,
    ]);
    let report: Value = serde_json::from_str(&text).unwrap();
    let number = |key: &str| {
        report[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key} is missing: {report}"))
    };
    for key in [
        "outage_ms",
        "reaction_ms",
        "recovery_ms",
        "longest_client_gap_ms",
        "bytes_checked",
        "acked_writes",
        "answer_us_p50",
        "answer_us_p99",
        "epochs",
        "pause_us_p50",
        "pause_us_p99",
        "dirty_pages",
        "raw_dirty_bytes",
        "wire_bytes",
    ] {
        assert!(number(key) > 0.0, "{key}: {report}");
    }
    for key in ["bytes_lost", "bytes_repeated", "acked_writes_missing"] {
        assert_eq!(number(key), 0.0, "{key}: {report}");
    }
    assert!(number("frames_dropped") + number("held_bytes") >= 0.0);
    assert_eq!(number("clients"), 4.0);
    assert_eq!(report["fault"], fault);
    assert_eq!(report["ok"], true, "{report}");
    report
}

#[test]
fn a_killed_primary_is_reported_in_full() {
    let report = demo("kill");
    assert_eq!(report["old_primary"], Value::Null);
}

#[test]
fn a_frozen_primary_wakes_up_fenced_and_releases_nothing() {
    let report = demo("freeze");
    let old = &report["old_primary"];
    assert_eq!(old["exit_code"], 3, "{report}");
    assert_eq!(old["frames_released"], 0, "{report}");
    let reason = old["reason"].as_str().unwrap();
    assert!(reason.contains("fenced"), "{reason}");
}

/// Processes that have `directory` in their command line.
fn processes_in(directory: &Path) -> Vec<String> {
    let directory = directory.to_str().unwrap();
    let all = std::fs::read_dir("/proc").unwrap();
    let cmdlines =
        all.filter_map(|process| std::fs::read(process.ok()?.path().join("cmdline")).ok());
    let cmdlines = cmdlines.map(|cmdline| String::from_utf8_lossy(&cmdline).replace('\0', " "));
    cmdlines
        .filter(|cmdline| cmdline.contains(directory))
        .collect()
}

#[test]
fn a_demo_that_is_ended_early_leaves_neither_hosts_nor_files() {
    let _turn = turn();
    for (signal, name) in [
        (Signal::SIGTERM, "SIGTERM"),
        (Signal::SIGHUP, "SIGHUP"),
        (Signal::SIGINT, "SIGINT"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let mut demo = Command::new(binary())
            .args([
                "demo",
                "--seconds",
                "600",
                "--clients",
                "1",
                "--memory-mib",
                "64",
            ])
            .env("TMPDIR", directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for("both hosts", || {
            (processes_in(directory.path()).len() == 2).then_some(())
        });
        kill(Pid::from_raw(demo.id().cast_signed()), signal).unwrap();
        assert_eq!(demo.wait().unwrap().code(), Some(1), "{name}");
        let mut errors = String::new();
        std::io::Read::read_to_string(&mut demo.stderr.take().unwrap(), &mut errors).unwrap();
        assert!(
            errors.contains(&format!("{name} has ended the demo early")),
            "{errors}"
        );
        assert_eq!(processes_in(directory.path()), [""; 0], "{name}");
        let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
        assert!(left.is_empty(), "{name}: {left:?}");
    }
}
