//! Images of which nothing is known are compared, and only what differs is sent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::Rng;

use super::host::*;
use super::session::*;
use crate::core::disk::{DiskWrite, PairId, What};
use crate::disk::DiskMode::Replicated;
use crate::disk::digest::DigestKey;
use crate::disk::{DiskError, DiskLimits, DiskSet, Storage};

const BLOCK: u64 = 64 << 10;
/// The last block is a short one.
const BYTES: u64 = 4 << 20 | 1536;

/// Two hosts of which nothing is known, with nearly the same image: the standby's differs at these bytes.
fn nearly_equal(differs_at: &[u64], seed: u64) -> (Host, Host, DiskSet, DiskSet) {
    let (a, b, primary, backup) = Setup::new(&[Replicated], BYTES, seed).sets();
    drop(backup);
    let mut content = a.content("disk0").0;
    for at in differs_at {
        content[*at as usize] ^= 1;
    }
    b.replace("disk0", content);
    let backup = b.open(&[Replicated], limits());
    (a, b, primary, backup)
}

fn assert_equal(a: &Host, b: &Host, what: &str) {
    assert_eq!(a.content("disk0"), b.content("disk0"), "{what}");
}

#[test]
fn only_what_differs_is_sent() {
    for differs_at in [
        &[][..],
        &[0],
        &[BYTES - 1],
        &[BLOCK - 1, BLOCK],
        &[7 * BLOCK + 5, 7 * BLOCK + 600, 40 * BLOCK, BYTES - 1024],
    ] {
        let (a, b, primary, backup) = nearly_equal(differs_at, 1);
        let session = Session::protect(&primary, &backup, 1);
        assert_eq!(
            (&session.full[..], &session.compared[..]),
            (&[true][..], &[true][..])
        );
        assert_equal(&a, &b, "in the end");
        let mut blocks: Vec<u64> = differs_at.iter().map(|at| at / BLOCK).collect();
        blocks.dedup();
        let checks = BYTES.div_ceil(BLOCK) * 36;
        let most = blocks.len() as u64 * (BLOCK + 20) + checks + 1024;
        assert!(
            session.sent_bytes <= most,
            "{differs_at:?}: {}",
            session.sent_bytes
        );
    }
}

#[test]
fn what_differs_is_sent_once_and_zeros_are_not_asked_for() {
    // Nothing is equal.
    let (a, b, primary, backup) = Setup::new(&[Replicated], BYTES, 2).sets();
    let session = Session::protect(&primary, &backup, 1);
    assert_equal(&a, &b, "other content");
    assert!((BYTES..BYTES + BYTES / 50).contains(&session.sent_bytes));
    // Mostly zeros on the primary, nothing but zeros on the backup.
    let (a, b) = (Host::new("a"), Host::new("b"));
    let mut content = vec![0; BYTES as usize];
    content[3 * BLOCK as usize] = 1;
    a.replace("disk0", content);
    b.replace("disk0", vec![0; BYTES as usize]);
    let (primary, backup) = (
        a.open(&[Replicated], limits()),
        b.open(&[Replicated], limits()),
    );
    primary.claim_images().unwrap();
    let mut session = Session::begin(&primary, &backup, 1);
    let step = primary.primary().sync_some().unwrap();
    let checks = step.writes.iter().filter(|write| write.is_check());
    assert_eq!(
        checks.map(|write| write.offset).collect::<Vec<_>>(),
        [3 * BLOCK]
    );
    for batch in batches(&step.writes) {
        assert!(backup.backup().apply_sync(&batch).unwrap());
    }
    session.sync();
    session.epoch();
    session.settle();
    assert_equal(&a, &b, "zeros");
}

#[test]
fn a_copy_that_was_interrupted_goes_on_with_what_is_missing() {
    let (a, b, primary, backup) = Setup::new(&[Replicated], BYTES, 3).sets();
    let mut session = Session::begin(&primary, &backup, 1);
    while session.sync_step() > BYTES / 4 {}
    primary.primary().detach();
    drop(backup);
    let b = b.after_kill();
    let backup = b.open(&[Replicated], limits());
    let session = Session::protect(&primary, &backup, 2);
    assert!(session.sent_bytes < BYTES / 2, "{}", session.sent_bytes);
    assert_equal(&a, &b, "in the end");
}

#[test]
fn the_guest_may_write_while_images_are_compared() {
    for seed in 0..6 {
        let differs: Vec<u64> = (0..BYTES / BLOCK)
            .map(|block| block * BLOCK + seed)
            .collect();
        let (a, b, primary, backup) = nearly_equal(&differs[seed as usize * 10..], seed);
        let mut session = Session::begin(&primary, &backup, 1);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for writer in 0..2 {
                let (primary, stop) = (&primary, &stop);
                scope.spawn(move || {
                    let mut random = seeded(seed * 10 + writer);
                    while !stop.load(Ordering::Relaxed) {
                        if primary.disks()[0].has_room() {
                            scribble(&primary.disks()[0], BYTES, &mut random);
                        }
                        std::thread::yield_now();
                    }
                });
            }
            // Answers come at any time, also in the middle of a step.
            let (ahead, behind, over) = (primary.primary(), backup.backup(), &stop);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    ahead.compared(&behind.take_compared(3)).unwrap();
                    std::thread::yield_now();
                }
            });
            let mut steps = 0;
            while steps < 2000 && primary.primary().copy_bytes_left() > 0 {
                for batch in batches(&primary.primary().sync_some().unwrap().writes) {
                    backup.backup().apply_sync(&batch).unwrap();
                }
                steps += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        session.sync();
        session.epoch();
        session.settle();
        assert_equal(&a, &b, &format!("seed {seed}"));
    }
}

#[test]
fn a_write_between_a_check_and_its_answer_is_not_lost() {
    let (a, b, primary, backup) = nearly_equal(&[100], 5);
    let mut session = Session::begin(&primary, &backup, 1);
    let disk = &primary.disks()[0];
    let step = primary.primary().sync_some().unwrap();
    assert!(step.writes.iter().all(DiskWrite::is_check));
    // Not known to differ yet: logged.
    disk.write_at(0, &[1; 1024]).unwrap();
    for batch in batches(&step.writes) {
        backup.backup().apply_sync(&batch).unwrap();
    }
    session.answer();
    // Known to differ, but not read yet: must not be overtaken by what was logged before.
    disk.write_at(512, &[2; 1024]).unwrap();
    session.sync();
    session.epoch();
    session.settle();
    assert_equal(&a, &b, "in the end");
}

#[test]
fn an_answer_in_the_middle_of_a_step_does_not_let_an_old_write_overtake_a_copy() {
    let (a, b, primary, backup) = nearly_equal(&[100], 11);
    drop(primary);
    // All but the last block in one step, in several reads.
    let large = DiskLimits {
        sync_slice_bytes: 4 << 20,
        ..limits()
    };
    let primary = a.open(&[Replicated], large);
    primary.claim_images().unwrap();
    let mut session = Session::begin(&primary, &backup, 1);
    let step = primary.primary().sync_some().unwrap();
    for batch in batches(&step.writes) {
        backup.backup().apply_sync(&batch).unwrap();
    }
    // The log was drained, and the next step has read its first block. It goes on with what it knows to differ.
    let (guest, answered, answering) =
        (primary.disks()[0].clone(), primary.clone(), backup.clone());
    a.after_read(move || {
        guest.write_at(0, &[1; 1024]).unwrap();
        let differ = answering.backup().take_compared(usize::MAX);
        assert!(differ[0]);
        answered.primary().compared(&differ).unwrap();
        guest.write_at(0, &[2; 1024]).unwrap();
    });
    session.sync();
    session.epoch();
    session.settle();
    assert_equal(&a, &b, "in the end");
}

#[test]
fn what_the_backup_cannot_read_is_sent() {
    let (a, b, primary, backup) = nearly_equal(&[], 6);
    b.make_unreadable("disk0", 9 * BLOCK..9 * BLOCK + 512);
    let mut session = Session::begin(&primary, &backup, 1);
    session.sync();
    session.epoch();
    session.settle();
    assert!(session.sent_bytes > BLOCK && session.sent_bytes < 2 * BLOCK);
    assert_equal(&a, &b, "in the end");
}

#[test]
fn a_session_has_a_key_of_its_own() {
    let digest = |primary: &DiskSet, backup: &DiskSet| {
        Session::begin(primary, backup, 1);
        let step = primary.primary().sync_some().unwrap();
        let digest = step.writes.into_iter().find_map(|write| match write.what {
            What::Check { digest, .. } => Some(digest),
            _ => None,
        });
        digest.unwrap()
    };
    let (_a, _b, primary, backup) = nearly_equal(&[], 7);
    let first = digest(&primary, &backup);
    assert_ne!(first, digest(&primary, &backup), "of the same content");
}

#[test]
fn answers_to_what_was_not_asked_are_refused() {
    let (_a, _b, primary, backup) = nearly_equal(&[], 8);
    let session = Session::begin(&primary, &backup, 1);
    let refused = primary.primary().compared(&[false]).unwrap_err();
    assert!(
        matches!(refused, DiskError::PeerDiffers { .. }),
        "{refused}"
    );
    let step = primary.primary().sync_some().unwrap();
    let answers = vec![false; step.writes.len() + 1];
    primary.primary().compared(&answers).unwrap_err();
    // And to a session that has ended.
    primary.primary().detach();
    primary.primary().compared(&[false]).unwrap_err();
    drop(session);
}

#[test]
fn a_large_image_that_differs_is_not_asked_for_as_a_whole() {
    let bytes = 48 << 20;
    let setup = Setup {
        limits: [
            DiskLimits {
                sync_slice_bytes: 4 << 20,
                ..limits()
            },
            limits(),
        ],
        ..Setup::new(&[Replicated], bytes, 9)
    };
    let (a, b, primary, backup) = setup.sets();
    let mut session = Session::begin(&primary, &backup, 1);
    let mut checked = 0;
    while primary.primary().copy_bytes_left() > 0 {
        let step = primary.primary().sync_some().unwrap();
        checked += step
            .writes
            .iter()
            .filter(|write| write.is_check())
            .map(DiskWrite::bytes)
            .sum::<u64>();
        for batch in batches(&step.writes) {
            backup.backup().apply_sync(&batch).unwrap();
        }
        session.answer();
    }
    assert!((8 << 20..=12 << 20).contains(&checked), "{checked}");
    session.epoch();
    session.settle();
    assert_equal(&a, &b, "in the end");
}

#[test]
fn a_check_of_a_shared_disk_is_refused() {
    use crate::disk::DiskMode::Shared;
    let (_a, _b, primary, backup) = Setup::new(&[Replicated, Shared], BYTES, 10).sets();
    let _session = Session::begin(&primary, &backup, 1);
    let check = DiskWrite {
        disk: 1,
        offset: 0,
        what: What::Check {
            bytes: BLOCK,
            digest: seeded(1).random(),
        },
    };
    let refused = backup
        .backup()
        .apply_sync(&batches(&[check])[0])
        .unwrap_err();
    assert!(
        matches!(refused, DiskError::PeerDiffers { .. }),
        "{refused}"
    );
}

#[test]
fn a_step_waits_for_answers_only_if_there_are_to_be_some() {
    let patience = Duration::from_millis(20);
    let (_a, _b, primary, backup) = nearly_equal(&[], 12);
    let mut session = Session::begin(&primary, &backup, 1);
    let step = || primary.primary().sync_some().unwrap();
    until("all is asked", || {
        let writes = step().writes;
        for batch in batches(&writes) {
            backup.backup().apply_sync(&batch).unwrap();
        }
        writes.is_empty()
    });
    let began = Instant::now();
    assert!(step().bytes_left > 0);
    assert!(began.elapsed() >= patience, "it asks again and again");
    session.sync();
    let (began, steps) = (Instant::now(), 100);
    for _ in 0..steps {
        assert_eq!(step().bytes_left, 0);
    }
    assert!(
        began.elapsed() < patience * steps,
        "there is nobody to answer"
    );
}

#[test]
fn a_step_reads_adjacent_blocks_at_once_and_sends_zeros_as_one() {
    let (a, _b, primary, backup) = Setup::new(&[Replicated], BYTES, 13).sets();
    // The second step is of zeros, the first one is not.
    let slice = limits().sync_slice_bytes;
    let mut content = a.content("disk0");
    content[slice as usize..2 * slice as usize].fill(0);
    a.set_content("disk0", content.0);
    primary.copy_everything().unwrap();
    let _session = Session::begin(&primary, &backup, 1);
    let step = || {
        a.take_events();
        let writes = primary.primary().sync_some().unwrap().writes;
        let reads = a.take_events().into_iter();
        let reads = reads.filter(|call| matches!(call, Event::Read { .. }));
        assert_eq!(reads.count(), 1);
        writes
    };
    assert_eq!(step().len() as u64, slice / BLOCK);
    let zeros = DiskWrite {
        disk: 0,
        offset: slice,
        what: What::Zero { bytes: slice },
    };
    assert_eq!(step(), [zeros]);
}

#[test]
fn zeros_that_are_not_adjacent_stay_where_they_are() {
    let (a, b, primary, backup, session) = Setup::new(&[Replicated], BYTES, 14).protected();
    until("nothing is marked", || primary.counts().marked_bytes == 0);
    primary.primary().detach();
    backup.backup().abandon();
    for block in [2, 3, 9, 20] {
        primary.disks()[0]
            .write_zeroes(block * BLOCK, BLOCK, true)
            .unwrap();
    }
    drop(session);
    let session = Session::protect(&primary, &backup, 2);
    assert_eq!(session.full, [false]);
    assert_equal(&a, &b, "in the end");
}

#[test]
fn a_long_check_is_of_all_that_it_spans() {
    let (a, b, ..) = Setup::new(&[Replicated], BYTES, 15).sets();
    let key = DigestKey::of(PairId(1));
    let content = a.content("disk0");
    // Two pieces and a part of one are read.
    let (offset, bytes) = (4096, 600 << 10);
    let digest = key.digest(&content[offset..offset + bytes]);
    let differs = |host: &Host| {
        let image = host.storage("disk0");
        key.differs(&*image, offset as u64, bytes as u64, &digest)
    };
    assert!(!differs(&a) && differs(&b));
    for (at, expected) in [
        (offset - 1, false),
        (offset, true),
        (offset + (256 << 10), true),
        (offset + bytes - 1, true),
        (offset + bytes, false),
    ] {
        let mut changed = content.clone();
        changed[at] ^= 1;
        b.set_content("disk0", changed.0);
        assert_eq!(differs(&b), expected, "byte {at}");
    }
}
