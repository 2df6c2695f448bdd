//! An arbiter in a file that both hosts see.
//!
//! It uses two files. `PATH` holds the generation in force, its holder and the backup, as JSON. It is
//! replaced atomically (write, fsync, rename, fsync of the directory). `PATH.lock` is never replaced.
//! Open-file-description locks on its bytes order the grants and show who is alive:
//!
//! - byte 0 is locked exclusively while a claim or a note reads and replaces `PATH`;
//! - byte `generation` is locked for as long as the holder of that generation lives. [`Claim::Start`]
//!   and [`Claim::StartOver`] check these locks: no guest is started from nothing while a holder lives.
//!   A promotion does not check them, because the old primary may be frozen and still hold its lock.
//!
//! The storage must give both hosts coherent locks and renames (a local file system for two processes
//! of one host, NFSv4, OCFS2, GFS2 …).

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde::{Deserialize, Serialize};

use super::{Arbiter, ArbiterError, Claim, Note, Verdict};
use crate::ids::Generation;

/// Longest file that is read as an arbiter's record.
const RECORD_BYTES_MAX: u64 = 64 * 1024;

/// See the [module documentation](self).
#[derive(Debug)]
pub struct FileArbiter {
    path: PathBuf,
    lock_path: PathBuf,
    /// Open for as long as this process may hold a generation, because closing it drops the locks.
    lock: File,
    /// Serialises calls through this arbiter: OFD locks of one open file do not exclude each other.
    claiming: Mutex<()>,
}

/// What `PATH` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    generation: Generation,
    holder: String,
    /// The backup that may have a copy of the holder's guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backup: Option<String>,
}

#[derive(Debug, Clone, Copy)]
enum Wait {
    Yes,
    No,
}

impl FileArbiter {
    /// Opens the arbiter at `path`, and creates it if it does not exist.
    ///
    /// # Errors
    /// If `PATH` or `PATH.lock` cannot be opened or created for writing.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, ArbiterError> {
        let path = path.into();
        let mut lock_path = path.clone().into_os_string();
        lock_path.push(".lock");
        let lock_path = PathBuf::from(lock_path);
        let lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(|error| {
                failure(&path, format!("cannot open {}", lock_path.display()), error)
            })?;
        open_record(&path).map_err(|error| failure(&path, "cannot open the file", error))?;
        Ok(Self {
            path,
            lock_path,
            lock,
            claiming: Mutex::new(()),
        })
    }

    fn failure(
        &self,
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ArbiterError {
        failure(&self.path, what, source)
    }

    fn read(&self) -> Result<Record, ArbiterError> {
        let file =
            open_record(&self.path).map_err(|error| self.failure("cannot open the file", error))?;
        let mut text = String::new();
        file.take(RECORD_BYTES_MAX)
            .read_to_string(&mut text)
            .map_err(|error| self.failure("cannot read the file", error))?;
        if text.is_empty() {
            return Ok(Record {
                generation: Generation(0),
                holder: "nobody".into(),
                backup: None,
            });
        }
        serde_json::from_str(&text).map_err(|error| {
            self.failure(
                "the file is not an arbiter's record; if you know that no guest runs, remove it",
                error,
            )
        })
    }

    /// Replaces the record. A crash leaves the old or the new record, never a mixture.
    fn write(&self, record: &Record) -> Result<(), ArbiterError> {
        let mut temporary = self.path.clone().into_os_string();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        let replace = || -> std::io::Result<()> {
            let mut file = File::create(&temporary)?;
            let mut text = serde_json::to_string(record).map_err(std::io::Error::other)?;
            text.push('\n');
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)?;
            let directory = match self.path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent,
                _ => Path::new("."),
            };
            File::open(directory)?.sync_all()
        };
        replace().map_err(|error| self.failure("cannot replace the file", error))
    }

    fn set_lock(&self, byte: u64, kind: i32, wait: Wait) -> Result<bool, ArbiterError> {
        let range = range(kind, byte, 1);
        loop {
            let argument = match wait {
                Wait::Yes => FcntlArg::F_OFD_SETLKW(&range),
                Wait::No => FcntlArg::F_OFD_SETLK(&range),
            };
            match fcntl(self.lock.as_fd(), argument) {
                Ok(_) => return Ok(true),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN | nix::Error::EACCES) => return Ok(false),
                Err(error) => {
                    return Err(
                        self.failure(format!("cannot lock {}", self.lock_path.display()), error)
                    );
                }
            }
        }
    }

    /// Whether another open file, in this or another process, holds a generation.
    fn holder_lives(&self) -> Result<bool, ArbiterError> {
        let mut range = range(libc::F_WRLCK, 1, 0);
        fcntl(self.lock.as_fd(), FcntlArg::F_OFD_GETLK(&mut range)).map_err(|error| {
            self.failure(
                format!("cannot query locks of {}", self.lock_path.display()),
                error,
            )
        })?;
        Ok(i32::from(range.l_type) != libc::F_UNLCK)
    }

    /// Does `what` while nobody else claims or notes anything.
    fn exclusively<T>(
        &self,
        what: impl FnOnce() -> Result<T, ArbiterError>,
    ) -> Result<T, ArbiterError> {
        let _claiming = self
            .claiming
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        self.set_lock(0, libc::F_WRLCK, Wait::Yes)?;
        let done = what();
        let unlocked = self.set_lock(0, libc::F_UNLCK, Wait::No);
        let done = done?;
        unlocked?;
        Ok(done)
    }

    fn grant(
        &self,
        record: &Record,
        claim: Claim,
        claimant: &str,
    ) -> Result<Verdict, ArbiterError> {
        let refused = |holder: String| {
            Ok(Verdict::Refused {
                current: record.generation,
                holder,
            })
        };
        let holder = &record.holder;
        match (claim, &record.backup) {
            (Claim::Start | Claim::StartOver, _) if self.holder_lives()? => {
                return refused(format!(
                    "{holder}, which is alive: stop it first, or start this side as its standby"
                ));
            }
            (Claim::Start, Some(backup)) => {
                return refused(format!(
                    "{holder}, which is gone, and its standby {backup} has a copy: let that take over, \
                     or start over from nothing and give the copy up"
                ));
            }
            (Claim::After(known), _)
                if record.generation == known.next() && record.holder == claimant =>
            {
                self.set_lock(record.generation.0, libc::F_WRLCK, Wait::No)?;
                return Ok(Verdict::Granted(record.generation));
            }
            (Claim::After(known), _) if record.generation != known => {
                return refused(holder.clone());
            }
            (Claim::Start | Claim::StartOver | Claim::After(_), _) => {}
        }
        let generation = record.generation.next();
        // Lock first, then write the record: a record must never be in force without its holder's
        // lock.
        if !self.set_lock(generation.0, libc::F_WRLCK, Wait::No)? {
            return Err(self.failure(
                format!(
                    "{generation} was never granted, yet {} shows a live holder",
                    self.lock_path.display()
                ),
                "the record was removed or restored from a copy while a guest runs",
            ));
        }
        if let Err(error) = self.write(&Record {
            generation,
            holder: claimant.to_owned(),
            backup: None,
        }) {
            self.set_lock(generation.0, libc::F_UNLCK, Wait::No)?;
            return Err(error);
        }
        Ok(Verdict::Granted(generation))
    }
}

impl Arbiter for FileArbiter {
    fn claim(&self, claim: Claim, claimant: &str) -> Result<Verdict, ArbiterError> {
        self.exclusively(|| self.grant(&self.read()?, claim, claimant))
    }

    fn note(&self, generation: Generation, note: Note<'_>) -> Result<(), ArbiterError> {
        self.exclusively(|| {
            let record = self.read()?;
            if record.generation != generation {
                return Err(self.failure(
                    format!("cannot note anything of {generation}"),
                    format!(
                        "{} is in force, held by {}",
                        record.generation, record.holder
                    ),
                ));
            }
            let backup = match note {
                Note::Backup(name) => Some(name.to_owned()),
                Note::NoBackup => None,
            };
            if record.backup == backup {
                return Ok(());
            }
            self.write(&Record { backup, ..record })
        })
    }

    fn current(&self) -> Result<(Generation, String), ArbiterError> {
        self.read().map(|record| (record.generation, record.holder))
    }
}

/// Opens the record, which is empty before the first grant. Creates it if it does not exist: an NFS
/// client remembers for half a minute that a name did not exist, and would miss the other host's
/// first grant. It looks up an existing name anew each time.
fn open_record(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

fn failure(
    path: &Path,
    what: impl Into<String>,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ArbiterError {
    ArbiterError {
        arbiter: path.display().to_string(),
        what: what.into(),
        source: Some(source.into()),
    }
}

/// A lock request for `len` bytes from `start`. A `len` of 0 means all bytes from there on.
fn range(kind: i32, start: u64, len: u64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start as libc::off_t,
        l_len: len as libc::off_t,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn arbiters(directory: &tempfile::TempDir) -> (FileArbiter, FileArbiter) {
        let path = directory.path().join("arbiter");
        (
            FileArbiter::open(&path).unwrap(),
            FileArbiter::open(&path).unwrap(),
        )
    }

    #[test]
    fn nobody_remembers_that_there_was_no_record() {
        let directory = tempfile::tempdir().unwrap();
        let arbiter = FileArbiter::open(directory.path().join("arbiter")).unwrap();
        assert!(directory.path().join("arbiter").exists());
        assert_eq!(arbiter.current().unwrap(), (Generation(0), "nobody".into()));
    }

    #[test]
    fn each_generation_is_granted_once() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = arbiters(&directory);
        assert_eq!(
            a.claim(Claim::Start, "a").unwrap(),
            Verdict::Granted(Generation(1))
        );
        assert_eq!(
            b.claim(Claim::After(Generation(1)), "b").unwrap(),
            Verdict::Granted(Generation(2))
        );
        assert_eq!(
            a.claim(Claim::After(Generation(1)), "a").unwrap(),
            Verdict::Refused {
                current: Generation(2),
                holder: "b".into()
            }
        );
        assert_eq!(a.current().unwrap(), (Generation(2), "b".into()));
    }

    #[test]
    fn a_repeated_claim_of_the_holder_gets_the_same_generation() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = arbiters(&directory);
        a.claim(Claim::Start, "a").unwrap();
        for _ in 0..2 {
            assert_eq!(
                b.claim(Claim::After(Generation(1)), "b").unwrap(),
                Verdict::Granted(Generation(2))
            );
        }
    }

    #[test]
    fn a_guest_is_not_started_while_a_holder_lives() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = arbiters(&directory);
        a.claim(Claim::Start, "a").unwrap();
        for claim in [Claim::Start, Claim::StartOver] {
            let Verdict::Refused { current, holder } = b.claim(claim, "b").unwrap() else {
                panic!("{claim:?} was granted");
            };
            assert_eq!(current, Generation(1));
            assert!(holder.starts_with("a, which is alive"), "{holder}");
        }
        drop(a);
        assert_eq!(
            b.claim(Claim::Start, "b").unwrap(),
            Verdict::Granted(Generation(2))
        );
    }

    #[test]
    fn a_guest_whose_standby_has_a_copy_is_not_started_from_nothing_by_mistake() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = arbiters(&directory);
        a.claim(Claim::Start, "a").unwrap();
        a.note(Generation(1), Note::Backup("standby-b")).unwrap();
        drop(a);
        let Verdict::Refused { holder, .. } = b.claim(Claim::Start, "b").unwrap() else {
            panic!("started although a copy may go on");
        };
        assert!(holder.contains("standby-b has a copy"), "{holder}");
        // The copy itself may, and so may whoever gives it up.
        assert_eq!(
            b.claim(Claim::StartOver, "b").unwrap(),
            Verdict::Granted(Generation(2))
        );
        b.note(Generation(2), Note::Backup("standby-c")).unwrap();
        b.note(Generation(2), Note::NoBackup).unwrap();
        assert!(b.note(Generation(1), Note::NoBackup).is_err());
        drop(b);
        let (c, _) = arbiters(&directory);
        assert_eq!(
            c.claim(Claim::Start, "c").unwrap(),
            Verdict::Granted(Generation(3))
        );
    }

    #[test]
    fn of_many_claims_at_once_one_wins() {
        let directory = tempfile::tempdir().unwrap();
        let (first, _) = arbiters(&directory);
        first.claim(Claim::Start, "first").unwrap();
        let path = directory.path().join("arbiter");
        let barrier = Arc::new(std::sync::Barrier::new(16));
        let threads: Vec<_> = (0..16)
            .map(|number| {
                let (path, barrier) = (path.clone(), Arc::clone(&barrier));
                std::thread::spawn(move || {
                    let arbiter = FileArbiter::open(path).unwrap();
                    barrier.wait();
                    arbiter
                        .claim(Claim::After(Generation(1)), &format!("node-{number}"))
                        .unwrap()
                })
            })
            .collect();
        let granted = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .filter(|verdict| matches!(verdict, Verdict::Granted(_)))
            .count();
        assert_eq!(granted, 1);
        assert_eq!(first.current().unwrap().0, Generation(2));
    }

    #[test]
    fn a_claim_after_the_last_number_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = arbiters(&directory);
        a.claim(Claim::Start, "a").unwrap();
        let verdict = b.claim(Claim::After(Generation(u64::MAX)), "b").unwrap();
        assert!(matches!(verdict, Verdict::Refused { current, .. } if current == Generation(1)));
    }

    #[test]
    fn a_garbled_record_is_an_error_and_grants_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let (a, _) = arbiters(&directory);
        std::fs::write(directory.path().join("arbiter"), "{\"generation\":7}").unwrap();
        let error = a.claim(Claim::Start, "a").unwrap_err();
        assert!(
            error.to_string().contains("not an arbiter's record"),
            "{error}"
        );
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = FileArbiter::open("/nonexistent/arbiter").unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/arbiter"),
            "{error}"
        );
    }
}
