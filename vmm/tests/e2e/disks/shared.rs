//! Both hosts reach one image.

use super::hosts::{A, B, Disks, Mode, synchronised_bytes};
use crate::support::{await_log, turn};

#[test]
fn the_shared_disk_goes_from_host_to_host_with_the_guest() {
    let _turn = turn();
    let mut disks = Disks::start(Mode::Shared);
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

/// A primary that hangs may be in the middle of a write: the image is not touched before it has let go, and
/// once it goes on it lets nothing of its held writes out.
#[test]
fn a_frozen_primary_is_waited_for_and_then_writes_nothing() {
    let _turn = turn();
    let mut disks = Disks::start(Mode::Shared);
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
