//! Losing the standby, and standbys whose host is in trouble.

use std::os::unix::fs::PermissionsExt;

use crate::support::{DEADLINE, Lab, await_log, binary, turn, vmm_says};

#[test]
fn a_primary_goes_on_without_its_standby_and_is_protected_again() {
    let _turn = turn();
    let mut lab = Lab::start();
    lab.pair.standby.kill().unwrap();
    let primary = &mut lab.pair.primary;
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
    let control = primary.control().display().to_string();
    let text = vmm_says(&["status", "--control", &control]);
    assert!(text.contains("primary, NOT protected"), "{text}");
    lab.await_progress("clients of the unprotected guest");

    lab.pair.restart_standby().unwrap();
    lab.pair
        .primary
        .await_status("protected again", DEADLINE, |status| status.protected)
        .unwrap();
    lab.await_progress("clients of the guest that is protected again");

    lab.pair.primary.kill().unwrap();
    let status = lab.pair.await_promotion(DEADLINE).unwrap();
    assert_eq!(status.generation, 3);
    lab.await_progress("clients of the promoted guest");
    lab.assert_exact();
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
    let mut lab = Lab::start_with(&program, &["--console", &console]);
    await_log(&lab.pair.primary, "console output lost", 1);
    lab.pair.primary.kill().unwrap();
    lab.pair.await_promotion(DEADLINE).unwrap();
    lab.await_progress("clients of the promoted guest");
    lab.assert_exact();
}
