//! Guests that begin anew or power off while their disks are protected.

use super::hosts::{A, B, BLOCKS, Disks, IMAGE_BYTES, cmdline, synchronised_bytes};
use crate::support::{DEADLINE, binary, turn, wait_for};
use understudy_replication::disk::DiskMode;

const BOOTED: &str = "understudy guest ";

fn boots(disks: &mut Disks, host: usize) -> usize {
    disks.host(host).console().matches(BOOTED).count()
}

fn reset(mode: DiskMode) {
    let _turn = turn();
    let mut disks = Disks::new(mode);
    let command = format!("{} reboot_after_ms=2500", cmdline());
    let flags = ["--kernel", "builtin", "--cmdline", &command];
    disks.start_standby_with(B, &binary(), &flags);
    disks.start_primary(A, &flags);
    disks.await_protected(A);
    let before = boots(&mut disks, A);
    wait_for("two resets of the protected guest", || {
        (boots(&mut disks, A) >= before + 2).then_some(())
    });
    let status = disks.host(A).status().unwrap();
    assert!(status.protected, "{status:?}");
    disks.await_progress(A);
    disks.kill(A);
    disks.await_promoted(B);
    if mode == DiskMode::Replicated {
        disks.image(A).check_exact(disks.flushed()).unwrap();
    }
    wait_for("a reset after the failover", || {
        (boots(&mut disks, B) >= 1).then_some(())
    });
    disks.await_progress(B);
    disks.start_standby(A);
    disks.await_protected(B);
    disks.host(A).freeze().unwrap();
    disks.kill(B);
    disks.kill(A);
    disks.image(B).check_exact(disks.flushed()).unwrap();
}

#[test]
fn a_guest_finds_its_replicated_disk_after_resets_and_a_failover() {
    reset(DiskMode::Replicated);
}

#[test]
fn a_guest_finds_its_shared_disk_after_resets_and_a_failover() {
    reset(DiskMode::Shared);
}

fn power_off(mode: DiskMode) {
    let _turn = turn();
    let mut disks = Disks::new(mode);
    let command = format!(
        "workload=disk disk.blocks={BLOCKS} disk.rate=500 disk.flush_every=8 disk.log_ms=10 exit_after_ms=6000"
    );
    disks.start_standby(B);
    disks.start_primary(A, &["--cmdline", &command]);
    disks.await_protected(A);
    disks.await_progress(A);
    let code = disks.host(A).await_exit(DEADLINE).unwrap().code();
    let words = disks.words(A).unwrap();
    let log = disks.host(A).log();
    assert_eq!(code, Some(0), "{log}");
    disks.hosts[A] = None;
    // What the guest wrote in its last epoch, too, whether it was flushed or not.
    let left = disks.image(A).check_exact(disks.flushed()).unwrap();
    assert!(left.highest + 1 >= words.writes, "{left:?}, {words:?}");
    disks.await_status(B, "waiting for a primary again", |status| {
        status.phase == "listening" && !status.protected
    });
    assert!(disks.host(B).status().unwrap().failover.is_none());
    // The next start brings the standby what it lacks, and only that.
    disks.start_primary(A, &[]);
    let status = disks.await_protected(A);
    let bytes = synchronised_bytes(&status);
    assert!(bytes < IMAGE_BYTES / 4, "{bytes} bytes");
    disks.await_progress(A);
    disks.kill(A);
    disks.await_promoted(B);
    disks.await_progress(B);
    disks.kill(B);
    let report = disks.image(B).check_exact(disks.flushed()).unwrap();
    assert!(report.highest > left.highest, "{report:?}, {left:?}");
}

#[test]
fn a_guest_that_powers_off_leaves_its_replicated_disk_whole() {
    power_off(DiskMode::Replicated);
}

#[test]
fn a_guest_that_powers_off_leaves_its_shared_disk_whole() {
    power_off(DiskMode::Shared);
}
