//! A guest that reboots: it begins anew in place, unprotected and protected, and after a failover where the
//! standby was told what to boot.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use understudy_vmm::control;
use understudy_vmm::local_cluster::VmmProcess;
use understudy_vmm::node::NodeStatus;

use crate::support::{DEADLINE, Quiet, await_log, binary, turn, vmm, wait_for};

const BOOTED: &str = "understudy guest ";

fn status(host: &VmmProcess) -> Option<NodeStatus> {
    control::status(host.control()).ok()
}

#[test]
fn a_guest_that_reboots_is_started_over_and_one_in_a_loop_is_slowed() {
    let _turn = turn();
    let mut vmm = Command::new(binary())
        .args(["run", "--memory-mib", "64", "--console", "none"])
        .args(["--cmdline", "workload=idle reboot_after_ms=1"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(vmm.stderr.take().unwrap())
        .lines()
        .map_while(Result::ok);
    let restarted = log
        .by_ref()
        .take_while(|line| !line.contains("it has to wait 2 s"))
        .filter(|line| line.contains("started over in place"))
        .count();
    assert_eq!(restarted, 4, "three at once, one after a second");
    vmm.kill().unwrap();
    vmm.wait().unwrap();
}

#[test]
fn a_reboot_is_the_end_if_that_is_wanted() {
    let _turn = turn();
    let output = vmm(&[
        "run",
        "--memory-mib",
        "64",
        "--cmdline",
        "workload=idle reboot_after_ms=1",
        "--on-reboot",
        "exit",
    ]);
    assert!(output.status.success(), "{output:?}");
    let console = String::from_utf8_lossy(&output.stdout);
    assert_eq!(console.matches(BOOTED).count(), 1, "{console}");
}

/// The guest reboots while it is protected, then its host dies, and it reboots again on the other one. Every
/// byte of its console is there once.
#[test]
fn a_protected_guest_reboots_before_and_after_a_failover() {
    let _turn = turn();
    let hosts = Quiet::new();
    let path = hosts.path("shared.console");
    let console = || std::fs::read_to_string(&path).unwrap_or_default();
    let boots = || console().matches(BOOTED).count();
    let flags = [
        "--console",
        path.to_str().unwrap(),
        "--kernel",
        "builtin",
        "--cmdline",
        "workload=dirty dirty.pages=200 dirty.rate=50 reboot_after_ms=2500",
    ];
    let mut standby = hosts.start_standby("standby", &flags);
    let mut primary = hosts.start_primary("primary", &flags);
    primary
        .await_status("protected", DEADLINE, |status| status.protected)
        .unwrap();
    let before = boots();
    wait_for("two reboots of the protected guest", || {
        (boots() >= before + 2).then_some(())
    });
    let now = status(&primary).unwrap();
    let replication = now.replication().unwrap();
    assert!(replication.protected && now.guest.restarts >= 2, "{now:?}");
    assert_eq!(replication.alarm, None);
    primary.kill().unwrap();
    standby
        .await_status("promoted", DEADLINE, |status| status.failover.is_some())
        .unwrap();
    let before = boots();
    wait_for("a reboot after the failover", || {
        (boots() > before).then_some(())
    });
    wait_for("a note of it", || {
        (status(&standby)?.guest.restarts > 0).then_some(())
    });
    let console = console();
    assert!(!console.contains("fatal"), "{console}");
    // Each run of the guest has told all of its beginning and all of its end.
    let runs: Vec<&str> = console.split(BOOTED).skip(1).collect();
    for run in &runs[..runs.len() - 1] {
        assert_eq!(run.matches("ready: dirty").count(), 1, "{console}");
        assert!(run.ends_with("reboot_after_ms is over\n"), "{console}");
    }
}

#[test]
fn a_standby_that_was_told_no_kernel_says_so_when_the_guest_reboots_there() {
    let _turn = turn();
    let hosts = Quiet::new();
    let mut standby = hosts.start_standby("standby", &[]);
    let cmdline = "workload=idle reboot_after_ms=6000";
    let mut primary = hosts.start_primary("primary", &["--cmdline", cmdline]);
    primary
        .await_status("protected", DEADLINE, |status| status.protected)
        .unwrap();
    primary.kill().unwrap();
    await_log(&standby, "this host's configuration names no kernel", 1);
    let exit = standby.await_exit(DEADLINE).unwrap();
    assert_eq!(exit.code(), Some(0), "{}", standby.log());
}
