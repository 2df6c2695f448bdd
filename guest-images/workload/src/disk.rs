//! The blocks of the `disk` workload: self-checking, and in an order that both sides can compute.
//!
//! Write number `s` (1, 2, 3 …) goes to the block [`block_of`]`(s, blocks)`. A data block holds its own
//! number, the number of the write, how many blocks there are, pattern bytes made from these, and a
//! checksum. Block 0 is the ledger, of the same form: its write number is the last one that had been
//! flushed when the ledger was written. So whoever sees an image, and knows a write that was flushed, can tell
//! for each block which write it must at least hold: a lost write shows.

use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;
/// Fewest blocks: the ledger and one more.
pub const BLOCKS_MIN: u32 = 2;
/// Most blocks (256 MiB).
pub const BLOCKS_MAX: u32 = 1 << 16;

/// The block with the ledger.
pub const LEDGER: u32 = 0;

/// "USDYDISK", little-endian.
const MAGIC: u64 = u64::from_le_bytes(*b"USDYDISK");
const WORD_BYTES: usize = 8;
const WORDS: usize = BLOCK_BYTES / WORD_BYTES;
/// Magic, block, write, blocks.
const HEADER_WORDS: usize = 4;

/// One block's bytes.
pub type Block = [u8; BLOCK_BYTES];

/// What a block says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Never written: all zero.
    Empty,
    /// This write. In the ledger: the last flushed one.
    Write(u64),
}

/// What is wrong with a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadBlock {
    /// No block of this workload.
    Magic,
    /// Another block's content.
    Misplaced {
        /// The block it says it is.
        says: u32,
    },
    /// Written with another number of blocks.
    Blocks {
        /// That number.
        says: u64,
    },
    /// A write that belongs into another block.
    Order {
        /// The write.
        write: u64,
    },
    /// Torn or changed: pattern or checksum are not those of its write.
    Torn {
        /// The write it says it is.
        write: u64,
    },
    /// An older write than must be there, or none.
    Lost {
        /// The write that is there, 0 for none.
        found: u64,
        /// The write that must at least be there.
        least: u64,
    },
}

impl fmt::Display for BadBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => write!(f, "it is no block of this workload"),
            Self::Misplaced { says } => write!(f, "it has the content of block {says}"),
            Self::Blocks { says } => write!(f, "it was written with disk.blocks={says}"),
            Self::Order { write } => write!(f, "write {write} belongs into another block"),
            Self::Torn { write } => write!(f, "write {write} is torn or changed"),
            Self::Lost { found, least } => {
                write!(f, "write {found} is there, it must be {least} or later")
            }
        }
    }
}

impl core::error::Error for BadBlock {}

/// Steele, Lea and Flood's SplitMix64 finaliser.
fn mix(value: u64) -> u64 {
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// The block that write number `write` goes to, never the ledger. `blocks` below [`BLOCKS_MIN`] counts as that.
#[must_use]
pub fn block_of(write: u64, blocks: u32) -> u32 {
    let data_blocks = u64::from(blocks.max(BLOCKS_MIN) - 1);
    1 + (mix(write.wrapping_mul(0x9e37_79b9_7f4a_7c15)) % data_blocks) as u32
}

/// The block that is read back after write number `write`: another order than that of the writes.
#[must_use]
pub fn read_back_of(write: u64, blocks: u32) -> u32 {
    block_of(!write, blocks)
}

fn words(block: u32, write: u64, blocks: u32) -> impl Iterator<Item = u64> {
    let seed = mix(write ^ u64::from(block) << 40);
    [MAGIC, block.into(), write, blocks.into()]
        .into_iter()
        .chain(
            (HEADER_WORDS as u64..WORDS as u64 - 1)
                .map(move |word| mix(seed.wrapping_add(word.wrapping_mul(0x9e37_79b9_7f4a_7c15)))),
        )
}

/// Makes the content of `block` after write number `write`.
pub fn fill(bytes: &mut Block, block: u32, write: u64, blocks: u32) {
    let mut checksum = 0;
    let (all, _) = bytes.as_chunks_mut::<WORD_BYTES>();
    for (place, word) in all.iter_mut().zip(words(block, write, blocks)) {
        *place = word.to_le_bytes();
        checksum = mix(checksum ^ word);
    }
    all[WORDS - 1] = checksum.to_le_bytes();
}

/// Reads the content of `block`.
///
/// # Errors
/// What is wrong with it, if it is neither empty nor whole.
pub fn read(bytes: &Block, block: u32, blocks: u32) -> Result<Content, BadBlock> {
    let (all, _) = bytes.as_chunks::<WORD_BYTES>();
    let word = |index: usize| u64::from_le_bytes(all[index]);
    if all.iter().all(|word| *word == [0; WORD_BYTES]) {
        return Ok(Content::Empty);
    }
    if word(0) != MAGIC {
        return Err(BadBlock::Magic);
    }
    if word(1) != u64::from(block) {
        let says = u32::try_from(word(1)).unwrap_or(u32::MAX);
        return Err(BadBlock::Misplaced { says });
    }
    if word(3) != u64::from(blocks) {
        return Err(BadBlock::Blocks { says: word(3) });
    }
    let write = word(2);
    let mut whole = [0; BLOCK_BYTES];
    fill(&mut whole, block, write, blocks);
    if *bytes != whole {
        return Err(BadBlock::Torn { write });
    }
    if block != LEDGER && (write == 0 || block_of(write, blocks) != block) {
        return Err(BadBlock::Order { write });
    }
    Ok(Content::Write(write))
}

/// Checks a whole image, block by block.
#[derive(Debug, Clone)]
struct Checker {
    /// The write that each block must at least hold, 0 for none.
    least: Vec<u64>,
    flushed: u64,
    found: ImageState,
}

/// What an image holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageState {
    /// Blocks that were written at least once, the ledger not counted.
    pub written_blocks: u32,
    /// The highest write found.
    pub highest: u64,
    /// The highest write that the ledger knows to be flushed.
    pub flushed: u64,
}

impl Checker {
    /// For an image of `blocks` blocks (brought within [`BLOCKS_MIN`] and [`BLOCKS_MAX`]) of which it is known, say
    /// from the guest's console, that the writes up to `flushed` were flushed.
    fn new(blocks: u32, flushed: u64) -> Self {
        let blocks = blocks.clamp(BLOCKS_MIN, BLOCKS_MAX);
        Self {
            least: least(blocks, flushed),
            flushed,
            found: ImageState::default(),
        }
    }

    /// Looks at one block.
    ///
    /// # Errors
    /// If it is damaged, or older than it must be.
    fn block(&mut self, block: u32, bytes: &Block) -> Result<(), BadBlock> {
        let content = read(bytes, block, self.least.len() as u32)?;
        let found = match content {
            Content::Empty => 0,
            Content::Write(write) => write,
        };
        if block == LEDGER {
            self.found.flushed = found;
            return Ok(());
        }
        let least = self.least.get(block as usize).copied().unwrap_or(0);
        if found < least {
            return Err(BadBlock::Lost { found, least });
        }
        self.found.written_blocks += u32::from(content != Content::Empty);
        self.found.highest = self.found.highest.max(found);
        Ok(())
    }

    /// What was found, with the best knowledge of what was flushed.
    fn found(&self) -> ImageState {
        ImageState {
            flushed: self.found.flushed.max(self.flushed),
            ..self.found
        }
    }
}

/// The last write up to `flushed` to each block. Looks back until every block has one; a number of writes
/// that nobody can have made costs no more than any other.
fn least(blocks: u32, flushed: u64) -> Vec<u64> {
    let mut least = vec![0; blocks as usize];
    let mut missing = blocks - 1;
    // After 64 writes a block, the chance that one block has had none is e⁻⁶⁴.
    for write in (1..=flushed).rev().take(64 * blocks as usize) {
        let known = &mut least[block_of(write, blocks) as usize];
        if *known == 0 {
            *known = write;
            missing -= 1;
            if missing == 0 {
                break;
            }
        }
    }
    least
}

/// Checks a whole image: `bytes` long, a whole number of blocks; read by `read_block`. The ledger's own word of what
/// was flushed counts as well as `flushed`, which is known otherwise (0 if nothing is).
///
/// # Errors
/// What `read_block` says, or the first bad block with its number.
pub fn check_image<E: From<(u32, BadBlock)>>(
    blocks: u32,
    flushed: u64,
    mut read_block: impl FnMut(u32, &mut Block) -> Result<(), E>,
) -> Result<ImageState, E> {
    let blocks = blocks.clamp(BLOCKS_MIN, BLOCKS_MAX);
    let mut bytes = [0; BLOCK_BYTES];
    read_block(LEDGER, &mut bytes)?;
    let ledger = read(&bytes, LEDGER, blocks).map_err(|bad| E::from((LEDGER, bad)))?;
    let known = match ledger {
        Content::Empty => flushed,
        Content::Write(write) => flushed.max(write),
    };
    let mut checker = Checker::new(blocks, known);
    for block in LEDGER + 1..blocks {
        read_block(block, &mut bytes)?;
        checker
            .block(block, &bytes)
            .map_err(|bad| E::from((block, bad)))?;
    }
    Ok(checker.found())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Failure = (u32, BadBlock);

    /// The image after `writes` writes, of which `flushed` are in the ledger.
    fn image(blocks: u32, writes: u64, flushed: u64) -> Vec<Block> {
        let mut image = vec![[0; BLOCK_BYTES]; blocks as usize];
        for write in 1..=writes {
            let block = block_of(write, blocks);
            fill(&mut image[block as usize], block, write, blocks);
        }
        if flushed > 0 {
            fill(&mut image[0], LEDGER, flushed, blocks);
        }
        image
    }

    fn check(image: &[Block], flushed: u64) -> Result<ImageState, Failure> {
        check_image(image.len() as u32, flushed, |block, bytes| {
            *bytes = image[block as usize];
            Ok::<(), Failure>(())
        })
    }

    #[test]
    fn whole_images_are_whole() {
        assert_eq!(check(&image(16, 0, 0), 0), Ok(ImageState::default()));
        let found = check(&image(16, 1000, 990), 996).unwrap();
        let expected = ImageState {
            written_blocks: 15,
            highest: 1000,
            flushed: 996,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_lost_write_is_found_if_it_was_flushed() {
        let lost = 100;
        let block = block_of(lost, 200);
        let mut image = image(200, lost, 0);
        image[block as usize] = [0; BLOCK_BYTES];
        assert!(check(&image, lost - 1).is_ok());
        let bad = BadBlock::Lost {
            found: 0,
            least: lost,
        };
        assert_eq!(check(&image, lost), Err((block, bad)));
        // The ledger alone tells it too.
        fill(&mut image[0], LEDGER, lost, 200);
        assert_eq!(check(&image, 0), Err((block, bad)));
    }

    #[test]
    fn damage_is_named() {
        let whole = image(16, 100, 96);
        let damaged = |change: &dyn Fn(&mut Vec<Block>)| {
            let mut image = whole.clone();
            change(&mut image);
            check(&image, 0).unwrap_err()
        };
        let swapped = damaged(&|image| image.swap(3, 4));
        assert_eq!(swapped, (3, BadBlock::Misplaced { says: 4 }));
        assert_eq!(damaged(&|image| image[5][0] ^= 1), (5, BadBlock::Magic));
        let torn = damaged(&|image| image[6][2048..].fill(0));
        assert!(matches!(torn, (6, BadBlock::Torn { .. })), "{torn:?}");
        let other = damaged(&|image| fill(&mut image[7], 7, 100, 17));
        assert_eq!(other, (7, BadBlock::Blocks { says: 17 }));
        let wrong = (1..).find(|write| block_of(*write, 16) != 7).unwrap();
        let order = damaged(&|image| fill(&mut image[7], 7, wrong, 16));
        assert_eq!(order, (7, BadBlock::Order { write: wrong }));
    }

    #[test]
    fn every_block_has_its_turn() {
        for blocks in [2, 3, 100, 1000] {
            let mut turns = vec![0_u32; blocks as usize];
            for write in 0..u64::from(blocks) * 50 {
                turns[block_of(write, blocks) as usize] += 1;
                turns[read_back_of(write, blocks) as usize] += 1;
            }
            assert_eq!(turns[0], 0, "the ledger has none");
            assert!(turns[1..].iter().all(|turns| *turns > 20), "{blocks}");
        }
    }

    #[test]
    fn an_absurd_ledger_is_answered_quickly() {
        let mut image = image(16, 10, 0);
        fill(&mut image[0], LEDGER, u64::MAX, 16);
        assert!(matches!(check(&image, 0), Err((_, BadBlock::Lost { .. }))));
    }

    proptest! {
        #[test]
        fn one_changed_bit_is_found(write in 1_u64..1 << 40, bit in 0..BLOCK_BYTES * 8) {
            let block = block_of(write, 1000);
            let mut bytes = [0; BLOCK_BYTES];
            fill(&mut bytes, block, write, 1000);
            prop_assert_eq!(read(&bytes, block, 1000), Ok(Content::Write(write)));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(read(&bytes, block, 1000).is_err());
        }
    }
}
