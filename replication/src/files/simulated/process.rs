//! What happens to the calls of one process: it ends at one, one fails, others run between them, or its NFS client
//! remembers what is not so any more.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::turns::Turns;
use super::world::parent;
use crate::files::Open;

/// A call, as a test sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Open {
        name: String,
        how: Open,
    },
    Read {
        name: String,
    },
    Write {
        name: String,
        offset: u64,
        bytes: u64,
    },
    Resize {
        name: String,
    },
    Sync {
        name: String,
    },
    Lock {
        name: String,
    },
    MakeDirectory {
        name: String,
    },
    Names {
        name: String,
    },
    Rename {
        name: String,
        to: String,
    },
    Link {
        name: String,
        to: String,
    },
    Remove {
        name: String,
    },
    SyncDirectory {
        name: String,
    },
}

impl Call {
    /// The file or directory.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Open { name, .. }
            | Self::Read { name }
            | Self::Write { name, .. }
            | Self::Resize { name }
            | Self::Sync { name }
            | Self::Lock { name }
            | Self::MakeDirectory { name }
            | Self::Names { name }
            | Self::Rename { name, .. }
            | Self::Link { name, .. }
            | Self::Remove { name }
            | Self::SyncDirectory { name } => name,
        }
    }

    /// Whether the storage may be another one after it.
    pub(crate) fn changes(&self) -> bool {
        match self {
            Self::Open { how, .. } => !matches!(how, Open::Reading | Open::Existing),
            Self::Read { .. } | Self::Names { .. } | Self::Lock { .. } => false,
            _ => true,
        }
    }
}

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nothing was done.
    NotDone(i32),
    /// It was done, and the answer got lost.
    Unanswered(i32),
    /// A sync could not write, and drops what it has not written: the next one says that all is well.
    Dropped(i32),
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Done,
    /// A part of a write.
    Torn,
    Unanswered(i32),
    Dropped(i32),
}

impl Fate {
    /// What its caller is told once it is done.
    pub(super) fn told<T>(self, value: T) -> io::Result<T> {
        match self {
            Self::Done => Ok(value),
            Self::Torn => Err(killed()),
            Self::Unanswered(errno) | Self::Dropped(errno) => {
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }
}

fn killed() -> io::Error {
    io::Error::other("the process was killed")
}

type Hook = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(super) struct Process {
    /// Calls so far.
    pub(super) count: u64,
    pub(super) calls: Vec<Call>,
    pub(super) has_ended: bool,
    /// It ends at this call, or in the middle of it.
    pub(super) ends: Option<(u64, bool)>,
    /// This call fails.
    pub(super) fails: Option<(u64, Failure)>,
    /// The next so many changes of names that contain this succeed, and all after them fail.
    pub(super) failing: Option<(String, u64, io::ErrorKind)>,
    /// Is done before the next write.
    pub(super) before_write: Option<Hook>,
    /// Is done before the next sync.
    pub(super) before_sync: Option<Hook>,
    pub(super) turns: Option<(Arc<Turns>, usize, &'static [&'static str])>,
    pub(super) remembered: Option<Remembered>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a process after {} calls", self.count)
    }
}

impl Process {
    /// A call begins.
    pub(super) fn fate(&mut self, call: &Call) -> io::Result<Fate> {
        if self.has_ended {
            return Err(killed());
        }
        let number = self.count;
        self.count += 1;
        self.calls.push(call.clone());
        if let Some((at, torn)) = self.ends
            && at == number
        {
            self.has_ended = true;
            return match call {
                Call::Write { .. } if torn => Ok(Fate::Torn),
                _ => Err(killed()),
            };
        }
        if let Some((name, left, kind)) = &mut self.failing
            && call.changes()
            && call.name().contains(&*name)
        {
            if *left == 0 {
                return Err((*kind).into());
            }
            *left -= 1;
        }
        match self.fails {
            Some((at, Failure::NotDone(errno))) if at == number => {
                Err(io::Error::from_raw_os_error(errno))
            }
            Some((at, Failure::Unanswered(errno))) if at == number => Ok(Fate::Unanswered(errno)),
            Some((at, Failure::Dropped(errno))) if at == number => Ok(Fate::Dropped(errno)),
            _ => Ok(Fate::Done),
        }
    }
}

/// What an NFS client remembers of names until it opens their directory anew: files, and that there were none.
#[derive(Debug, Default)]
pub(super) struct Remembered(BTreeMap<PathBuf, Option<u64>>);

impl Remembered {
    pub(super) fn look_up(&mut self, path: &Path, now: Option<u64>) -> Option<u64> {
        *self.0.entry(path.to_path_buf()).or_insert(now)
    }

    /// The process itself did that.
    pub(super) fn learn(&mut self, path: &Path, now: Option<u64>) {
        self.0.insert(path.to_path_buf(), now);
    }

    pub(super) fn forget(&mut self, directory: &Path) {
        self.0.retain(|path, _| parent(path) != directory);
    }
}
