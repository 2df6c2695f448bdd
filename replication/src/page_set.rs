//! Guest memory layout, and sets of guest pages as bitmaps over it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{PAGE_BYTES, PageIndex};

/// One run of contiguous guest-physical pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// First page of the region.
    pub first: PageIndex,
    /// Number of pages.
    pub pages: u64,
}

/// So many words of a bitmap are passed over at once if they have no bit: those of 16 MiB.
pub const BLOCK_WORDS: usize = 64;

/// Whether words have no bit. Unlike a search for one, this looks at several words at once.
#[must_use]
pub fn is_zero(words: &[u64]) -> bool {
    words
        .chunks(BLOCK_WORDS)
        .all(|block| block.iter().fold(0, |all, word| all | word) == 0)
}

/// The regions of guest RAM, ascending and disjoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryLayout {
    regions: Vec<Region>,
}

/// A set of guest pages: one bitmap per region of a [`MemoryLayout`], 64 pages a word, lowest bit
/// first — the layout of KVM's dirty log, so that a log can be merged word by word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    layout: MemoryLayout,
    words: Vec<Vec<u64>>,
}

/// For people: `256 MiB`, or `3072 MiB at 0x0 and 1024 MiB at 0x100000000`.
impl fmt::Display for MemoryLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |pages: u64| u128::from(pages) * PAGE_BYTES as u128;
        let size = |pages: u64| match bytes(pages) {
            bytes if bytes % (1 << 20) == 0 => format!("{} MiB", bytes >> 20),
            bytes => format!("{bytes} bytes"),
        };
        match &self.regions[..] {
            [] => write!(f, "none"),
            [region] if region.first.0 == 0 => write!(f, "{}", size(region.pages)),
            regions => {
                for (number, region) in regions.iter().enumerate() {
                    let and = if number == 0 { "" } else { " and " };
                    write!(
                        f,
                        "{and}{} at {:#x}",
                        size(region.pages),
                        bytes(region.first.0)
                    )?;
                }
                Ok(())
            }
        }
    }
}

impl MemoryLayout {
    /// A layout of `regions`.
    ///
    /// # Panics
    /// If the regions are not ascending and disjoint: the embedding VMM made an error.
    #[must_use]
    pub fn new(regions: Vec<Region>) -> Self {
        for pair in regions.windows(2) {
            assert!(
                pair[0].first.0 + pair[0].pages <= pair[1].first.0,
                "memory regions must be ascending and disjoint"
            );
        }
        Self { regions }
    }

    /// The regions, ascending.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Whether `page` is guest RAM.
    #[must_use]
    pub fn contains(&self, page: PageIndex) -> bool {
        self.locate(page).is_some()
    }

    /// Region number and offset within it, in pages.
    #[must_use]
    pub fn locate(&self, page: PageIndex) -> Option<(usize, u64)> {
        let after = self.regions.partition_point(|region| region.first <= page);
        let number = after.checked_sub(1)?;
        let offset = page.0 - self.regions[number].first.0;
        (offset < self.regions[number].pages).then_some((number, offset))
    }
}

impl PageSet {
    /// The empty set over `layout`.
    #[must_use]
    pub fn empty(layout: &MemoryLayout) -> Self {
        let words = layout
            .regions
            .iter()
            .map(|region| vec![0; region.pages.div_ceil(64) as usize])
            .collect();
        Self {
            layout: layout.clone(),
            words,
        }
    }

    /// All pages of `layout`.
    #[must_use]
    pub fn full(layout: &MemoryLayout) -> Self {
        let mut set = Self::empty(layout);
        for (region, words) in layout.regions.iter().zip(&mut set.words) {
            words.fill(u64::MAX);
            let tail = region.pages % 64;
            if tail != 0
                && let Some(last) = words.last_mut()
            {
                *last = (1 << tail) - 1;
            }
        }
        set
    }

    /// The layout the set ranges over.
    #[must_use]
    pub fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    /// The bitmap of region number `region`, for merging a dirty log into. Bits beyond the region's
    /// last page must stay 0.
    pub fn region_words_mut(&mut self, region: usize) -> &mut [u64] {
        &mut self.words[region]
    }

    /// The bitmap of region number `region`.
    #[must_use]
    pub fn region_words(&self, region: usize) -> &[u64] {
        &self.words[region]
    }

    /// Adds a page; a page outside guest RAM is ignored and `false` returned.
    pub fn insert(&mut self, page: PageIndex) -> bool {
        let Some((region, offset)) = self.layout.locate(page) else {
            return false;
        };
        self.words[region][(offset / 64) as usize] |= 1 << (offset % 64);
        true
    }

    /// Removes a page.
    pub fn remove(&mut self, page: PageIndex) {
        if let Some((region, offset)) = self.layout.locate(page) {
            self.words[region][(offset / 64) as usize] &= !(1 << (offset % 64));
        }
    }

    /// Whether the page is in the set.
    #[must_use]
    pub fn contains(&self, page: PageIndex) -> bool {
        self.layout.locate(page).is_some_and(|(region, offset)| {
            self.words[region][(offset / 64) as usize] & (1 << (offset % 64)) != 0
        })
    }

    /// Adds all pages of `other`, which must range over the same layout.
    ///
    /// # Panics
    /// If the layouts differ.
    pub fn union(&mut self, other: &Self) {
        assert_eq!(
            self.layout, other.layout,
            "page sets over different layouts"
        );
        for (mine, theirs) in self
            .words
            .iter_mut()
            .flatten()
            .zip(other.words.iter().flatten())
        {
            *mine |= theirs;
        }
    }

    /// Removes all pages.
    pub fn clear(&mut self) {
        self.words.iter_mut().for_each(|words| words.fill(0));
    }

    /// Number of pages in the set.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.words
            .iter()
            .flatten()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// Whether the set has no page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().flatten().all(|word| *word == 0)
    }

    /// The pages, ascending.
    pub fn iter(&self) -> impl Iterator<Item = PageIndex> + '_ {
        let regions = self.layout.regions.iter().zip(&self.words);
        let blocks = regions.flat_map(|(region, words)| {
            let blocks = words.chunks(BLOCK_WORDS).zip(0..);
            let first = |number: u64| region.first.0 + number * 64 * BLOCK_WORDS as u64;
            blocks.map(move |(block, number)| (first(number), block))
        });
        let words = blocks
            .filter(|(_, block)| !is_zero(block))
            .flat_map(|(first, block)| block.iter().zip((first..).step_by(64)));
        words.flat_map(|(word, first)| {
            std::iter::successors((*word != 0).then_some(*word), |rest| {
                let rest = rest & (rest - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |rest| PageIndex(first + u64::from(rest.trailing_zeros())))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layout() -> MemoryLayout {
        MemoryLayout::new(vec![
            Region {
                first: PageIndex(0),
                pages: 70,
            },
            Region {
                first: PageIndex(1000),
                pages: 130,
            },
        ])
    }

    proptest! {
        #[test]
        fn set_is_the_set_of_what_was_inserted(pages in proptest::collection::btree_set(0u64..1200, 0..300)) {
            let mut set = PageSet::empty(&layout());
            let valid: Vec<PageIndex> = pages.iter().copied().map(PageIndex)
                .filter(|page| set.insert(*page)).collect();
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), valid.clone());
            prop_assert_eq!(set.len(), valid.len() as u64);
            for page in 0..1200 {
                prop_assert_eq!(set.contains(PageIndex(page)), valid.contains(&PageIndex(page)));
            }
        }
    }

    proptest! {
        #[test]
        fn pages_far_apart_are_all_found(
            pages in proptest::collection::btree_set(0u64..3 * 64 * 64 + 70, 0..6),
        ) {
            let first = 1 << 20;
            let layout = MemoryLayout::new(vec![
                Region { first: PageIndex(0), pages: 64 * 64 },
                Region { first: PageIndex(first), pages: 3 * 64 * 64 + 70 },
            ]);
            let mut set = PageSet::empty(&layout);
            let pages: Vec<PageIndex> = pages.iter().map(|page| PageIndex(first + page)).collect();
            for page in &pages {
                prop_assert!(is_zero(set.region_words(1)) == set.is_empty());
                set.insert(*page);
            }
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), pages);
        }
    }

    #[test]
    fn a_layout_is_told_in_words_of_people() {
        let told = |regions: &[(u64, u64)]| {
            let regions = regions.iter().map(|(first, pages)| Region {
                first: PageIndex(*first),
                pages: *pages,
            });
            MemoryLayout::new(regions.collect()).to_string()
        };
        assert_eq!(told(&[(0, 65536)]), "256 MiB");
        assert_eq!(
            told(&[(0, 786_432), (0x10_0000, 262_144)]),
            "3072 MiB at 0x0 and 1024 MiB at 0x100000000"
        );
        assert_eq!(told(&[(1, 3)]), "12288 bytes at 0x1000");
        assert_eq!(told(&[]), "none");
        told(&[(u64::MAX, u64::MAX)]);
    }

    #[test]
    fn full_has_every_page_and_no_bit_beyond() {
        let set = PageSet::full(&layout());
        assert_eq!(set.len(), 200);
        assert_eq!(set.iter().count(), 200);
        assert!(set.contains(PageIndex(69)) && !set.contains(PageIndex(70)));
        assert!(set.contains(PageIndex(1129)) && !set.contains(PageIndex(1130)));
    }
}
