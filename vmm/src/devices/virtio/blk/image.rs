//! The host's side of a disk: a raw image file or a block device, locked against other users.
//!
//! The lock is an open-file-description lock over the whole file: exclusive for who writes, shared for who
//! only reads. It goes when the image is closed, however the process ends. A standby opens an image that both
//! hosts share without it, and takes it when it takes over. What must not be done here: anything that knows
//! of virtio or guest memory.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, PosixFadviseAdvice, fallocate, fcntl, posix_fadvise};
use understudy_replication::disk::{Changed, Storage};

use super::SECTOR_BYTES;

/// How much of each end of an image [`Image::ends_crc32`] looks at.
const END_BYTES: u64 = 1 << 20;
/// What images in formats that hypervisors use begin with. The guest would see the format, not the disk in it.
const FORMATS: [(&[u8], &str); 6] = [
    (b"QFI\xfb", "qcow2"),
    (b"QED\0", "QED"),
    (b"KDMV", "VMDK"),
    (b"# Disk DescriptorFile", "VMDK"),
    (b"vhdxfile", "VHDX"),
    (b"conectix", "VHD"),
];
/// Where a VirtualBox image says what it is.
const VDI: (usize, [u8; 4]) = (64, [0x7f, 0x10, 0xda, 0xbe]);
/// Zeros written at once where the host cannot be told to make a range zero.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// An open image.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    capacity_sectors: u64,
    read_only: bool,
    locked: AtomicBool,
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no such file.
    #[error(
        "the disk image {} does not exist; an empty one is made by: truncate -s 1G {}",
        path.display(), path.display()
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It is to be shared, and this host does not see it.
    #[error(
        "the shared disk image {} does not exist on this host; mount the storage that has it, or let each \
         host have an image of its own (replicated)",
        path.display()
    )]
    NotShared {
        /// Where it should be.
        path: PathBuf,
    },
    /// It is a directory.
    #[error("the disk image {} is a directory; name a raw image file or a block device", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
    },
    /// It is neither a regular file nor a block device.
    #[error(
        "the disk image {} is neither a regular file nor a block device; only raw images are supported",
        path.display()
    )]
    Kind {
        /// What it is called.
        path: PathBuf,
    },
    /// This user may not open it.
    #[error(
        "not allowed to {what} the disk image {}; {hint}", path.display()
    )]
    NotAllowed {
        /// The image.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// It cannot be divided into sectors.
    #[error(
        "the disk image {} has {bytes} bytes; a disk needs at least one sector of {SECTOR_BYTES} bytes and \
         only whole ones: use truncate -s to correct it (an image in another format than raw must be \
         converted)", path.display()
    )]
    Size {
        /// The image.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It is in another format.
    #[error(
        "the disk image {} is in the format {format}; only raw images are supported: convert it by \
         qemu-img convert -O raw", path.display()
    )]
    Format {
        /// The image.
        path: PathBuf,
        /// The format.
        format: &'static str,
    },
    /// Somebody else has locked it.
    #[error(
        "the disk image {} is in use by {holder}: {why}; stop that first, or use a copy of the image",
        path.display()
    )]
    Taken {
        /// The image.
        path: PathBuf,
        /// Who, as far as can be told.
        holder: String,
        /// Why both cannot be.
        why: &'static str,
    },
    /// The host refuses something else.
    #[error("cannot {what} the disk image {}", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Image {
    /// Opens and locks the image at `path`.
    ///
    /// # Errors
    /// If it is no possible image, may not be opened, or is in use.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, ImageError> {
        let image = Self::open_unlocked(path, read_only)?;
        image.take()?;
        Ok(image)
    }

    /// Opens the image at `path` that another host may be using: it must not be touched before it is locked.
    ///
    /// # Errors
    /// If it is no possible image, or may not be opened.
    pub fn open_shared(path: &Path) -> Result<Self, ImageError> {
        match Self::open_unlocked(path, false) {
            Err(ImageError::Missing { path }) => Err(ImageError::NotShared { path }),
            opened => opened,
        }
    }

    fn open_unlocked(path: &Path, read_only: bool) -> Result<Self, ImageError> {
        let (path, what) = (path.to_path_buf(), if read_only { "read" } else { "write" });
        let refused = |source: io::Error| refusal(&path, read_only, source);
        // Looked at before it is opened: opening a pipe would wait for its other end.
        let kind = std::fs::metadata(&path).map_err(refused)?.file_type();
        if kind.is_dir() {
            return Err(ImageError::Directory { path });
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(ImageError::Kind { path });
        }
        let opened = OpenOptions::new().read(true).write(!read_only).open(&path);
        let mut file = opened.map_err(refused)?;
        // Seeking tells the size of block devices too.
        let bytes = match file.seek(SeekFrom::End(0)) {
            Ok(bytes) => bytes,
            Err(source) => return Err(ImageError::Io { path, what, source }),
        };
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(ImageError::Size { path, bytes });
        }
        let mut start = [0; SECTOR_BYTES as usize];
        if let Err(source) = file.read_exact_at(&mut start, 0) {
            let what = "read";
            return Err(ImageError::Io { path, what, source });
        }
        if let Some(format) = format_of(&start) {
            return Err(ImageError::Format { path, format });
        }
        Ok(Self {
            path,
            file,
            capacity_sectors: bytes / SECTOR_BYTES,
            read_only,
            locked: AtomicBool::new(false),
        })
    }

    /// Takes the lock, if it is not held yet.
    ///
    /// # Errors
    /// If somebody else has it, or the storage knows no locks.
    pub fn take(&self) -> Result<(), ImageError> {
        if self.locked.load(Ordering::Acquire) {
            return Ok(());
        }
        lock(&self.path, &self.file, self.read_only)?;
        self.locked.store(true, Ordering::Release);
        Ok(())
    }

    /// Size of the disk.
    #[must_use]
    pub fn capacity_sectors(&self) -> u64 {
        self.capacity_sectors
    }

    /// Whether it is opened for reading only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// CRC-32 of the first and the last MiB. It tells most different images apart, at the price of one look;
    /// it does not prove that two are equal.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn ends_crc32(&self) -> Result<u32, ImageError> {
        let bytes = self.capacity_sectors * SECTOR_BYTES;
        let mut end = vec![0; END_BYTES.min(bytes) as usize];
        let mut crc = crc32fast::Hasher::new();
        for offset in [0, bytes - end.len() as u64] {
            let read = self.file.read_exact_at(&mut end, offset);
            read.map_err(|source| ImageError::Io {
                path: self.path.clone(),
                what: "read",
                source,
            })?;
            crc.update(&end);
        }
        Ok(crc.finalize())
    }
}

impl Storage for Image {
    fn bytes(&self) -> u64 {
        self.capacity_sectors * SECTOR_BYTES
    }

    fn lock(&self) -> io::Result<bool> {
        match self.take() {
            Ok(()) => {}
            Err(ImageError::Taken { .. }) => return Ok(false),
            Err(ImageError::Io { source, .. }) => return Err(source),
            Err(other) => return Err(io::Error::other(other)),
        }
        // What this host remembers of the image may be older than what its last holder wrote elsewhere.
        posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        Ok(true)
    }

    fn forget_cached(&self, offset: u64, bytes: u64) {
        let (Ok(offset), Ok(bytes)) = (offset.try_into(), bytes.try_into()) else {
            return;
        };
        // The host keeps it where it must, and where it will.
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        let _ = posix_fadvise(&self.file, offset, bytes, advice);
    }

    fn is_locked_by_other(&self) -> io::Result<bool> {
        // What a reader's lock would meet: that of somebody who writes. It is not this image's own.
        let mut found = whole_file(libc::F_RDLCK);
        fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut found))?;
        Ok(i32::from(found.l_type) != libc::F_UNLCK)
    }

    fn identity(&self) -> io::Result<Option<String>> {
        let metadata = self.file.metadata()?;
        if metadata.file_type().is_block_device() {
            return Ok(volume_identity(metadata.rdev()));
        }
        // A number is given again when its file is gone. Not every file system notes the birth.
        let born = metadata.created().ok();
        let born = born.and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        let born = born.map_or(0, |born| born.as_nanos());
        Ok(Some(format!("inode {} born {born}", metadata.ino())))
    }

    fn changed(&self) -> io::Result<Option<Changed>> {
        let metadata = self.file.metadata()?;
        if metadata.file_type().is_block_device() {
            return Ok(None);
        }
        let since_1970 = |seconds: i64, more: i64| {
            let seconds = u64::try_from(seconds).unwrap_or(0);
            seconds * 1_000_000_000 + u64::try_from(more).unwrap_or(0)
        };
        Ok(Some(Changed {
            content_ns: since_1970(metadata.mtime(), metadata.mtime_nsec()),
            anything_ns: since_1970(metadata.ctime(), metadata.ctime_nsec()),
        }))
    }

    fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        Ok(self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, bytes)?)
    }

    fn write_zeroes(&self, offset: u64, bytes: u64, may_unmap: bool) -> io::Result<()> {
        let how = if may_unmap {
            FallocateFlags::FALLOC_FL_PUNCH_HOLE
        } else {
            FallocateFlags::FALLOC_FL_ZERO_RANGE
        };
        match self.allocate(how, offset, bytes) {
            // Not every file system can; then it is ordinary work.
            Err(Errno::EOPNOTSUPP) => self.fill_with_zeros(offset, bytes),
            other => Ok(other?),
        }
    }
}

impl Image {
    /// Changes what is allocated behind a range, but never the image's length.
    fn allocate(&self, how: FallocateFlags, offset: u64, bytes: u64) -> nix::Result<()> {
        let how = how | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let at = |offset: u64| i64::try_from(offset).map_err(|_| Errno::EFBIG);
        fallocate(&self.file, how, at(offset)?, at(bytes)?)
    }

    fn fill_with_zeros(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let (mut at, end) = (offset, offset + bytes);
        while at < end {
            let piece = (end - at).min(ZEROS.len() as u64);
            self.file.write_all_at(&ZEROS[..piece as usize], at)?;
            at += piece;
        }
        Ok(())
    }
}

/// The format of an image that begins like this, if it is not a raw one.
fn format_of(start: &[u8; SECTOR_BYTES as usize]) -> Option<&'static str> {
    let (at, magic) = VDI;
    if start[at..].starts_with(&magic) {
        return Some("VDI");
    }
    let found = FORMATS.iter().find(|(magic, _)| start.starts_with(magic));
    found.map(|(_, format)| *format)
}

/// What tells the volume behind a block device from others, as far as the kernel knows: the id of a
/// logical volume, or a disk's id and, if it is a part of one, the number of the partition.
fn volume_identity(device: u64) -> Option<String> {
    let (major, minor) = (libc::major(device), libc::minor(device));
    let here = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(path).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let partition = read(here.join("partition"));
    // The folder of a partition lies in that of its disk.
    let disk = if partition.is_some() {
        here.canonicalize().ok()?.parent()?.to_path_buf()
    } else {
        here
    };
    let ids = ["dm/uuid", "wwid", "device/wwid", "serial"];
    let id = ids.into_iter().find_map(|id| read(disk.join(id)))?;
    Some(match partition {
        Some(number) => format!("partition {number} of {id}"),
        None => format!("volume {id}"),
    })
}

fn refusal(path: &Path, read_only: bool, source: io::Error) -> ImageError {
    let path = path.to_path_buf();
    let what = if read_only { "read" } else { "write" };
    match source.kind() {
        io::ErrorKind::NotFound => ImageError::Missing { path },
        io::ErrorKind::IsADirectory => ImageError::Directory { path },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ImageError::NotAllowed {
                path,
                what,
                hint: if read_only {
                    "this user needs read permission"
                } else {
                    "this user needs read and write permission, or give the guest the drive read-only"
                },
            }
        }
        _ => ImageError::Io { path, what, source },
    }
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn lock(path: &Path, file: &File, read_only: bool) -> Result<(), ImageError> {
    let kind = if read_only {
        libc::F_RDLCK
    } else {
        libc::F_WRLCK
    };
    let whole = whole_file(kind);
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
        Ok(_) => Ok(()),
        Err(Errno::EAGAIN | Errno::EACCES) => Err(ImageError::Taken {
            path: path.into(),
            holder: holder(path),
            why: if read_only {
                "who reads it must not share it with somebody who writes"
            } else {
                "who writes it must have it alone"
            },
        }),
        Err(errno) => Err(ImageError::Io {
            path: path.into(),
            what: "lock",
            source: errno.into(),
        }),
    }
}

/// Which processes of this host have the file open, as far as this user may see. The kernel does not tell
/// who holds a lock of this kind, and the holder may be on another host.
fn holder(path: &Path) -> String {
    let Ok(path) = path.canonicalize() else {
        return "another process".into();
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found: Vec<String> = processes
        .filter_map(|entry| entry.file_name().into_string().ok()?.parse::<u32>().ok())
        .filter(|pid| *pid != std::process::id() && has_open(*pid, &path))
        .map(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("process {pid} ({})", name.trim())
        })
        .collect();
    found.truncate(3);
    if found.is_empty() {
        "another drive of this process, or a process that this user cannot see".into()
    } else {
        found.join(", ")
    }
}

fn has_open(pid: u32, path: &Path) -> bool {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let mut files = files.into_iter().flatten().flatten();
    files.any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == path))
}
