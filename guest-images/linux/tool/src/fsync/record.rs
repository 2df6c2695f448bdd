//! One record: magic, number, payload that follows from the number, checksum. What must not be done here: I/O.

use std::path::{Path, PathBuf};

use understudy_workload::pattern;

/// Not a power of two, so that records cross blocks and pages.
pub const RECORD_BYTES: usize = 1000;
/// Records in a file that is full.
pub const RECORDS_PER_FILE: u64 = 1024;

const MAGIC: [u8; 8] = *b"USfsync1";
const HEAD_BYTES: usize = 16;
const CHECKSUM_AT: usize = RECORD_BYTES - 4;

/// Why bytes are not the record they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// They do not begin as a record does.
    #[error("this is no record")]
    Magic,
    /// The checksum is not that of the bytes.
    #[error("its checksum is wrong")]
    Checksum,
    /// A whole record, but another one.
    #[error("it is record {found}")]
    Number {
        /// The number in it.
        found: u64,
    },
    /// The checksum is right, the payload is not: nobody wrote this.
    #[error("its payload is wrong")]
    Payload,
}

/// The file in which a record is.
pub(super) fn file_of(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{:08}.records", number / RECORDS_PER_FILE))
}

/// The record with this number.
#[must_use]
pub fn encode(number: u64) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..8].copy_from_slice(&MAGIC);
    record[8..HEAD_BYTES].copy_from_slice(&number.to_le_bytes());
    let position = number.wrapping_mul(RECORD_BYTES as u64);
    pattern::fill(position, &mut record[HEAD_BYTES..CHECKSUM_AT]);
    let checksum = crc32fast::hash(&record[..CHECKSUM_AT]);
    record[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
    record
}

/// Checks that bytes are the record with this number.
///
/// # Errors
/// What is wrong with them.
pub fn decode(number: u64, record: &[u8; RECORD_BYTES]) -> Result<(), RecordError> {
    let expected = encode(number);
    if *record == expected {
        return Ok(());
    }
    if record[..8] != MAGIC {
        return Err(RecordError::Magic);
    }
    let checksum = crc32fast::hash(&record[..CHECKSUM_AT]);
    if record[CHECKSUM_AT..] != checksum.to_le_bytes() {
        return Err(RecordError::Checksum);
    }
    if record[8..HEAD_BYTES] != expected[8..HEAD_BYTES] {
        let mut found = [0; 8];
        found.copy_from_slice(&record[8..HEAD_BYTES]);
        let found = u64::from_le_bytes(found);
        return Err(RecordError::Number { found });
    }
    Err(RecordError::Payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn only_the_record_itself_passes(number: u64, at in 0..RECORD_BYTES, flip in 1_u8..) {
            let mut record = encode(number);
            prop_assert_eq!(decode(number, &record), Ok(()));
            prop_assert_eq!(decode(number ^ 1, &record), Err(RecordError::Number { found: number }));
            record[at] ^= flip;
            prop_assert!(decode(number, &record).is_err());
        }
    }

    #[test]
    fn a_payload_under_a_right_checksum_is_checked_too() {
        let mut record = encode(7);
        record[100] ^= 1;
        let checksum = crc32fast::hash(&record[..CHECKSUM_AT]);
        record[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(decode(7, &record), Err(RecordError::Payload));
    }
}
