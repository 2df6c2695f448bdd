//! The log of a set by itself, and the epochs' writes in it.

use crate::core::disk::{DiskWrite, What};
use crate::disk::epoch_writes::EpochWrites;
use crate::disk::primary::checks::Check;
use crate::disk::primary::log::Log;
use crate::epoch_queue::{Bucket, EpochQueue};
use crate::ids::EpochId;

fn write(disk: u16, offset: u64, bytes: usize) -> DiskWrite {
    DiskWrite {
        disk,
        offset,
        what: What::Data(vec![1; bytes].into()),
    }
}

fn check(disk: u16, offset: u64, bytes: u64) -> Check {
    Check {
        disk,
        offset,
        bytes,
    }
}

/// A log that may have so many writes of a sector.
fn log_of(writes: u64) -> Log {
    Log::new(2, writes * write(0, 0, 512).memory_bytes())
}

#[test]
fn a_log_is_full_at_its_limit_and_few_bytes_are_less_than_a_quarter() {
    let mut log = log_of(4);
    log.begin(vec![None, None], Vec::new());
    for (before, few) in [(0, true), (1, false), (2, false), (3, false)] {
        assert!(log.has_room(), "{before} writes");
        assert_eq!(log.bytes_are_few(), few, "{before} writes");
        log.wrote(write(0, 0, 512));
        assert!(!log.take_wakeup(), "nobody waits");
    }
    assert!(!log.has_room());
    assert!(!log.take_wakeup(), "there is no room");
    log.seal(EpochId(1));
    log.shipped(EpochId(1));
    assert!(log.take_wakeup());
    assert!(!log.take_wakeup(), "once is enough");
}

#[test]
fn a_log_that_fills_is_told_of_whether_it_logs_or_holds() {
    let mut log = log_of(4);
    assert!(!log.is_logging());
    log.begin(vec![None, None], Vec::new());
    assert!(log.is_logging());
    log.wrote(write(0, 0, 512));
    assert!(!log.take_half_full());
    log.wrote(write(0, 0, 512));
    assert!(log.take_half_full(), "it logs");
    assert!(!log.take_half_full(), "once an epoch");
    log.end();
    assert!(!log.is_logging());
    let mut log = log_of(4);
    log.held.hold();
    log.hold_write(write(0, 0, 512));
    assert!(!log.take_half_full());
    log.hold_write(write(0, 0, 512));
    assert!(log.take_half_full(), "it holds");
}

#[test]
fn each_session_has_a_number_of_its_own() {
    let mut log = log_of(4);
    let mut seen = Vec::new();
    for epoch in 1..5 {
        assert_eq!(log.whole_session(), None);
        log.begin(vec![None, None], Vec::new());
        assert_eq!(log.whole_session(), None, "no epoch has ended");
        log.seal(EpochId(epoch));
        let session = log.whole_session().unwrap();
        assert!(!seen.contains(&session), "{session}");
        seen.push(session);
        log.end();
    }
}

/// Otherwise all of a comparison would be read with the guest's writes waiting.
#[test]
fn a_range_that_is_watched_was_written_only_if_a_write_touched_it() {
    let mut log = log_of(100);
    for (written, touches) in [
        (write(0, 4096, 512), true),
        (write(0, 3584, 1024), true),
        (write(0, 8192 - 512, 4096), true),
        (write(0, 3584, 512), false),
        (write(0, 8192, 512), false),
        (write(1, 4096, 512), false),
    ] {
        log.watch(check(0, 4096, 4096));
        log.wrote(written.clone());
        assert_eq!(log.was_written(), touches, "{written:?}");
    }
    log.watch(check(0, 4096, 4096));
    assert!(!log.was_written());
    assert!(log.was_written(), "nobody watched");
}

#[test]
fn an_epoch_without_a_write_or_a_flush_takes_no_place() {
    let mut epochs = EpochQueue::<EpochWrites>::default();
    epochs.seal(EpochId(1));
    assert_eq!(epochs.last_sealed(), None);
    epochs.current_mut().flush = true;
    epochs.seal(EpochId(2));
    assert_eq!(epochs.last_sealed(), Some(EpochId(2)));
    epochs.current_mut().push(write(0, 0, 512));
    epochs.seal(EpochId(3));
    assert_eq!(epochs.last_sealed(), Some(EpochId(3)));
}

#[test]
fn an_epoch_that_is_taken_back_keeps_its_writes_its_bytes_and_its_flush() {
    for (earlier, later) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut all = EpochWrites::default();
        let mut more = EpochWrites::default();
        all.push(write(0, 0, 512));
        more.push(write(1, 512, 4096));
        (all.flush, more.flush) = (earlier, later);
        all.append(more);
        let writes = [write(0, 0, 512), write(1, 512, 4096)];
        let bytes = writes.iter().map(DiskWrite::memory_bytes).sum::<u64>();
        assert_eq!(all.writes, writes);
        assert_eq!((all.bytes(), all.flush), (bytes, earlier || later));
    }
}
