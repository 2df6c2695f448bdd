use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use understudy_replication::PageIndex;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::{Backing, Memory};

/// An in-memory log that fails on request, as the kernel's might.
#[derive(Clone)]
struct FakeLog(Arc<Mutex<Fake>>);

struct Fake {
    words: Vec<u64>,
    manual: bool,
    /// Pages that a running guest writes right after the log is read.
    late: Vec<u64>,
    calls_until_failure: Option<usize>,
    fail_mid_clear: bool,
}

impl FakeLog {
    fn new(pages: u64, manual: bool) -> Self {
        Self(Arc::new(Mutex::new(Fake {
            words: vec![0; pages.div_ceil(64) as usize],
            manual,
            late: Vec::new(),
            calls_until_failure: None,
            fail_mid_clear: false,
        })))
    }

    fn write(&self, page: u64) {
        self.0.lock().unwrap().words[(page / 64) as usize] |= 1 << (page % 64);
    }

    fn fail_after(&self, calls: Option<usize>, mid_clear: bool) {
        let mut fake = self.0.lock().unwrap();
        fake.calls_until_failure = calls;
        fake.fail_mid_clear = mid_clear;
    }
}

impl Fake {
    fn failing(&mut self) -> bool {
        match &mut self.calls_until_failure {
            Some(0) => true,
            Some(calls) => {
                *calls -= 1;
                false
            }
            None => false,
        }
    }
}

impl DirtyLog for FakeLog {
    fn is_manual(&self) -> bool {
        self.0.lock().unwrap().manual
    }

    fn is_initially_set(&self) -> bool {
        false
    }

    fn get(&mut self, _slot: u32, words: &mut [u64]) -> io::Result<()> {
        let mut fake = self.0.lock().unwrap();
        if fake.failing() {
            return Err(io::Error::from_raw_os_error(libc::EINTR));
        }
        words.copy_from_slice(&fake.words);
        if !fake.manual {
            fake.words.fill(0);
        }
        for page in std::mem::take(&mut fake.late) {
            fake.words[(page / 64) as usize] |= 1 << (page % 64);
        }
        Ok(())
    }

    fn clear(&mut self, _slot: u32, first_page: u64, _pages: u32, words: &[u64]) -> io::Result<()> {
        let mut fake = self.0.lock().unwrap();
        let failing = fake.failing();
        if failing && !fake.fail_mid_clear {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        // A failing call may have cleared some bits: here, half of the words.
        let done = if failing {
            words.len() / 2
        } else {
            words.len()
        };
        let first = (first_page / 64) as usize;
        for (word, bits) in fake.words[first..].iter_mut().zip(&words[..done]) {
            *word &= !bits;
        }
        if failing {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        Ok(())
    }
}

fn tracker(log: &FakeLog) -> (DirtyTracker, Memory) {
    tracker_where_faults_cost(log, Duration::ZERO)
}

fn tracker_where_faults_cost(log: &FakeLog, fault: Duration) -> (DirtyTracker, Memory) {
    let memory = Memory::allocate(2, Backing::Anonymous).unwrap();
    let mut tracker = DirtyTracker::new(
        Box::new(log.clone()),
        memory.ram().clone(),
        memory.layout().clone(),
    );
    tracker.start(fault).unwrap();
    (tracker, memory)
}

proptest! {
    /// R3: whatever fails, and whenever, each written page is in a harvest that follows the write,
    /// even if the caller discards the result of a failed harvest. If pages are left open, more pages are.
    #[test]
    fn no_bit_is_lost(
        manual: bool,
        leaves_open: bool,
        rounds in proptest::collection::vec(
            (
                proptest::collection::btree_set(0u64..512, 0..40),
                proptest::collection::btree_set(0u64..512, 0..10),
                proptest::option::of((0usize..3, any::<bool>())),
            ),
            1..12,
        ),
    ) {
        let log = FakeLog::new(512, manual);
        let fault = Duration::from_micros(if leaves_open { 30 } else { 0 });
        let (mut tracker, memory) = tracker_where_faults_cost(&log, fault);
        let mut owed = BTreeSet::new();
        let mut changed = PageSet::empty(memory.layout());
        for (by_vcpu, by_device, failure) in rounds {
            for page in &by_vcpu {
                log.write(*page);
            }
            for page in &by_device {
                memory.ram().write_obj(1u8, GuestAddress(page * 4096)).unwrap();
            }
            owed.extend(by_vcpu.union(&by_device).copied());
            log.fail_after(failure.map(|failure| failure.0), failure.is_some_and(|failure| failure.1));
            let mut got = PageSet::empty(memory.layout());
            if tracker.harvest(&mut got).is_ok() {
                changed.clear();
                owed.iter().for_each(|page| assert!(changed.insert(PageIndex(*page))));
                tracker.looked(looked(&changed));
                let got: BTreeSet<u64> = got.iter().map(|page| page.0).collect();
                if leaves_open {
                    prop_assert!(got.is_superset(&owed), "{:?} of {:?}", got, owed);
                } else {
                    prop_assert_eq!(&got, &owed);
                }
                owed.clear();
            }
        }
        log.fail_after(None, false);
        let mut got = PageSet::empty(memory.layout());
        tracker.harvest(&mut got).unwrap();
        let got: BTreeSet<u64> = got.iter().map(|page| page.0).collect();
        prop_assert!(got.is_superset(&owed));
        prop_assert!(leaves_open || got == owed);
    }
}

fn looked(changed: &PageSet) -> Looked<'_> {
    Looked {
        changed,
        pages: 1000,
        copying: Duration::from_micros(500),
        epoch: Duration::from_millis(20),
        open_max: u64::MAX,
    }
}

/// The kernel's bit of a page that is written again and again stays set, so that the guest has no fault.
#[test]
fn a_hot_page_stays_open_in_the_log_while_the_guest_stands_still_for_harvests() {
    let log = FakeLog::new(512, true);
    let (mut tracker, memory) = tracker_where_faults_cost(&log, Duration::from_micros(30));
    let is_open = || log.0.lock().unwrap().words[0] & 1 << 7 != 0;
    let mut got = PageSet::empty(memory.layout());
    for _ in 0..4 {
        log.write(7);
        got.clear();
        tracker.harvest(&mut got).unwrap();
        tracker.looked(looked(&got));
        assert!(got.contains(PageIndex(7)));
    }
    assert!(is_open());
    assert_eq!(tracker.open().len(), 1);
    // What a running guest writes after the copy would be lost if its page were counted as clean.
    tracker.harvest_and_protect(&mut got).unwrap();
    assert!(!is_open());
}

/// If the guest writes between reading and clearing the log, the write must not be lost.
#[test]
fn a_write_between_reading_and_clearing_is_in_the_next_harvest() {
    for manual in [true, false] {
        let log = FakeLog::new(512, manual);
        let (mut tracker, memory) = tracker(&log);
        log.write(7);
        log.0.lock().unwrap().late = vec![8, 500];
        let mut harvest = || {
            let mut got = PageSet::empty(memory.layout());
            tracker.harvest(&mut got).unwrap();
            got.iter().map(|page| page.0).collect::<Vec<_>>()
        };
        assert_eq!(harvest(), [7]);
        assert_eq!(harvest(), [8, 500]);
        assert_eq!(harvest(), [0; 0]);
    }
}

#[test]
fn a_failed_harvest_gives_what_it_read_and_names_the_call() {
    let log = FakeLog::new(512, true);
    let (mut tracker, memory) = tracker(&log);
    log.write(7);
    log.fail_after(Some(1), false);
    let mut got = PageSet::empty(memory.layout());
    let error = tracker.harvest(&mut got).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot clear the dirty log of memory slot 0 from its page 0x0 on"
    );
    assert!(got.contains(PageIndex(7)));
}

#[test]
fn harvesting_needs_tracking_and_the_same_layout() {
    let log = FakeLog::new(512, true);
    let (mut tracker, memory) = tracker(&log);
    let mut other = PageSet::empty(&MemoryLayout::new(Vec::new()));
    assert!(matches!(
        tracker.harvest(&mut other),
        Err(DirtyError::OtherLayout)
    ));
    tracker.stop();
    let mut set = PageSet::empty(memory.layout());
    assert!(matches!(
        tracker.harvest(&mut set),
        Err(DirtyError::NotTracking)
    ));
}
