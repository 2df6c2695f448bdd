//! The backup's journal: what waits for room in it, what leaves it, and what is refused.

use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rand::Rng;

use super::host::*;
use super::session::*;
use crate::core::disk::{DiskWrite, What};
use crate::disk::DiskMode::Replicated;
use crate::disk::{DiskError, DiskLimits, Storage};
use crate::ids::{EpochId, Generation};
use crate::ports::disks::EpochToPersist;

const BYTES: u64 = 1 << 20;
/// The header of a journal's file, and of a record.
const HEADERS: u64 = 512 + 64;

/// A backup whose journal has room for one epoch of 20 KiB in each of its files, and is brought to the image only when
/// it must.
fn small() -> DiskLimits {
    DiskLimits {
        journal_bytes_max: 64 << 10,
        ..lazy()
    }
}

fn setup(limits: DiskLimits, seed: u64) -> Setup {
    Setup {
        limits: [lazy(), limits],
        ..Setup::new(&[Replicated], BYTES, seed)
    }
}

/// A write that cannot be made smaller.
fn write(sectors: usize, random: u64) -> DiskWrite {
    let mut data = vec![0; sectors * 512];
    seeded(random).fill(&mut data[..]);
    DiskWrite {
        disk: 0,
        offset: 0,
        what: What::Data(data.into()),
    }
}

/// Has the backup persist an epoch of this write, without waiting for it.
fn begin(session: &Session, epoch: u64, write: &DiskWrite) -> Receiver<Result<(), DiskError>> {
    begin_all(session, epoch, std::slice::from_ref(write))
}

fn begin_all(
    session: &Session,
    epoch: u64,
    writes: &[DiskWrite],
) -> Receiver<Result<(), DiskError>> {
    let (told, persisted) = done();
    let epoch = EpochToPersist {
        generation: Generation(1),
        epoch: EpochId(epoch),
        batches: batches(writes),
        written_through: EpochId(0),
    };
    session.backup.backup().persist(epoch, told);
    persisted
}

/// Epoch 2 is persisted, and takes the room that epoch 3 waits for.
fn second_waits(session: &Session) -> Receiver<Result<(), DiskError>> {
    let first = begin(session, 2, &write(40, 1));
    first.recv_timeout(DEADLINE).unwrap().unwrap();
    let second = begin(session, 3, &write(40, 2));
    let early = second.recv_timeout(Duration::from_millis(200));
    assert!(early.is_err(), "there is no room");
    second
}

#[test]
fn an_epoch_that_finds_no_room_has_the_journal_brought_to_the_image() {
    let (a, b, primary, _backup, mut session) = setup(small(), 1).protected();
    for round in 0..20 {
        let mut data = [0; 20 << 10];
        seeded(round).fill(&mut data[..]);
        primary.disks()[0].write_at(4096 * round, &data).unwrap();
        session.epoch();
    }
    // What fits into both files is still in them.
    let first = (18 * 4096) as usize;
    assert_eq!(a.content("disk0")[..first], b.content("disk0")[..first]);
    assert_ne!(a.content("disk0"), b.content("disk0"));
}

#[test]
fn an_epoch_that_waits_for_room_goes_on_when_the_one_before_is_committed() {
    let (_a, b, _primary, backup, session) = setup(small(), 2).protected();
    let before = b.content("disk0");
    let second = second_waits(&session);
    assert_eq!(b.content("disk0"), before, "nothing is committed");
    backup.backup().committed(EpochId(2));
    second.recv_timeout(DEADLINE).unwrap().unwrap();
    assert_ne!(b.content("disk0"), before);
}

#[test]
fn an_epoch_that_waits_for_room_is_given_up_with_the_copy() {
    let (_a, b, _primary, backup, session) = setup(small(), 3).protected();
    let before = b.content("disk0");
    let second = second_waits(&session);
    backup.backup().abandon();
    // Nor does another one come after it, and for the same reason.
    for epoch in [second, begin(&session, 4, &write(1, 3))] {
        let refused = epoch.recv_timeout(DEADLINE).unwrap().unwrap_err();
        let why = "the copy of the disks was given up";
        assert_eq!(refused.to_string(), why);
    }
    assert_eq!(b.content("disk0"), before);
}

/// A flush may take long, and the guest waits for it.
#[test]
fn a_flush_syncs_what_is_new_in_the_journal_and_nothing_else() {
    let (_a, b, _primary, _backup, session) = setup(lazy(), 9).protected();
    let mut epoch = 1;
    let mut syncs_of = |writes: &[DiskWrite], flush| {
        b.take_events();
        epoch += 1;
        let persisted = begin_all(&session, epoch, writes);
        persisted.recv_timeout(DEADLINE).unwrap().unwrap();
        if flush {
            super::session::flush(&session.backup, EpochId(epoch)).unwrap();
        }
        let is_sync =
            |it: &Event| matches!(it, Event::Sync { name } if name.starts_with("journal"));
        b.take_events().into_iter().filter(is_sync).count()
    };
    assert_eq!(syncs_of(&[write(1, 1)], false), 0);
    assert_eq!(syncs_of(&[write(1, 2)], true), 1, "one of the two files");
    assert_eq!(syncs_of(&[], true), 0, "nothing is new");
    assert_eq!(syncs_of(&[write(1, 3)], true), 1);
}

#[test]
fn an_epoch_that_never_fits_is_refused_at_once() {
    let write = write(40, 1);
    let record = batches(std::slice::from_ref(&write));
    let record: u64 = record.iter().map(|batch| 4 + batch.len() as u64).sum();
    for (missing, fits) in [(0, true), (1, false), (512, false)] {
        let limits = DiskLimits {
            journal_bytes_max: 2 * (HEADERS + record - missing),
            ..lazy()
        };
        let (_a, _b, _primary, _backup, session) = setup(limits, 4).protected();
        let told = begin(&session, 2, &write).recv_timeout(DEADLINE).unwrap();
        match told {
            Ok(()) => assert!(fits, "{missing} bytes are missing"),
            Err(DiskError::TooMuch { epoch, .. }) => {
                assert_eq!((epoch, fits), (EpochId(2), false), "{missing}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn an_epoch_before_the_last_one_is_persisted_is_refused_and_the_last_one_is_told() {
    let (_a, b, _primary, _backup, session) = setup(lazy(), 5).protected();
    let (told, is_writing) = channel();
    let (go_on, goes_on) = channel::<()>();
    b.before_write(move || {
        told.send(()).unwrap();
        goes_on.recv_timeout(DEADLINE).unwrap();
    });
    let first = begin(&session, 2, &write(1, 1));
    is_writing.recv_timeout(DEADLINE).unwrap();
    let second = begin(&session, 3, &write(1, 2)).try_recv();
    go_on.send(()).unwrap();
    let refused = second.unwrap().unwrap_err();
    assert!(refused.to_string().contains("not persisted"), "{refused}");
    first.recv_timeout(DEADLINE).unwrap().unwrap();
}

/// A promotion to the epoch before could not take it back.
#[test]
fn an_epoch_that_is_not_committed_is_not_brought_to_the_image() {
    let (a, b, primary, backup, mut session) = setup(limits(), 6).protected();
    let before = b.content("disk0");
    primary.disks()[0].write_at(4096, &[6; 512]).unwrap();
    let epoch = session.ship();
    let (told, written) = channel();
    b.before_write(move || told.send(()).unwrap());
    let early = written.recv_timeout(Duration::from_millis(200));
    assert!(early.is_err() && b.content("disk0") == before);
    backup.backup().committed(epoch);
    session.settle();
    assert_eq!(a.content("disk0"), b.content("disk0"));
}

#[test]
fn a_copy_is_whole_with_its_first_epoch_however_long_the_journal_may_wait() {
    let (a, b, primary, backup) = setup(lazy(), 7).sets();
    let mut session = Session::begin(&primary, &backup, 1);
    session.sync();
    primary.disks()[0].write_at(4096, &[7; 512]).unwrap();
    session.epoch();
    session.settle();
    assert_eq!(a.content("disk0"), b.content("disk0"));
}

/// Little must be left to be flushed at its end.
#[test]
fn a_long_copy_is_made_durable_step_by_step() {
    let (_a, b, primary, backup) = setup(lazy(), 8).sets();
    let _session = Session::begin(&primary, &backup, 1);
    let is_flushed = || {
        let calls = b.take_events();
        calls.contains(&Event::Sync {
            name: "disk0".into(),
        })
    };
    is_flushed();
    let step: Vec<_> = (0..4).map(|number| write(512, number)).collect();
    let step = batches(&step);
    let apply = |times| {
        for batch in (0..times).flat_map(|_| &step) {
            backup.backup().apply_sync(batch).unwrap();
        }
    };
    for _ in 0..2 {
        apply(63);
        assert!(!is_flushed());
        apply(1);
        until("the image is flushed", is_flushed);
    }
}
