//! Which words of a page changed, and how they are written; the module above describes the format.

use bytes::{BufMut, BytesMut};

use crate::ids::{PAGE_BYTES, Page};

const GROUPS: usize = 8;
const GROUP_BYTES: usize = PAGE_BYTES / GROUPS;
const WORD_BYTES: usize = 8;

/// The changed words of a page: a bitmap for each group of 64 words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delta {
    bitmaps: [u64; GROUPS],
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("chunks of 8 bytes"))
}

impl Delta {
    /// The words that differ between two pages. Most groups have no difference and cost one memory
    /// comparison.
    pub(super) fn between(old: &Page, new: &Page) -> Self {
        let mut bitmaps = [0; GROUPS];
        let groups = old
            .chunks_exact(GROUP_BYTES)
            .zip(new.chunks_exact(GROUP_BYTES));
        for (bitmap, (old, new)) in bitmaps.iter_mut().zip(groups) {
            if old == new {
                continue;
            }
            let words = old
                .chunks_exact(WORD_BYTES)
                .zip(new.chunks_exact(WORD_BYTES));
            for (bit, (old, new)) in words.enumerate() {
                *bitmap |= u64::from(word(old) != word(new)) << bit;
            }
        }
        Self { bitmaps }
    }

    /// Bytes that [`Delta::write`] writes.
    pub(super) fn encoded_bytes(&self) -> usize {
        let bitmaps = self.bitmaps.iter().filter(|bitmap| **bitmap != 0).count();
        let words: u32 = self.bitmaps.iter().map(|bitmap| bitmap.count_ones()).sum();
        1 + bitmaps * 8 + words as usize * WORD_BYTES
    }

    pub(super) fn write(&self, old: &Page, new: &Page, into: &mut BytesMut) {
        let mut mask = 0u8;
        for (group, bitmap) in self.bitmaps.iter().enumerate() {
            mask |= u8::from(*bitmap != 0) << group;
        }
        into.put_u8(mask);
        for bitmap in self.bitmaps.iter().filter(|bitmap| **bitmap != 0) {
            into.put_u64_le(*bitmap);
        }
        for offset in self.changed_offsets() {
            let range = offset..offset + WORD_BYTES;
            into.put_u64_le(word(&old[range.clone()]) ^ word(&new[range]));
        }
    }

    /// Reads mask and bitmaps from the front of `bytes`. Returns the rest.
    ///
    /// # Errors
    /// How many bytes are missing, or what is malformed.
    pub(super) fn read(bytes: &[u8]) -> Result<(Self, &[u8]), DeltaError> {
        let (&mask, mut rest) = bytes.split_first().ok_or(DeltaError::Missing(1))?;
        if mask == 0 {
            return Err(DeltaError::Malformed("a delta without a changed group"));
        }
        let mut bitmaps = [0; GROUPS];
        for (group, bitmap) in bitmaps.iter_mut().enumerate() {
            if mask & (1 << group) == 0 {
                continue;
            }
            let (head, tail) = rest
                .split_first_chunk::<8>()
                .ok_or_else(|| DeltaError::Missing(8 - rest.len()))?;
            *bitmap = u64::from_le_bytes(*head);
            if *bitmap == 0 {
                return Err(DeltaError::Malformed("a changed group without a word"));
            }
            rest = tail;
        }
        Ok((Self { bitmaps }, rest))
    }

    /// Applies the words at the front of `words` to `page`, which holds the base. Returns the rest.
    ///
    /// # Errors
    /// As [`Delta::read`]; the page is then useless.
    pub(super) fn apply<'a>(
        &self,
        words: &'a [u8],
        page: &mut Page,
    ) -> Result<&'a [u8], DeltaError> {
        let mut rest = words;
        for offset in self.changed_offsets() {
            let (head, tail) = rest
                .split_first_chunk::<WORD_BYTES>()
                .ok_or_else(|| DeltaError::Missing(WORD_BYTES - rest.len()))?;
            let changed = u64::from_le_bytes(*head);
            if changed == 0 {
                return Err(DeltaError::Malformed("a changed word that did not change"));
            }
            let target = &mut page[offset..offset + WORD_BYTES];
            let value = word(target) ^ changed;
            target.copy_from_slice(&value.to_le_bytes());
            rest = tail;
        }
        Ok(rest)
    }

    /// Byte offsets of the changed words, ascending.
    fn changed_offsets(&self) -> impl Iterator<Item = usize> + '_ {
        self.bitmaps
            .iter()
            .enumerate()
            .flat_map(|(group, &bitmap)| {
                let mut left = bitmap;
                std::iter::from_fn(move || {
                    (left != 0).then(|| {
                        let bit = left.trailing_zeros() as usize;
                        left &= left - 1;
                        group * GROUP_BYTES + bit * WORD_BYTES
                    })
                })
            })
    }
}

/// Why bytes are not a delta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeltaError {
    /// At least this many bytes are missing.
    Missing(usize),
    /// What is wrong.
    Malformed(&'static str),
}
