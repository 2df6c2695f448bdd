//! What a thread of the disk does for one request: calls of the storage, and nothing else.
//!
//! What must not be done here: touch guest memory. The machine may be paused.

use std::io;

use understudy_replication::disk::Storage;

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

/// What became of it: the data of a read, nothing for others.
pub(super) type Outcome = Result<Vec<u8>, Failure>;

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

    /// Memory that it holds.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Read { data, .. } | Self::Write { data, .. } => data.len(),
            Self::Flush | Self::Discard { .. } | Self::WriteZeroes { .. } => 0,
        }
    }

    /// Does it. What changes the disk is made safe before this returns, if `is_safe`.
    pub(super) fn perform(self, storage: &dyn Storage, is_safe: bool) -> Outcome {
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
                return read.map(|()| data).map_err(failed("read", offset));
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
            storage.flush().map_err(failed("flush", 0))?;
        }
        Ok(Vec::new())
    }
}
