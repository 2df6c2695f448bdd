//! The journal: whatever is left of it, a replay does whole epochs, and can be done again.

use std::sync::Arc;

use bytes::Bytes;
use rand::Rng;

use super::host::*;
use super::session::*;
use crate::core::disk::DISK_BATCH_BYTES_MAX;
use crate::disk::DiskMode::Replicated;
use crate::disk::backup::journal::{FILE_HEADER_BYTES, JournalFile, Record};
use crate::disk::backup::replay::plan;
use crate::disk::place::{JournalId, Place, START};
use crate::disk::{DiskError, DiskLimits, DiskMode, Storage};
use crate::ids::{EpochId, Generation};

const ANY: EpochId = EpochId(u64::MAX);

fn place(epoch: u64) -> Place {
    (Generation(3), EpochId(epoch))
}

fn record(epoch: u64, previous: u64) -> Record {
    Record {
        place: place(epoch),
        previous: if previous == 0 {
            START
        } else {
            place(previous)
        },
        synced: START,
        batches: vec![
            Bytes::from(vec![epoch as u8; 20 + epoch as usize]),
            Bytes::from_static(b"x"),
        ],
    }
}

fn open(host: &Host, number: usize) -> JournalFile {
    JournalFile::open(host.files(), journal_files()[number].clone(), 77).unwrap()
}

/// Appends records of these epochs, each after the one before it, and returns where they end.
fn fill(file: &JournalFile, epochs: std::ops::Range<u64>) -> Vec<u64> {
    let mut at = FILE_HEADER_BYTES;
    let append = |epoch: u64| {
        let record = record(epoch, epoch - 1);
        file.append(&record, at).unwrap();
        at += record.bytes();
        at
    };
    epochs.map(append).collect()
}

fn replayed(host: &Host, limit: EpochId) -> Vec<u64> {
    let files = [open(host, 0), open(host, 1)];
    let mut applied = Vec::new();
    let apply = |found: &Record| {
        assert_eq!(found.batches, record(found.place.1.0, 0).batches);
        applied.push(found.place.1.0);
        Ok(())
    };
    let plan = plan(&files, limit, START).unwrap();
    plan.run(apply, || Ok(())).unwrap();
    applied
}

#[test]
fn a_file_has_the_bytes_of_its_tables() {
    let host = Host::new("a");
    let mut file = open(&host, 0);
    file.renew(JournalId(0x0506)).unwrap();
    file.empty((Generation(0x0102), EpochId(0x0304))).unwrap();
    let record = Record {
        synced: place(4),
        ..record(6, 5)
    };
    file.append(&record, FILE_HEADER_BYTES).unwrap();
    let mut golden = b"USTUDYJ2\x4d\0\0\0\0\0\0\0".to_vec();
    golden.extend(b"\x02\x01\0\0\0\0\0\0\x04\x03\0\0\0\0\0\0");
    let id = b"\x06\x05\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    golden.extend(id);
    golden.extend(crc32fast::hash(&golden).to_le_bytes());
    golden.resize(512, 0);
    let head = b"UDJR\x23\0\0\0\
        \x03\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0\
        \x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x02\0\0\0";
    let mut body = b"\x1a\0\0\0".to_vec();
    body.extend([6; 26]);
    body.extend(b"\x01\0\0\0x");
    golden.extend(head);
    golden.extend(crc32fast::hash(&[&id[..], &head[..], &body[..]].concat()).to_le_bytes());
    golden.extend(body);
    let name = journal_files()[0].to_str().unwrap().to_owned();
    assert_eq!(host.content(&name)[..], golden[..]);
}

#[test]
fn a_journal_cut_at_any_byte_gives_the_whole_epochs_before_it() {
    let host = Host::new("b");
    let ends = fill(&open(&host, 0), 1..6);
    let content = host.content("journal.0");
    for cut in 0..=content.len() {
        let left = Host::new("b");
        left.set_content("journal.0", content[..cut].to_vec());
        let whole = ends.iter().filter(|end| **end <= cut as u64).count() as u64;
        let expected: Vec<u64> = (1..=whole).collect();
        assert_eq!(replayed(&left, ANY), expected, "cut after {cut} bytes");
        assert_eq!(replayed(&left, ANY), [0; 0], "a second time");
    }
}

#[test]
fn a_changed_bit_anywhere_ends_the_row() {
    let host = Host::new("b");
    let ends = fill(&open(&host, 0), 1..5);
    let content = host.content("journal.0");
    for at in FILE_HEADER_BYTES as usize..content.len() {
        let mut changed = content.clone();
        changed[at] ^= 1 << (at % 8);
        let left = Host::new("b");
        left.set_content("journal.0", changed.0);
        let whole = ends.iter().filter(|end| **end <= at as u64).count() as u64;
        assert_eq!(
            replayed(&left, ANY),
            (1..=whole).collect::<Vec<_>>(),
            "byte {at}"
        );
    }
}

#[test]
fn the_second_file_counts_only_if_the_first_is_whole_or_on_the_images() {
    let host = Host::new("b");
    fill(&open(&host, 0), 1..4);
    fill(&open(&host, 1), 4..7);
    assert_eq!(replayed(&host.after_kill(), ANY), [1, 2, 3, 4, 5, 6]);
    // The first file has lost its end: what follows must not be applied either.
    let left = host.after_kill();
    let mut cut = left.content("journal.0");
    cut.pop();
    left.set_content("journal.0", cut.0);
    assert_eq!(replayed(&left, ANY), [1, 2]);
    // All of it is lost, header and all.
    let left = host.after_kill();
    left.set_content("journal.0", Vec::new());
    assert_eq!(replayed(&left, ANY), [0; 0]);
    // It is on the images already.
    let left = host.after_kill();
    open(&left, 0).empty(place(3)).unwrap();
    assert_eq!(replayed(&left, ANY), [4, 5, 6]);
    // The header says so, and the records have come back after a loss of power.
    let left = host.after_kill();
    let mut back = left.content("journal.0");
    open(&left, 0).empty(place(3)).unwrap();
    let header = FILE_HEADER_BYTES as usize;
    back[..header].copy_from_slice(&left.content("journal.0")[..header]);
    left.set_content("journal.0", back.0);
    assert_eq!(replayed(&left, ANY), [4, 5, 6]);
}

#[test]
fn what_is_later_than_the_limit_is_dropped_for_good() {
    let host = Host::new("b");
    fill(&open(&host, 0), 1..4);
    fill(&open(&host, 1), 4..7);
    assert_eq!(replayed(&host, EpochId(4)), [1, 2, 3, 4]);
    assert_eq!(replayed(&host, ANY), [0; 0]);
}

#[test]
fn a_journal_of_other_disks_is_not_applied() {
    let host = Host::new("b");
    fill(&open(&host, 0), 1..4);
    let refused = JournalFile::open(host.files(), journal_files()[0].clone(), 78).map(drop);
    assert!(matches!(refused, Err(DiskError::OtherDisks { .. })));
}

#[test]
fn a_length_in_a_record_is_not_believed() {
    let host = Host::new("b");
    let file = open(&host, 0);
    fill(&file, 1..2);
    let mut content = host.content("journal.0");
    let at = FILE_HEADER_BYTES as usize + 4;
    content[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    host.set_content("journal.0", content.0);
    assert_eq!(replayed(&host, ANY), [0; 0]);
}

/// Writes a record with these batches behind the others, and says whether a replay would bring the images there.
fn is_readable(batches: Vec<Bytes>) -> bool {
    let host = Host::new("b");
    let files = [open(&host, 0)];
    let record = Record {
        batches,
        ..record(1, 0)
    };
    files[0].append(&record, FILE_HEADER_BYTES).unwrap();
    let mut found = 0;
    let plan = plan(&files, ANY, START).unwrap();
    let count = |_: &Record| {
        found += 1;
        Ok(())
    };
    plan.run(count, || Ok(())).unwrap();
    found == 1
}

#[test]
fn a_record_may_be_small_and_its_batches_are_bounded() {
    let batch = |bytes: usize| Bytes::from(vec![1; bytes]);
    assert!(is_readable(Vec::new()), "nothing but its header");
    assert!(is_readable(vec![batch(DISK_BATCH_BYTES_MAX), batch(1)]));
    // No backup takes such a batch, so none has written it.
    assert!(!is_readable(vec![batch(DISK_BATCH_BYTES_MAX + 1)]));
}

/// What was flushed is known from records behind a damaged one, however far behind it and wherever they lie.
#[test]
fn a_record_far_behind_a_damaged_one_still_says_what_must_be_there() {
    // The file is looked through in pieces of 1 MiB from the damaged record on. This one's first bytes lie in two.
    for (lies, before) in [("across", 2), ("ahead of", 64), ("behind", 0)] {
        let host = Host::new("b");
        let files = [open(&host, 0)];
        let length = (1 << 20)
            - before
            - Record {
                batches: Vec::new(),
                ..record(1, 0)
            }
            .bytes() as usize;
        let batches =
            [length / 2, length - length / 2].map(|bytes| Bytes::from(vec![0; bytes - 4]));
        let first = Record {
            batches: batches.to_vec(),
            ..record(1, 0)
        };
        let second = Record {
            synced: place(1),
            ..record(2, 1)
        };
        files[0].append(&first, FILE_HEADER_BYTES).unwrap();
        files[0]
            .append(&second, FILE_HEADER_BYTES + first.bytes())
            .unwrap();
        let mut content = host.content("journal.0");
        content[FILE_HEADER_BYTES as usize + 100] ^= 1;
        host.set_content("journal.0", content.0);
        let refused = plan(&files, ANY, START).map(drop);
        assert!(
            matches!(&refused, Err(DiskError::JournalDamaged { wanted, .. }) if *wanted == place(1)),
            "{lies} a boundary: {refused:?}"
        );
    }
}

const BYTES: u64 = 1 << 20;
const MODES: &[DiskMode] = &[Replicated; 2];

/// A backup that is cut off at any moment has exactly one of the epochs, with all that was flushed.
#[test]
fn after_a_loss_of_power_the_images_are_at_one_epoch() {
    let images = |host: &Host| ["disk0", "disk1"].map(|disk| host.content(disk));
    let mut late = 0;
    for seed in 0..60 {
        let mut random = seeded(seed);
        let destage = DiskLimits {
            destage_bytes: random.random_range(1..200 << 10),
            ..lazy()
        };
        let setup = Setup {
            limits: [lazy(), destage],
            ..Setup::new(MODES, BYTES, seed)
        };
        let (a, b, primary, _backup, mut session) = setup.protected();
        let mut epochs = vec![images(&a)];
        let mut flushed = 0;
        for _ in 0..random.random_range(1..12) {
            for _ in 0..random.random_range(0..4) {
                let disk = &primary.disks()[random.random_range(0..2)];
                scribble(disk, BYTES, &mut random);
            }
            if random.random_bool(0.3) {
                primary.disks()[0].flush().unwrap();
                flushed = epochs.len();
            }
            session.epoch();
            epochs.push(images(&a));
            // The destaging thread is at anything now.
            let left = b.after_power_loss(&mut random);
            for again in 0..2 {
                let restarted = left.open(MODES, limits());
                restarted.claim_images().unwrap();
                drop(restarted);
                let now = images(&left);
                let epoch = epochs.iter().rposition(|epoch| *epoch == now);
                assert!(epoch.is_some(), "seed {seed}: no epoch, start {again}");
                assert!(
                    epoch >= Some(flushed),
                    "seed {seed}: {epoch:?}, flushed {flushed}"
                );
                late += usize::from(epoch < Some(epochs.len() - 1));
            }
        }
    }
    assert!(late > 0, "no loss of power has lost anything");
}

/// Recovery itself is cut off, again and again.
#[test]
fn a_replay_that_is_cut_off_is_done_again() {
    for seed in 0..20 {
        let mut random = seeded(seed);
        let setup = Setup {
            limits: [lazy(); 2],
            ..Setup::new(&[Replicated], BYTES, seed)
        };
        let (a, b, primary, backup, mut session) = setup.protected();
        for _ in 0..6 {
            scribble(&primary.disks()[0], BYTES, &mut random);
            primary.disks()[0].flush().unwrap();
            session.epoch();
        }
        drop((session, backup));
        let mut host = b.after_power_loss(&mut random);
        for after in 0.. {
            host.fail("", after, std::io::ErrorKind::Other);
            let set = host.try_open(&[Replicated], limits());
            let owned = set.and_then(|set| set.claim_images());
            host = host.after_power_loss(&mut random);
            if owned.is_ok() {
                break;
            }
        }
        assert_eq!(host.content("disk0"), a.content("disk0"), "seed {seed}");
    }
}

#[test]
fn an_image_is_touched_only_when_the_journal_is_durable() {
    let (_a, b, primary, _backup, mut session) = Setup::new(&[Replicated], BYTES, 9).protected();
    for round in 0..10 {
        b.take_events();
        primary.disks()[0].write_at(round * 512, &[1; 512]).unwrap();
        session.epoch();
        session.settle();
        let events = b.take_events();
        let at = |wanted: &dyn Fn(&Event) -> bool| events.iter().position(wanted).unwrap();
        let put = at(&|e| matches!(e, Event::Write { name, .. } if name.starts_with("journal")));
        let safe = at(&|e| matches!(e, Event::Sync { name } if name.starts_with("journal")));
        let write = at(&|e| matches!(e, Event::Write { name, .. } if name == "disk0"));
        let flush = at(&|e| matches!(e, Event::Sync { name } if name == "disk0"));
        assert!(put < safe && safe < write && write < flush, "{events:?}");
    }
}

#[test]
fn the_journal_is_bounded_and_who_fills_it_waits() {
    let small = DiskLimits {
        journal_bytes_max: 64 << 10,
        ..lazy()
    };
    let setup = Setup {
        limits: [lazy(), small],
        ..Setup::new(&[Replicated], BYTES, 9)
    };
    let (a, b, primary, backup, mut session) = setup.protected();
    for round in 0..40u8 {
        let offset = u64::from(round) * 4096;
        primary.disks()[0]
            .write_at(offset, &[round; 10 << 10])
            .unwrap();
        session.epoch();
        assert!(backup.counts().journal_bytes <= 64 << 10);
    }
    backup
        .backup()
        .promote(EpochId(session.epoch), &mut |_| true)
        .unwrap();
    assert_eq!(a.content("disk0"), b.content("disk0"));
    // An epoch that can never fit is an error, not a wait.
    let backup = b.open(&[Replicated], small);
    let mut session = Session::begin(&primary, &backup, 2);
    session.sync();
    let write = crate::core::disk::DiskWrite {
        disk: 0,
        offset: 0,
        what: crate::core::disk::What::Data(vec![1; 40 << 10].into()),
    };
    let refused = persist(&backup, 2, EpochId(1), only([write]));
    assert!(matches!(refused, Err(DiskError::TooMuch { .. })));
}

#[test]
fn real_files_do_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let files = crate::files::FileSystem;
    let path = folder.path().join("journal.0");
    let file = JournalFile::open(&files, path.clone(), 1).unwrap();
    fill(&file, 1..4);
    file.sync().unwrap();
    drop(file);
    let files: Arc<dyn crate::files::HostFiles> = Arc::new(files);
    let file = JournalFile::open_existing(&*files, &path, 1)
        .unwrap()
        .unwrap();
    assert_eq!(file.walk(|_| Ok(())).unwrap().0, Some(place(3)));
    file.empty(place(3)).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), FILE_HEADER_BYTES);
    let missing = folder.path().join("journal.1");
    assert!(
        JournalFile::open_existing(&*files, &missing, 1)
            .unwrap()
            .is_none()
    );
}
