//! R2 on the backup: whole epochs or nothing.

use std::sync::atomic::Ordering;

use super::*;
use crate::core::codec::{BatchWriter, Encoder};
use crate::core::disk::{DiskBatchWriter, DiskWrite, What};
use crate::core::testing::TestMemory;

const STATE: Bytes = Bytes::from_static(b"state");

fn batch(pages: &[(u64, u8)]) -> (Bytes, u32) {
    let mut encoder = Encoder::new(0);
    let mut writer = BatchWriter::new(1 << 20);
    for (page, fill) in pages {
        let _ = encoder.encode(PageIndex(*page), Box::new([*fill; PAGE_BYTES]), &mut writer);
    }
    let batch = writer.finish().expect("some page");
    (batch.body, batch.pages)
}

fn summary(batches: &[(Bytes, u32)]) -> EpochSummary {
    let mut tally = EpochTally::new();
    for (body, pages) in batches {
        tally.batch(body, *pages);
    }
    tally.state(&STATE);
    tally.output(&SealedOutput::default());
    tally.summary()
}

fn fills(memory: &TestMemory) -> Vec<u8> {
    memory.content().iter().map(|page| page[17]).collect()
}

fn stage_all(staging: &mut Staging, epoch: EpochId, batches: &[(Bytes, u32)], memory: &TestMemory) {
    for (body, _) in batches {
        staging.pages(epoch, body, memory).expect("pages");
    }
    staging.state(epoch, STATE).expect("state");
    staging
        .output(epoch, SealedOutput::default())
        .expect("output");
}

#[test]
fn nothing_is_written_before_the_commit_and_everything_by_it() {
    let memory = TestMemory::new(4);
    let mut staging = Staging::new(memory.layout());
    let epoch = EpochId(1);
    let batches = [batch(&[(100, 1), (103, 2)]), batch(&[(101, 3)])];
    stage_all(&mut staging, epoch, &batches, &memory);
    assert_eq!(staging.commit(usize::MAX, &memory).expect("not yet"), None);
    staging.end(epoch, summary(&batches)).expect("whole");
    assert_eq!(fills(&memory), [0, 0, 0, 0]);
    let committed = staging
        .commit(usize::MAX, &memory)
        .expect("commits")
        .expect("whole");
    assert_eq!(
        committed,
        Committed {
            epoch,
            state: STATE,
            output: SealedOutput::default(),
            pages: 3
        }
    );
    assert_eq!(fills(&memory), [1, 3, 0, 2]);
    assert_eq!(staging.epoch(), EpochId(2));
    assert_eq!(staging.commit(usize::MAX, &memory).expect("once"), None);
}

#[test]
fn a_restart_drops_everything_and_the_pages_may_come_again() {
    let memory = TestMemory::new(4);
    let mut staging = Staging::new(memory.layout());
    let torn = [batch(&[(100, 9)])];
    stage_all(&mut staging, EpochId(1), &torn, &memory);
    staging.restart(EpochId(1));
    assert!(!staging.has_begun());
    let batches = [batch(&[(100, 1), (101, 1)])];
    stage_all(&mut staging, EpochId(1), &batches, &memory);
    staging
        .end(EpochId(1), summary(&batches))
        .expect("only what came after counts");
    staging
        .commit(usize::MAX, &memory)
        .expect("commits")
        .expect("whole");
    assert_eq!(fills(&memory), [1, 1, 0, 0]);
}

#[test]
fn a_different_summary_is_refused() {
    let memory = TestMemory::new(4);
    let batches = [batch(&[(100, 1)])];
    let sent = summary(&batches);
    let wrong = [
        EpochSummary { pages: 2, ..sent },
        EpochSummary { batches: 2, ..sent },
        EpochSummary {
            digest: sent.digest ^ 1,
            ..sent
        },
    ];
    for wrong in wrong {
        let mut staging = Staging::new(memory.layout());
        stage_all(&mut staging, EpochId(1), &batches, &memory);
        let error = staging.end(EpochId(1), wrong).expect_err("differs");
        assert!(error.to_string().starts_with("epoch 1: "), "{error}");
        assert!(!staging.is_whole());
        assert_eq!(staging.commit(usize::MAX, &memory).expect("nothing"), None);
    }
    assert_eq!(fills(&memory), [0, 0, 0, 0]);
}

#[test]
fn messages_out_of_order_or_of_other_epochs_are_refused_by_name() {
    let memory = TestMemory::new(4);
    let (body, _) = batch(&[(100, 1)]);
    let one = EpochId(1);
    let fresh = || Staging::new(memory.layout());

    let late = fresh().pages(EpochId(2), &body, &memory);
    assert!(matches!(
        late,
        Err(StagingError::WrongEpoch {
            found: EpochId(2),
            ..
        })
    ));
    assert!(fresh().output(one, SealedOutput::default()).is_err());
    let end = fresh().end(one, EpochTally::new().summary());
    assert!(matches!(
        end,
        Err(StagingError::OutOfOrder { what: "end", .. })
    ));

    let mut staging = fresh();
    staging.state(one, STATE).expect("first state");
    assert!(staging.state(one, STATE).is_err(), "a second state");
    assert!(
        staging.pages(one, &body, &memory).is_err(),
        "pages after it"
    );
    staging
        .output(one, SealedOutput::default())
        .expect("first output");
    assert!(staging.output(one, SealedOutput::default()).is_err());
    staging.end(one, summary(&[])).expect("an empty epoch");
    assert!(staging.end(one, summary(&[])).is_err(), "a second end");
}

#[test]
fn a_page_twice_in_an_epoch_is_refused_also_across_batches() {
    let memory = TestMemory::new(4);
    let mut staging = Staging::new(memory.layout());
    staging
        .pages(EpochId(1), &batch(&[(100, 1)]).0, &memory)
        .expect("first");
    let error = staging.pages(EpochId(1), &batch(&[(101, 1), (100, 1)]).0, &memory);
    let page = PageIndex(100);
    assert_eq!(
        error,
        Err(StagingError::Batch {
            epoch: EpochId(1),
            batch: 1,
            error: CodecError::Duplicate { page }
        })
    );
}

#[test]
fn initial_pages_are_applied_at_once_and_only_before_epoch_1_begins() {
    let memory = TestMemory::new(4);
    let mut staging = Staging::new(memory.layout());
    let (first, _) = batch(&[(100, 1), (101, 1)]);
    let (again, _) = batch(&[(101, 2)]);
    staging.sync(&first, &memory).expect("round 1");
    staging.sync(&again, &memory).expect("round 2");
    assert_eq!(fills(&memory), [1, 2, 0, 0]);
    let (body, _) = batch(&[(102, 3)]);
    staging.pages(EpochId(1), &body, &memory).expect("epoch 1");
    assert!(matches!(
        staging.sync(&again, &memory),
        Err(StagingError::OutOfOrder { .. })
    ));
}

#[test]
fn memory_that_cannot_be_written_is_reported() {
    let memory = TestMemory::new(4);
    let mut staging = Staging::new(memory.layout());
    let batches = [batch(&[(100, 1)])];
    stage_all(&mut staging, EpochId(1), &batches, &memory);
    staging.end(EpochId(1), summary(&batches)).expect("whole");
    memory.broken.store(true, Ordering::Relaxed);
    let error = staging
        .commit(usize::MAX, &memory)
        .expect_err("cannot write");
    assert!(error.to_string().contains("epoch 1"), "{error}");
}

const DISK_BYTES: u64 = 1 << 20;

fn disk_batch(offset: u64) -> Bytes {
    let mut writer = DiskBatchWriter::new(1 << 16);
    let what = What::Data(vec![7; 512].into());
    let write = DiskWrite {
        disk: 0,
        offset,
        what,
    };
    writer.push(&write, |_| panic!("one batch is enough"));
    writer.finish().expect("a write").body
}

/// Stages pages and one disk write; `sent` is what the primary says of the latter.
fn with_disk(memory: &TestMemory, staged: &Bytes, sent: &Bytes) -> Result<Staging, StagingError> {
    let epoch = EpochId(1);
    let pages = batch(&[(100, 1)]);
    let mut staging = Staging::new(memory.layout());
    staging.pages(epoch, &pages.0, memory)?;
    staging.disk(epoch, staged.clone(), &[DISK_BYTES])?;
    staging.state(epoch, STATE)?;
    staging.output(epoch, SealedOutput::default())?;
    let mut tally = EpochTally::new();
    tally.batch(&pages.0, pages.1);
    tally.disk_batch(sent);
    tally.state(&STATE);
    tally.output(&SealedOutput::default());
    let (flush, written_through) = (true, EpochId(9));
    let summary = EpochSummary {
        flush,
        written_through,
        ..tally.summary()
    };
    staging.end(epoch, summary)?;
    Ok(staging)
}

#[test]
fn disk_writes_are_part_of_the_digest_and_given_out_once() {
    let memory = TestMemory::new(4);
    let (one, other) = (disk_batch(0), disk_batch(512));
    let mut staging = with_disk(&memory, &one, &one).expect("whole");
    assert_eq!(staging.take_disk_batches(), std::slice::from_ref(&one));
    assert!(staging.take_disk_batches().is_empty());
    let error = with_disk(&memory, &one, &other).expect_err("another write");
    assert!(
        matches!(error, StagingError::SummaryDiffers { .. }),
        "{error}"
    );
}

#[test]
fn disk_writes_of_an_epoch_are_bounded_and_each_counts_more_than_its_bytes() {
    let memory = TestMemory::new(4);
    let mut staging = Staging::new(memory.layout());
    let (epoch, pages, batch) = (EpochId(1), batch(&[(100, 1)]), disk_batch(0));
    staging.disk_bytes = DISK_BYTES_MAX - 2 * (batch.len() + BATCH_OVERHEAD_BYTES);
    let mut stage = || staging.disk(epoch, batch.clone(), &[DISK_BYTES]);
    stage().expect("room for two");
    stage().expect("room for one");
    let full = stage();
    assert!(
        matches!(full, Err(StagingError::DiskBytes { .. })),
        "{full:?}"
    );
    staging.restart(epoch);
    staging.pages(epoch, &pages.0, &memory).expect("pages");
    assert!(staging.has_begun(), "pages are something of an epoch");
    let again = staging.disk(epoch, batch, &[DISK_BYTES]);
    again.expect("another epoch has room of its own");
}

#[test]
fn disk_writes_out_of_order_of_other_epochs_or_other_disks_are_refused() {
    let memory = TestMemory::new(4);
    let one = EpochId(1);
    let sizes = [DISK_BYTES];
    let mut staging = Staging::new(memory.layout());
    let late = staging.disk(EpochId(2), disk_batch(0), &sizes);
    assert!(
        matches!(late, Err(StagingError::WrongEpoch { .. })),
        "{late:?}"
    );
    assert!(!staging.has_begun());
    for (batch, sizes) in [
        (disk_batch(DISK_BYTES), &sizes[..]),
        (disk_batch(0), &[]),
        (Bytes::from_static(&[1, 0, 0]), &sizes),
    ] {
        let bad = staging.disk(one, batch, sizes);
        assert!(matches!(bad, Err(StagingError::Disk { .. })), "{bad:?}");
    }
    staging.disk(one, disk_batch(0), &sizes).expect("good");
    assert!(staging.has_begun());
    let pages = staging.pages(one, &batch(&[(100, 1)]).0, &memory);
    assert!(
        matches!(pages, Err(StagingError::OutOfOrder { .. })),
        "pages after disk writes: {pages:?}"
    );
    let sync = staging.sync(&batch(&[(100, 1)]).0, &memory);
    assert!(
        matches!(sync, Err(StagingError::OutOfOrder { .. })),
        "{sync:?}"
    );
    staging.state(one, STATE).expect("state");
    let after = staging.disk(one, disk_batch(0), &sizes);
    assert!(
        matches!(after, Err(StagingError::OutOfOrder { .. })),
        "{after:?}"
    );
    staging.restart(one);
    assert!(!staging.has_begun());
    assert!(staging.take_disk_batches().is_empty());
    staging.state(one, STATE).expect("nothing was written");
    assert!(staging.has_begun(), "and state is something, too");
}

#[test]
fn a_commit_in_slices_is_whole_only_after_the_last() {
    let memory = TestMemory::new(4);
    let mut staging = Staging::new(memory.layout());
    let batches = [batch(&[(100, 1), (101, 2), (102, 3)])];
    stage_all(&mut staging, EpochId(1), &batches, &memory);
    staging.end(EpochId(1), summary(&batches)).expect("whole");
    assert_eq!(staging.commit(2, &memory).expect("a slice"), None);
    assert!(staging.is_whole());
    assert_eq!(fills(&memory), [1, 2, 0, 0]);
    let committed = staging.commit(2, &memory).expect("the rest").expect("all");
    assert_eq!(committed.pages, 3);
    assert_eq!(fills(&memory), [1, 2, 3, 0]);
}
