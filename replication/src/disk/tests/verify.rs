//! A protected pair is compared while the guest writes.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use super::host::*;
use super::session::*;
use crate::disk::DiskMode::{Replicated, Shared};
use crate::disk::{
    Differing, DiskError, DiskLimits, DiskSet, Storage, VERIFY_RANGES_MAX, Verified, VerifyOptions,
};
use crate::ids::EpochId;

const BLOCK: u64 = 64 << 10;
/// The last block is a short one.
const BYTES: u64 = 2 << 20 | 1536;

const FAST: VerifyOptions = VerifyOptions {
    bytes_per_second: u64::MAX,
    repair: false,
};

fn pair(seed: u64) -> (Host, Host, DiskSet, Session) {
    let (a, b, primary, _backup, session) = Setup::new(&[Replicated], BYTES, seed).protected();
    (a, b, primary, session)
}

/// A byte of the host's image goes bad.
fn flip(host: &Host, at: u64) {
    let mut content = host.content("disk0");
    content[at as usize] ^= 0x10;
    host.set_content("disk0", content.0);
}

/// Compares the images while epochs go on and the guest does `guest`.
fn verify(
    session: &mut Session,
    options: VerifyOptions,
    mut guest: impl FnMut(&mut Session),
) -> Result<Verified, DiskError> {
    let set = session.primary.clone();
    std::thread::scope(|scope| {
        let verifying = scope.spawn(move || set.verify(options, &mut |_| true));
        while !verifying.is_finished() {
            guest(session);
            session.epoch();
        }
        verifying.join().unwrap()
    })
}

/// The writers end, whatever becomes of the test.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn range(offset: u64, bytes: u64) -> Differing {
    Differing {
        disk: "disk0".into(),
        offset,
        bytes,
    }
}

#[test]
fn equal_images_are_found_equal() {
    let (_a, _b, _primary, mut session) = pair(1);
    let found = verify(&mut session, FAST, |_| {}).unwrap();
    let expected = Verified {
        bytes: BYTES,
        compared_bytes: BYTES,
        ..Verified::default()
    };
    assert_eq!(found, expected);
}

#[test]
fn a_flipped_byte_is_found_on_either_side() {
    for at in [0, 5 * BLOCK + 7, BYTES - 1] {
        for side in 0..2 {
            let (a, b, _primary, mut session) = pair(2);
            flip([&a, &b][side], at);
            let found = verify(&mut session, FAST, |_| {}).unwrap();
            assert_eq!(found.differing_blocks, 1, "{at} on {side}");
            let start = at / BLOCK * BLOCK;
            assert_eq!(found.first, [range(start, BLOCK.min(BYTES - start))]);
            assert_eq!(found.compared_bytes, BYTES);
        }
    }
}

#[test]
fn adjacent_blocks_are_one_range() {
    let (_a, b, _primary, mut session) = pair(3);
    for block in [3, 4, 5, 9] {
        flip(&b, block * BLOCK);
    }
    let found = verify(&mut session, FAST, |_| {}).unwrap();
    assert_eq!(found.differing_blocks, 4);
    assert_eq!(
        found.first,
        [range(3 * BLOCK, 3 * BLOCK), range(9 * BLOCK, BLOCK)]
    );
}

#[test]
fn what_the_guest_writes_all_the_time_is_no_difference() {
    let roomy = DiskLimits {
        journal_bytes_max: 64 << 20,
        ..limits()
    };
    let setup = Setup {
        limits: [roomy; 2],
        ..Setup::new(&[Replicated], BYTES, 4)
    };
    let (_a, b, primary, _backup, mut session) = setup.protected();
    // Beside it something does differ.
    flip(&b, 20 * BLOCK);
    let stop = AtomicBool::new(false);
    let found = std::thread::scope(|scope| {
        let stopped = StopOnDrop(&stop);
        let writers: Vec<_> = (0..2)
            .map(|writer| {
                let (disk, stop) = (&primary.disks()[0], &stop);
                scope.spawn(move || {
                    let mut random = seeded(writer);
                    let mut writes = 0;
                    while !stop.load(Ordering::Relaxed) {
                        if disk.has_room() {
                            // Over the blocks before the bad one.
                            scribble(disk, 20 * BLOCK, &mut random);
                            writes += 1;
                        }
                    }
                    writes
                })
            })
            .collect();
        let mut found = Vec::new();
        for _ in 0..4 {
            found.push(verify(&mut session, FAST, |_| {}).unwrap());
        }
        drop(stopped);
        let writes: u64 = writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .sum();
        assert!(writes > 0);
        found
    });
    for found in found {
        assert_eq!(found.first, [range(20 * BLOCK, BLOCK)]);
    }
}

#[test]
fn a_write_between_the_reading_of_a_block_and_its_check_is_no_difference() {
    let (a, _b, primary, mut session) = pair(13);
    let disk = primary.disks()[0].clone();
    // The first block has been read, and its check is not logged yet.
    a.after_read(move || disk.write_at(1024, &[9; 512]).unwrap());
    let found = verify(&mut session, FAST, |_| {}).unwrap();
    assert_eq!((found.compared_bytes, found.differing_blocks), (BYTES, 0));
}

#[test]
fn a_guest_that_writes_everywhere_makes_no_difference() {
    let (_a, _b, primary, mut session) = pair(5);
    let mut writes = 0;
    let found = verify(&mut session, FAST, |session| {
        for block in 0..BYTES / BLOCK {
            primary.disks()[0]
                .write_at(block * BLOCK, &[writes; 512])
                .unwrap();
        }
        writes = writes.wrapping_add(1);
        session.epoch();
    });
    assert_eq!(found.unwrap().differing_blocks, 0);
    assert!(writes > 0);
}

#[test]
fn on_request_what_differs_is_sent_again() {
    let (a, b, _primary, mut session) = pair(6);
    flip(&b, 7 * BLOCK);
    b.make_unreadable("disk0", 7 * BLOCK..7 * BLOCK + 512);
    flip(&b, BYTES - 1);
    let repair = VerifyOptions {
        repair: true,
        ..FAST
    };
    let found = verify(&mut session, repair, |_| {}).unwrap();
    assert_eq!((found.differing_blocks, found.repaired_blocks), (2, 2));
    b.make_unreadable("disk0", 0..0);
    session.epoch();
    session.settle();
    assert_eq!(a.content("disk0"), b.content("disk0"));
    assert_eq!(
        verify(&mut session, FAST, |_| {}).unwrap().differing_blocks,
        0
    );
}

fn why(refused: Result<Verified, DiskError>) -> String {
    match refused {
        Err(DiskError::NotCompared { why }) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_whole_copy_there_is_nothing_to_compare() {
    let (_a, _b, primary, backup) = Setup::new(&[Replicated], BYTES, 7).sets();
    let verify = |set: &DiskSet| why(set.verify(FAST, &mut |_| true));
    assert!(verify(&primary).contains("standby"));
    let mut session = Session::begin(&primary, &backup, 1);
    assert!(verify(&primary).contains("whole"));
    session.sync();
    assert!(verify(&primary).contains("whole"));
    assert!(
        verify(&backup).contains("standby"),
        "the standby is not asked"
    );
    let (_a, _b, primary, _backup, _session) = Setup::new(&[Shared], BYTES, 7).protected();
    assert!(verify(&primary).contains("shared"));
}

#[test]
fn a_standby_that_is_lost_ends_it() {
    let (_a, _b, primary, session) = pair(8);
    let slow = VerifyOptions {
        bytes_per_second: 64 << 10,
        ..FAST
    };
    let ended = std::thread::scope(|scope| {
        let set = primary.clone();
        let verifying = scope.spawn(move || set.verify(slow, &mut |_| true));
        until("the first check is asked", || {
            primary.counts().log_bytes > 0
        });
        // Another one at the same time is refused.
        assert!(why(primary.verify(FAST, &mut |_| true)).contains("already"));
        primary.primary().detach();
        verifying.join().unwrap()
    });
    assert!(why(ended).contains("lost"));
    drop(session);
    // As does the end of the guest.
    let (_a, _b, primary, _session) = pair(8);
    let ended = primary.verify(slow, &mut |_| {
        primary.primary().shut();
        true
    });
    assert!(why(ended).contains("lost"));
}

#[test]
fn it_can_be_given_up_and_begun_again() {
    let (_a, _b, primary, mut session) = pair(9);
    let mut calls = 0;
    let slow = VerifyOptions {
        bytes_per_second: 1 << 20,
        ..FAST
    };
    let ended = primary.verify(slow, &mut |_| {
        calls += 1;
        calls < 3
    });
    assert!(why(ended).contains("given up"));
    // What was asked before is answered, and does not count.
    assert!(primary.counts().log_bytes > 0);
    let found = verify(&mut session, FAST, |_| {}).unwrap();
    assert_eq!((found.compared_bytes, found.differing_blocks), (BYTES, 0));
}

#[test]
fn an_image_that_cannot_be_read_ends_it() {
    let (a, _b, _primary, mut session) = pair(10);
    a.make_unreadable("disk0", 4 * BLOCK..4 * BLOCK + 1);
    match verify(&mut session, FAST, |_| {}).unwrap_err() {
        DiskError::Io { disk, offset, .. } => assert_eq!((&*disk, offset), ("disk0", 4 * BLOCK)),
        other => panic!("{other}"),
    }
}

#[test]
fn the_rate_is_kept() {
    let (_a, _b, _primary, mut session) = pair(11);
    let options = VerifyOptions {
        bytes_per_second: 4 << 20,
        ..FAST
    };
    let begun = Instant::now();
    verify(&mut session, options, |_| {}).unwrap();
    // All but the last block wait for their turn.
    let least = (BYTES - 2 * BLOCK) as f64 / options.bytes_per_second as f64;
    assert!(begun.elapsed() >= Duration::from_secs_f64(least));
}

#[test]
fn checks_in_the_journal_do_not_hinder_a_promotion_or_a_replay() {
    for kill in [false, true] {
        let setup = Setup {
            limits: [limits(), lazy()],
            ..Setup::new(&[Replicated], BYTES, 12)
        };
        let (a, b, primary, backup, mut session) = setup.protected();
        primary.disks()[0].write_at(0, &[1; 4096]).unwrap();
        let set = primary.clone();
        let all = session.sent_bytes + BYTES.div_ceil(BLOCK) * 36;
        let epoch = std::thread::scope(|scope| {
            let verifying = scope.spawn(move || set.verify(FAST, &mut |_| true));
            until("all is asked", || {
                session.epoch();
                session.sent_bytes > all
            });
            let epoch = session.epoch();
            primary.primary().detach();
            verifying.join().unwrap().unwrap_err();
            epoch
        });
        if kill {
            drop((session, backup));
            let b = b.after_kill();
            let again = b.open(&[Replicated], limits());
            again.claim_images().unwrap();
            assert_eq!(a.content("disk0"), b.content("disk0"));
        } else {
            backup
                .backup()
                .promote(EpochId(epoch.0), &mut |_| true)
                .unwrap();
            assert_eq!(a.content("disk0"), b.content("disk0"));
        }
    }
}

/// How long this thread has run.
fn ran() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .unwrap()
        .into()
}

#[test]
fn a_standby_that_does_not_answer_ends_it_and_it_is_waited_for_without_work() {
    let (_a, _b, primary, _session) = pair(14);
    let patience = Duration::from_millis(400);
    // The second one reads nothing: it waits for the answers to the first one.
    for work in [1, 20] {
        let (began, had_run) = (Instant::now(), ran());
        let mut compared = Vec::new();
        let ended = primary.verify_within(patience, &Instant::now, &mut |found| {
            compared.push(found.compared_bytes);
            true
        });
        assert!(why(ended).contains("not answered for 0.4 s"));
        assert!(began.elapsed() >= patience);
        assert!(ran() - had_run < began.elapsed() / work);
        assert!(compared.iter().all(|bytes| *bytes == 0), "{compared:?}");
    }
}

#[test]
fn a_standby_that_answers_slowly_is_waited_for() {
    let (_a, _b, primary, backup, mut session) = Setup::new(&[Replicated], BYTES, 15).protected();
    // It is looked at for each block, and each look takes a third of the patience, at least.
    let (patience, began) = (Duration::from_secs(1), Instant::now());
    let looks = AtomicU32::new(0);
    let clock = || began + patience / 9 * looks.fetch_add(1, Ordering::Relaxed);
    let mut told = Vec::new();
    let found = primary.verify_within(patience, &clock, &mut |found| {
        let epoch = session.ship();
        backup.backup().committed(epoch);
        // At the first look, nothing has been asked, and at the last one nothing is left.
        if !told.is_empty() && found.compared_bytes < BYTES {
            let mut one = Vec::new();
            until("an answer", || {
                one = backup.backup().take_compared(1);
                !one.is_empty()
            });
            primary.primary().compared(&one).unwrap();
        }
        told.push(found.compared_bytes);
        true
    });
    assert_eq!(found.unwrap().compared_bytes, BYTES);
    assert!(clock() > began + patience * 9 && told.is_sorted());
}

#[test]
fn what_is_sent_again_waits_for_room_in_the_log() {
    let log_bytes_max = 256 << 10;
    let small = DiskLimits {
        log_bytes_max,
        ..limits()
    };
    let setup = Setup {
        limits: [small, limits()],
        ..Setup::new(&[Replicated], BYTES, 16)
    };
    let (a, b, primary, backup, mut session) = setup.protected();
    let blocks = BYTES.div_ceil(BLOCK) as usize;
    for block in 0..blocks as u64 {
        flip(&b, block * BLOCK);
    }
    let repair = VerifyOptions {
        repair: true,
        ..FAST
    };
    let (told, over) = channel();
    let set = primary.clone();
    std::thread::spawn(move || told.send(set.verify(repair, &mut |_| true)));
    let mut differ = Vec::new();
    until("all is compared", || {
        let epoch = session.ship();
        backup.backup().committed(epoch);
        differ.extend(backup.backup().take_compared(usize::MAX));
        differ.len() == blocks
    });
    primary.primary().compared(&differ).unwrap();
    until("the log is full", || !primary.disks()[0].has_room());
    let early = over.recv_timeout(Duration::from_millis(200));
    assert!(early.is_err(), "it does not wait");
    assert!(primary.counts().log_bytes < log_bytes_max + 2 * BLOCK);
    let mut found = None;
    until("all is sent", || {
        session.epoch();
        found = over.try_recv().ok();
        found.is_some()
    });
    let found = found.unwrap().unwrap();
    assert_eq!(found.repaired_blocks, blocks as u64);
    session.epoch();
    session.settle();
    assert_eq!(a.content("disk0"), b.content("disk0"));
}

#[test]
fn of_many_ranges_that_differ_the_first_ones_are_named() {
    let bytes = 2 * (VERIFY_RANGES_MAX as u64 + 4) * BLOCK;
    let (_a, b, _primary, _backup, mut session) = Setup::new(&[Replicated], bytes, 17).protected();
    let mut content = b.content("disk0");
    for at in (0..bytes).step_by(2 * BLOCK as usize) {
        content[at as usize] ^= 1;
    }
    b.set_content("disk0", content.0);
    let found = verify(&mut session, FAST, |_| {}).unwrap();
    assert_eq!(found.differing_blocks, VERIFY_RANGES_MAX as u64 + 4);
    let ranges = (0..VERIFY_RANGES_MAX as u64).map(|at| range(2 * at * BLOCK, BLOCK));
    assert_eq!(found.first, ranges.collect::<Vec<_>>());
}
