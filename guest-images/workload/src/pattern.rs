//! The stream pattern: an endless byte sequence in which every byte follows from its position.
//!
//! The bytes at positions `8 n` to `8 n + 7` are the little-endian bytes of a strong mix of `n`, so
//! a reader can check any part of it from any offset, and a lost, repeated or swapped piece shows as
//! a mismatch with overwhelming probability.

use core::fmt;

const WORD_BYTES: u64 = 8;

/// The mix of one word's number: the finalizer of SplitMix64 (Steele, Lea, Flood 2014) over a Weyl
/// sequence, a bijection, so no two words within one period are the same.
fn word(number: u64) -> [u8; 8] {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)).to_le_bytes()
}

/// A byte that is not what the pattern has at its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mismatch {
    /// Where in the stream, in bytes.
    pub position: u64,
    /// What the pattern has there.
    pub expected: u8,
    /// What was found.
    pub found: u8,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            position,
            expected,
            found,
        } = self;
        write!(
            f,
            "byte {position} of the stream is {found:#04x}, not {expected:#04x}"
        )
    }
}

impl core::error::Error for Mismatch {}

/// The byte at `position`.
#[must_use]
pub fn byte(position: u64) -> u8 {
    word(position / WORD_BYTES)[(position % WORD_BYTES) as usize]
}

/// Writes the pattern from `position` on into `buffer`. Positions wrap after 2⁶⁴ bytes.
pub fn fill(position: u64, buffer: &mut [u8]) {
    for (at, piece) in pieces(position, buffer.len()) {
        let start = (at % WORD_BYTES) as usize;
        let length = piece.len();
        buffer[piece].copy_from_slice(&word(at / WORD_BYTES)[start..start + length]);
    }
}

/// Compares `bytes` with the pattern from `position` on.
///
/// # Errors
///
/// The first byte that differs.
pub fn check(position: u64, bytes: &[u8]) -> Result<(), Mismatch> {
    for (at, piece) in pieces(position, bytes.len()) {
        let start = (at % WORD_BYTES) as usize;
        let found = &bytes[piece];
        let expected = &word(at / WORD_BYTES)[start..start + found.len()];
        if found == expected {
            continue;
        }
        let different = found
            .iter()
            .zip(expected)
            .enumerate()
            .find(|(_, (f, e))| f != e);
        if let Some((offset, (found, expected))) = different {
            let position = at.wrapping_add(offset as u64);
            return Err(Mismatch {
                position,
                expected: *expected,
                found: *found,
            });
        }
    }
    Ok(())
}

/// Cuts `length` bytes from `position` on at word boundaries: the stream position of each piece and
/// its range in the buffer.
fn pieces(position: u64, length: usize) -> impl Iterator<Item = (u64, core::ops::Range<usize>)> {
    let mut done = 0;
    core::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = position.wrapping_add(done as u64);
        let piece = ((WORD_BYTES - at % WORD_BYTES) as usize).min(length - done);
        let range = done..done + piece;
        done += piece;
        Some((at, range))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    /// Clients of other versions depend on these bytes.
    #[test]
    fn the_first_bytes_are_fixed() {
        let mut bytes = [0; 10];
        fill(0, &mut bytes);
        assert_eq!(
            bytes,
            [0xaf, 0xcd, 0x1d, 0x7b, 0x39, 0xa8, 0x20, 0xe2, 0xf4, 0x65]
        );
        // SplitMix64 seeded with 0 starts with this value.
        assert_eq!(&bytes[..8], 0xe220_a839_7b1d_cdaf_u64.to_le_bytes());
    }

    #[test]
    fn a_lost_word_is_found_at_its_place() {
        let mut bytes = [0; 64];
        fill(800, &mut bytes[..32]);
        fill(840, &mut bytes[32..]);
        let error = check(800, &bytes).unwrap_err();
        assert_eq!((error.position, error.expected), (832, byte(832)));
    }

    proptest! {
        #[test]
        fn any_cut_of_the_stream_checks(position: u64, length in 0_usize..300) {
            let mut bytes = vec![0; length];
            fill(position, &mut bytes);
            prop_assert_eq!(check(position, &bytes), Ok(()));
            for (offset, found) in bytes.iter().enumerate() {
                prop_assert_eq!(*found, byte(position.wrapping_add(offset as u64)));
            }
        }

        #[test]
        fn one_wrong_byte_is_named(position: u64, length in 1_usize..200, at: prop::sample::Index, flip in 1_u8..) {
            let mut bytes = vec![0; length];
            fill(position, &mut bytes);
            let at = at.index(length);
            bytes[at] ^= flip;
            let expected = bytes[at] ^ flip;
            let wrong = Mismatch { position: position.wrapping_add(at as u64), expected, found: bytes[at] };
            prop_assert_eq!(check(position, &bytes), Err(wrong));
        }

        #[test]
        fn a_shifted_stream_never_passes(position: u64, shift in 1_u64..1 << 40) {
            let mut bytes = [0; 32];
            fill(position.wrapping_add(shift), &mut bytes);
            prop_assert!(check(position, &bytes).is_err());
        }
    }
}
