//! Disks end to end: real images, maps and journals in files, both runtimes in one process.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use understudy_replication::core::policy::Policy;
use understudy_replication::disk::{DiskLimits, DiskSet, Storage};
use understudy_replication::ports::{Disks, Machine};
use understudy_replication::runtime::{
    Ended, Origin, Outcome, Primary, PrimaryBuilder, Promoted, Protection, RuntimeError,
    StandbyBuilder, StandbyRun, Status,
};
use understudy_transport::Endpoint;

use crate::fake::Fake;
use crate::images::{self, IMAGE_BYTES, Images};
use crate::relay::relay;
use crate::{endpoint, promoted, wait_for};

fn open(directory: &Path, host: &str, shared: bool) -> Images {
    Images::open(directory, host, shared, DiskLimits::default())
}

/// So long that a busy machine is no lost host: these tests end links, or say that they do.
fn very_patient() -> Policy {
    Policy {
        heartbeat_timeout: Duration::from_secs(20),
        ..Policy::default()
    }
}

fn standby(directory: &Path, machine: Fake) -> StandbyBuilder<Fake> {
    crate::standby(directory, machine).policy(very_patient())
}

fn primary(directory: &Path, machine: Fake) -> PrimaryBuilder<Fake> {
    crate::primary(directory, machine).policy(very_patient())
}

fn protected(status: &Status) -> bool {
    status.protected && status.epochs >= 5
}

#[test]
fn a_promoted_standby_has_exactly_the_disks_of_its_epoch_and_shared_ones_have_one_writer() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (a, b) = (open(directory, "a", true), open(directory, "b", true));
    let standby = standby(directory, Fake::new().with_disks(&b))
        .start()
        .unwrap();
    let primary = primary(directory, Fake::new().with_disks(&a))
        .protect()
        .unwrap();
    drop(a);
    let handle = primary.handle();
    wait_for("protected", || handle.status(), protected);
    let sync = handle.status().disks.sync.unwrap();
    assert_eq!(sync.full, [true, false], "there is no map of a shared disk");
    assert_eq!(sync.bytes_left, 0);
    wait_for(
        "durable",
        || handle.status(),
        |status| status.disks.durable_epoch > 0 && status.disks.wire_bytes > 100_000,
    );
    let taking_over = standby.handle();
    assert_eq!(taking_over.status().disks.disks.len(), 2);
    drop(handle);
    assert!(taking_over.promote());
    // The old primary has the shared image's lock for as long as it lives.
    assert!(matches!(primary.wait().unwrap(), Ended::Fenced { .. }));
    let mut promoted = promoted(standby);
    wait_for(
        "writing",
        || taking_over.status(),
        |_| promoted.machine.disk_use.writes.load(Ordering::Acquire) > 100,
    );
    promoted.machine.stop();
    promoted.machine.assert_consistent();
}

/// It waits for no timer, and for nothing else that the guest does.
#[test]
fn a_flush_ends_its_epoch_and_is_answered_once_the_standby_has_done_it() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (a, b) = (open(directory, "a", false), open(directory, "b", false));
    let _standby = standby(directory, Fake::new().with_disks(&b))
        .start()
        .unwrap();
    let guest = Fake::new().with_disks(&a);
    guest.disk_use.rests.store(true, Ordering::Release);
    let policy = Policy {
        epoch_interval: Duration::from_secs(3600),
        overhead_percent: 100,
        ..very_patient()
    };
    let primary = crate::primary(directory, guest)
        .policy(policy)
        .protect()
        .unwrap();
    let handle = primary.handle();
    let is_protected = |status: &Status| status.protected && status.epochs > 0;
    wait_for("protected", || handle.status(), is_protected);
    let disk = a.set.disks()[0].clone();
    for _ in 0..3 {
        disk.write_at(0, &[7; 512]).unwrap();
        let flush = disk.flush_for_guest().unwrap();
        wait_for("flushed", || handle.status(), |_| disk.may_answer(flush));
    }
}

/// Lets the primary die without a word, and the standby take over.
fn fail_over(
    directory: &Path,
    primary: Protection<Fake>,
    panics: &std::sync::atomic::AtomicBool,
    standby: StandbyRun<Fake>,
) -> Promoted<Fake> {
    panics.store(true, Ordering::Release);
    assert!(primary.wait().is_err(), "it was to panic: {directory:?}");
    promoted(standby)
}

#[test]
fn an_old_primary_comes_back_as_standby_and_gets_only_what_differs() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (a, b) = (open(directory, "a", false), open(directory, "b", false));
    let (first, second) = (Fake::new().with_disks(&a), Fake::new().with_disks(&b));
    let (first_panics, second_panics) = (first.pause_panics.clone(), second.pause_panics.clone());
    drop((a, b));
    let standby_b = standby(directory, second).start().unwrap();
    let primary_a = primary(directory, first).protect().unwrap();
    let handle = primary_a.handle();
    wait_for(
        "durable",
        || handle.status(),
        |status| protected(status) && status.disks.durable_epoch > 0,
    );
    assert!(handle.status().disks.sync.unwrap().bytes >= IMAGE_BYTES);
    drop(handle);
    let promoted = fail_over(directory, primary_a, &first_panics, standby_b);

    // The same image, map and journal, in a new process so to speak.
    let a = open(directory, "a", false);
    let standby_a = standby(directory, Fake::new().with_disks(&a))
        .start()
        .unwrap();
    drop(a);
    let primary_b = Primary::attach(Origin::Promoted(promoted))
        .arbiter(crate::arbiter(directory))
        .backup(endpoint(directory))
        .policy(very_patient())
        .protect()
        .unwrap();
    let handle = primary_b.handle();
    wait_for(
        "protected again",
        || handle.status(),
        |status| status.protected && status.disks.durable_epoch > 0,
    );
    let sync = handle.status().disks.sync.unwrap();
    assert_eq!(sync.full, [false]);
    assert!(
        sync.bytes > 0 && sync.bytes < IMAGE_BYTES / 8,
        "{} bytes were to be sent",
        sync.bytes
    );
    drop(handle);
    let mut promoted = fail_over(directory, primary_b, &second_panics, standby_a);
    promoted.machine.stop();
    promoted.machine.assert_consistent();
}

#[test]
fn a_guest_is_not_started_from_disks_that_are_older_than_those_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (a, b) = (open(directory, "a", false), open(directory, "b", false));
    let standby_b = standby(directory, Fake::new().with_disks(&b))
        .start()
        .unwrap();
    let machine = Fake::new().with_disks(&a);
    drop((a, b));
    let panics = machine.pause_panics.clone();
    let primary_a = primary(directory, machine).protect().unwrap();
    let handle = primary_a.handle();
    wait_for("protected", || handle.status(), protected);
    drop(handle);
    // The other side takes over, writes, and ends: nobody holds the guest any more.
    let mut promoted = fail_over(directory, primary_a, &panics, standby_b);
    promoted.machine.stop();
    drop(promoted);
    let start = |host: &str| {
        let images = open(directory, host, false);
        primary(directory, Fake::new().with_disks(&images)).node(host)
    };
    // Also not while the other host cannot be asked; it may be about to come back.
    let refused = start("a").protect().map(drop).unwrap_err();
    assert!(
        matches!(refused, RuntimeError::NotAsked { .. }),
        "{refused}"
    );
    let asked = open(directory, "b", false);
    let asked = standby(directory, Fake::new().with_disks(&asked));
    let asked = asked.start().unwrap();
    let refused = start("a").protect().map(drop).unwrap_err();
    assert!(asked.handle().stop());
    drop(asked.await_promotion().unwrap());
    assert!(
        matches!(&refused, RuntimeError::OlderDisks { holder, .. } if holder.starts_with("b (pid")),
        "{refused}"
    );
    // Nothing was claimed by that.
    let ended = |protection: Protection<Fake>| {
        protection.handle().guest_stopped();
        assert_eq!(protection.wait().unwrap(), Ended::GuestStopped);
    };
    ended(start("b").protect().unwrap());
    ended(start("b").protect().unwrap());
    ended(start("a").start_over().protect().unwrap());
    ended(start("a").protect().unwrap());
}

#[test]
fn what_is_held_for_a_shared_disk_gets_there_before_a_new_standby_is_taken() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (a, b) = (open(directory, "a", true), open(directory, "b", true));
    let storage = a.shared.clone();
    let first = standby(directory, Fake::new().with_disks(&b))
        .start()
        .unwrap();
    drop(b);
    let machine = Fake::new().with_disks(&a);
    drop(a);
    let (gate, panics) = (machine.gate_handle(), machine.pause_panics.clone());
    let primary = primary(directory, machine).protect().unwrap();
    let handle = primary.handle();
    wait_for("protected", || handle.status(), protected);
    let refused = |more: u64| {
        let wanted = storage.count.load(Ordering::Acquire) + more;
        let storage = storage.clone();
        move |_: &Status| storage.count.load(Ordering::Acquire) >= wanted
    };
    storage.is_on.store(true, Ordering::Release);
    wait_for("refused", || handle.status(), refused(1));
    first.handle().stop();
    first.await_promotion().unwrap();
    let b = open(directory, "b", true);
    let second = standby(directory, Fake::new().with_disks(&b))
        .start()
        .unwrap();
    drop(b);
    let waiting = second.handle();
    // It tries again and again, while there is a standby to be had.
    let tried = refused(3);
    wait_for(
        "tried again",
        || handle.status(),
        |status| {
            let phase = waiting.status().phase;
            assert!(["starting", "listening"].contains(&&*phase), "{phase}");
            assert!(
                gate.is_holding(),
                "the guest spoke before its disks were written"
            );
            tried(status)
        },
    );
    storage.is_on.store(false, Ordering::Release);
    wait_for("protected again", || handle.status(), protected);
    drop(handle);
    let mut promoted = fail_over(directory, primary, &panics, second);
    promoted.machine.stop();
    promoted.machine.assert_consistent();
}

/// What becomes of the shared disk that the guest's end waits for.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Recovers,
    Refuses,
    Hangs,
}

#[test]
fn a_guest_s_end_waits_for_its_disks_unless_it_is_told_twice_to_be_quick() {
    for fate in [Fate::Recovers, Fate::Refuses, Fate::Hangs] {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let (a, b) = (open(directory, "a", true), open(directory, "b", true));
        let storage = a.shared.clone();
        let standby = standby(directory, Fake::new().with_disks(&b));
        let standby = standby.start().unwrap();
        let machine = Fake::new().with_disks(&a);
        drop((a, b));
        let gate = machine.gate_handle();
        let primary = primary(directory, machine).protect().unwrap();
        let handle = primary.handle();
        wait_for("protected", || handle.status(), protected);
        let refused = |more: u64| {
            let wanted = storage.count.load(Ordering::Acquire) + more;
            let storage = storage.clone();
            move |_: &Status| storage.count.load(Ordering::Acquire) >= wanted
        };
        storage.is_on.store(true, Ordering::Release);
        wait_for("refused", || handle.status(), refused(1));
        let said = gate.said();
        handle.guest_stopped();
        // Neither the loss of the standby nor a grant lets it end before; nor does a first request.
        wait_for("refused again", || handle.status(), refused(2));
        standby.handle().stop();
        standby.await_promotion().unwrap();
        assert!(handle.stop());
        storage.hangs.set(fate == Fate::Hangs);
        wait_for("refused alone", || handle.status(), refused(1));
        let awaits = handle.status().ending;
        assert_eq!(awaits.as_deref(), Some("its shared disks"));
        assert!(gate.out().last() < said.last(), "it spoke before its disks");
        if fate == Fate::Recovers {
            storage.is_on.store(false, Ordering::Release);
            assert_eq!(primary.wait().unwrap(), Ended::GuestStopped);
        } else {
            assert!(handle.stop());
            assert_eq!(primary.wait().unwrap(), Ended::Abandoned);
            assert!(!handle.stop(), "it has ended");
        }
        let out = gate.out();
        assert_eq!(
            out.last() >= said.last(),
            fate == Fate::Recovers,
            "{fate:?}"
        );
        // The threads of this process go on.
        storage.hangs.set(false);
    }
}

#[test]
fn a_shared_disk_that_hangs_in_what_is_released_is_an_alarm_until_it_answers() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (a, b) = (open(directory, "a", true), open(directory, "b", true));
    let storage = a.shared.clone();
    let standby = standby(directory, Fake::new().with_disks(&b))
        .start()
        .unwrap();
    drop(b);
    let machine = Fake::new().with_disks(&a);
    drop(a);
    let primary = primary(directory, machine).protect().unwrap();
    let handle = primary.handle();
    wait_for("protected", || handle.status(), protected);
    storage.hangs.set(true);
    storage.is_on.store(true, Ordering::Release);
    let alarm = |status: &Status| status.alarm.clone().unwrap_or_default();
    wait_for(
        "an alarm",
        || handle.status(),
        |status| alarm(status).contains("their storage does not answer"),
    );
    storage.is_on.store(false, Ordering::Release);
    storage.hangs.set(false);
    wait_for(
        "no alarm",
        || handle.status(),
        |status| alarm(status).is_empty(),
    );
    handle.guest_stopped();
    assert_eq!(primary.wait().unwrap(), Ended::GuestStopped);
    standby.handle().stop();
    standby.await_promotion().unwrap();
}

#[test]
fn a_release_that_failed_is_not_tried_again_in_the_next_session() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (a, b) = (open(directory, "a", true), open(directory, "b", true));
    let storage = a.shared.clone();
    let first = standby(directory, Fake::new().with_disks(&b))
        .start()
        .unwrap();
    drop(b);
    let machine = Fake::new().with_disks(&a);
    drop(a);
    let panics = machine.pause_panics.clone();
    let primary = primary(directory, machine).protect().unwrap();
    let handle = primary.handle();
    wait_for(
        "protected",
        || handle.status(),
        |status| status.protected && status.epoch > 100 && status.disks.durable_epoch > 0,
    );
    storage.is_on.store(true, Ordering::Release);
    wait_for(
        "refused",
        || handle.status(),
        |_| storage.count.load(Ordering::Acquire) > 0,
    );
    storage.is_on.store(false, Ordering::Release);
    first.handle().stop();
    first.await_promotion().unwrap();
    let b = open(directory, "b", true);
    let second = standby(directory, Fake::new().with_disks(&b))
        .start()
        .unwrap();
    drop(b);
    wait_for("protected again", || handle.status(), |s| s.protected);
    let status = handle.status();
    // Long enough for another try.
    wait_for(
        "going on",
        || handle.status(),
        |now| {
            assert_eq!(now.generation, status.generation, "the standby was lost");
            now.epochs > status.epochs + 100
        },
    );
    drop(handle);
    let mut promoted = fail_over(directory, primary, &panics, second);
    promoted.machine.stop();
    promoted.machine.assert_consistent();
}

#[test]
fn a_standby_whose_disk_is_full_says_so_and_the_guest_goes_on_unprotected() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (a, b) = (open(directory, "a", false), open(directory, "b", false));
    let standby = standby(directory, Fake::new().with_disks(&b))
        .start()
        .unwrap();
    let machine = Fake::new().with_disks(&a);
    let (gate, used) = (machine.gate_handle(), machine.disk_use.clone());
    let primary = primary(directory, machine).protect().unwrap();
    let handle = primary.handle();
    wait_for("protected", || handle.status(), protected);
    b.is_full.store(true, Ordering::Release);
    wait_for(
        "alone",
        || handle.status(),
        |status| !status.protected && status.generation == 2 && !gate.is_holding(),
    );
    wait_for(
        "told why",
        || handle.status(),
        |status| {
            status
                .alarm
                .as_ref()
                .is_some_and(|alarm| alarm.contains("root"))
        },
    );
    let why = standby.handle().status().alarm.unwrap();
    assert!(why.contains("root"), "{why}");
    let writes = used.writes.load(Ordering::Acquire);
    wait_for(
        "writing on",
        || handle.status(),
        |_| used.writes.load(Ordering::Acquire) > writes + 100,
    );
    // Once there is room again, the two come together without anybody's help.
    b.is_full.store(false, Ordering::Release);
    wait_for(
        "protected again",
        || handle.status(),
        |status| status.protected,
    );
    handle.guest_stopped();
    assert_eq!(primary.wait().unwrap(), Ended::GuestStopped);
    standby.handle().stop();
    assert!(matches!(
        standby.await_promotion().unwrap(),
        Outcome::Stopped
    ));
}

#[test]
fn a_guest_that_writes_faster_than_the_link_is_slowed_and_memory_is_bounded() {
    const LOG_BYTES_MAX: u64 = 512 << 10;
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let limits = DiskLimits {
        log_bytes_max: LOG_BYTES_MAX,
        ..DiskLimits::default()
    };
    let a = Images::open(directory, "a", false, limits);
    let b = Images::open(directory, "b", false, limits);
    let machine = Fake::new()
        .with_disks(&a)
        .with_pace(Duration::from_micros(20));
    let used = machine.disk_use.clone();
    let standby = standby(directory, Fake::new().with_disks(&b))
        .start()
        .unwrap();
    let slow = directory.join("slow");
    // 20 MB/s.
    let pace = |bytes: usize| std::thread::sleep(Duration::from_nanos(bytes as u64 * 50));
    relay(&slow, &directory.join("channel"), pace);
    let primary = primary(directory, machine)
        .backup(Endpoint::Unix(slow))
        .protect()
        .unwrap();
    let handle = primary.handle();
    let set: DiskSet = a.set.clone();
    wait_for(
        "slowed",
        || handle.status(),
        |status| {
            let log_bytes = set.counts().log_bytes;
            // One request may be taken while there is a little room.
            assert!(log_bytes <= LOG_BYTES_MAX + (64 << 10), "{log_bytes}");
            status.protected && status.epochs >= 10 && used.refused.load(Ordering::Acquire) > 10
        },
    );
    drop((handle, set, a));
    assert!(standby.handle().promote());
    assert!(matches!(primary.wait().unwrap(), Ended::Fenced { .. }));
    let mut promoted = promoted(standby);
    promoted.machine.stop();
    promoted.machine.assert_consistent();
    assert!(images::file_matches(directory, "b", &b.set));
}

#[test]
fn disks_are_not_run_nor_overwritten_by_the_word_of_an_arbiter_that_they_do_not_know() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let set = || open(directory, "a", false);
    let claimed = primary(directory, Fake::new().with_disks(&set()));
    let claimed = claimed.protect().unwrap();
    claimed.handle().stop();
    claimed.wait().unwrap();
    // Nothing is mounted where the arbiter was.
    std::fs::rename(directory.join("arbiter"), directory.join("away")).unwrap();
    let refused = primary(directory, Fake::new().with_disks(&set())).protect();
    let error = refused.err().expect("it was started");
    assert!(
        matches!(error, RuntimeError::OtherArbiter { .. }),
        "{error}"
    );
    let refused = standby(directory, Fake::new().with_disks(&set())).start();
    let error = refused
        .err()
        .expect("its disks would have been overwritten");
    assert!(
        matches!(error, RuntimeError::OtherArbiter { .. }),
        "{error}"
    );
    // The directory is a copy from before the guest was started.
    std::fs::remove_dir_all(directory.join("arbiter")).unwrap();
    std::fs::rename(directory.join("away"), directory.join("arbiter")).unwrap();
    std::fs::remove_file(directory.join("arbiter/1")).unwrap();
    let refused = primary(directory, Fake::new().with_disks(&set())).protect();
    let error = refused.err().expect("it was started");
    assert!(
        matches!(error, RuntimeError::ArbiterWentBack { .. }),
        "{error}"
    );
    // A person says that this arbiter is right.
    let over = primary(directory, Fake::new().with_disks(&set())).start_over();
    let over = over.protect().unwrap();
    over.handle().stop();
    over.wait().unwrap();
    let again = primary(directory, Fake::new().with_disks(&set()));
    let again = again.protect().unwrap();
    again.handle().stop();
    again.wait().unwrap();
}
