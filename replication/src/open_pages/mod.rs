//! Which pages to leave open, that is, not write-protected, after a harvest (step ②).
//!
//! The first write to a protected page costs the guest a fault. An open page costs no fault, but counts as
//! dirty in every epoch (R3): it is copied and compared each time, written or not. Both costs differ from
//! host to host by a factor of thirty, and are measured.
//!
//! How long to leave a page open that is not written is the ski-rental problem: rent (look at it once more) or
//! buy (protect it, and pay for a fault when it is written again). Who rents until the rent equals the price,
//! and buys then, never pays more than twice what the best decision in hindsight costs. So a page is closed once
//! it was looked at in vain as often as a fault costs looks: [`OpenPages::patience`]. A page is opened when it is
//! written again within as many epochs: then keeping it open would have been no dearer than the fault. Hence a
//! page that is written once, by a guest that fills memory, is never looked at twice.
//!
//! The pages that are open lengthen the pause, so copying them all may take at most a part of the epoch.
//!
//! Must not be done here: reading or clearing logs, or deciding whether a page was written. If a page that the
//! log does not report is open here, it is forgotten: the log is right.

use std::time::Duration;

use crate::page_set::{BLOCK_WORDS, MemoryLayout, PageSet};

/// Patience is at most so many epochs, however dear faults are: what was written a second ago says little.
const PATIENCE_MAX: u32 = 64;
/// Copying all open pages may take one part of so many of an epoch.
const OPEN_PART: u32 = 2;
/// A page that is looked at is copied, and compared by another thread. Together they take so many times as
/// long as the copy.
const LOOK_COPIES: u32 = 2;
/// The weight of a new measurement of a copy: one part of so many.
const SMOOTH: u32 = 8;
/// Fewer pages say little about what copying one costs.
const PAGES_MEASURED_MIN: u64 = 64;

/// What became of the pages that the last harvest reported.
#[derive(Debug, Clone, Copy)]
pub struct Looked<'a> {
    /// Pages whose content differs from what it was an epoch before. Others were either not written, or it is not
    /// known what they contained.
    pub changed: &'a PageSet,
    /// How many pages were copied.
    pub pages: u64,
    /// How long the guest stood still while they were copied.
    pub copying: Duration,
    /// How long the epoch was.
    pub epoch: Duration,
    /// At most so many pages may be open, whatever they cost.
    pub open_max: u64,
}

/// The open pages of one machine, and those that will be.
#[derive(Debug)]
pub struct OpenPages {
    /// Their bits were left set in the log by the last harvest.
    open: PageSet,
    /// Open pages that the next harvest closes.
    closing: PageSet,
    /// By region and page: the epoch in which the page was last seen written, or 0.
    written_in: Vec<Vec<u32>>,
    epoch: u32,
    /// By region and block: how many pages are open.
    open_in: Vec<Vec<u32>>,
    open_pages: u64,
    /// Never more than this.
    open_max: u64,
    /// What a fault costs the guest; zero if it is not known.
    fault: Duration,
    /// What copying a page costs, smoothed.
    copy: Option<Duration>,
    /// Pages, and the time of copying them, that were too few for a measurement.
    unmeasured: (u64, Duration),
    patience: u32,
}

impl OpenPages {
    /// No page is open.
    #[must_use]
    pub fn new(layout: &MemoryLayout) -> Self {
        let pages = layout.regions().iter().map(|region| region.pages as usize);
        let blocks = pages.clone().map(|pages| pages.div_ceil(64 * BLOCK_WORDS));
        Self {
            open: PageSet::empty(layout),
            closing: PageSet::empty(layout),
            written_in: pages.map(|pages| vec![0; pages]).collect(),
            epoch: 1,
            open_in: blocks.map(|blocks| vec![0; blocks]).collect(),
            open_pages: 0,
            open_max: 0,
            fault: Duration::ZERO,
            copy: None,
            unmeasured: (0, Duration::ZERO),
            patience: 0,
        }
    }

    /// Begins anew: all pages are closed. A write to a closed page costs the guest `fault`; with zero, no page
    /// will be opened.
    pub fn start(&mut self, fault: Duration) {
        self.open.clear();
        self.closing.clear();
        // Fresh memory takes no place before it is written.
        self.written_in
            .iter_mut()
            .for_each(|pages| *pages = vec![0; pages.len()]);
        self.open_in.iter_mut().for_each(|blocks| blocks.fill(0));
        (self.epoch, self.open_pages, self.open_max) = (1, 0, 0);
        self.fault = fault;
        (self.copy, self.unmeasured) = (None, (0, Duration::ZERO));
        self.patience = 0;
    }

    /// How many pages are open.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.open_pages
    }

    /// Whether no page is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.open_pages == 0
    }

    /// What a write to a closed page costs the guest; zero if it is not known.
    #[must_use]
    pub fn fault(&self) -> Duration {
        self.fault
    }

    /// After so many epochs in which it was not written, a page is closed. With 0, none is opened.
    #[must_use]
    pub fn patience(&self) -> u32 {
        self.patience
    }

    /// Reduces `dirty`, a block of a region's log, to the bits that are to be cleared. What remains set in the log is
    /// open. To be called for each block of the log, while the guest stands still, because pages that are closed must be
    /// copied before it goes on. The time it takes depends on how many pages are newly dirty, each of which has cost a
    /// fault.
    ///
    /// A block that has no page has nothing to settle if it is [`OpenPages::has_none_in`].
    pub fn settle(&mut self, region: usize, block: usize, dirty: &mut [u64]) {
        let words = block * BLOCK_WORDS..block * BLOCK_WORDS + dirty.len();
        let open = &mut self.open.region_words_mut(region)[words.clone()];
        let closing = &mut self.closing.region_words_mut(region)[words];
        let written_in = &mut self.written_in[region][block * BLOCK_WORDS * 64..];
        let mut open_here = 0;
        let words = dirty.iter_mut().zip(open).zip(closing);
        for (number, ((dirty, open), closing)) in words.enumerate() {
            let mut kept = *open & *dirty & !std::mem::take(closing);
            self.open_pages -= u64::from((*open & !kept).count_ones());
            let mut fresh = *dirty & !*open;
            while fresh != 0 {
                let bit = fresh.trailing_zeros();
                fresh &= fresh - 1;
                let Some(written_in) = written_in.get_mut(number * 64 + bit as usize) else {
                    continue;
                };
                let last = std::mem::replace(written_in, self.epoch);
                // 0 if the harvest before failed to clear its bit.
                let gap = self.epoch.wrapping_sub(last);
                let is_back_soon = last != 0 && (1..=self.patience).contains(&gap);
                if is_back_soon && self.open_pages < self.open_max {
                    kept |= 1 << bit;
                    self.open_pages += 1;
                }
            }
            open_here += kept.count_ones();
            *open = kept;
            *dirty &= !kept;
        }
        self.open_in[region][block] = open_here;
    }

    /// Whether no page of a block is open.
    #[must_use]
    pub fn has_none_in(&self, region: usize, block: usize) -> bool {
        self.open_in[region][block] == 0
    }

    /// Takes what was found out about the pages of the last harvest. To be called after each, while the guest
    /// runs.
    pub fn looked(&mut self, looked: Looked<'_>) {
        self.measure(looked.pages, looked.copying);
        self.adapt(looked.epoch, looked.open_max);
        let mut surplus = self.open_pages.saturating_sub(self.open_max);
        for region in 0..self.written_in.len() {
            surplus = self.judge(region, looked.changed, surplus);
        }
        for region in 0..self.written_in.len() {
            surplus = self.close(region, surplus);
        }
        self.epoch = self.epoch.wrapping_add(1).max(1);
    }

    /// Closes pages that were looked at in vain for too long, or, while there are too many, at all. Returns how
    /// many are still too many.
    fn judge(&mut self, region: usize, changed: &PageSet, mut surplus: u64) -> u64 {
        let written_in = &mut self.written_in[region];
        let open = self.open.region_words(region).iter();
        let changed = changed.region_words(region);
        let closing = self.closing.region_words_mut(region).iter_mut();
        for (number, ((open, changed), closing)) in open.zip(changed).zip(closing).enumerate() {
            let mut rest = *open;
            while rest != 0 {
                let bit = rest.trailing_zeros();
                rest &= rest - 1;
                let written_in = &mut written_in[number * 64 + bit as usize];
                if changed >> bit & 1 != 0 {
                    *written_in = self.epoch;
                } else if surplus > 0 || self.epoch.wrapping_sub(*written_in) >= self.patience {
                    *closing |= 1 << bit;
                    surplus = surplus.saturating_sub(1);
                }
            }
        }
        surplus
    }

    /// Closes `surplus` pages, and returns how many were missing for that.
    fn close(&mut self, region: usize, mut surplus: u64) -> u64 {
        let open = self.open.region_words(region).iter();
        let closing = self.closing.region_words_mut(region).iter_mut();
        for (open, closing) in open.zip(closing) {
            while surplus > 0 && *open & !*closing != 0 {
                *closing |= 1 << (*open & !*closing).trailing_zeros();
                surplus -= 1;
            }
        }
        surplus
    }

    fn measure(&mut self, pages: u64, copying: Duration) {
        let (before, time) = self.unmeasured;
        let (pages, copying) = (before.saturating_add(pages), time + copying);
        let count = u32::try_from(pages).ok();
        let Some(count) = count.filter(|_| pages >= PAGES_MEASURED_MIN) else {
            self.unmeasured = (pages, copying);
            return;
        };
        self.unmeasured = (0, Duration::ZERO);
        let copy = copying / count;
        self.copy = Some(match self.copy {
            Some(before) => before - before / SMOOTH + copy / SMOOTH,
            None => copy,
        });
    }

    /// Sets patience and the limit for the next harvest.
    fn adapt(&mut self, epoch: Duration, open_max: u64) {
        let Some(copy) = self.copy.filter(|copy| !copy.is_zero()) else {
            return;
        };
        let copies_in = |time: Duration| (time.as_nanos() / copy.as_nanos()) as u64;
        let looks = copies_in(self.fault) / u64::from(LOOK_COPIES);
        self.patience = looks.min(PATIENCE_MAX.into()) as u32;
        self.open_max = copies_in(epoch / OPEN_PART).min(open_max);
    }
}

#[cfg(test)]
mod tests;
