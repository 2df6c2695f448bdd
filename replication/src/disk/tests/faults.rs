//! The host's storage fails: errors that name the disk or the file, and nothing that is half-done counts.

use std::io::ErrorKind::{Other, StorageFull, Unsupported};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;

use super::host::*;
use super::session::*;
use crate::core::disk::{DiskWrite, What};
use crate::disk::DiskMode::Replicated;
use crate::disk::{DiskError, DiskLimits, DiskMode, DiskSet, DiskSpec, Storage};
use crate::ids::EpochId;

const BYTES: u64 = 2 << 20;

fn protected() -> (Host, Host, DiskSet, DiskSet, Session) {
    Setup::new(&[Replicated], BYTES, 0).protected()
}

/// Seals an epoch and gives what persisting it says.
fn seal(session: &mut Session) -> Result<(), DiskError> {
    session.epoch += 1;
    let epoch = EpochId(session.epoch);
    let sealed = session.primary.primary().seal(epoch).unwrap();
    session.primary.primary().shipped(epoch);
    persist(&session.backup, 1, epoch, sealed)?;
    session.backup.backup().committed(epoch);
    Ok(())
}

#[test]
fn a_full_journal_disk_is_told_and_the_next_copy_works() {
    let (a, b, primary, backup, mut session) = protected();
    primary.disks()[0].write_at(0, &[1; 4096]).unwrap();
    b.fail("journal", 0, StorageFull);
    let refused = seal(&mut session).unwrap_err();
    assert!(refused.to_string().contains("journal."), "{refused}");
    // It stays refused, also once there is room: an epoch is missing.
    b.heal();
    primary.disks()[0].write_at(0, &[2; 4096]).unwrap();
    assert!(matches!(seal(&mut session), Err(DiskError::Failed(_))));
    assert_eq!(backup.backup().durable_epoch(), EpochId(0));
    backup.backup().abandon();
    primary.primary().detach();
    primary.disks()[0].write_at(0, &[3; 4096]).unwrap();
    let session = Session::protect(&primary, &backup, 2);
    assert!(session.sent_bytes < BYTES / 2);
    assert_eq!(a.content("disk0"), b.content("disk0"));
}

#[test]
fn counts_do_not_wait_for_storage_that_hangs() {
    let (a, _b, primary, _backup, _session) = protected();
    let (hangs, is_hanging) = channel();
    let (go_on, goes_on) = channel::<()>();
    // The first write to a block marks it in the map before anything else.
    a.before_write(move || {
        hangs.send(()).unwrap();
        let _ = goes_on.recv_timeout(DEADLINE);
    });
    let (disk, set) = (primary.disks()[0].clone(), primary.clone());
    let writing = std::thread::spawn(move || disk.write_at(0, &[1; 4096]));
    is_hanging.recv_timeout(DEADLINE).unwrap();
    let (counted, is_counted) = channel();
    let counting = std::thread::spawn(move || counted.send(set.counts()).unwrap());
    let counts = is_counted.recv_timeout(DEADLINE / 4);
    drop(go_on);
    writing.join().unwrap().unwrap();
    counting.join().unwrap();
    assert_eq!(counts.expect("it waited").marked_bytes, 0);
    assert_eq!(primary.counts().marked_bytes, 64 << 10);
}

#[test]
fn a_failing_image_of_the_backup_is_told_although_no_epoch_follows() {
    let (_a, b, primary, backup, mut session) = protected();
    assert_eq!(backup.backup().failure(), None);
    b.fail("disk0", 0, Other);
    primary.disks()[0].write_at(0, &[1; 4096]).unwrap();
    seal(&mut session).unwrap();
    until("the failure is told", || {
        let told = backup.backup().failure();
        told.is_some_and(|why| why.contains("disk0"))
    });
    // Of a copy that was given up nobody needs to know.
    backup.backup().abandon();
    assert_eq!(backup.backup().failure(), None);
}

#[test]
fn a_failing_image_of_the_backup_is_told_with_the_next_epoch() {
    let (a, b, primary, backup, mut session) = protected();
    b.fail("disk0", 0, Other);
    primary.disks()[0].write_at(0, &[1; 4096]).unwrap();
    seal(&mut session).unwrap();
    let mut refused = None;
    until("the failure is told", || {
        primary.disks()[0].write_at(0, &[2; 512]).unwrap();
        refused = seal(&mut session).err();
        refused.is_some()
    });
    assert!(refused.unwrap().to_string().contains("disk0"));
    backup.backup().abandon();
    // As long as the journal cannot be brought to the image, there is no copy to be described.
    assert!(backup.backup().describe().is_err());
    b.heal();
    primary.primary().detach();
    let _session = Session::protect(&primary, &backup, 2);
    assert_eq!(a.content("disk0"), b.content("disk0"));
}

#[test]
fn a_promotion_that_cannot_write_the_image_is_refused_by_name() {
    let (a, b, primary, _, _) = protected();
    let backup = b.open(&[Replicated], lazy());
    primary.primary().detach();
    let mut session = Session::protect(&primary, &backup, 2);
    primary.disks()[0].write_at(0, &[1; 4096]).unwrap();
    let epoch = session.epoch();
    // Its map can be written: a header twice, and a flush.
    b.fail("disk0", 3, StorageFull);
    let refused = backup.backup().promote(epoch, &mut |_| true).unwrap_err();
    assert!(
        matches!(&refused, DiskError::Io { disk, source, .. }
        if disk == "disk0" && source.kind() == StorageFull),
        "{refused}"
    );
    // With room again it can be tried again.
    b.heal();
    backup.backup().promote(epoch, &mut |_| true).unwrap();
    assert_eq!(a.content("disk0"), b.content("disk0"));
    drop((session, backup));
    b.after_kill()
        .open(&[Replicated], limits())
        .claim_images()
        .unwrap();
}

#[test]
fn blocks_written_before_a_flush_failed_stay_marked() {
    let (a, _b, primary, _backup, mut session) = protected();
    let disk = &primary.disks()[0];
    assert_eq!(primary.counts().marked_bytes, 0);
    disk.write_at(0, &[1; 512]).unwrap();
    a.fail("disk0", 0, Other);
    a.take_events();
    disk.flush().unwrap_err();
    a.heal();
    // The host says that all is well again; that is so of what is written from now on.
    disk.flush().unwrap();
    disk.write_at(BYTES - 512, &[1; 512]).unwrap();
    session.epoch();
    let only_the_first = || primary.counts().marked_bytes == 64 << 10;
    until("the later block is clear", || {
        session.epoch();
        session.settle();
        only_the_first()
    });
    session.epoch();
    session.settle();
    assert!(only_the_first());
}

#[test]
fn the_guest_is_told_of_a_flush_that_failed_behind_its_back() {
    let (a, _b, primary, backup, session) = protected();
    // A thread of this set may still be clearing marks, and its calls would count below.
    drop((session, primary));
    let primary = a.open(&[Replicated], limits());
    let disk = &primary.disks()[0];
    disk.write_at(0, &[1; 512]).unwrap();
    // Its map can be written: a header twice and a stamp, and two flushes.
    a.fail("disk0", 5, Other);
    primary
        .primary()
        .begin_sync(&backup.backup().describe().unwrap())
        .unwrap_err();
    a.heal();
    let told = disk.flush().unwrap_err();
    assert!(told.to_string().contains("earlier flush"), "{told}");
    disk.flush().unwrap();
}

#[test]
fn a_copy_whose_flush_failed_is_not_promoted() {
    let (_a, b, primary, backup, _) = protected();
    backup.backup().abandon();
    primary.primary().detach();
    primary.disks()[0].write_at(0, &[1; 4096]).unwrap();
    let mut session = Session::begin(&primary, &backup, 2);
    session.sync();
    primary.disks()[0].write_at(4096, &[2; 512]).unwrap();
    b.fail("disk0", 0, Other);
    let epoch = session.ship();
    backup.backup().committed(epoch);
    until("it has failed", || {
        let flush = SealedDisks {
            flush: true,
            ..only([])
        };
        persist(&backup, 2, EpochId(2), flush).is_err()
    });
    b.heal();
    let refused = backup.backup().promote(epoch, &mut |_| true).unwrap_err();
    assert!(matches!(refused, DiskError::Failed(_)), "{refused}");
}

#[test]
fn another_attempt_at_a_promotion_does_not_believe_a_flush_after_one_that_failed() {
    let mut lost = 0;
    for after in 0.. {
        let (a, b, primary, _, _) = protected();
        let backup = b.open(&[Replicated], lazy());
        primary.primary().detach();
        primary.disks()[0].write_at(0, &[1; 4096]).unwrap();
        let mut session = Session::begin(&primary, &backup, 2);
        session.sync();
        primary.disks()[0].write_at(4096, &[2; 512]).unwrap();
        let epoch = session.ship();
        // Nobody says that it is committed: a thread would bring it to the image, and might fail first.
        b.fail("disk0", after, Other);
        let first = backup.backup().promote(epoch, &mut |_| true);
        b.heal();
        let Err(first) = first else {
            break;
        };
        let second = backup.backup().promote(epoch, &mut |_| true);
        let is_flush = matches!(&first, DiskError::Io { what: "flush", .. });
        match second {
            Ok(()) => {
                assert!(!is_flush, "{first}");
                assert_eq!(a.content("disk0"), b.content("disk0"));
            }
            Err(DiskError::Failed(_)) => lost += u32::from(is_flush),
            Err(error) => panic!("{error} after {first}"),
        }
    }
    assert!(lost > 0, "no flush failed");
}

#[test]
fn a_promotion_is_refused_if_the_journal_has_lost_what_was_acknowledged() {
    let (_a, b, primary, _, _) = protected();
    let backup = b.open(&[Replicated], lazy());
    primary.primary().detach();
    let mut session = Session::protect(&primary, &backup, 2);
    for fill in 1..4 {
        primary.disks()[0].write_at(0, &[fill; 4096]).unwrap();
        session.epoch();
    }
    let journals = journal_files().map(|path| path.display().to_string());
    let active = journals.iter().max_by_key(|name| b.content(name).len());
    let mut journal = b.content(active.unwrap());
    // Its last record.
    *journal.last_mut().unwrap() ^= 1;
    b.set_content(active.unwrap(), journal.0);
    let (wanted, have) = (EpochId(session.epoch), EpochId(session.epoch - 1));
    let before = b.content("disk0");
    let refused = backup.backup().promote(wanted, &mut |_| true).unwrap_err();
    assert!(
        matches!(&refused, DiskError::JournalDamaged { wanted: w, have: h, .. }
            if (w.1, h.1) == (wanted, have)),
        "{refused}"
    );
    assert_eq!(b.content("disk0"), before);
}

#[test]
fn a_write_that_fails_on_the_primary_leaves_equal_images() {
    let (a, b, primary, _backup, mut session) = protected();
    let disk = &primary.disks()[0];
    disk.write_at(0, &[1; 512]).unwrap();
    a.fail("disk0", 0, Other);
    assert_eq!(disk.write_at(0, &[2; 512]).unwrap_err().kind(), Other);
    a.heal();
    // Somebody writes a part and fails; what is there is what the backup gets.
    session.epoch();
    session.settle();
    assert_eq!(a.content("disk0"), b.content("disk0"));
}

#[test]
fn requests_outside_of_the_disk_are_refused() {
    let (a, _b, primary, _backup, _session) = protected();
    let disk = &primary.disks()[0];
    let before = a.content("disk0");
    for (offset, bytes) in [
        (BYTES, 512),
        (BYTES - 512, 1024),
        (u64::MAX - 511, 512),
        (1, 512),
        (0, 511),
    ] {
        assert!(disk.write_at(offset, &vec![1; bytes]).is_err());
        assert!(disk.read_at(offset, &mut vec![1; bytes]).is_err());
        assert!(disk.discard(offset, bytes as u64).is_err());
        assert!(disk.write_zeroes(offset, bytes as u64, true).is_err());
    }
    assert_eq!(a.content("disk0"), before);
}

#[test]
fn what_a_primary_must_not_send_is_refused_whole() {
    let (_a, b, _primary, backup, session) = protected();
    let before = b.content("disk0");
    let outside = DiskWrite {
        disk: 0,
        offset: BYTES,
        what: What::Zero { bytes: 512 },
    };
    let inside = DiskWrite {
        offset: 0,
        ..outside.clone()
    };
    let writes = [inside, outside];
    // Synchronisation is over.
    assert!(backup.backup().apply_sync(&batches(&writes)[0]).is_err());
    let next = EpochId(session.epoch + 1);
    let refused = persist(&backup, 1, next, only(writes));
    assert!(matches!(refused, Err(DiskError::Batch { epoch, .. }) if epoch == next));
    assert_eq!(b.content("disk0"), before);
    backup
        .backup()
        .promote(EpochId(session.epoch), &mut |_| true)
        .unwrap();
    assert_eq!(b.content("disk0"), before);
}

#[test]
fn a_plan_for_other_disks_is_refused() {
    let (_a, b, primary, _, _) = protected();
    let backup = b.open(&[Replicated], limits());
    let plan = primary
        .primary()
        .begin_sync(&backup.backup().describe().unwrap())
        .unwrap();
    assert!(backup.backup().begin_copy(&[]).is_err());
    let mut other = plan.disks.clone();
    other[0].from = Some(crate::core::disk::PairId(99));
    assert!(matches!(
        backup.backup().begin_copy(&other),
        Err(DiskError::PeerDiffers { .. })
    ));
    backup.claim_images().unwrap();
}

#[test]
fn an_image_that_cannot_be_read_ends_the_synchronisation_with_its_name() {
    let (a, _b, primary, backup) = Setup::new(&[Replicated], BYTES, 1).sets();
    let plan = primary
        .primary()
        .begin_sync(&backup.backup().describe().unwrap())
        .unwrap();
    backup.backup().begin_copy(&plan.disks).unwrap();
    a.remove("disk0");
    let refused = primary.primary().sync_some().unwrap_err();
    assert!(matches!(refused, DiskError::Io { disk, what: "read", .. } if disk == "disk0"));
}

#[test]
fn a_full_log_stops_the_device_and_shipping_it_lets_it_go_on() {
    let small = DiskLimits {
        log_bytes_max: 64 << 10,
        ..limits()
    };
    let setup = Setup {
        limits: [small, limits()],
        ..Setup::new(&[Replicated], BYTES, 1)
    };
    let (_a, _b, primary, _backup, mut session) = setup.protected();
    let (half, room) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let count = |counter: &Arc<AtomicU64>| {
        let counter = counter.clone();
        Arc::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        })
    };
    primary.primary().set_listener(count(&half));
    let disk = &primary.disks()[0];
    disk.set_room_listener(count(&room));
    for round in 1..4 {
        while disk.has_room() {
            disk.write_at(0, &[round as u8; 4096]).unwrap();
        }
        // One request may be above the limit, and no more.
        assert!(primary.counts().log_bytes < (64 << 10) + 8192);
        assert_eq!(half.load(Ordering::SeqCst), round);
        session.epoch();
        assert_eq!(room.load(Ordering::SeqCst), round);
        assert!(disk.has_room());
    }
    // Who has lost its backup needs no log.
    while disk.has_room() {
        disk.write_at(0, &[9; 4096]).unwrap();
    }
    primary.primary().detach();
    assert!(disk.has_room());
    assert_eq!(room.load(Ordering::SeqCst), 4);
}

#[test]
fn a_set_needs_a_journal_for_its_replicated_disks() {
    let a = Host::new("a");
    a.make_image("disk0", BYTES, &mut seeded(1));
    let spec = |mode| {
        vec![DiskSpec {
            name: "root".into(),
            storage: a.storage("disk0"),
            mode,
            map_path: "map".into(),
        }]
    };
    let without = DiskSet::open(spec(Replicated), None, limits());
    assert!(matches!(without, Err(DiskError::NoJournal { disk }) if disk == "root"));
    let shared = DiskSet::open(spec(DiskMode::Shared), None, limits()).unwrap();
    assert_eq!((shared.disks().len(), shared.is_empty()), (1, false));
}

#[test]
fn an_empty_set_does_nothing_and_says_yes() {
    let set = DiskSet::empty();
    set.claim_images().unwrap();
    assert_eq!(
        set.primary()
            .begin_sync(&set.backup().describe().unwrap())
            .unwrap()
            .bytes,
        0
    );
    assert_eq!(set.primary().sync_some().unwrap().bytes_left, 0);
    set.primary().hold().unwrap();
    assert_eq!(set.primary().seal(EpochId(1)).unwrap(), Default::default());
    for act in [
        |disks: &dyn PrimaryDisks, told| disks.go_alone(told),
        |disks: &dyn PrimaryDisks, told| disks.release(EpochId(1), told),
    ] {
        let (told, result) = done();
        act(&*set.primary(), told);
        result.recv_timeout(DEADLINE).unwrap().unwrap();
    }
    set.backup().begin_copy(&[]).unwrap();
    set.backup().committed(EpochId(4));
    until("nothing is durable at once", || {
        set.backup().durable_epoch() == EpochId(4)
    });
    set.backup().promote(EpochId(4), &mut |_| true).unwrap();
}

#[test]
fn what_a_failed_write_left_on_the_image_is_sent() {
    let (a, b, primary, backup, mut session) = protected();
    let disk = &primary.disks()[0];
    // Its block is marked from now on, so that the map need not be written below.
    disk.write_at(0, &[1; 4096]).unwrap();
    let mut torn = a.content("disk0");
    torn[..512].fill(2);
    a.set_content("disk0", torn.0);
    a.fail("disk0", 0, Other);
    disk.write_at(0, &[2; 4096]).unwrap_err();
    a.heal();
    session.epoch();
    let epoch = EpochId(session.epoch);
    backup.backup().promote(epoch, &mut |_| true).unwrap();
    assert_eq!(b.content("disk0")[510..514], [2, 2, 1, 1]);
    assert_eq!(a.content("disk0"), b.content("disk0"));
}

#[test]
fn another_copy_makes_up_for_a_flush_that_failed() {
    let mut failures = 0;
    for after in 0.. {
        let (a, b, primary, backup, mut session) = protected();
        primary.disks()[0].write_at(0, &[1; 4096]).unwrap();
        b.fail("disk0", after, Other);
        seal(&mut session).unwrap();
        let backup = backup.backup();
        until("the epoch is on the image, or cannot be", || {
            backup.failure().is_some() || backup.durable_epoch() == EpochId(session.epoch)
        });
        b.heal();
        if backup.failure().is_none() {
            break;
        }
        failures += 1;
        backup.abandon();
        primary.primary().detach();
        let mut session = Session::begin(&primary, &session.backup, 2);
        session.sync();
        primary.disks()[0].write_at(0, &[3; 4096]).unwrap();
        let epoch = session.ship();
        // The primary is lost before the maps say that the copy is whole.
        backup.promote(epoch, &mut |_| true).unwrap();
        assert_eq!(a.content("disk0"), b.content("disk0"));
    }
    assert!(failures > 1, "a write and a flush, at least");
}

#[test]
fn a_discard_that_storage_does_not_know_writes_zeros_and_one_that_fails_is_a_failure() {
    for (kind, is_known) in [(Unsupported, false), (Other, true)] {
        let (_a, b, primary, backup) = Setup::new(&[Replicated], BYTES, 2).sets();
        let _session = Session::begin(&primary, &backup, 1);
        let before = b.content("disk0");
        b.fail_discards(kind);
        let discard = DiskWrite {
            disk: 0,
            offset: 4096,
            what: What::Discard { bytes: 4096 },
        };
        let applied = backup.backup().apply_sync(&batches(&[discard])[0]);
        if is_known {
            let refused = applied.unwrap_err();
            assert!(
                matches!(&refused, DiskError::Io { disk, .. } if disk == "disk0"),
                "{refused}"
            );
            assert_eq!(b.content("disk0"), before);
        } else {
            applied.unwrap();
            assert_eq!(b.content("disk0")[4096..8192], [0; 4096]);
        }
    }
}
