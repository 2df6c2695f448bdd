//! An arbiter in a directory that both hosts see.
//!
//! | name | content | written |
//! | --- | --- | --- |
//! | `id` | the arbiter's [identity](super::ArbiterId) | once |
//! | `N`, a number | JSON: generation `N` and its holder | once, by whoever is the first to link it |
//! | `N.note` | JSON: the backup and the [mark](super::Mark) | replaced by the holder of `N`, nobody else |
//! | `lock` | nothing; a holder has a byte of its own locked for as long as it lives | never |
//!
//! The generation in force is the highest number. A grant is a hard link: the file system makes it
//! for one claimant only, however long another one has stalled since it looked, and whatever has
//! become of its locks. So a number's file is never removed. If somebody removes it all the same,
//! by restoring an earlier directory, a claimant that looked before is told after its link.
//!
//! [`Claim::Start`], [`Claim::Restart`] and [`Claim::StartOver`] check the locks: no guest is
//! started from nothing while a holder lives. A promotion does not, because the old primary may be
//! frozen and still hold its lock. Locks decide nothing else: what a frozen claimant has locked must not keep others waiting.
//!
//! The storage must give both hosts hard links, coherent locks and renames (a local file system for
//! two processes of one host, NFSv4, OCFS2, GFS2 …). An NFS client may remember for half a minute
//! that a name did not exist; it looks anew after opening the directory, as each reading does here.

mod store;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use self::store::{Grant, HolderNote, Store};
use super::{Arbiter, ArbiterError, ArbiterId, Claim, Mark, Note, Record, Verdict};
use crate::files::{FileSystem, HostFile, HostFiles, Open};
use crate::ids::Generation;

/// See the [module documentation](self).
#[derive(Debug)]
pub struct FileArbiter {
    store: Store,
    /// Open for as long as this process may hold a generation, because closing it drops the locks.
    lock: Box<dyn HostFile>,
    lock_path: PathBuf,
    /// The byte that is locked while this arbiter's claimant holds a generation: nobody else's.
    life: u64,
    /// Serialises claims and notes; whether this arbiter's claimant holds a generation.
    holding: Mutex<bool>,
}

impl FileArbiter {
    /// Opens the arbiter in the directory at `path`, and makes it if there is nothing there.
    ///
    /// # Errors
    /// If it cannot be read or made. If there is a directory whose identity is missing although it
    /// has grants, or something that is not a directory: somebody removed or replaced the record.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, ArbiterError> {
        Self::open_in(Arc::new(FileSystem), path.into())
    }

    /// Whether there is an arbiter at `path`.
    ///
    /// # Errors
    /// If it cannot be looked at, or has lost its identity.
    pub fn exists(path: impl Into<PathBuf>) -> Result<bool, ArbiterError> {
        Ok(Store::find(Arc::new(FileSystem), path.into())?.is_some())
    }

    /// Makes a new arbiter in the directory at `path`.
    ///
    /// # Errors
    /// If there is one already, or anything else of that name, or it cannot be made.
    pub fn make(path: impl Into<PathBuf>) -> Result<Self, ArbiterError> {
        let path = path.into();
        if let Some(store) = Store::find(Arc::new(FileSystem), path.clone())? {
            let why = format!("it is {}", store.id().0);
            return Err(store.failure("there is an arbiter already", why));
        }
        Self::open(path)
    }

    /// Opens the arbiter in the directory at `path`.
    ///
    /// # Errors
    /// If there is none, or as [`FileArbiter::open`].
    pub fn find(path: impl Into<PathBuf>) -> Result<Self, ArbiterError> {
        let (files, path) = (Arc::new(FileSystem), path.into());
        let store = Store::find(files.clone(), path.clone())?;
        let store = store.ok_or_else(|| store::missing(files.clone(), path))?;
        Self::at(files, store)
    }

    fn open_in(files: Arc<dyn HostFiles>, path: PathBuf) -> Result<Self, ArbiterError> {
        let store = Store::open(files.clone(), path)?;
        Self::at(files, store)
    }

    fn at(files: Arc<dyn HostFiles>, store: Store) -> Result<Self, ArbiterError> {
        let lock_path = store.path().join("lock");
        let lock = files.open(&lock_path, Open::Any).map_err(|error| {
            store.failure(format!("cannot open {}", lock_path.display()), error)
        })?;
        Ok(Self {
            store,
            lock,
            lock_path,
            // Small enough for a signed offset.
            life: (rand::random::<u64>() >> 2).max(1),
            holding: Mutex::new(false),
        })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.store.path()
    }

    /// This arbiter's identity, as it was when it was opened.
    #[must_use]
    pub fn id(&self) -> &ArbiterId {
        self.store.id()
    }

    /// Shows others that a holder lives, or does not any more.
    fn show_life(&self, lives: bool) -> Result<(), ArbiterError> {
        self.lock.lock(self.life, lives).map_err(|error| {
            let what = format!("cannot lock {}", self.lock_path.display());
            self.store.failure(what, error)
        })
    }

    /// Why a claim is not granted in view of this record, if it is not.
    fn objection(&self, record: &Record, claim: Claim) -> Result<Option<String>, ArbiterError> {
        let holder = &record.holder;
        match claim {
            Claim::Start { .. } | Claim::Restart { .. } | Claim::StartOver
                if self.holder_lives()? =>
            {
                Ok(Some(format!(
                    "{holder}, which is alive: stop it first, or start this side as its standby"
                )))
            }
            Claim::Start { known } | Claim::Restart { known } | Claim::After { known, .. }
                if record.generation > known =>
            {
                Ok(Some(holder.clone()))
            }
            Claim::Start { known } | Claim::Restart { known } | Claim::After { known, .. }
                if record.generation < known =>
            {
                let what = format!("its record went back to {}", record.generation);
                let why = format!(
                    "{known} was in force: restore {}, or point this host at the right arbiter",
                    self.path().display()
                );
                Err(self.store.failure(what, why))
            }
            Claim::Start { .. } => Ok(record.backup.as_ref().map(|backup| {
                format!(
                    "{holder}, which is gone, and its standby {backup} has a copy: let that take \
                     over, or start over from nothing and give the copy up"
                )
            })),
            Claim::StartOver => Ok(None),
            Claim::After { mark, .. } if !record.mark.shows(mark) => {
                let what = String::from("this is not the record that the holder writes to");
                let why = format!(
                    "it shows {}, the holder wrote {mark}: both hosts must use one directory, not \
                     copies of it",
                    record.mark
                );
                Err(self.store.failure(what, why))
            }
            Claim::After { .. } | Claim::Restart { .. } => Ok(None),
        }
    }

    fn grant(
        &self,
        holding: &mut bool,
        claim: Claim,
        claimant: &str,
    ) -> Result<Verdict, ArbiterError> {
        loop {
            let record = self.store.read()?;
            let current = record.generation;
            if record.holder == claimant && is_repeated(claim, current) {
                // The first answer got lost.
                self.show_life(true)?;
                *holding = true;
                self.store.sync()?;
                self.check_base(current, mark_of(claim))?;
                return Ok(Verdict::Granted(current));
            }
            if let Some(holder) = self.objection(&record, claim)? {
                return Ok(Verdict::Refused { current, holder });
            }
            if self.take(holding, current.next(), claimant)? {
                self.check_base(current.next(), record.mark)?;
                return Ok(Verdict::Granted(current.next()));
            }
            // What the faster claimant has changes what this one may have.
        }
    }

    /// Whether what a grant was decided by is still in the record. It is not if the directory was restored to an
    /// earlier state between the look and the link. Then the number may have been granted before.
    fn check_base(&self, granted: Generation, seen: Mark) -> Result<(), ArbiterError> {
        let Some(base) = granted.0.checked_sub(1).filter(|base| *base > 0) else {
            return Ok(());
        };
        let mark = self.store.mark_of(Generation(base))?;
        if mark.is_some_and(|mark| seen == Mark::default() || mark.shows(seen)) {
            return Ok(());
        }
        let what = format!("its record went back while {granted} was claimed");
        let why = format!(
            "somebody restored {} meanwhile: only one that has all that was granted is of use",
            self.path().display()
        );
        Err(self.store.failure(what, why))
    }

    /// Tries to become the holder of a generation; returns whether it did, or another one was faster.
    /// The lock comes first: a grant must never be in force without its holder's lock.
    fn take(
        &self,
        holding: &mut bool,
        generation: Generation,
        claimant: &str,
    ) -> Result<bool, ArbiterError> {
        self.show_life(true)?;
        let holder = claimant.to_owned();
        let grant = Grant { generation, holder };
        let linked = self.store.link(&grant);
        // After an error it may be linked all the same. Then the lock must stay.
        *holding |= match &linked {
            Ok(linked) => *linked,
            Err(_) => self.store.may_be_linked(&grant),
        };
        if !*holding {
            self.show_life(false)?;
        }
        linked
    }

    /// Does `what` while no other thread claims or notes anything through this arbiter.
    fn exclusively<T>(&self, what: impl FnOnce(&mut bool) -> T) -> T {
        what(&mut self.holding.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the claimant knows that the holder before has written.
fn mark_of(claim: Claim) -> Mark {
    match claim {
        Claim::After { mark, .. } => mark,
        Claim::Start { .. } | Claim::Restart { .. } | Claim::StartOver => Mark::default(),
    }
}

/// Whether a claim asks for the generation that its claimant already holds.
fn is_repeated(claim: Claim, current: Generation) -> bool {
    match claim {
        Claim::StartOver => current.0 > 0,
        Claim::Start { known } | Claim::Restart { known } | Claim::After { known, .. } => {
            current == known.next()
        }
    }
}

impl Arbiter for FileArbiter {
    fn claim(&self, claim: Claim, claimant: &str) -> Result<Verdict, ArbiterError> {
        self.exclusively(|holding| self.grant(holding, claim, claimant))
    }

    fn note(&self, generation: Generation, note: Note<'_>) -> Result<(), ArbiterError> {
        self.exclusively(|_| {
            let record = self.store.read()?;
            if record.generation != generation {
                let what = format!("cannot note anything of {generation}");
                let why = format!(
                    "{} is in force, held by {}",
                    record.generation, record.holder
                );
                return Err(self.store.failure(what, why));
            }
            let mut new = HolderNote {
                backup: record.backup,
                mark: record.mark,
            };
            let old = new.clone();
            match note {
                Note::Backup(name) => new.backup = Some(name.to_owned()),
                Note::NoBackup => new.backup = None,
                Note::Mark(mark) => new.mark = mark,
            }
            if new == old {
                // An earlier try may have failed, or been cut off, before it was durable.
                return self.store.sync();
            }
            self.store.write_note(generation, &new)
        })
    }

    fn record(&self) -> Result<Record, ArbiterError> {
        self.store.read()
    }

    /// Whether another open file, in this or another process, shows that.
    fn holder_lives(&self) -> Result<bool, ArbiterError> {
        self.lock.is_locked_by_other(1).map_err(|error| {
            let what = format!("cannot query locks of {}", self.lock_path.display());
            self.store.failure(what, error)
        })
    }

    fn rehearse(&self) -> Result<Record, ArbiterError> {
        self.store.try_writing()?;
        // A claim also needs locks; asking about them needs the same service.
        self.holder_lives()?;
        self.store.read()
    }
}

#[cfg(test)]
mod tests;
