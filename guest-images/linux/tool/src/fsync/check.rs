//! Looks through all records and finds what is lost, damaged or misplaced. What must not be done here: write.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::record::{RECORD_BYTES, RECORDS_PER_FILE, RecordError, decode, file_of};

/// What is wrong with the records.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// An acknowledged record is not there.
    #[error("record {number} was acknowledged and is lost: there are {records} records")]
    Lost {
        /// The first that is lost.
        number: u64,
        /// How many are there.
        records: u64,
    },
    /// A record is not what was written.
    #[error("record {number} at offset {offset} of {path}: {error}")]
    Damaged {
        /// Which should be there.
        number: u64,
        /// In which file.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong with it.
        error: RecordError,
    },
    /// A file that is not the last is not full, or one is missing before the last, or too long.
    #[error("{path} has {bytes} bytes, which cannot be")]
    Length {
        /// Which file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A file that does not follow on the others.
    #[error("{path} does not belong here")]
    Stray {
        /// Which file.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What was found when all is well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Whole records.
    pub records: u64,
    /// What there is of one that was not finished, and of which nobody was told.
    pub torn_bytes: u64,
}

/// Checks all records in a directory, of which the first `acked` were acknowledged.
///
/// A record behind those may be missing or unfinished, if it is the last.
///
/// # Errors
/// The first thing that is wrong.
pub fn check(directory: &Path, acked: u64) -> Result<Checked, CheckError> {
    let mut checked = Checked {
        records: 0,
        torn_bytes: 0,
    };
    let files = count_files(directory)?;
    for index in 0..files {
        let number = index * RECORDS_PER_FILE;
        let path = file_of(directory, number);
        let found = check_file(&path, number, acked)?;
        checked.records += found.records;
        checked.torn_bytes = found.torn_bytes;
        let bytes = found.records * RECORD_BYTES as u64 + found.torn_bytes;
        let full = found.records == RECORDS_PER_FILE && found.torn_bytes == 0;
        if found.records > RECORDS_PER_FILE || (!full && index + 1 < files) {
            return Err(CheckError::Length { path, bytes });
        }
    }
    if checked.records < acked {
        return Err(CheckError::Lost {
            number: checked.records,
            records: checked.records,
        });
    }
    Ok(checked)
}

/// How many files there are; they must be the first ones.
fn count_files(directory: &Path) -> Result<u64, CheckError> {
    let failed = |source| CheckError::Io {
        path: directory.to_path_buf(),
        source,
    };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    for (path, index) in paths.iter().zip(0..) {
        if *path != file_of(directory, index * RECORDS_PER_FILE) {
            return Err(CheckError::Stray { path: path.clone() });
        }
    }
    Ok(paths.len() as u64)
}

fn check_file(path: &Path, first: u64, acked: u64) -> Result<Checked, CheckError> {
    let failed = |source| CheckError::Io {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let bytes = file.metadata().map_err(failed)?.len();
    let mut input = BufReader::new(file);
    let records = bytes / RECORD_BYTES as u64;
    let torn_bytes = bytes % RECORD_BYTES as u64;
    for index in 0..records {
        let mut record = [0; RECORD_BYTES];
        input.read_exact(&mut record).map_err(failed)?;
        let number = first + index;
        let Err(error) = decode(number, &record) else {
            continue;
        };
        // The length of a file may reach the disk before what is in it.
        if number >= acked && index + 1 == records && torn_bytes == 0 {
            return Ok(Checked {
                records: index,
                torn_bytes: RECORD_BYTES as u64,
            });
        }
        return Err(CheckError::Damaged {
            number,
            path: path.to_path_buf(),
            offset: index * RECORD_BYTES as u64,
            error,
        });
    }
    Ok(Checked {
        records,
        torn_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::super::record::encode;
    use super::*;

    fn with(records: u64) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let directory = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..records).flat_map(encode).collect();
        let path = file_of(directory.path(), 0);
        std::fs::write(&path, &bytes).unwrap();
        (directory, path, bytes)
    }

    #[test]
    fn a_lost_acknowledged_record_is_named() {
        let (directory, path, bytes) = with(5);
        assert_eq!(check(directory.path(), 5).unwrap().records, 5);
        std::fs::write(&path, &bytes[..4 * RECORD_BYTES + 10]).unwrap();
        let torn = check(directory.path(), 4).unwrap();
        assert_eq!((torn.records, torn.torn_bytes), (4, 10));
        let error = check(directory.path(), 5).unwrap_err();
        assert!(
            matches!(
                error,
                CheckError::Lost {
                    number: 4,
                    records: 4
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_damaged_record_is_forgiven_only_as_an_unacknowledged_last_one() {
        let (directory, path, mut bytes) = with(5);
        bytes[4 * RECORD_BYTES + 500] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(check(directory.path(), 4).unwrap().records, 4);
        let error = check(directory.path(), 5).unwrap_err();
        assert!(
            matches!(error, CheckError::Damaged { number: 4, .. }),
            "{error}"
        );
        bytes[3 * RECORD_BYTES] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let error = check(directory.path(), 0).unwrap_err();
        assert!(
            matches!(error, CheckError::Damaged { number: 3, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_missing_or_short_file_before_the_last_is_found() {
        let (directory, path, _) = with(5);
        std::fs::write(file_of(directory.path(), RECORDS_PER_FILE), "").unwrap();
        let error = check(directory.path(), 0).unwrap_err();
        assert!(
            matches!(error, CheckError::Length { bytes: 5000, .. }),
            "{error}"
        );
        std::fs::remove_file(path).unwrap();
        let error = check(directory.path(), 0).unwrap_err();
        assert!(matches!(error, CheckError::Stray { .. }), "{error}");
    }
}
