//! A set of blocks.

use std::ops::Range;

/// A set of the numbers below its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BitSet {
    words: Vec<u64>,
    len: u64,
}

impl BitSet {
    pub(crate) fn new(len: u64) -> Self {
        Self {
            words: vec![0; len.div_ceil(64) as usize],
            len,
        }
    }

    pub(crate) fn full(len: u64) -> Self {
        let mut set = Self::new(len);
        set.insert(0..len);
        set
    }

    /// Reads a set from bytes, lowest bit first. Missing bytes are 0. Bits beyond the length are
    /// ignored.
    pub(crate) fn from_bytes(bytes: &[u8], len: u64) -> Self {
        let mut set = Self::new(len);
        for (at, byte) in bytes.iter().enumerate().take(len.div_ceil(8) as usize) {
            set.words[at / 8] |= u64::from(*byte) << (at % 8 * 8);
        }
        if let (Some(last), tail @ 1..) = (set.words.last_mut(), len % 64) {
            *last &= (1 << tail) - 1;
        }
        set
    }

    /// The bytes `range` of the set, lowest bit first.
    pub(crate) fn bytes(&self, range: Range<usize>) -> Vec<u8> {
        let byte = |at: usize| {
            let word = self.words.get(at / 8).copied().unwrap_or(0);
            (word >> (at % 8 * 8)) as u8
        };
        range.map(byte).collect()
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn contains(&self, at: u64) -> bool {
        self.words[(at / 64) as usize] & 1 << (at % 64) != 0
    }

    pub(crate) fn contains_all(&self, range: Range<u64>) -> bool {
        range.into_iter().all(|at| self.contains(at))
    }

    pub(crate) fn insert(&mut self, range: Range<u64>) {
        for at in range.start..range.end.min(self.len) {
            self.words[(at / 64) as usize] |= 1 << (at % 64);
        }
    }

    pub(crate) fn remove(&mut self, range: Range<u64>) {
        for at in range.start..range.end.min(self.len) {
            self.words[(at / 64) as usize] &= !(1 << (at % 64));
        }
    }

    pub(crate) fn clear(&mut self) {
        self.words.fill(0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    pub(crate) fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    pub(crate) fn unite(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// The first run of members, with at most `most` of them.
    pub(crate) fn first_run(&self, most: u64) -> Option<Range<u64>> {
        let at = self.words.iter().position(|word| *word != 0)?;
        let start = at as u64 * 64 + u64::from(self.words[at].trailing_zeros());
        let mut end = start;
        while end < self.len && end - start < most && self.contains(end) {
            end += 1;
        }
        Some(start..end)
    }
}
