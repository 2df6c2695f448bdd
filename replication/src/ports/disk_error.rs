//! Errors of disks. Every error names the disk or the file.

use std::io;
use std::path::PathBuf;

use crate::core::disk::DiskBatchError;
use crate::ids::{EpochId, Generation};

/// An error of a disk, its map or the journal.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The host's storage reports an error.
    #[error("disk {disk}: cannot {what} at byte {offset}")]
    Io {
        /// The disk's name.
        disk: String,
        /// What was tried.
        what: &'static str,
        /// Where it failed, in bytes.
        offset: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A map or journal file cannot be used.
    #[error("cannot {what} {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The image is an unfinished copy.
    #[error(
        "the image of disk {disk} is an unfinished copy, its synchronisation was interrupted: start this host as \
         a standby again so that it is brought up to date, or take another copy of the image and remove {}",
        map.display()
    )]
    Unfinished {
        /// The disk's name.
        disk: String,
        /// Its map.
        map: PathBuf,
    },
    /// The map is damaged, so it is unknown whether the image is whole.
    #[error(
        "the map {} of disk {disk} is damaged, or another version of this program wrote it; it cannot be told whether \
         the image is whole: if it is, remove the map (the next synchronisation sends everything)", map.display()
    )]
    MapDamaged {
        /// The disk's name.
        disk: String,
        /// Its map.
        map: PathBuf,
    },
    /// Another process holds the lock of a shared image, and the wait for it was given up.
    #[error("the shared image of disk {disk} is still locked by the old primary")]
    NotWaited {
        /// The disk's name.
        disk: String,
    },
    /// A replicated disk needs a journal.
    #[error("disk {disk} is replicated, which needs a journal; no path was given for it")]
    NoJournal {
        /// The disk's name.
        disk: String,
    },
    /// Disk numbers have 16 bits.
    #[error("more than 65536 disks")]
    TooManyDisks,
    /// Another process holds the lock of a shared image.
    #[error(
        "the shared image of disk {disk} is in use by another process or host; stop that first"
    )]
    Locked {
        /// The disk's name.
        disk: String,
    },
    /// The primary holds the lock of its shared image, but this host does not see it.
    #[error(
        "the primary holds the lock of the shared image of disk {disk}, but on the standby's host the image is not \
         locked: either the two hosts name different files, or the storage's locks do not reach from one host to \
         the other; name one file, on storage whose locks do (NFSv4 mounted without local_lock, for example), or \
         let each host have an image of its own (replicated)"
    )]
    NotLocked {
        /// The disk's name.
        disk: String,
    },
    /// A left-over journal belongs to other disks.
    #[error(
        "the journal {} belongs to other disks than the configured ones: start once with the disks it was made \
         for, or remove it and let the disks be synchronised again", path.display()
    )]
    OtherDisks {
        /// One of its files.
        path: PathBuf,
    },
    /// A journal is damaged, and the images cannot be brought to where they must be.
    #[error(
        "the journal {} cannot bring the disks to {}, {}, which was acknowledged: it ends after {}, {}, because \
         {what}; put the undamaged file back, or start this host as a standby again, so that the other host's data \
         replace these. To run what is left here, without what was acknowledged later, remove the disks' maps and \
         the journal", path.display(), wanted.0, wanted.1, have.0, have.1
    )]
    JournalDamaged {
        /// One of its files.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
        /// Where the images must be.
        wanted: (Generation, EpochId),
        /// Where they can be brought.
        have: (Generation, EpochId),
    },
    /// An image needs a journal that is not there.
    #[error(
        "the map {} of disk {disk} says that the image needs a journal, but {} does not exist or belongs to \
         another copy: name the journal that was used last, or start this host as a standby again, so that the \
         other host's data replace these. To run the image without it, which may lose what was acknowledged, remove \
         the map", map.display(), journal.display()
    )]
    JournalMissing {
        /// The disk's name.
        disk: String,
        /// Its map.
        map: PathBuf,
        /// The file that was looked for.
        journal: PathBuf,
    },
    /// An image was replaced, or changed by somebody else, while its journal had writes for it.
    #[error(
        "the image of disk {disk} is not the one that the left-over journal has writes for: {why}. Put that image \
         back, or start this host as a standby again, so that the other host's data replace it. To run this image as \
         it is, remove {} and the journal", map.display()
    )]
    ImageReplaced {
        /// The disk's name.
        disk: String,
        /// Its map.
        map: PathBuf,
        /// How it is known.
        why: String,
    },
    /// A journal of another version of this program.
    #[error(
        "the journal {} was written by another version of this program: start once with that version, or, if the \
         other host has the data, remove it and let the disks be synchronised again", path.display()
    )]
    JournalVersion {
        /// The file.
        path: PathBuf,
    },
    /// The other side has different disks.
    #[error("the other side's disks differ: {what}")]
    PeerDiffers {
        /// The difference.
        what: String,
    },
    /// An epoch was to end before the copy was whole.
    #[error("the disks are not synchronised yet, {bytes_left} bytes are left")]
    NotSynced {
        /// How much is left, in bytes.
        bytes_left: u64,
    },
    /// The primary sent something that is not a batch of writes.
    #[error("{epoch}: malformed disk writes")]
    Batch {
        /// The epoch; 0 during synchronisation.
        epoch: EpochId,
        /// What is wrong.
        #[source]
        source: DiskBatchError,
    },
    /// The primary sent more than this side can hold.
    #[error("{epoch}: {bytes} bytes of disk writes, limit {limit}")]
    TooMuch {
        /// The epoch.
        epoch: EpochId,
        /// Its size, in bytes.
        bytes: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The disks cannot be brought to this epoch.
    #[error("the disks stand at {have}, they cannot be brought to {wanted}")]
    WrongEpoch {
        /// The epoch asked for.
        wanted: EpochId,
        /// The epoch they are at.
        have: EpochId,
    },
    /// The images of the two sides cannot be compared, or not to the end.
    #[error("the disks' images cannot be compared: {why}")]
    NotCompared {
        /// Why not.
        why: String,
    },
    /// An earlier failure; this is its text.
    #[error("{0}")]
    Failed(String),
    /// This side was shut down because another side runs the guest.
    #[error("the disks are shut: another host runs this guest")]
    Shut,
}

impl DiskError {
    /// Converts it into the error of a device's request.
    #[must_use]
    pub fn into_io(self) -> io::Error {
        let kind = match &self {
            Self::Io { source, .. } | Self::File { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, self)
    }

    /// Whether a request failed for no other reason than that another side runs the guest. It says nothing
    /// about the host's storage.
    #[must_use]
    pub fn is_shut(error: &io::Error) -> bool {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        matches!(inner, Some(Self::Shut))
    }
}
