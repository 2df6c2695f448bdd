use proptest::prelude::*;

use super::*;
use crate::ids::PageIndex;
use crate::page_set::{Region, is_zero};

const PAGES: u64 = 300;
const EPOCH: Duration = Duration::from_millis(20);
const COPY: Duration = Duration::from_nanos(500);

/// A guest's memory with a log like KVM's: a page whose bit is clear is protected, and the first write to it is
/// a fault that sets the bit.
struct Guest {
    open: OpenPages,
    log: Vec<u64>,
    /// Written since the last harvest.
    written: PageSet,
    faults: u64,
    looks: u64,
}

fn layout() -> MemoryLayout {
    MemoryLayout::new(vec![Region {
        first: PageIndex(0),
        pages: PAGES,
    }])
}

impl Guest {
    fn new(fault: Duration) -> Self {
        let mut open = OpenPages::new(&layout());
        open.start(fault);
        let mut guest = Self {
            open,
            log: vec![0; PAGES.div_ceil(64) as usize],
            written: PageSet::empty(&layout()),
            faults: 0,
            looks: 0,
        };
        // What a copy costs is known after the first epoch.
        guest.epoch();
        guest
    }

    fn write(&mut self, page: u64) {
        self.written.insert(PageIndex(page));
        let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
        self.faults += u64::from(self.log[word] & bit == 0);
        self.log[word] |= bit;
    }

    /// Harvests, and returns what was dirty.
    fn epoch(&mut self) -> PageSet {
        let mut dirty = PageSet::empty(&layout());
        let mut clear = self.log.clone();
        dirty.region_words_mut(0).copy_from_slice(&clear);
        self.open.settle(0, 0, &mut clear);
        for (log, clear) in self.log.iter_mut().zip(&clear) {
            *log &= !clear;
        }
        self.looks += dirty.len();
        let looked = Looked {
            changed: &self.written,
            pages: 1_000,
            copying: COPY * 1_000,
            epoch: EPOCH,
            open_max: u64::MAX,
        };
        self.open.looked(looked);
        self.written.clear();
        dirty
    }

    fn is_open(&self, page: u64) -> bool {
        self.log[(page / 64) as usize] & 1 << (page % 64) != 0
    }
}

proptest! {
    /// R3: whatever the guest writes, and whenever pages are opened and closed, a written page is in the harvest
    /// that follows.
    #[test]
    fn every_written_page_is_dirty_in_its_epoch(
        epochs in prop::collection::vec(prop::collection::vec(0..PAGES, 0..40), 1..60),
        fault_us in 0u64..40,
    ) {
        let mut guest = Guest::new(Duration::from_micros(fault_us));
        for pages in epochs {
            pages.iter().for_each(|page| guest.write(*page));
            let written = guest.written.clone();
            let dirty = guest.epoch();
            for page in written.iter() {
                prop_assert!(dirty.contains(page), "{page} was written and is not dirty");
            }
            let open = (0..PAGES).filter(|page| guest.is_open(*page)).count();
            prop_assert_eq!(guest.open.len(), open as u64);
        }
    }

    /// Blocks that have nothing to settle are passed over, and others are not: one large region does as several small
    /// ones that are settled whatever they have.
    #[test]
    fn a_large_region_is_settled_as_its_parts_would_be(
        epochs in prop::collection::vec(prop::collection::vec((0u64..3, 0u64..6), 0..6), 1..60),
    ) {
        const BLOCK_PAGES: u64 = 64 * BLOCK_WORDS as u64;
        let regions = |count: u64, pages| {
            let first = |number| PageIndex(number * pages);
            let regions = (0..count).map(|number| Region { first: first(number), pages });
            MemoryLayout::new(regions.collect())
        };
        let layouts = [regions(1, 3 * BLOCK_PAGES), regions(3, BLOCK_PAGES)];
        let mut open = layouts.each_ref().map(OpenPages::new);
        open.iter_mut().for_each(|open| open.start(Duration::from_micros(10)));
        let mut log = vec![0u64; 3 * BLOCK_WORDS];
        for (number, written) in epochs.into_iter().enumerate() {
            let pages = written.iter().map(|(block, page)| block * BLOCK_PAGES + page);
            pages.clone().for_each(|page| log[(page / 64) as usize] |= 1 << (page % 64));
            // A log may also forget.
            let forgotten = (number as u64 % 7 * BLOCK_PAGES / 64) as usize;
            log.get_mut(forgotten).into_iter().for_each(|word| *word = 0);
            let [mut whole, mut parts] = [log.clone(), log.clone()];
            for (block, words) in whole.chunks_mut(BLOCK_WORDS).enumerate() {
                if !is_zero(words) || !open[0].has_none_in(0, block) {
                    open[0].settle(0, block, words);
                }
            }
            for (region, words) in parts.chunks_mut(BLOCK_WORDS).enumerate() {
                open[1].settle(region, 0, words);
            }
            prop_assert_eq!(&whole, &parts);
            prop_assert_eq!(open[0].len(), open[1].len());
            log.iter_mut().zip(&whole).for_each(|(log, clear)| *log &= !clear);
            for (open, layout) in open.iter_mut().zip(&layouts) {
                let mut changed = PageSet::empty(layout);
                pages.clone().for_each(|page| { changed.insert(PageIndex(page)); });
                open.looked(Looked {
                    changed: &changed,
                    pages: 100,
                    copying: COPY * 100,
                    epoch: EPOCH,
                    open_max: 7,
                });
            }
        }
    }

    /// The promise of the rule: faults and looks in vain together cost at most twice what a page would cost if
    /// its future were known, apart from the two faults in which it is learnt to be worth it.
    #[test]
    fn costs_at_most_twice_what_the_best_foresight_would(
        gaps in prop::collection::vec(1u64..100, 1..60),
    ) {
        let fault = Duration::from_micros(20);
        let look = COPY * LOOK_COPIES;
        let mut guest = Guest::new(fault);
        let mut best = Duration::ZERO;
        for gap in &gaps {
            for _ in 1..*gap {
                guest.epoch();
            }
            guest.write(5);
            guest.epoch();
            best += fault.min(look * (*gap as u32 - 1));
        }
        let in_vain = guest.looks - gaps.len() as u64;
        let cost = fault * guest.faults as u32 + look * in_vain as u32;
        prop_assert!(cost <= best * 2 + fault * 2, "{cost:?} where {best:?} was possible");
    }
}

#[test]
fn a_page_written_in_every_epoch_costs_two_faults() {
    let mut guest = Guest::new(Duration::from_micros(30));
    for _ in 0..100 {
        guest.write(7);
        assert!(guest.epoch().contains(PageIndex(7)));
    }
    assert_eq!(guest.faults, 2);
    assert_eq!(guest.open.len(), 1);
}

#[test]
fn a_page_that_is_no_longer_written_is_closed_after_as_many_looks_as_a_fault_costs() {
    let mut guest = Guest::new(Duration::from_micros(10));
    assert_eq!(guest.open.patience(), 10);
    for _ in 0..3 {
        guest.write(7);
        guest.epoch();
    }
    assert!(guest.is_open(7));
    let looks = (1..100)
        .take_while(|_| guest.epoch().contains(PageIndex(7)))
        .count();
    // The last look closes it.
    assert_eq!(looks, 11);
    assert!(!guest.is_open(7) && guest.open.is_empty());
    assert!(guest.epoch().is_empty());
}

#[test]
fn a_guest_that_fills_memory_opens_nothing() {
    let mut guest = Guest::new(Duration::from_micros(30));
    for page in 0..PAGES {
        guest.write(page);
        assert_eq!(guest.epoch().len(), 1);
        assert!(guest.open.is_empty());
    }
}

#[test]
fn a_page_that_comes_back_too_late_is_not_opened() {
    let mut guest = Guest::new(Duration::from_micros(10));
    for _ in 0..5 {
        guest.write(7);
        for _ in 0..11 {
            guest.epoch();
        }
        assert!(guest.open.is_empty());
    }
}

#[test]
fn nothing_is_opened_where_faults_are_as_cheap_as_looks() {
    let mut guest = Guest::new(Duration::from_nanos(900));
    for _ in 0..10 {
        guest.write(7);
        guest.epoch();
    }
    assert_eq!(guest.open.patience(), 0);
    assert!(guest.open.is_empty());
}

#[test]
fn copying_the_open_pages_takes_at_most_half_of_an_epoch() {
    let mut guest = Guest::new(Duration::from_micros(30));
    // Half of it has room for so many copies.
    let looked = Looked {
        changed: &PageSet::empty(&layout()),
        pages: 100,
        copying: Duration::from_micros(100) * 100,
        epoch: EPOCH,
        open_max: u64::MAX,
    };
    for _ in 0..200 {
        guest.open.looked(looked);
    }
    let most = guest.open.open_max;
    assert!((100..=105).contains(&most), "{most}");
    guest.open.patience = 9;
    for _ in 0..4 {
        let mut dirty = vec![u64::MAX; 4];
        dirty.push((1 << (PAGES % 64)) - 1);
        guest.open.settle(0, 0, &mut dirty);
        guest.open.epoch += 1;
    }
    assert_eq!(guest.open.len(), most);
    // Epochs have become shorter: those that are too many are closed, the ones that were not written first.
    let mut changed = PageSet::empty(&layout());
    let open: Vec<u64> = (0..PAGES)
        .filter(|page| guest.open.open.contains(PageIndex(*page)))
        .collect();
    open[..10].iter().for_each(|page| {
        changed.insert(PageIndex(*page));
    });
    for (limit, left) in [(10, 10), (4, 4)] {
        guest.open.looked(Looked {
            changed: &changed,
            open_max: limit,
            ..looked
        });
        let mut dirty = vec![u64::MAX; 4];
        dirty.push((1 << (PAGES % 64)) - 1);
        guest.open.patience = 0;
        guest.open.settle(0, 0, &mut dirty);
        assert_eq!(guest.open.len(), left);
        let is_open = |page: &&u64| guest.open.open.contains(PageIndex(**page));
        let written = open[..10].iter().filter(is_open).count();
        assert_eq!(written as u64, left);
    }
}

#[test]
fn what_a_copy_costs_is_learnt_from_few_pages_too() {
    let mut guest = Guest::new(Duration::from_micros(30));
    guest.open.start(Duration::from_micros(30));
    for _ in 0..64 {
        assert_eq!(guest.open.patience(), 0);
        guest.open.looked(Looked {
            changed: &PageSet::empty(&layout()),
            pages: 1,
            copying: COPY,
            epoch: EPOCH,
            open_max: u64::MAX,
        });
    }
    assert_eq!(guest.open.patience(), 30);
}

#[test]
fn a_page_that_the_log_does_not_report_is_not_open() {
    let mut guest = Guest::new(Duration::from_micros(30));
    for _ in 0..3 {
        guest.write(7);
        guest.epoch();
    }
    assert!(guest.is_open(7));
    guest.log.fill(0);
    guest.epoch();
    assert!(guest.open.is_empty());
}

#[test]
fn a_bit_that_could_not_be_cleared_is_not_a_second_write() {
    let mut guest = Guest::new(Duration::from_micros(30));
    guest.write(7);
    for _ in 0..2 {
        let mut clear = guest.log.clone();
        guest.open.settle(0, 0, &mut clear);
        assert_eq!(clear, guest.log);
    }
    assert!(guest.open.is_empty());
}

#[test]
fn starting_anew_closes_all() {
    let mut guest = Guest::new(Duration::from_micros(30));
    for _ in 0..3 {
        guest.write(7);
        guest.epoch();
    }
    guest.open.start(Duration::ZERO);
    guest.log.fill(0);
    assert!(guest.open.is_empty());
    for _ in 0..3 {
        guest.write(7);
        guest.epoch();
        assert!(guest.open.is_empty());
    }
}
