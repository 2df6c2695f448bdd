//! `status`, `failover`, `stop`, signals: what a person does with hosts that run.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use understudy_vmm::local_cluster::VmmProcess;

use crate::support::{DEADLINE, Quiet, TestCluster, await_code, binary, is_denied, says, turn};

fn assert_status(host: &VmmProcess, role: &str, headline: &str) {
    let text = says(host, "status", &[]);
    assert!(text.starts_with("guest on "), "{text}");
    assert!(text.contains(headline), "{text}");
    let json: Value = serde_json::from_str(&says(host, "status", &["--json"])).unwrap();
    assert_eq!(json["role"], role);
    assert_eq!(json["generation"], 1);
    assert_eq!(json["protected"], true);
    assert!(json["epochs"].as_u64().unwrap() > 0, "{json}");
    // The guest speaks through the primary's gate alone.
    let frames_sent = json["output"]["frames_sent"].as_u64().unwrap();
    assert_eq!(frames_sent > 0, role == "primary", "{json}");
    assert!(text.contains("frames sent, 0 dropped"), "{text}");
    let link = &json["metrics"]["link"];
    for counter in ["bytes_in", "bytes_out", "frames_in", "frames_out"] {
        assert!(link[counter].as_u64().unwrap() > 0, "{link}");
    }
}

#[test]
fn a_promotion_that_is_asked_for_fences_the_old_primary_and_breaks_no_client() {
    let _turn = turn();
    let mut cluster = TestCluster::start();
    let (primary, standby) = (&cluster.local.primary, &cluster.local.standby);
    assert_status(primary, "primary", "primary, protected by standby");
    assert_status(standby, "standby", "standby, in sync with primary");
    let text = says(primary, "power-button", &[]);
    assert!(text.contains("power button pressed"), "{text}");
    is_denied(standby, "power-button", "ask the primary's control socket");

    let text = says(standby, "failover", &[]);
    assert!(text.contains("failover requested"), "{text}");
    let status = cluster.local.await_promotion(DEADLINE).unwrap();
    assert_eq!(status.generation, 2);
    let failover = status.failover.unwrap();
    assert!(failover.cause.contains("asked for"), "{}", failover.cause);
    let log = await_code(&mut cluster.local.primary, 3);
    let last = log.lines().last().unwrap();
    assert!(last.starts_with("vmm: fenced: "), "{log}");
    cluster.await_progress("clients of the promoted guest");
    cluster.assert_exact();

    let text = says(&cluster.local.standby, "status", &[]);
    assert!(text.contains("reaction"), "{text}");
    says(&cluster.local.standby, "stop", &[]);
    await_code(&mut cluster.local.standby, 0);
}

#[test]
fn events_tell_what_happened_and_are_followed_to_the_end() {
    let _turn = turn();
    let hosts = Quiet::new();
    let (mut primary, mut standby) = hosts.start_protected();
    let mut follower = Command::new(binary())
        .args(["events", "--follow", "--json", "--control"])
        .arg(primary.control())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    // It listens before anything further happens.
    let first = lines.next().unwrap().unwrap();
    standby.kill().unwrap();
    primary
        .await_status("alone", DEADLINE, |status| status.phase == "alone")
        .unwrap();
    let text = says(&primary, "events", &[]);
    assert!(text.contains("the guest goes on unprotected"), "{text}");
    says(&primary, "stop", &[]);
    await_code(&mut primary, 0);
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(follower.wait().unwrap().success(), "{rest:?}");
    let all = std::iter::once(&first).chain(&rest);
    let events: Vec<Value> = all
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["number"], number as u64 + 1, "{events:?}");
        assert_eq!(
            (&event["vm"], &event["node"]),
            (&json!("guest"), &json!("primary"))
        );
    }
    let kinds = events.iter().map(|event| event["event"].as_str().unwrap());
    // How often there was no standby to connect to depends on the time that took.
    let kinds: Vec<&str> = kinds.filter(|kind| *kind != "alarm").collect();
    let expected = [
        "role-began",
        "protected",
        "unprotected",
        "backup-lost",
        "stop-requested",
        "ended",
    ];
    assert_eq!(kinds, expected, "{events:?}");
}

/// Ends a primary and then its standby by `end`.
fn stops_cleanly(further: &[&str], end: impl Fn(&VmmProcess)) {
    let _turn = turn();
    let hosts = Quiet::new();
    let (mut primary, mut standby) = hosts.start_protected_with(further);
    end(&primary);
    await_code(&mut primary, 0);
    let status = standby
        .await_status("reset", DEADLINE, |status| status.phase == "listening")
        .unwrap();
    assert!(
        status.failover.is_none(),
        "promoted after a deliberate stop"
    );
    assert_eq!(status.generation, 1, "claimed after a deliberate stop");
    let alarm = status.alarm.unwrap();
    assert!(alarm.contains("the guest stopped"), "{alarm}");
    end(&standby);
    await_code(&mut standby, 0);
}

#[test]
fn stop_ends_a_primary_and_its_standby_promotes_nothing() {
    stops_cleanly(&[], |host| {
        let text = says(host, "stop", &[]);
        assert!(text.contains("stop requested"), "{text}");
    });
}

#[test]
fn sigterm_ends_a_primary_that_is_not_to_hand_over_and_its_standby_promotes_nothing() {
    stops_cleanly(&["--on-sigterm", "stop"], |host| host.terminate().unwrap());
}

#[test]
fn a_standby_that_is_stopped_leaves_the_guest_running_unprotected() {
    let _turn = turn();
    let hosts = Quiet::new();
    let (mut primary, mut standby) = hosts.start_protected();
    says(&standby, "stop", &[]);
    await_code(&mut standby, 0);
    let status = primary
        .await_status("alone", DEADLINE, |status| status.phase == "alone")
        .unwrap();
    assert_eq!(status.generation, 2);
    is_denied(&standby, "failover", "cannot connect");
    // A fresh standby has nothing to promote, and says so.
    let lonely = hosts.start_standby(
        "lonely",
        &[
            "--listen",
            &format!("unix:{}", hosts.path("other").display()),
        ],
    );
    is_denied(&lonely, "failover", "not in sync");
}
