//! What scenarios measured, as a table or as JSON.

use std::time::Duration;

use serde_json::{Value, json};

/// One failover, or whatever else was measured.
pub(super) struct Measure {
    pub(super) scenario: String,
    /// What was done to whom.
    pub(super) what: String,
    /// `failover` of the promoted side's status; null if there was none.
    pub(super) failover: Value,
    /// Longest wait of a client for its next byte.
    pub(super) gap: Option<Duration>,
    /// What was sent of the disks when the host that had failed came back.
    pub(super) resync_bytes: Option<u64>,
}

const COLUMNS: [&str; 4] = ["reaction_ms", "recovery_ms", "outage_ms", "repair_ms"];

/// Prints the table. Times are in milliseconds.
pub(super) fn print_table(measures: &[Measure]) {
    if measures.is_empty() {
        return;
    }
    println!(
        "{:<24} {:<34} {:>9} {:>9} {:>9} {:>9} {:>10} {:>12}",
        "scenario (times in ms)",
        "what",
        "reaction",
        "recovery",
        "outage",
        "repair",
        "client gap",
        "resync bytes"
    );
    for measure in measures {
        let mut line = format!("{:<24} {:<34}", measure.scenario, measure.what);
        for column in COLUMNS {
            let text = match measure.failover[column].as_f64() {
                Some(value) => format!("{value:.0}"),
                None => "-".into(),
            };
            line.push_str(&format!(" {text:>9}"));
        }
        let or_dash = |value: Option<u128>| value.map_or_else(|| "-".into(), |it| it.to_string());
        let gap = or_dash(measure.gap.map(|gap| gap.as_millis()));
        let resync = or_dash(measure.resync_bytes.map(u128::from));
        println!("{line} {gap:>10} {resync:>12}");
    }
    println!(
        "Emulated hosts compute some 30 times slower than real ones, and the time-out is {} ms here instead of 150.",
        super::vmm::timeout().as_millis()
    );
}

/// The same as one JSON object.
pub(super) fn json(measures: &[Measure], verdicts: &[(String, Result<f64, String>)]) -> Value {
    let measures: Vec<Value> = (measures.iter())
        .map(|measure| {
            json!({
                "scenario": measure.scenario,
                "what": measure.what,
                "failover": measure.failover,
                "client_gap_ms": measure.gap.map(|gap| gap.as_millis() as u64),
                "resync_bytes": measure.resync_bytes,
            })
        })
        .collect();
    let scenarios: Vec<Value> = (verdicts.iter())
        .map(|(name, verdict)| match verdict {
            Ok(seconds) => json!({ "name": name, "ok": true, "seconds": seconds }),
            Err(why) => json!({ "name": name, "ok": false, "error": why }),
        })
        .collect();
    json!({ "scenarios": scenarios, "measures": measures })
}
