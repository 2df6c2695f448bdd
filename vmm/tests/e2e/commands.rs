//! `status`, `failover`, `stop`, signals: what a person does with hosts that run.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use understudy_vmm::local_cluster::VmmProcess;

use crate::support::{DEADLINE, Quiet, TestCluster, binary, turn, vmm, vmm_says};

fn control(host: &VmmProcess) -> String {
    host.control().display().to_string()
}

fn await_code(host: &mut VmmProcess, code: i32) {
    let exit = host.await_exit(DEADLINE).unwrap();
    assert_eq!(exit.code(), Some(code), "{}", host.log());
}

fn assert_status(host: &VmmProcess, role: &str, headline: &str) {
    let control = control(host);
    let text = vmm_says(&["status", "--control", &control]);
    assert!(text.starts_with("guest on "), "{text}");
    assert!(text.contains(headline), "{text}");
    let json: Value =
        serde_json::from_str(&vmm_says(&["status", "--control", &control, "--json"])).unwrap();
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
    let (primary, standby) = (
        control(&cluster.local.primary),
        control(&cluster.local.standby),
    );
    assert_status(
        &cluster.local.primary,
        "primary",
        "primary, protected by standby",
    );
    assert_status(
        &cluster.local.standby,
        "standby",
        "standby, in sync with primary",
    );

    let output = vmm(&["failover", "--control", &primary]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("ask the standby's control socket"), "{text}");

    let text = vmm_says(&["power-button", "--control", &primary]);
    assert!(text.contains("power button pressed"), "{text}");
    let output = vmm(&["power-button", "--control", &standby]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("ask the primary's control socket"), "{text}");

    let text = vmm_says(&["failover", "--control", &standby]);
    assert!(text.contains("promotion requested"), "{text}");
    let status = cluster.local.await_promotion(DEADLINE).unwrap();
    assert_eq!(status.generation, 2);
    let failover = status.failover.unwrap();
    assert!(failover.cause.contains("asked for"), "{}", failover.cause);
    await_code(&mut cluster.local.primary, 3);
    let log = cluster.local.primary.log();
    let last = log.lines().last().unwrap();
    assert!(last.starts_with("vmm: fenced: "), "{log}");
    cluster.await_progress("clients of the promoted guest");
    cluster.assert_exact();

    let text = vmm_says(&["status", "--control", &standby]);
    assert!(text.contains("reaction"), "{text}");
    vmm_says(&["stop", "--control", &standby]);
    await_code(&mut cluster.local.standby, 0);
}

#[test]
fn events_tell_what_happened_and_are_followed_to_the_end() {
    let _turn = turn();
    let hosts = Quiet::new();
    let (mut primary, mut standby) = hosts.start_protected();
    let following = [
        "events",
        "--control",
        &control(&primary),
        "--follow",
        "--json",
    ];
    let mut follower = Command::new(binary())
        .args(following)
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
    let text = vmm_says(&["events", "--control", &control(&primary)]);
    assert!(text.contains("the guest goes on unprotected"), "{text}");
    vmm_says(&["stop", "--control", &control(&primary)]);
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
fn stops_cleanly(end: impl Fn(&VmmProcess)) {
    let _turn = turn();
    let hosts = Quiet::new();
    let (mut primary, mut standby) = hosts.start_protected();
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
    stops_cleanly(|host| {
        let text = vmm_says(&["stop", "--control", &control(host)]);
        assert!(text.contains("stop requested"), "{text}");
    });
}

#[test]
fn sigterm_ends_a_primary_and_its_standby_promotes_nothing() {
    stops_cleanly(|host| host.terminate().unwrap());
}

#[test]
fn a_standby_that_is_stopped_leaves_the_guest_running_unprotected() {
    let _turn = turn();
    let hosts = Quiet::new();
    let (mut primary, mut standby) = hosts.start_protected();
    vmm_says(&["stop", "--control", &control(&standby)]);
    await_code(&mut standby, 0);
    let status = primary
        .await_status("alone", DEADLINE, |status| status.phase == "alone")
        .unwrap();
    assert_eq!(status.generation, 2);
    let output = vmm(&["failover", "--control", &control(&standby)]);
    assert_eq!(output.status.code(), Some(1));
    // A fresh standby has nothing to promote, and says so.
    let lonely = hosts.start_standby(
        "lonely",
        &[
            "--listen",
            &format!("unix:{}", hosts.path("other").display()),
        ],
    );
    let output = vmm(&["failover", "--control", &control(&lonely)]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("not in sync"), "{text}");
}
