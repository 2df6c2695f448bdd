//! Both hosts reach one image.

use super::hosts::{A, B, Disks, synchronised_bytes};
use crate::support::{await_log, binary, turn};
use understudy_replication::disk::DiskMode;

#[test]
fn the_shared_disk_goes_from_host_to_host_with_the_guest() {
    let _turn = turn();
    let mut disks = Disks::start(DiskMode::Shared);
    let mut from = A;
    for _ in 0..2 {
        let to = 1 - from;
        disks.kill(from);
        disks.await_promoted(to);
        disks.await_progress(to);
        disks.start_standby(from);
        let status = disks.await_protected(to);
        assert_eq!(synchronised_bytes(&status), 0, "there is nothing to copy");
        disks.await_progress(to);
        from = to;
    }
    disks.host(1 - from).freeze().unwrap();
    disks.kill(from);
    disks.kill(1 - from);
    disks.image(A).check_exact(disks.flushed()).unwrap();
}

/// With two files each host would go on from its own after a failover.
#[test]
fn hosts_that_share_two_different_files_are_told_so_and_the_guest_runs_on() {
    let _turn = turn();
    let mut disks = Disks::new(DiskMode::Shared);
    let other = disks.path("other.disk");
    std::fs::copy(disks.image_path(A), &other).unwrap();
    let before = std::fs::read(&other).unwrap();
    let drive = format!("path={},shared", other.display());
    disks.start_standby_with(B, &binary(), &["--drive", &drive]);
    disks.start_primary(A, &[]);
    let texts = [
        "shared image of disk disk0",
        "the two hosts name different files",
        "locks do not reach",
        "replicated",
    ];
    for host in [A, B] {
        for text in texts {
            await_log(disks.host(host), text, 1);
        }
    }
    disks.await_progress(A);
    let status = disks.host(A).status().unwrap();
    assert!(!status.protected, "{status:?}");
    let alarm = status.alarm.unwrap_or_default();
    assert!(
        texts.iter().all(|text| alarm.contains(text)) && alarm.contains("unprotected"),
        "{alarm}"
    );
    // It is refused each time, and never touched.
    assert!(std::fs::read(&other).unwrap() == before);
    disks.kill(B);
    disks.start_standby(B);
    disks.await_protected(A);
    disks.await_progress(A);
    disks.kill(A);
    disks.await_promoted(B);
    disks.await_progress(B);
    disks.kill(B);
    disks.image(B).check_exact(disks.flushed()).unwrap();
}

/// A primary that hangs may be in the middle of a write: the image is not touched before it has let go, and
/// once it goes on it lets nothing of its held writes out.
#[test]
fn a_frozen_primary_is_waited_for_and_then_writes_nothing() {
    let _turn = turn();
    let mut disks = Disks::start(DiskMode::Shared);
    disks.host(A).freeze().unwrap();
    await_log(
        disks.host(B),
        "the shared image of disk disk0 is still locked",
        1,
    );
    let status = disks.host(B).status().unwrap();
    assert!(
        status.failover.is_none(),
        "it runs without the lock: {status:?}"
    );
    let alarm = status.alarm.unwrap_or_default();
    assert!(alarm.contains("disk0"), "{alarm}");
    // Only the old primary is awake.
    disks.host(B).freeze().unwrap();
    disks.host(A).thaw().unwrap();
    let (code, log) = disks.await_end(A);
    assert_eq!(code, Some(3), "{log}");
    assert!(log.contains("fenced"), "{log}");
    let told = disks.flushed();
    let left = disks.image(B).check_exact(told).unwrap();

    disks.host(B).thaw().unwrap();
    disks.await_promoted(B);
    disks.await_progress(B);
    let words = disks.words(B).unwrap();
    assert!(left.highest <= words.writes, "{left:?}, {words:?}");
    disks.start_standby(A);
    disks.await_protected(B);
    disks.kill(B);
    disks.await_promoted(A);
    disks.await_progress(A);
}
