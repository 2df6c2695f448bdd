//! Storage of a standby that fails between two epochs.

use std::sync::atomic::Ordering;

use understudy_replication::disk::DiskLimits;
use understudy_replication::runtime::Ended;

use super::fake::Fake;
use super::images::Images;
use super::{primary, standby, wait_for};

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
