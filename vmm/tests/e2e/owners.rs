//! Who may run a guest that others may have: hosts are told apart by what they are, and an unprotected run asks too.

use understudy_replication::disk::DiskMode;
use understudy_replication::runtime::Side;
use understudy_vmm::local_cluster::VmmProcess;

use crate::disks::hosts::{A, B, Disks};
use crate::support::{DEADLINE, Quiet, await_code, binary, says, turn, vmm, wait_for};

/// Both hosts are called alike, as clones are: the one whose disk is older must not start the guest again.
#[test]
fn a_clone_is_not_taken_for_the_host_that_ran_the_guest_last() {
    let _turn = turn();
    let alike = ["--node", "clone"];
    let mut disks = Disks::new(DiskMode::Replicated);
    disks.start_standby_with(B, &binary(), &alike);
    disks.start_primary(A, &alike);
    disks.await_protected(A);
    disks.await_progress(A);
    disks.kill(A);
    disks.await_promoted(B);
    disks.await_progress(B);
    says(disks.host(B), "stop", &[]);
    assert_eq!(disks.await_end(B).0, Some(0));
    disks.start_primary(A, &alike);
    let waits = disks.await_status(A, "waiting", |status| status.side == Side::Standby);
    assert!(!waits.protected);
    let events = says(disks.host(A), "events", &[]);
    let lost = "give up what the guest wrote to its disks";
    assert!(events.contains(lost), "{events}");
    says(disks.host(A), "stop", &[]);
    let (code, log) = disks.await_end(A);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("clone (host "), "{log}");
    assert!(!log.contains("the guest runs"), "{log}");
    // The other one may, again and again.
    disks.start_primary(B, &alike);
    disks.await_progress(B);
}

/// `vmm run` with the arbiter of `hosts`; returns how it was refused.
fn run_refused(hosts: &Quiet) -> String {
    let arbiter = hosts.path("arbiter").display().to_string();
    let output = vmm(&[
        "run",
        "--arbiter",
        &arbiter,
        "--memory-mib",
        "64",
        "--console",
        "none",
    ]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    errors
}

fn run(hosts: &Quiet) -> VmmProcess {
    let arbiter = hosts.path("arbiter").display().to_string();
    let arguments = [
        "run",
        "--arbiter",
        &arbiter,
        "--memory-mib",
        "64",
        "--console",
        "none",
    ];
    let arguments = [&arguments[..], &["--cmdline", "workload=idle"]].concat();
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    let host = VmmProcess::start(&binary(), "alone", hosts.directory.path(), &arguments).unwrap();
    wait_for("a guest that runs", || {
        host.log().contains("the guest runs").then_some(())
    });
    host
}

#[test]
fn an_unprotected_run_beside_an_arbiter_is_refused_while_others_have_the_guest() {
    let _turn = turn();
    let hosts = Quiet::new();
    let (mut primary, mut standby) = hosts.start_protected();
    assert!(run_refused(&hosts).contains("which is alive"));
    // Both hosts lose power at once; the standby's copy is gone, but nobody knows that.
    standby.freeze().unwrap();
    primary.kill().unwrap();
    standby.kill().unwrap();
    let errors = run_refused(&hosts);
    assert!(
        errors.contains("its standby standby has a copy"),
        "{errors}"
    );
    assert!(
        errors.contains("`vmm primary` with --start-over"),
        "{errors}"
    );
    let mut primary = hosts.start_primary("primary", &["--start-over"]);
    primary.await_status("running", DEADLINE, |_| true).unwrap();
    says(&primary, "stop", &[]);
    await_code(&mut primary, 0);
    // Nobody has it now. While it runs here, it is not started elsewhere.
    let mut alone = run(&hosts);
    let mut second = hosts.start_primary("second", &[]);
    let log = await_code(&mut second, 1);
    assert!(log.contains("which is alive"), "{log}");
    says(&alone, "stop", &[]);
    await_code(&mut alone, 0);
}
