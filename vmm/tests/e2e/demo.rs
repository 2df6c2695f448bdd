//! `vmm demo --json`: the object that scripts and the documentation rely on.

use serde_json::Value;

use crate::support::{turn, vmm_says};

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
