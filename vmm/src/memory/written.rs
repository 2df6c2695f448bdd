//! Which pages were written through `vm-memory`: by devices, and by whoever boots a guest (step ②).
//!
//! One bit a page, and one for each 64 of those, so that taking few bits takes the same time in a large guest as in a
//! small one.

use std::sync::atomic::{AtomicU64, Ordering};

use understudy_replication::PAGE_BYTES;
use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// The written pages of one region.
#[derive(Debug, Default)]
pub struct Written {
    pages: Box<[AtomicU64]>,
    /// Which words of `pages` may have bits.
    words: Box<[AtomicU64]>,
}

fn zeros(bits: usize) -> Box<[AtomicU64]> {
    std::iter::repeat_with(|| AtomicU64::new(0))
        .take(bits.div_ceil(64))
        .collect()
}

impl Written {
    /// Takes all bits: gives `each` the number and the bits of each word that has some. A bit that is set meanwhile
    /// is either taken or stays.
    pub fn take(&self, mut each: impl FnMut(usize, u64)) {
        for (at, word) in self.words.iter().enumerate() {
            if word.load(Ordering::SeqCst) == 0 {
                continue;
            }
            // This one before those it stands for. Who writes sets them in the other order, so what is set too late
            // for us is found here the next time.
            let mut rest = word.swap(0, Ordering::SeqCst);
            while rest != 0 {
                let number = at * 64 + rest.trailing_zeros() as usize;
                rest &= rest - 1;
                let bits = self.pages[number].swap(0, Ordering::SeqCst);
                // Its bits may have been taken before it was named.
                if bits != 0 {
                    each(number, bits);
                }
            }
        }
    }
}

impl NewBitmap for Written {
    fn with_len(bytes: usize) -> Self {
        let pages = zeros(bytes.div_ceil(PAGE_BYTES));
        let words = zeros(pages.len());
        Self { pages, words }
    }
}

impl<'a> WithBitmapSlice<'a> for Written {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for Written {
    fn mark_dirty(&self, offset: usize, bytes: usize) {
        let Some(last) = bytes.checked_sub(1) else {
            return;
        };
        let pages = offset / PAGE_BYTES..=offset.saturating_add(last) / PAGE_BYTES;
        for page in pages {
            let number = page / 64;
            // As in `vm-memory`'s own: what lies outside is no page of this region.
            let Some(word) = self.pages.get(number) else {
                return;
            };
            word.fetch_or(1 << (page % 64), Ordering::SeqCst);
            self.words[number / 64].fetch_or(1 << (number % 64), Ordering::SeqCst);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset / PAGE_BYTES;
        let word = self.pages.get(page / 64);
        word.is_some_and(|word| word.load(Ordering::SeqCst) >> (page % 64) & 1 != 0)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicBool;

    use proptest::prelude::*;

    use super::*;

    const PAGES: usize = 64 * 64 * 3 + 5;

    fn take(written: &Written) -> BTreeSet<usize> {
        let mut pages = BTreeSet::new();
        written.take(|number, bits| {
            assert_ne!(bits, 0);
            let bits = (0..64).filter(|bit| bits >> bit & 1 != 0);
            pages.extend(bits.map(|bit| number * 64 + bit));
        });
        pages
    }

    proptest! {
        #[test]
        fn what_was_written_is_taken_once(
            writes in proptest::collection::vec((0..PAGES * PAGE_BYTES, 0..3 * PAGE_BYTES), 0..50),
        ) {
            let written = Written::with_len(PAGES * PAGE_BYTES);
            let mut pages = BTreeSet::new();
            for (offset, bytes) in writes {
                written.slice_at(offset / 2).mark_dirty(offset - offset / 2, bytes);
                pages.extend((offset..offset + bytes).step_by(PAGE_BYTES).map(|at| at / PAGE_BYTES));
                pages.extend((bytes > 0).then(|| (offset + bytes - 1) / PAGE_BYTES));
            }
            pages.retain(|page| *page < PAGES.next_multiple_of(64));
            for page in 0..PAGES {
                prop_assert_eq!(written.dirty_at(page * PAGE_BYTES), pages.contains(&page));
            }
            prop_assert_eq!(take(&written), pages);
            prop_assert_eq!(take(&written), BTreeSet::new());
        }
    }

    #[test]
    fn nothing_is_lost_that_is_written_meanwhile() {
        // Each round's pages are new, so each must be among what is taken from its write on.
        for round in 0..200 {
            let written = Written::with_len(64 * 64 * PAGE_BYTES);
            let [begun, ended] = [AtomicBool::new(false), AtomicBool::new(false)];
            let taken = std::thread::scope(|scope| {
                let taker = scope.spawn(|| {
                    let mut taken = 0;
                    let mut take_all = || written.take(|_, bits| taken += bits.count_ones());
                    begun.store(true, Ordering::SeqCst);
                    while !ended.load(Ordering::SeqCst) {
                        take_all();
                    }
                    take_all();
                    taken
                });
                while !begun.load(Ordering::SeqCst) {
                    std::hint::spin_loop();
                }
                for page in 0..64 * 64 {
                    written.mark_dirty(page * PAGE_BYTES, 1);
                }
                ended.store(true, Ordering::SeqCst);
                taker.join().unwrap()
            });
            assert_eq!(taken, 64 * 64, "round {round}");
        }
    }
}
