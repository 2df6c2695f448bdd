//! The guest's console: nothing of it is lost when a process ends or a host dies.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::support::{DEADLINE, Quiet, binary, turn, wait_for};

/// A pipe that takes nothing until somebody reads; it is full of this.
const FILLING: u8 = b'.';

#[test]
fn the_guests_last_words_are_waited_for() {
    let _turn = turn();
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[FILLING; 4096]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    let mut vmm = Command::new(binary())
        .args(["run", "--memory-mib", "64"])
        .args(["--cmdline", "workload=idle exit_after_ms=1"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(vmm.stderr.take().unwrap());
    let waits = log
        .lines()
        .map_while(Result::ok)
        .any(|line| line.contains("waiting for the guest's console"));
    assert!(waits, "it ended without its console having taken anything");
    let mut console = Vec::new();
    reader.read_to_end(&mut console).unwrap();
    let said: Vec<u8> = console
        .into_iter()
        .skip_while(|byte| *byte == FILLING)
        .collect();
    let said = String::from_utf8(said).unwrap();
    assert!(said.ends_with("exit_after_ms is over\n"), "{said}");
    assert!(vmm.wait().unwrap().success());
}

/// Iterations that the guest has told of, once a second, in the order of the file.
fn told(console: &str) -> Vec<u64> {
    let number = |line: &str| {
        line.split_once("iterations=")?
            .1
            .split(' ')
            .next()?
            .parse()
            .ok()
    };
    console.lines().filter_map(number).collect()
}

#[test]
fn a_console_file_that_both_hosts_share_has_everything_once() {
    let _turn = turn();
    let hosts = Quiet::new();
    let path = hosts.path("shared.console");
    let console = || std::fs::read_to_string(&path).unwrap_or_default();
    let shared = [
        "--console",
        path.to_str().unwrap(),
        "--cmdline",
        "workload=dirty dirty.pages=10 dirty.rate=10",
    ];
    let mut primary = hosts.start_primary("primary", &shared);
    wait_for("booted guest", || {
        console().contains("ready: dirty").then_some(())
    });
    let mut standby = hosts.start_standby("standby", &shared);
    primary
        .await_status("protected", DEADLINE, |status| status.protected)
        .unwrap();
    let told_before = told(&console()).len();
    wait_for("news", || {
        (told(&console()).len() > told_before).then_some(())
    });
    primary.kill().unwrap();
    standby
        .await_status("promoted", DEADLINE, |status| status.failover.is_some())
        .unwrap();
    let told_before = told(&console()).len();
    wait_for("news", || {
        (told(&console()).len() > told_before).then_some(())
    });
    let console = console();
    assert!(console.starts_with("understudy guest "), "{console}");
    assert_eq!(console.matches("ready: dirty").count(), 1, "{console}");
    assert!(told(&console).is_sorted_by(|a, b| a < b), "{console}");
}

#[test]
fn a_protected_guest_is_heard_to_its_end_and_not_taken_over() {
    let _turn = turn();
    let hosts = Quiet::new();
    let path = hosts.path("guest.console");
    let further = [
        "--console",
        path.to_str().unwrap(),
        "--cmdline",
        "workload=idle exit_after_ms=2000",
    ];
    let mut standby = hosts.start_standby("standby", &[]);
    let mut primary = hosts.start_primary("primary", &further);
    let exit = primary.await_exit(DEADLINE).unwrap();
    assert_eq!(exit.code(), Some(0), "{}", primary.log());
    let console = std::fs::read_to_string(&path).unwrap();
    assert!(
        console.ends_with("exit_after_ms is over\n"),
        "{console}\n{}",
        primary.log()
    );
    let status = standby
        .await_status("reset", DEADLINE, |status| status.phase == "listening")
        .unwrap();
    assert!(status.failover.is_none(), "{status:?}");
}
