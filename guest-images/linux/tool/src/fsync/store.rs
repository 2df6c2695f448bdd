//! Appends records to files, each on disk before it is reported. What must not be done here: go on after an
//! `fsync` that failed, because what the page cache holds then says nothing about the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::check::{CheckError, check};
use super::record::{RECORD_BYTES, RECORDS_PER_FILE, encode, file_of};

/// Why records cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// What is there is not what was written.
    #[error("the records that are there: {0}")]
    Damaged(#[from] CheckError),
    /// The file system refused.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was to be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An earlier call failed.
    #[error("an earlier write or fsync failed; nothing is written any more")]
    Failed,
}

/// The records in a directory.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    /// The number of the next record.
    next: u64,
    file: Option<File>,
    failed: bool,
}

impl Store {
    /// Goes on where the records that are there end. An unfinished one at the end, which nobody was told of,
    /// is cut off.
    ///
    /// # Errors
    /// If what is there is damaged, or the file system refuses.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(directory).map_err(io_error("make", directory))?;
        let records = check(directory, 0)?.records;
        let mut store = Self {
            directory: directory.to_path_buf(),
            next: records,
            file: None,
            failed: false,
        };
        let path = file_of(directory, records);
        // It may be there and empty: then it was made, and nothing was written any more.
        if path.exists() {
            let file = OpenOptions::new()
                .append(true)
                .open(&path)
                .map_err(io_error("open", &path))?;
            let whole = records % RECORDS_PER_FILE * RECORD_BYTES as u64;
            file.set_len(whole)
                .and_then(|()| file.sync_all())
                .map_err(io_error("cut", &path))?;
            store.file = Some(file);
        }
        Ok(store)
    }

    /// How many records there are.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.next
    }

    /// Where they are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes the next record and returns its number when it is on disk.
    ///
    /// # Errors
    /// If the file system refuses; from then on always.
    pub fn append(&mut self) -> Result<u64, StoreError> {
        if self.failed {
            return Err(StoreError::Failed);
        }
        let outcome = self.try_append();
        self.failed = outcome.is_err();
        outcome
    }

    fn try_append(&mut self) -> Result<u64, StoreError> {
        let number = self.next;
        let path = file_of(&self.directory, number);
        if number.is_multiple_of(RECORDS_PER_FILE) && self.is_full()? {
            let file = OpenOptions::new()
                .append(true)
                .create_new(true)
                .open(&path)
                .map_err(io_error("create", &path))?;
            // Without this the file's name may be lost with all that is in it.
            File::open(&self.directory)
                .and_then(|directory| directory.sync_all())
                .map_err(io_error("fsync", &self.directory))?;
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else {
            return Err(StoreError::Failed);
        };
        file.write_all(&encode(number))
            .map_err(io_error("write", &path))?;
        file.sync_all().map_err(io_error("fsync", &path))?;
        self.next += 1;
        Ok(number)
    }

    /// Whether the file that is open takes no more records, or none is open.
    fn is_full(&self) -> Result<bool, StoreError> {
        let Some(file) = &self.file else {
            return Ok(true);
        };
        let metadata = file
            .metadata()
            .map_err(io_error("look at", &self.directory))?;
        Ok(metadata.len() > 0)
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| StoreError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_go_on_over_files_and_restarts() {
        let directory = tempfile::tempdir().unwrap();
        for begin in [0, RECORDS_PER_FILE - 1, RECORDS_PER_FILE] {
            let mut store = Store::open(directory.path()).unwrap();
            assert_eq!(store.records(), begin);
            let end = if begin == 0 {
                RECORDS_PER_FILE - 1
            } else {
                begin + 1
            };
            for number in begin..end {
                assert_eq!(store.append().unwrap(), number);
            }
        }
        let checked = check(directory.path(), RECORDS_PER_FILE + 1).unwrap();
        assert_eq!(
            (checked.records, checked.torn_bytes),
            (RECORDS_PER_FILE + 1, 0)
        );
    }

    #[test]
    fn an_unfinished_record_at_the_end_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        for unfinished in [0, 1] {
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(file_of(directory.path(), 0))
                .unwrap();
            file.write_all(&encode(unfinished)[..RECORD_BYTES - 1])
                .unwrap();
            let mut store = Store::open(directory.path()).unwrap();
            assert_eq!(store.append().unwrap(), unfinished);
        }
        assert_eq!(check(directory.path(), 2).unwrap().torn_bytes, 0);
    }

    #[test]
    fn a_file_that_was_made_and_is_empty_is_used() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(file_of(directory.path(), 0), "").unwrap();
        let mut store = Store::open(directory.path()).unwrap();
        assert_eq!(store.append().unwrap(), 0);
        assert_eq!(check(directory.path(), 1).unwrap().records, 1);
    }

    #[test]
    fn after_a_failure_nothing_is_acknowledged() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path()).unwrap();
        std::fs::write(file_of(directory.path(), 0), "in the way").unwrap();
        assert!(matches!(
            store.append(),
            Err(StoreError::Io { what: "create", .. })
        ));
        std::fs::remove_file(file_of(directory.path(), 0)).unwrap();
        assert!(matches!(store.append(), Err(StoreError::Failed)));
    }
}
