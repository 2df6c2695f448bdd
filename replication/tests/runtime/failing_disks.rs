//! Storage of a standby that fails between two epochs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use understudy_replication::disk::DiskLimits;
use understudy_replication::runtime::{Ended, Outcome};

use super::fake::Fake;
use super::hang::Heals;
use super::images::Images;
use super::{PATIENCE, primary, standby, wait_for};

#[test]
fn a_standby_says_at_once_that_its_storage_fails_also_to_a_guest_that_rests() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let open = |host| Images::open(directory, host, false, DiskLimits::default());
    let (a, b) = (open("a"), open("b"));
    let machine = Fake::new().with_disks(&a);
    let used = machine.disk_use.clone();
    let standby = standby(directory, Fake::new().with_disks(&b))
        .start()
        .unwrap();
    let primary = primary(directory, machine).protect().unwrap();
    let (handle, other) = (primary.handle(), standby.handle());
    wait_for("protected", || handle.status(), |status| status.protected);
    b.is_full.store(true, Ordering::Release);
    // The journal gets one more write, which is brought to the image later.
    let written = used.writes.load(Ordering::Acquire);
    let more = |_: &_| used.writes.load(Ordering::Acquire) > written;
    wait_for("writing", || handle.status(), more);
    used.rests.store(true, Ordering::Release);
    let is_said = |status: &super::Status| {
        let alarm = status.alarm.as_deref().unwrap_or_default();
        alarm.contains("root") && !status.protected
    };
    wait_for("an alarm of the standby", || other.status(), is_said);
    wait_for("an alarm", || handle.status(), is_said);
    b.is_full.store(false, Ordering::Release);
    used.rests.store(false, Ordering::Release);
    let again = |status: &super::Status| status.protected && status.generation == 2;
    wait_for("protected again", || handle.status(), again);
    handle.guest_stopped();
    assert_eq!(primary.wait().unwrap(), Ended::GuestStopped);
    other.stop();
    standby.await_promotion().unwrap();
}

#[test]
fn a_promotion_that_hangs_in_storage_can_be_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    // What the journal has goes to the image when the standby is promoted, not before.
    let lazy = DiskLimits {
        destage_interval: Duration::from_secs(3600),
        destage_bytes: u64::MAX,
        ..DiskLimits::default()
    };
    let a = Images::open(directory, "a", false, DiskLimits::default());
    let b = Images::open(directory, "b", false, lazy);
    let first = Fake::new().with_disks(&a);
    let panics = first.pause_panics.clone();
    let standby = standby(directory, Fake::new().with_disks(&b))
        .start()
        .unwrap();
    let primary = primary(directory, first).protect().unwrap();
    let handle = standby.handle();
    let protected = |status: &super::Status| status.protected && status.epochs >= 5;
    wait_for("protected", || primary.handle().status(), protected);
    let _heals = Heals(Arc::clone(&b.hangs));
    b.hangs.set(true);
    panics.store(true, Ordering::Release);
    assert!(primary.wait().is_err(), "it was to panic");
    let waits = |status: &super::Status| {
        let alarm = status.alarm.as_deref().unwrap_or_default();
        alarm.contains("storage does not answer")
    };
    wait_for("an alarm", || handle.status(), waits);
    assert!(handle.stop());
    let (sender, stopped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let outcome = standby.await_promotion().unwrap();
        sender.send(matches!(outcome, Outcome::Stopped)).ok();
    });
    assert_eq!(stopped.recv_timeout(PATIENCE), Ok(true));
}
