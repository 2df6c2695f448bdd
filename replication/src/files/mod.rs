//! The files whose content must survive whatever happens to a host: those of the file arbiter, and the maps and
//! journals of disks.
//!
//! Each method of the two traits is one system call, except that an interrupted one is made again. So tests can
//! stop, fail or mix them at every point (`simulated`). What must not be done here: caching, or knowing what the
//! files are for.

#[cfg(test)]
pub(crate) mod simulated;

use std::ffi::OsString;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// An open file.
pub(crate) trait HostFile: fmt::Debug + Send + Sync {
    fn bytes(&self) -> io::Result<u64>;
    /// Fills all of `data`, or fails.
    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Shortens or lengthens the file.
    fn set_bytes(&self, bytes: u64) -> io::Result<()>;
    /// Makes earlier changes of the content survive a loss of power. The name is another matter.
    fn sync(&self) -> io::Result<()>;
    /// Locks a byte, which need not exist, until this is closed; or unlocks it. Does not wait.
    #[cfg(feature = "file-arbiter")]
    fn lock(&self, byte: u64, locked: bool) -> io::Result<()>;
    /// Whether somebody else, who opened it on his own, has locked any byte from `byte` on.
    #[cfg(feature = "file-arbiter")]
    fn is_locked_by_other(&self, byte: u64) -> io::Result<bool>;
}

/// What opening a file may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Open {
    /// An existing file, to be read only.
    Reading,
    /// An existing file.
    Existing,
    /// Any file; makes it if there is none.
    Any,
    /// The same, and empties it.
    Emptied,
    /// Makes it. Fails if there is one.
    New,
}

/// A file system.
pub(crate) trait HostFiles: fmt::Debug + Send + Sync {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn HostFile>>;
    fn make_directory(&self, path: &Path) -> io::Result<()>;
    fn is_directory(&self, path: &Path) -> bool;
    /// What is in a directory. An NFS client looks anew at all names in it when it is opened.
    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>>;
    /// Replaces `to` if there is one: at each moment, `to` is the old one or the new one.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name. Fails if something has that name.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Opens a directory, and makes what happened to names in it survive a loss of power.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// When the content of a file was changed last, in nanoseconds since 1970.
    fn changed_ns(&self, path: &Path) -> io::Result<u64>;
    /// The time as files get it, in nanoseconds since 1970.
    fn now_ns(&self) -> u64;
    /// A number that no other run of this host's kernel has.
    fn boot(&self) -> u128;
}

/// Opens a file, if there is one. Its name is durable then, also if whoever gave it the name was
/// killed before it was.
pub(crate) fn open_existing(
    files: &dyn HostFiles,
    path: &Path,
) -> io::Result<Option<Box<dyn HostFile>>> {
    match files.open(path, Open::Existing) {
        Ok(file) => {
            files.sync_directory(directory_of(path))?;
            Ok(Some(file))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Creates or replaces a file, durably. After a crash, it is either the old file or all of the new
/// one.
pub(crate) fn replace(
    files: &dyn HostFiles,
    path: &Path,
    content: &[u8],
) -> io::Result<Box<dyn HostFile>> {
    let mut new = path.to_path_buf().into_os_string();
    new.push(".new");
    let file = files.open(new.as_ref(), Open::Emptied)?;
    file.write_at(0, content)?;
    file.sync()?;
    files.rename(new.as_ref(), path)?;
    files.sync_directory(directory_of(path))?;
    Ok(file)
}

/// The directory that has this name in it.
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The host's file system.
#[derive(Debug, Default)]
pub(crate) struct FileSystem;

impl HostFiles for FileSystem {
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn HostFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(how != Open::Reading);
        match how {
            Open::Reading | Open::Existing => &mut options,
            Open::Any => options.create(true),
            Open::Emptied => options.create(true).truncate(true),
            Open::New => options.create_new(true),
        };
        Ok(Box::new(options.open(path)?))
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir(path)
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let entries = std::fs::read_dir(directory)?;
        entries.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn changed_ns(&self, path: &Path) -> io::Result<u64> {
        Ok(since_1970_ns(std::fs::metadata(path)?.modified()?))
    }

    fn now_ns(&self) -> u64 {
        since_1970_ns(SystemTime::now())
    }

    fn boot(&self) -> u128 {
        // Without it, every run is taken for the same one: that is the stricter rule.
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        u128::from_str_radix(&id.trim().replace('-', ""), 16).unwrap_or_default()
    }
}

fn since_1970_ns(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
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
        self.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    #[cfg(feature = "file-arbiter")]
    fn lock(&self, byte: u64, locked: bool) -> io::Result<()> {
        locks::set(self, byte, locked)
    }

    #[cfg(feature = "file-arbiter")]
    fn is_locked_by_other(&self, byte: u64) -> io::Result<bool> {
        locks::others(self, byte)
    }
}

/// Locks of open files. Unlike those of processes, they do not go when another descriptor of the
/// file is closed.
#[cfg(feature = "file-arbiter")]
mod locks {
    use std::fs::File;
    use std::io;
    use std::os::fd::AsFd;

    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;

    /// A request for `len` bytes from `start`. A `len` of 0 means all bytes from there on.
    fn range(kind: i32, start: u64, len: u64) -> libc::flock {
        libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: start as libc::off_t,
            l_len: len as libc::off_t,
            l_pid: 0,
        }
    }

    pub(super) fn set(file: &File, byte: u64, locked: bool) -> io::Result<()> {
        let kind = if locked { libc::F_WRLCK } else { libc::F_UNLCK };
        let range = range(kind, byte, 1);
        loop {
            match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&range)) {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    pub(super) fn others(file: &File, byte: u64) -> io::Result<bool> {
        loop {
            let mut range = range(libc::F_WRLCK, byte, 0);
            match fcntl(file.as_fd(), FcntlArg::F_OFD_GETLK(&mut range)) {
                Ok(_) => return Ok(i32::from(range.l_type) != libc::F_UNLCK),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
