//! Losing the standby, and standbys whose host is in trouble.

use std::os::unix::fs::PermissionsExt;

use crate::support::{DEADLINE, TestCluster, await_log, binary, says, turn, vmm};

#[test]
fn a_primary_goes_on_without_its_standby_and_is_protected_again() {
    let _turn = turn();
    let mut cluster = TestCluster::start();
    cluster.local.standby.kill().unwrap();
    let primary = &mut cluster.local.primary;
    let status = primary
        .await_status("alone", DEADLINE, |status| status.phase == "alone")
        .unwrap();
    assert_eq!(status.generation, 2);
    assert!(!status.protected);
    assert!(
        status
            .alarm
            .is_some_and(|alarm| alarm.contains("unprotected")),
        "no alarm"
    );
    let text = says(primary, "status", &[]);
    assert!(text.contains("primary, NOT protected"), "{text}");
    cluster.await_progress("clients of the unprotected guest");

    cluster.local.restart_standby().unwrap();
    cluster
        .local
        .primary
        .await_status("protected again", DEADLINE, |status| status.protected)
        .unwrap();
    cluster.await_progress("clients of the guest that is protected again");

    cluster.local.primary.kill().unwrap();
    let status = cluster.local.await_promotion(DEADLINE).unwrap();
    assert_eq!(status.generation, 3);
    cluster.await_progress("clients of the promoted guest");
    cluster.assert_exact();
}

/// Consoles that cannot be written are told of and cost nothing else, neither before nor after the
/// failover.
#[test]
fn a_full_disk_under_the_consoles_harms_neither_guest_nor_failover() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let full = directory.path().join("full");
    std::fs::create_dir(&full).unwrap();
    let program = directory.path().join("vmm-on-full-disk");
    let script = format!(
        "#!/bin/sh\nexec unshare --mount sh -c '\n\
         mount -t tmpfs -o size=4k none \"{full}\" || exit 9\n\
         head -c 4096 /dev/zero > \"{full}/filler\"\n\
         exec \"{vmm}\" \"$@\"' sh \"$@\"\n",
        full = full.display(),
        vmm = binary().display(),
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let console = full.join("console").display().to_string();
    let mut cluster = TestCluster::start_with(&program, &["--console", &console]);
    await_log(&cluster.local.primary, "the console cannot be written", 1);
    cluster.local.primary.kill().unwrap();
    cluster.local.await_promotion(DEADLINE).unwrap();
    cluster.await_progress("clients of the promoted guest");
    cluster.assert_exact();
}

#[test]
fn after_the_loss_of_both_hosts_a_guest_starts_from_nothing_only_if_told_to() {
    let _turn = turn();
    let mut cluster = TestCluster::start();
    // Both at once: the standby must not have the time to take over.
    cluster.local.standby.freeze().unwrap();
    cluster.local.primary.kill().unwrap();
    cluster.local.standby.kill().unwrap();
    let arbiter = cluster
        .directory
        .path()
        .join("arbiter")
        .display()
        .to_string();
    let arguments = [
        "primary",
        "--arbiter",
        &arbiter,
        "--console",
        "none",
        "--cmdline",
        "workload=idle exit_after_ms=1",
    ];
    let output = vmm(&arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("its standby standby has a copy"),
        "{errors}"
    );
    assert!(errors.contains("--start-over"), "{errors}");
    let mut arguments = arguments.to_vec();
    arguments.push("--start-over");
    let output = vmm(&arguments);
    assert!(output.status.success(), "{output:?}");
}
