//! The files of maps and journals. They are behind a trait, so that tests can simulate a loss of power.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// An open file.
pub(crate) trait HostFile: Send + Sync {
    fn bytes(&self) -> io::Result<u64>;
    /// Fills all of `data`, or fails.
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Shortens or lengthens the file, durably.
    fn set_bytes(&self, bytes: u64) -> io::Result<()>;
    /// Makes earlier writes survive a loss of power.
    fn sync(&self) -> io::Result<()>;
}

/// A file system.
pub(crate) trait HostFiles: Send + Sync {
    /// Opens the file, if there is one.
    fn open(&self, path: &Path) -> io::Result<Option<Box<dyn HostFile>>>;
    /// Creates or replaces the file, durably. After a crash, it is either the old file or all of
    /// the new one.
    fn create(&self, path: &Path, content: &[u8]) -> io::Result<Box<dyn HostFile>>;
    /// The time as files get it, in nanoseconds since 1970.
    fn now_ns(&self) -> u64;
    /// A number that no other run of this host's kernel has.
    fn boot(&self) -> u128;
}

/// The host's file system.
#[derive(Debug, Default)]
pub(crate) struct FileSystem;

impl HostFiles for FileSystem {
    fn open(&self, path: &Path) -> io::Result<Option<Box<dyn HostFile>>> {
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&self, path: &Path, content: &[u8]) -> io::Result<Box<dyn HostFile>> {
        let mut new = path.to_path_buf().into_os_string();
        new.push(".new");
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(true);
        let mut file = options.open(&new)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        // The name must survive a loss of power, too.
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(Box::new(file))
    }

    fn now_ns(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_nanos() as u64)
    }

    fn boot(&self) -> u128 {
        // Without it, every run is taken for the same one: that is the stricter rule.
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        u128::from_str_radix(&id.trim().replace('-', ""), 16).unwrap_or_default()
    }
}

impl HostFile for File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(data, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.write_all_at(data, offset)
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)?;
        self.sync_all()
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
