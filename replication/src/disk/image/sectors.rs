//! How a map's bits lie in its file: in sectors, each with a checksum. So a sector that is damaged or torn is
//! noticed. All of its blocks count as marked then, which costs only bytes.

use std::io;
use std::ops::Range;

use super::bits::BitSet;
use super::header::BITS_AT;
use crate::files::HostFile;

const SECTOR_BYTES: u64 = 512;
/// Bytes of bits in a sector, before its CRC32.
const BITS_BYTES: usize = 508;
/// Blocks whose bits are in a sector.
pub(crate) const SECTOR_BLOCKS: u64 = BITS_BYTES as u64 * 8;

fn sectors_of(bits: &BitSet) -> u64 {
    bits.len().div_ceil(SECTOR_BLOCKS)
}

/// The sectors in the file that have the bits of these blocks.
pub(crate) fn encode(bits: &BitSet, sectors: Range<u64>) -> Vec<u8> {
    let mut encoded = Vec::new();
    for sector in sectors {
        let start = sector as usize * BITS_BYTES;
        let content = bits.bytes(start..start + BITS_BYTES);
        encoded.extend(&content);
        encoded.extend(crc32fast::hash(&content).to_le_bytes());
    }
    encoded
}

/// All sectors.
pub(crate) fn encode_all(bits: &BitSet) -> Vec<u8> {
    encode(bits, 0..sectors_of(bits))
}

/// Writes the bits of these blocks.
pub(crate) fn write(file: &dyn HostFile, bits: &BitSet, blocks: Range<u64>) -> io::Result<()> {
    let sectors = blocks.start / SECTOR_BLOCKS..blocks.end.div_ceil(SECTOR_BLOCKS);
    let at = BITS_AT + sectors.start * SECTOR_BYTES;
    file.write_at(at, &encode(bits, sectors))
}

/// Reads all bits into `bits`. Returns how many sectors are damaged or missing.
pub(crate) fn read(file: &dyn HostFile, bits: &mut BitSet) -> io::Result<u64> {
    let bytes = file.bytes()?;
    let (mut content, mut damaged) = (Vec::new(), 0);
    for sector in 0..sectors_of(bits) {
        let at = BITS_AT + sector * SECTOR_BYTES;
        let mut raw = [0; SECTOR_BYTES as usize];
        let is_there = at + SECTOR_BYTES <= bytes;
        if is_there {
            file.read_at(at, &mut raw)?;
        }
        let (found, crc) = raw.split_at(BITS_BYTES);
        if is_there && crc == crc32fast::hash(found).to_le_bytes() {
            content.extend(found);
        } else {
            content.extend([0xff; BITS_BYTES]);
            damaged += 1;
        }
    }
    *bits = BitSet::from_bytes(&content, bits.len());
    Ok(damaged)
}
