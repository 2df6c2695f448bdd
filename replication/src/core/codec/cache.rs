//! A bounded number of pages, as they were last shipped. Knows no formats.

use std::collections::HashMap;

use crate::ids::{Page, PageIndex};

/// A bounded map from page to frame. It takes ownership of frames instead of copying them. When
/// full it replaces by the clock rule (second chance): a page stays if it was used since the hand
/// last passed it.
#[derive(Debug)]
pub(super) struct PageCache {
    index: HashMap<PageIndex, usize>,
    slots: Vec<Slot>,
    /// Slots whose frame belongs to no page, after [`PageCache::forget`].
    vacant: Vec<usize>,
    hand: usize,
    pages_max: usize,
}

#[derive(Debug)]
struct Slot {
    page: PageIndex,
    frame: Box<Page>,
    used: bool,
}

impl PageCache {
    pub(super) fn new(pages_max: usize) -> Self {
        Self {
            index: HashMap::new(),
            slots: Vec::new(),
            vacant: Vec::new(),
            hand: 0,
            pages_max,
        }
    }

    /// The frame kept for `page`.
    pub(super) fn get(&mut self, page: PageIndex) -> Option<&mut Box<Page>> {
        let slot = &mut self.slots[*self.index.get(&page)?];
        slot.used = true;
        Some(&mut slot.frame)
    }

    /// Keeps `frame` for a `page` that is not in the cache, and returns a frame that is now free.
    pub(super) fn insert(&mut self, page: PageIndex, frame: Box<Page>) -> Option<Box<Page>> {
        if self.pages_max == 0 {
            return Some(frame);
        }
        if self.vacant.is_empty() && self.slots.len() < self.pages_max {
            self.index.insert(page, self.slots.len());
            self.slots.push(Slot {
                page,
                frame,
                used: false,
            });
            return None;
        }
        let number = self.vacant.pop().unwrap_or_else(|| self.evict());
        self.index.insert(page, number);
        let slot = &mut self.slots[number];
        slot.page = page;
        slot.used = false;
        Some(std::mem::replace(&mut slot.frame, frame))
    }

    fn evict(&mut self) -> usize {
        loop {
            let number = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[number];
            if std::mem::take(&mut slot.used) {
                continue;
            }
            self.index.remove(&slot.page);
            return number;
        }
    }

    /// Forgets all pages but keeps their frames for later pages.
    pub(super) fn forget(&mut self) {
        self.index.clear();
        self.vacant = (0..self.slots.len()).collect();
        self.hand = 0;
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PAGE_BYTES;

    fn frame(fill: u8) -> Box<Page> {
        Box::new([fill; PAGE_BYTES])
    }

    #[test]
    fn keeps_at_most_its_maximum_and_what_is_used() {
        let mut cache = PageCache::new(3);
        for page in 0..3 {
            assert!(cache.insert(PageIndex(page), frame(page as u8)).is_none());
        }
        assert!(cache.get(PageIndex(0)).is_some());
        let spare = cache.insert(PageIndex(9), frame(9)).expect("a spare frame");
        assert_eq!(spare[0], 1, "page 1 was the first not used");
        assert!(cache.get(PageIndex(1)).is_none());
        assert_eq!(cache.get(PageIndex(0)).expect("used")[0], 0);
        assert_eq!(cache.get(PageIndex(9)).expect("new")[0], 9);
        assert_eq!(cache.len(), 3);
    }

    #[test]
    fn forgets_everything_but_keeps_the_frames() {
        let mut cache = PageCache::new(2);
        cache.insert(PageIndex(1), frame(1));
        cache.insert(PageIndex(2), frame(2));
        cache.forget();
        assert_eq!(cache.len(), 0);
        assert!(cache.get(PageIndex(1)).is_none());
        assert!(cache.insert(PageIndex(1), frame(3)).is_some());
        assert!(cache.insert(PageIndex(2), frame(4)).is_some());
        assert!(cache.insert(PageIndex(3), frame(5)).is_some());
        assert_eq!(cache.len(), 2);
    }

    #[test]
    fn of_size_zero_gives_every_frame_back() {
        let mut cache = PageCache::new(0);
        assert!(cache.insert(PageIndex(1), frame(1)).is_some());
        assert_eq!(cache.len(), 0);
    }
}
