//! Replicated disks from synchronisation to promotion, against a guest that writes all the time.

use std::sync::atomic::{AtomicBool, Ordering};

use rand::Rng;

use super::host::*;
use super::session::*;
use crate::core::disk::DiskWrite;
use crate::disk::{DiskError, DiskMode, DiskSet, Storage};
use crate::ids::EpochId;

const BYTES: u64 = 3 << 20;

const MODES: &[DiskMode] = &[DiskMode::Replicated; 2];

/// Two hosts with different images of two disks.
fn hosts(seed: u64) -> (Host, Host, DiskSet, DiskSet) {
    Setup::new(MODES, BYTES, seed).sets()
}

fn images(host: &Host) -> [Content; 2] {
    ["disk0", "disk1"].map(|disk| host.content(disk))
}

#[test]
fn a_copy_of_a_guest_that_writes_is_exact_at_each_epoch() {
    for seed in 0..8 {
        let (a, b, primary, backup) = hosts(seed);
        let mut session = Session::begin(&primary, &backup, 1);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for number in 0..2 {
                let (disk, stop) = (&primary.disks()[number], &stop);
                scope.spawn(move || {
                    let mut random = seeded(seed * 100 + number as u64);
                    let mut writes = 0;
                    while !stop.load(Ordering::Relaxed) && writes < 4000 {
                        if disk.has_room() {
                            scribble(disk, BYTES, &mut random);
                            writes += 1;
                        }
                        std::thread::yield_now();
                    }
                });
            }
            let mut steps = 0;
            while session.sync_step() > 0 && steps < 2000 {
                steps += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        session.sync();
        session.epoch();
        session.settle();
        assert_eq!(images(&a), images(&b), "seed {seed}: after synchronisation");
        let mut random = seeded(seed);
        for round in 0..20 {
            for _ in 0..random.random_range(0..20) {
                let disk = &primary.disks()[random.random_range(0..2)];
                scribble(disk, BYTES, &mut random);
            }
            session.epoch();
            session.settle();
            assert_eq!(images(&a), images(&b), "seed {seed}: after round {round}");
        }
    }
}

#[test]
fn a_part_that_is_logged_never_follows_a_newer_copy_of_its_block() {
    let (a, b, primary, backup) = hosts(1);
    // Sent, not compared first.
    primary.copy_everything().unwrap();
    let mut session = Session::begin(&primary, &backup, 1);
    let disk = &primary.disks()[0];
    // The first slice of 256 KiB is copied, what lies behind is not.
    session.sync_step();
    disk.write_at((256 << 10) - 512, &[1; 1024]).unwrap();
    // This one is seen by the copier only.
    disk.write_at(256 << 10, &[2; 512]).unwrap();
    let step = primary.primary().sync_some().unwrap();
    let logged: Vec<&DiskWrite> = step
        .writes
        .iter()
        .filter(|w| w.offset < 256 << 10)
        .collect();
    assert_eq!(logged.len(), 1);
    assert_eq!(
        (logged[0].offset, logged[0].bytes()),
        ((256 << 10) - 512, 512)
    );
    for batch in batches(&step.writes) {
        backup.backup().apply_sync(&batch).unwrap();
    }
    session.sync();
    session.epoch();
    session.settle();
    assert_eq!(images(&a), images(&b));
}

#[test]
fn a_block_that_is_copied_in_the_middle_of_a_write_is_logged() {
    let (a, b, primary, backup) = hosts(6);
    let mut session = Session::begin(&primary, &backup, 1);
    let (copier, receiver) = (primary.clone(), backup.clone());
    // The guest's write has begun and nothing of it is on the image; the copier takes its block.
    a.before_write(move || {
        for batch in batches(&copier.primary().sync_some().unwrap().writes) {
            receiver.backup().apply_sync(&batch).unwrap();
        }
    });
    primary.disks()[0].write_at(0, &[6; 4096]).unwrap();
    session.sync();
    session.epoch();
    session.settle();
    assert_eq!(images(&a), images(&b));
}

#[test]
fn an_epoch_does_not_end_before_everything_was_copied() {
    let (a, b, primary, backup) = hosts(2);
    let mut session = Session::begin(&primary, &backup, 1);
    session.sync_step();
    let early = primary.primary().seal(EpochId(1));
    assert!(matches!(early, Err(DiskError::NotSynced { bytes_left }) if bytes_left > 0));
    session.sync();
    session.epoch();
    session.settle();
    assert_eq!(images(&a), images(&b));
}

#[test]
fn a_promoted_side_stands_at_exactly_the_committed_epoch() {
    for seed in 0..10 {
        let (a, b, primary, _) = hosts(seed);
        // The journal is not brought to the images, or is, or in the middle of it.
        let slow = if seed % 2 == 0 { lazy() } else { limits() };
        let backup = b.open(MODES, slow);
        let mut session = Session::protect(&primary, &backup, 1);
        let mut random = seeded(seed);
        for _ in 0..random.random_range(0..10) {
            scribble(&primary.disks()[1], BYTES, &mut random);
            session.epoch();
        }
        let expected = images(&a);
        let committed = EpochId(session.epoch);
        // One more is in the journal, which memory does not have.
        primary.disks()[0].write_at(0, &[seed as u8; 2048]).unwrap();
        session.ship();
        backup
            .backup()
            .promote(committed, &mut |_| panic!("nothing to wait for"))
            .unwrap();
        assert_eq!(expected, images(&b), "seed {seed}");
        // And what was dropped does not come back with the next start.
        drop((session, backup));
        let again = b.after_kill();
        let restarted = again.open(MODES, limits());
        restarted.claim_images().unwrap();
        assert_eq!(expected, images(&again), "seed {seed}, after a restart");
    }
}

#[test]
fn who_is_shut_writes_nothing_any_more() {
    let (a, _, primary, backup) = hosts(5);
    let _session = Session::protect(&primary, &backup, 1);
    let before = images(&a);
    primary.primary().shut();
    let disk = &primary.disks()[0];
    assert!(disk.write_at(0, &[1; 512]).is_err());
    assert!(disk.flush().is_err());
    assert!(disk.read_at(0, &mut [0; 512]).is_err());
    assert!(
        disk.discard(0, 512)
            .unwrap_err()
            .to_string()
            .contains("another host")
    );
    assert_eq!(before, images(&a));
}
