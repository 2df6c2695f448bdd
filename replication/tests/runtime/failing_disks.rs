//! Storage of a standby that fails between two epochs, or fails or hangs when the standby takes over.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tempfile::TempDir;
use understudy_replication::disk::DiskLimits;
use understudy_replication::ports::Machine;
use understudy_replication::runtime::{Ended, Outcome, StandbyRun};

use super::fake::Fake;
use super::hang::Heals;
use super::images::Images;
use super::{PATIENCE, Status, primary, promoted, standby, wait_for};

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
    let is_said = |status: &Status| {
        let alarm = status.alarm.as_deref().unwrap_or_default();
        alarm.contains("root") && !status.protected
    };
    wait_for("an alarm of the standby", || other.status(), is_said);
    wait_for("an alarm", || handle.status(), is_said);
    b.is_full.store(false, Ordering::Release);
    used.rests.store(false, Ordering::Release);
    let again = |status: &Status| status.protected && status.generation == 2;
    wait_for("protected again", || handle.status(), again);
    handle.guest_stopped();
    assert_eq!(primary.wait().unwrap(), Ended::GuestStopped);
    other.stop();
    standby.await_promotion().unwrap();
}

/// A standby whose primary was protected and is gone, and whose storage is ill.
struct Left {
    _directory: TempDir,
    images: Images,
    /// A test that fails must not wait for what hangs.
    _heals: Heals,
    standby: StandbyRun<Fake>,
}

impl Left {
    fn with(set_ill: impl Fn(&Images)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // What the journal has goes to the image when the standby is promoted, not before.
        let lazy = DiskLimits {
            destage_interval: Duration::from_secs(3600),
            destage_bytes: u64::MAX,
            ..DiskLimits::default()
        };
        let a = Images::open(directory.path(), "a", false, DiskLimits::default());
        let images = Images::open(directory.path(), "b", false, lazy);
        let first = Fake::new().with_disks(&a);
        let (panics, used) = (first.pause_panics.clone(), first.disk_use.clone());
        let standby = standby(directory.path(), Fake::new().with_disks(&images))
            .start()
            .unwrap();
        let primary = primary(directory.path(), first).protect().unwrap();
        let protected = |status: &Status| status.protected && status.epochs >= 5;
        let handle = primary.handle();
        wait_for("protected", || handle.status(), protected);
        // It brings to the image what was copied, and whatever the journal has by then.
        let is_copied = |status: &Status| status.disks.durable_epoch > 0;
        wait_for("copied", || standby.handle().status(), is_copied);
        // The journal is to have something, and nothing is to be on its way to it once the storage is ill: the standby
        // would give its copy up.
        let written = used.writes.load(Ordering::Acquire);
        let more = |_: &_| used.writes.load(Ordering::Acquire) > written;
        wait_for("writing", || handle.status(), more);
        used.rests.store(true, Ordering::Release);
        let epochs = handle.status().epochs;
        let later = |status: &Status| status.protected && status.epochs >= epochs + 3;
        wait_for("all is journaled", || handle.status(), later);
        let heals = Heals(Arc::clone(&images.hangs));
        set_ill(&images);
        panics.store(true, Ordering::Release);
        assert!(primary.wait().is_err(), "it was to panic");
        Self {
            _directory: directory,
            images,
            _heals: heals,
            standby,
        }
    }

    /// Waits for an alarm that contains this.
    fn await_alarm(&self, said: &str) {
        let status = || {
            let (sender, answer) = std::sync::mpsc::channel();
            let handle = self.standby.handle();
            std::thread::spawn(move || sender.send(handle.status()).ok());
            answer.recv_timeout(PATIENCE).expect("a status in time")
        };
        let is_told =
            |status: &Status| (status.alarm.as_deref()).is_some_and(|it| it.contains(said));
        wait_for(said, status, is_told);
    }
}

/// Nobody else may run the guest then, so the only copy of its memory must not end with an error, and a person must know.
#[test]
fn a_promotion_waits_for_storage_that_fails_or_hangs_until_it_is_well() {
    type SetIll = fn(&Images, bool);
    let ways: [(SetIll, &str); 2] = [
        (
            |images, is_full| images.is_full.store(is_full, Ordering::Release),
            "the promotion waits: this host's storage fails",
        ),
        (
            |images, hangs| images.hangs.set(hangs),
            "the promotion waits: this host's storage does not answer",
        ),
    ];
    for (set_ill, said) in ways {
        let left = Left::with(|images| set_ill(images, true));
        left.await_alarm(said);
        set_ill(&left.images, false);
        let handle = left.standby.handle();
        let mut promoted = promoted(left.standby);
        wait_for(
            "writing",
            || handle.status(),
            |_| promoted.machine.disk_use.writes.load(Ordering::Acquire) > 100,
        );
        promoted.machine.stop();
        promoted.machine.assert_consistent();
        assert_eq!(handle.status().alarm, None);
    }
}

#[test]
fn a_promotion_that_hangs_in_storage_can_be_stopped() {
    let left = Left::with(|images| images.hangs.set(true));
    left.await_alarm("storage does not answer");
    assert!(left.standby.handle().stop());
    let (sender, stopped) = std::sync::mpsc::channel();
    let standby = left.standby;
    std::thread::spawn(move || {
        let outcome = standby.await_promotion().unwrap();
        sender.send(matches!(outcome, Outcome::Stopped)).ok();
    });
    assert_eq!(stopped.recv_timeout(PATIENCE), Ok(true));
}
