//! What a thread of the disk does for one request: calls of the storage, and nothing else.
//!
//! What must not be done here: touch guest memory. The machine may be paused.

use std::io;

use understudy_replication::disk::{Disk, GuestFlush, Storage};

/// What requests go to.
pub enum Medium {
    /// An image without a second copy, or one that is only read.
    Plain(Box<dyn Storage>),
    /// A disk with a second copy.
    Copied(Disk),
}

impl Medium {
    /// A plain disk of `storage`.
    pub fn plain(storage: impl Storage + 'static) -> Self {
        Self::Plain(Box::new(storage))
    }

    fn storage(&self) -> &dyn Storage {
        match self {
            Self::Plain(storage) => &**storage,
            Self::Copied(disk) => disk,
        }
    }

    fn flush(&self) -> io::Result<GuestFlush> {
        match self {
            Self::Plain(storage) => storage.flush().map(|()| GuestFlush::DONE),
            Self::Copied(disk) => disk.flush_for_guest(),
        }
    }
}

/// What to do. Positions are in bytes and within the disk.
pub(super) enum Work {
    /// Fills `data`.
    Read {
        offset: u64,
        data: Vec<u8>,
    },
    Write {
        offset: u64,
        data: Vec<u8>,
    },
    Flush,
    Discard {
        offset: u64,
        bytes: u64,
    },
    WriteZeroes {
        offset: u64,
        bytes: u64,
        may_unmap: bool,
    },
}

/// What became of it.
pub(super) type Outcome = Result<Served, Failure>;

/// The storage has done its part.
pub(super) struct Served {
    /// Of a read; nothing for others.
    pub(super) data: Vec<u8>,
    /// What the guest is to wait for.
    pub(super) flush: GuestFlush,
}

/// The host's disk refused.
pub(super) struct Failure {
    pub(super) what: &'static str,
    pub(super) offset: u64,
    pub(super) error: io::Error,
}

impl Failure {
    /// In plain words.
    pub(super) fn in_words(&self) -> String {
        let Self {
            what,
            offset,
            error,
        } = self;
        let cause = std::error::Error::source(error);
        let cause = cause.map_or_else(String::new, |cause| format!(": {cause}"));
        format!("cannot {what} at byte {offset}: {error}{cause}")
    }
}

impl Work {
    /// Whether it is about what was written before it.
    pub(super) fn is_flush(&self) -> bool {
        matches!(self, Self::Flush)
    }

    /// Where it changes the disk, and how many bytes.
    pub(super) fn changes(&self) -> Option<(u64, u64)> {
        match self {
            Self::Read { .. } | Self::Flush => None,
            Self::Write { offset, data } => Some((*offset, data.len() as u64)),
            Self::Discard { offset, bytes } | Self::WriteZeroes { offset, bytes, .. } => {
                Some((*offset, *bytes))
            }
        }
    }

    /// Memory that it holds.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Read { data, .. } | Self::Write { data, .. } => data.len(),
            Self::Flush | Self::Discard { .. } | Self::WriteZeroes { .. } => 0,
        }
    }

    /// Does it. What changes the disk is made safe before this returns, if `is_safe`.
    pub(super) fn perform(self, medium: &Medium, is_safe: bool) -> Outcome {
        let storage = medium.storage();
        let mut flush = GuestFlush::DONE;
        let failed = |what, offset| {
            move |error| Failure {
                what,
                offset,
                error,
            }
        };
        match self {
            Self::Read { offset, mut data } => {
                let read = storage.read_at(offset, &mut data);
                let read = read.map(|()| Served { data, flush });
                return read.map_err(failed("read", offset));
            }
            Self::Flush => {}
            Self::Write { offset, data } => {
                let written = storage.write_at(offset, &data);
                written.map_err(failed("write", offset))?;
            }
            Self::Discard { offset, bytes } => {
                let done = storage.discard(offset, bytes);
                done.map_err(failed("discard", offset))?;
            }
            Self::WriteZeroes {
                offset,
                bytes,
                may_unmap,
            } => {
                let done = storage.write_zeroes(offset, bytes, may_unmap);
                done.map_err(failed("write zeros", offset))?;
            }
        }
        if is_safe {
            flush = medium.flush().map_err(failed("flush", 0))?;
        }
        let data = Vec::new();
        Ok(Served { data, flush })
    }
}
