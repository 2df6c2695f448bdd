//! Shared disks: nothing reaches the image before it is released, and the guest reads what it wrote.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rand::Rng;

use super::host::*;
use super::session::*;
use crate::disk::DiskMode::{Replicated, Shared};
use crate::disk::Storage;
use crate::disk::{DiskError, DiskLimits, DiskSet};
use crate::ids::EpochId;

pub(super) const BYTES: u64 = 256 << 10;

/// Two users of the same storage, the first one of which owns the image.
pub(super) fn users(seed: u64) -> (Host, Host, DiskSet, DiskSet) {
    Setup::new(&[Shared], BYTES, seed).sets()
}

/// As [`users`], and the first epoch has ended: writes are held.
pub(super) fn holding(seed: u64) -> (Host, Host, DiskSet, DiskSet, Session) {
    let (a, b, primary, backup) = users(seed);
    let mut session = Session::begin(&primary, &backup, 1);
    session.sync();
    session.epoch();
    (a, b, primary, backup, session)
}

pub(super) fn image(host: &Host) -> Content {
    host.content("disk0")
}

fn read_all(set: &DiskSet) -> Content {
    let mut all = vec![0; BYTES as usize];
    set.disks()[0].read_at(0, &mut all).unwrap();
    Content(all)
}

pub(super) fn release(set: &DiskSet, epoch: EpochId) -> Result<(), DiskError> {
    let (told, released) = done();
    set.primary().release(epoch, told);
    released.recv_timeout(DEADLINE).unwrap()
}

pub(super) fn go_alone(set: &DiskSet) -> Result<(), DiskError> {
    let (told, gone) = done();
    set.primary().go_alone(told);
    gone.recv_timeout(DEADLINE).unwrap()
}

/// A change to the disk and to a model of it.
fn scribble_both(set: &DiskSet, model: &mut [u8], random: &mut rand::rngs::StdRng) {
    let sectors = BYTES / 512;
    let first = random.random_range(0..sectors);
    let count = random.random_range(1..=(sectors - first).min(40));
    let (offset, length) = (first * 512, count * 512);
    let place = &mut model[offset as usize..(offset + length) as usize];
    let disk = &set.disks()[0];
    if random.random_bool(0.2) {
        place.fill(0);
        disk.write_zeroes(offset, length, false).unwrap();
    } else if random.random_bool(0.1) {
        place.fill(0);
        disk.discard(offset, length).unwrap();
    } else {
        random.fill(place);
        disk.write_at(offset, place).unwrap();
    }
}

#[test]
fn the_guest_reads_what_it_wrote_and_the_image_has_what_was_released() {
    for seed in 0..10 {
        let (a, _, primary, backup) = users(seed);
        let mut session = Session::begin(&primary, &backup, 1);
        session.sync();
        let mut random = seeded(seed);
        let mut model = image(&a);
        // Before the first capture writes pass.
        scribble_both(&primary, &mut model, &mut random);
        assert_eq!(image(&a), model);
        session.epoch();
        let (mut sealed, mut released) = (vec![model.clone()], 0);
        for round in 0..60 {
            for _ in 0..random.random_range(0..6) {
                scribble_both(&primary, &mut model, &mut random);
                assert_eq!(read_all(&primary), model, "seed {seed}, round {round}");
            }
            session.epoch();
            sealed.push(model.clone());
            assert_eq!(image(&a), sealed[released], "seed {seed}, round {round}");
            if random.random_bool(0.6) {
                let to = random.random_range(released..sealed.len());
                release(&primary, EpochId(to as u64 + 1)).unwrap();
                released = to;
                assert_eq!(image(&a), sealed[released], "seed {seed}, round {round}");
                assert_eq!(read_all(&primary), model);
            }
        }
        scribble_both(&primary, &mut model, &mut random);
        go_alone(&primary).unwrap();
        assert_eq!(
            (image(&a), read_all(&primary)),
            (model.clone(), model.clone())
        );
        assert_eq!(primary.counts().log_bytes, 0);
        // And writes pass again.
        scribble_both(&primary, &mut model, &mut random);
        assert_eq!(image(&a), model);
    }
}

#[test]
fn reads_are_right_while_releases_write_the_image() {
    let (_, _, primary, _, mut session) = holding(1);
    let disk = primary.disks()[0].clone();
    let counter = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            // What is read never gets older.
            let mut last = 0;
            while last < 300 {
                let before = counter.load(Ordering::Acquire);
                let mut sector = [0; 512];
                disk.read_at(0, &mut sector).unwrap();
                let seen = u64::from_le_bytes(sector[..8].try_into().unwrap());
                assert!(
                    seen >= before && seen >= last,
                    "{seen} after {before} and {last}"
                );
                last = seen;
            }
        });
        disk.write_at(0, &[0; 512]).unwrap();
        for number in 1..=300u64 {
            let mut sector = [0; 512];
            sector[..8].copy_from_slice(&number.to_le_bytes());
            disk.write_at(0, &sector).unwrap();
            counter.store(number, Ordering::Release);
            let epoch = session.epoch();
            let (told, _released) = done();
            primary.primary().release(epoch, told);
        }
        reader.join().unwrap();
    });
}

#[test]
fn promotion_writes_what_the_old_primary_may_not_have_written() {
    for seed in 0..20 {
        let (a, b, primary, backup, mut session) = holding(seed);
        let (mut random, mut model) = (seeded(seed), image(&a));
        for _ in 0..random.random_range(1..20) {
            scribble_both(&primary, &mut model, &mut random);
            if random.random_bool(0.3) {
                primary.disks()[0].flush().unwrap();
            }
            let epoch = session.epoch();
            if random.random_bool(0.7) {
                release(&primary, epoch).unwrap();
            }
        }
        // Held, and never acknowledged.
        let committed = model.clone();
        scribble_both(&primary, &mut model, &mut random);
        // The primary's host loses power: what it wrote to the image and did not flush may be gone.
        let left = a.after_power_loss(&mut random);
        b.set_content("disk0", left.content("disk0").0);
        a.unlock();
        let promote = || {
            backup
                .backup()
                .promote(EpochId(session.epoch), &mut |_| true)
        };
        promote().unwrap();
        assert_eq!(image(&b), committed, "seed {seed}");
        assert_eq!(read_all(&backup), committed);
    }
}

#[test]
fn the_backup_keeps_what_is_not_durable_and_no_more() {
    let (_, _, primary, backup, mut session) = holding(2);
    let disk = &primary.disks()[0];
    disk.write_at(0, &[1; 4096]).unwrap();
    let epoch = session.epoch();
    release(&primary, epoch).unwrap();
    // Written, but not flushed: it counts as not written through.
    disk.write_at(4096, &[2; 512]).unwrap();
    session.epoch();
    assert!(backup.counts().backup_held_bytes > 4096 + 512);
    disk.flush().unwrap();
    let epoch = session.epoch();
    release(&primary, epoch).unwrap();
    disk.write_at(0, &[3; 512]).unwrap();
    session.epoch();
    assert_eq!(session.written_through, epoch);
    assert!(backup.counts().backup_held_bytes < 1024);
    // Nothing of a shared disk stands in the journal or is marked.
    assert_eq!(backup.counts().journal_bytes, 0);
    assert_eq!(primary.counts().marked_bytes, 0);
}

#[test]
fn promotion_waits_for_the_lock_and_says_so() {
    let (a, b, primary, backup) = users(3);
    assert!(matches!(backup.claim_images(), Err(DiskError::Locked { disk }) if disk == "disk0"));
    let mut session = Session::begin(&primary, &backup, 1);
    session.sync();
    session.epoch();
    let mut model = image(&a);
    model[..512].fill(9);
    primary.disks()[0].write_at(0, &[9; 512]).unwrap();
    let epoch = session.epoch();
    let said = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let promotion = scope.spawn(|| {
            let mut waiting = |what: &str| {
                said.lock().unwrap().push(what.to_string());
                true
            };
            backup.backup().promote(epoch, &mut waiting)
        });
        until("it says that it waits", || !said.lock().unwrap().is_empty());
        assert!(said.lock().unwrap()[0].contains("disk0"));
        assert_ne!(image(&b), model, "written without the lock");
        assert!(!promotion.is_finished());
        // The frozen primary goes on, finds itself fenced, and ends.
        primary.primary().shut();
        assert!(primary.disks()[0].write_at(0, &[1; 512]).is_err());
        a.unlock();
        promotion.join().unwrap().unwrap();
    });
    assert_eq!(image(&b), model);
}

#[test]
fn a_promotion_that_does_not_wait_for_the_lock_leaves_the_image_alone() {
    let (a, b, primary, backup, mut session) = holding(5);
    let before = image(&b);
    primary.disks()[0].write_at(0, &[9; 512]).unwrap();
    let epoch = session.epoch();
    let refused = backup.backup().promote(epoch, &mut |_| false).unwrap_err();
    assert!(matches!(refused, DiskError::NotWaited { .. }), "{refused}");
    assert_eq!(image(&b), before);
    // What is needed for another try is still there.
    a.unlock();
    backup.backup().promote(epoch, &mut |_| false).unwrap();
    assert_ne!(image(&b), before);
}

#[test]
fn a_promotion_writes_again_for_as_long_as_shared_storage_refuses() {
    // Its writes, or only the flush behind the one that there is.
    for after in [0, 1] {
        let (a, b, primary, backup, mut session) = holding(6);
        let mut model = image(&a);
        model[..512].fill(9);
        primary.disks()[0].write_at(0, &[9; 512]).unwrap();
        let epoch = session.epoch();
        a.unlock();
        b.fail("disk0", after, std::io::ErrorKind::HostUnreachable);
        let mut said = Vec::new();
        let mut waiting = |what: &str| {
            said.push(what.to_string());
            if said.len() == 2 {
                b.heal();
            }
            said.len() < 5
        };
        backup.backup().promote(epoch, &mut waiting).unwrap();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("disk0"), "{said:?}");
        assert_eq!(image(&b), model);
        // The guest is not told of what was made good.
        backup.disks()[0].flush().unwrap();
    }
}

#[test]
fn a_fenced_primary_drops_what_it_holds() {
    let (a, _, primary, _, mut session) = holding(4);
    let before = image(&a);
    primary.disks()[0].write_at(0, &[1; 512]).unwrap();
    let epoch = session.epoch();
    primary.primary().shut();
    release(&primary, epoch).unwrap();
    go_alone(&primary).unwrap();
    assert_eq!(image(&a), before);
}

#[test]
fn writes_that_the_image_refuses_stay_held_and_go_out_later() {
    let (a, _, primary, _, mut session) = holding(5);
    let mut model = image(&a);
    model[..8192].fill(5);
    primary.disks()[0].write_at(0, &[5; 8192]).unwrap();
    let epoch = session.epoch();
    a.fail("disk0", 0, std::io::ErrorKind::StorageFull);
    let refused = release(&primary, epoch).unwrap_err();
    assert!(refused.to_string().contains("disk0"), "{refused}");
    assert_eq!(read_all(&primary), model);
    a.heal();
    release(&primary, epoch).unwrap();
    assert_eq!(image(&a), model);
}

/// A host may drop what it could not make safe, and says so once.
#[test]
fn after_a_failed_flush_everything_since_the_last_one_is_written_again() {
    let (a, _, primary, _, mut session) = holding(7);
    let disk = &primary.disks()[0];
    let before = image(&a);
    let mut model = image(&a);
    for place in 0..5_u8 {
        let at = usize::from(place) * 512;
        model[at..at + 512].fill(place + 1);
        disk.write_at(at as u64, &[place + 1; 512]).unwrap();
        if place < 2 {
            release(&primary, session.epoch()).unwrap();
        }
    }
    disk.flush().unwrap();
    let epoch = session.epoch();
    // Its three writes, and from the second time on those of before, too.
    for writes in [3, 5, 5] {
        a.take_events();
        a.fail("disk0", writes, std::io::ErrorKind::HostUnreachable);
        let refused = release(&primary, epoch).unwrap_err();
        assert!(refused.to_string().contains("disk0"), "{refused}");
        let calls = a.take_events().into_iter();
        let written = calls.filter(|call| matches!(call, Event::Write { .. }));
        assert_eq!(written.count() as u64, writes);
        a.set_content("disk0", before.to_vec());
        a.heal();
        assert_eq!(
            read_all(&primary),
            model,
            "the guest reads what it has written"
        );
    }
    release(&primary, epoch).unwrap();
    assert_eq!(image(&a), model);
    assert_eq!(image(&a.after_power_loss(&mut seeded(7))), model);
    // What was made good is forgotten.
    disk.write_at(0, &[9; 512]).unwrap();
    model[..512].fill(9);
    release(&primary, session.epoch()).unwrap();
    go_alone(&primary).unwrap();
    assert_eq!(image(&a), model);
    disk.flush().unwrap();
}

#[test]
fn a_backup_wants_to_see_the_primarys_lock_of_each_shared_image() {
    let refused = |backup: &DiskSet| {
        let refused = backup.backup().describe().unwrap_err();
        assert!(
            matches!(&refused, DiskError::NotLocked { disk } if disk == "disk0"),
            "{refused}"
        );
        refused.to_string()
    };
    let (a, _, primary, backup) = users(10);
    // Before the primary owns it, or where its lock does not reach.
    a.unlock();
    refused(&backup);
    primary.claim_images().unwrap();
    assert_eq!(backup.backup().describe().unwrap().len(), 1);
    // Another file of the same name.
    let other = Host::new("b");
    other.make_image("disk0", BYTES, &mut seeded(10));
    let text = refused(&other.open(&[Shared], limits()));
    assert!(
        text.contains("different files") && text.contains("locks"),
        "{text}"
    );
    // The other way round, after a failover: the own lock is nobody else's.
    let mut session = Session::begin(&primary, &backup, 1);
    session.sync();
    let epoch = session.epoch();
    a.unlock();
    refused(&backup);
    backup.backup().promote(epoch, &mut |_| true).unwrap();
    refused(&backup);
    let old = a.open(&[Shared], limits());
    assert_eq!(old.backup().describe().unwrap().len(), 1);
    // A replicated disk has no lock to be seen.
    let own = other.open(&[Replicated], limits());
    assert_eq!(own.backup().describe().unwrap().len(), 1);
}

#[test]
fn held_writes_fill_the_log_and_a_release_makes_room() {
    let small = DiskLimits {
        log_bytes_max: 64 << 10,
        ..limits()
    };
    let setup = Setup {
        limits: [small; 2],
        ..Setup::new(&[Shared], BYTES, 6)
    };
    let (_, _, primary, backup) = setup.sets();
    let mut session = Session::begin(&primary, &backup, 1);
    session.sync();
    session.epoch();
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
    let mut writes = 0;
    while disk.has_room() {
        disk.write_at(writes % 64 * 4096, &[1; 4096]).unwrap();
        writes += 1;
    }
    assert_eq!(writes, 16);
    assert_eq!(half.load(Ordering::SeqCst), 1);
    let epoch = session.epoch();
    assert!(!disk.has_room());
    assert_eq!(room.load(Ordering::SeqCst), 0);
    release(&primary, epoch).unwrap();
    until("the device is told", || room.load(Ordering::SeqCst) == 1);
    assert!(disk.has_room());
}

#[test]
fn a_backup_does_not_hold_more_than_a_primary_may() {
    let small = DiskLimits {
        log_bytes_max: 8 << 10,
        ..limits()
    };
    let setup = Setup {
        limits: [small; 2],
        ..Setup::new(&[Shared], BYTES, 7)
    };
    let (_, _, plan, backup) = setup.sets();
    let plan = plan
        .primary()
        .begin_sync(&backup.backup().describe().unwrap())
        .unwrap();
    backup.backup().begin_copy(&plan.disks).unwrap();
    let write = crate::core::disk::DiskWrite {
        disk: 0,
        offset: 0,
        what: crate::core::disk::What::Data(vec![1; 64 << 10].into()),
    };
    let refused = persist(&backup, 1, EpochId(1), only([write]));
    assert!(matches!(refused, Err(DiskError::TooMuch { limit, .. }) if limit == 32 << 10));
}

#[test]
fn one_guest_can_have_both_kinds() {
    let (a, storage) = (Host::new("a"), seeded(8));
    let mut random = storage;
    for disk in ["disk0", "disk1"] {
        a.make_image(disk, BYTES, &mut random);
    }
    // The backup's host has an own disk0; disk1 is brought over by hand, as storage in common would.
    let b = Host::new("b");
    b.make_image("disk0", BYTES, &mut random);
    b.set_content("disk1", a.content("disk1").0);
    let locked = b.as_user("a").storage("disk1").lock();
    assert!(locked.unwrap(), "as the primary's is there");
    let modes = [Replicated, Shared];
    let (primary, backup) = (a.open(&modes, limits()), b.open(&modes, limits()));
    primary.claim_images().unwrap();
    let mut session = Session::protect(&primary, &backup, 1);
    let before = b.content("disk1");
    for round in 0..20u8 {
        for disk in primary.disks() {
            disk.write_at(u64::from(round) * 512, &[round; 1024])
                .unwrap();
        }
        session.epoch();
    }
    assert_ne!(a.content("disk0"), a.content("disk1"));
    // The journal has the writes of both, and only the one image is the backup's to write.
    session.settle();
    assert_eq!(a.content("disk0"), b.content("disk0"));
    assert_eq!(b.content("disk1"), before);
    b.as_user("a").unlock();
    backup
        .backup()
        .promote(EpochId(session.epoch), &mut |_| true)
        .unwrap();
    go_alone(&primary).unwrap();
    for disk in ["disk0", "disk1"] {
        assert_eq!(a.content(disk), b.content(disk), "{disk}");
    }
}

#[test]
fn what_was_held_before_a_new_synchronisation_is_part_of_its_first_epoch() {
    let (a, b, primary, backup) = users(9);
    let mut session = Session::begin(&primary, &backup, 1);
    session.sync();
    // The first capture fails after writes have begun to be held.
    primary.primary().hold().unwrap();
    let mut model = image(&a);
    model[..512].fill(1);
    primary.disks()[0].write_at(0, &[1; 512]).unwrap();
    primary.primary().seal(EpochId(1)).unwrap();
    assert_eq!(primary.primary().sync_some().unwrap().writes, []);
    // That backup is lost, another synchronisation begins.
    model[512..1024].fill(2);
    primary.disks()[0].write_at(512, &[2; 512]).unwrap();
    primary.primary().detach();
    backup.backup().abandon();
    let mut session = Session::begin(&primary, &backup, 1);
    session.sync();
    let epoch = session.epoch();
    a.unlock();
    backup.backup().promote(epoch, &mut |_| true).unwrap();
    assert_eq!(image(&b), model);
}
