//! The files of a [`FileArbiter`](super::FileArbiter): how they are read, and how each is written
//! so that a crash leaves all of it or nothing.
//!
//! Must not be done here: deciding who gets a generation.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ArbiterError, ArbiterId, Mark, Record};
use crate::files::{HostFiles, Open, directory_of};
use crate::ids::Generation;

/// What files begin with that have no name of their own yet.
const TEMPORARY: &str = ".new-";
/// A claimant that was killed leaves such a file. One this old is nobody's, or its claimant has stood still for so
/// long that it may try again: taking a file away before it is linked or renamed makes that fail, and nothing else.
/// So neither a wrong clock nor a claimant that wakes up late can do harm.
const TEMPORARY_KEPT: Duration = Duration::from_secs(3600);
/// Longest file that is read.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The file `N`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Grant {
    pub(super) generation: Generation,
    pub(super) holder: String,
}

/// The file `N.note`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HolderNote {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) backup: Option<String>,
    #[serde(default)]
    pub(super) mark: Mark,
}

#[derive(Debug)]
pub(super) struct Store {
    files: Arc<dyn HostFiles>,
    path: PathBuf,
    id: ArbiterId,
}

/// A file without a name of its own yet. It is removed when this is dropped.
struct Temporary<'a> {
    files: &'a dyn HostFiles,
    path: PathBuf,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        // If it was renamed, there is nothing to remove.
        let _ = self.files.remove(&self.path);
    }
}

impl Store {
    pub(super) fn open(files: Arc<dyn HostFiles>, path: PathBuf) -> Result<Self, ArbiterError> {
        let mut store = Self::unidentified(files, path);
        match store.files.make_directory(&store.path) {
            Ok(()) => {}
            Err(error)
                if error.kind() == ErrorKind::AlreadyExists
                    && store.files.is_directory(&store.path) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let why = "an arbiter is a directory; if no guest runs, remove this";
                return Err(store.failure("this is not a directory", why));
            }
            Err(error) => return Err(store.failure("cannot make the directory", error)),
        }
        let latest = store.latest()?;
        // Read after the grants: whoever made one had made the identity before.
        store.id = match store.read_id()? {
            // Whoever made it may have been killed before it was durable.
            Some(id) => store.sync().map(|()| id)?,
            None if latest.0 > 0 => return Err(store.vanished()),
            None => {
                store.sync_directory(directory_of(&store.path))?;
                store.make_id()?
            }
        };
        store.remove_leftovers();
        Ok(store)
    }

    /// The arbiter at `path`, if there is one. Makes nothing.
    pub(super) fn find(
        files: Arc<dyn HostFiles>,
        path: PathBuf,
    ) -> Result<Option<Self>, ArbiterError> {
        let store = Self::unidentified(files, path);
        if !store.files.is_directory(&store.path) {
            return Ok(None);
        }
        let latest = store.latest()?;
        match store.read_id()? {
            Some(id) => Ok(Some(Self { id, ..store })),
            None if latest.0 > 0 => Err(store.vanished()),
            None => Ok(None),
        }
    }

    fn unidentified(files: Arc<dyn HostFiles>, path: PathBuf) -> Self {
        let id = ArbiterId::default();
        Self { files, path, id }
    }

    /// Removes what claimants have left that were killed. See [`TEMPORARY_KEPT`].
    fn remove_leftovers(&self) {
        let now_ns = self.files.now_ns();
        let is_old = |path: &Path| {
            let changed_ns = self.files.changed_ns(path).unwrap_or(u64::MAX);
            now_ns.saturating_sub(changed_ns) > TEMPORARY_KEPT.as_nanos() as u64
        };
        // The arbiter works all the same if this fails.
        let names = self.files.names(&self.path).unwrap_or_default();
        let names = names.iter().filter_map(|name| name.to_str());
        for name in names.filter(|name| name.starts_with(TEMPORARY)) {
            let path = self.path.join(name);
            if is_old(&path) && self.files.remove(&path).is_ok() {
                tracing::info!("removed {}, which a claimant has left", path.display());
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn id(&self) -> &ArbiterId {
        &self.id
    }

    pub(super) fn failure(
        &self,
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ArbiterError {
        ArbiterError {
            arbiter: self.path.display().to_string(),
            what: what.into(),
            source: Some(source.into()),
        }
    }

    /// Everything, as it is on the storage now.
    pub(super) fn read(&self) -> Result<Record, ArbiterError> {
        // Comes first, because opening the directory makes an NFS client look anew.
        let generation = self.latest()?;
        match self.read_id()? {
            Some(id) if id == self.id => {}
            Some(id) => {
                let why = format!("it was {}, and is {} now", self.id.0, id.0);
                return Err(self.failure("another arbiter is in its place", why));
            }
            None => return Err(self.vanished()),
        }
        let arbiter = self.id.clone();
        if generation.0 == 0 {
            return Ok(Record {
                arbiter,
                holder: "nobody".into(),
                ..Record::default()
            });
        }
        let grant: Grant = self
            .read_json(&generation.0.to_string())?
            .ok_or_else(|| self.vanished())?;
        if grant.generation != generation {
            let why = format!("the file {} says {}", generation.0, grant.generation);
            return Err(self.failure("its record is garbled", why));
        }
        let note: HolderNote = self.read_json(&note_name(generation))?.unwrap_or_default();
        Ok(Record {
            arbiter,
            generation,
            holder: grant.holder,
            backup: note.backup,
            mark: note.mark,
        })
    }

    /// The last mark of a generation's holder; `None` if there is no such generation.
    pub(super) fn mark_of(&self, generation: Generation) -> Result<Option<Mark>, ArbiterError> {
        // An NFS client looks anew.
        self.latest()?;
        let grant: Option<Grant> = self.read_json(&generation.0.to_string())?;
        let note: Option<HolderNote> = self.read_json(&note_name(generation))?;
        Ok(grant.map(|_| note.unwrap_or_default().mark))
    }

    /// The highest number granted; 0 if there is none.
    fn latest(&self) -> Result<Generation, ArbiterError> {
        let list = || -> std::io::Result<u64> {
            let mut latest = 0;
            for name in self.files.names(&self.path)? {
                let number = name.to_str().and_then(|name| name.parse().ok());
                latest = latest.max(number.unwrap_or(0));
            }
            Ok(latest)
        };
        match list() {
            Ok(latest) => Ok(Generation(latest)),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(self.vanished()),
            Err(error) => Err(self.failure("cannot list the directory", error)),
        }
    }

    /// Whether a grant that could not be made may be there all the same.
    pub(super) fn may_be_linked(&self, grant: &Grant) -> bool {
        let there: Result<Option<Grant>, _> = self.read_json(&grant.generation.0.to_string());
        there.map_or(true, |there| there.as_ref() == Some(grant))
    }

    /// Makes a grant. Returns whether this holder has it; it does not if another one was faster.
    pub(super) fn link(&self, grant: &Grant) -> Result<bool, ArbiterError> {
        let name = grant.generation.0.to_string();
        if !self.link_new(&name, grant)? {
            // NFS may have lost the answer to the first try of the same request.
            let there: Option<Grant> = self.read_json(&name)?;
            if there.as_ref() != Some(grant) {
                return Ok(false);
            }
        }
        self.sync()?;
        Ok(true)
    }

    pub(super) fn write_note(
        &self,
        generation: Generation,
        note: &HolderNote,
    ) -> Result<(), ArbiterError> {
        let name = note_name(generation);
        let temporary = self.write_temporary(note)?;
        let renamed = self.files.rename(&temporary.path, &self.path.join(&name));
        renamed.map_err(|error| self.failure(format!("cannot replace {name}"), error))?;
        self.sync()
    }

    /// Whether a grant could be written now.
    pub(super) fn try_writing(&self) -> Result<(), ArbiterError> {
        let holder = "nobody: this only tries whether the directory can be written".into();
        let generation = Generation(0);
        self.write_temporary(&Grant { generation, holder })
            .map(drop)
    }

    /// What was renamed or linked so far survives a loss of power.
    pub(super) fn sync(&self) -> Result<(), ArbiterError> {
        self.sync_directory(&self.path)
    }

    fn sync_directory(&self, path: &Path) -> Result<(), ArbiterError> {
        let synced = self.files.sync_directory(path);
        synced.map_err(|error| self.failure(format!("cannot sync {}", path.display()), error))
    }

    fn read_id(&self) -> Result<Option<ArbiterId>, ArbiterError> {
        self.read_json("id")
    }

    /// A new identity, of this caller or of one that was faster.
    fn make_id(&self) -> Result<ArbiterId, ArbiterError> {
        let id = ArbiterId(format!("{:032x}", rand::random::<u128>()));
        let made = self.link_new("id", &id)?;
        self.sync()?;
        if made {
            return Ok(id);
        }
        self.read_id()?.ok_or_else(|| self.vanished())
    }

    fn vanished(&self) -> ArbiterError {
        let why = "restore the directory or mount it again; if you know that no guest runs and no \
                   copy is needed, remove what is left of it";
        self.failure("its record has vanished", why)
    }

    fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ArbiterError> {
        let read = || -> std::io::Result<Vec<u8>> {
            let file = self.files.open(&self.path.join(name), Open::Reading)?;
            let mut text = vec![0; file.bytes()?.min(FILE_BYTES_MAX) as usize];
            file.read_at(0, &mut text)?;
            Ok(text)
        };
        let text = match read().or_else(|error| match error.kind() {
            // On NFS: the file was replaced between opening and reading it.
            ErrorKind::StaleNetworkFileHandle => read(),
            _ => Err(error),
        }) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failure(format!("cannot read {name}"), error)),
        };
        let value = serde_json::from_slice(&text).map_err(|error| {
            let what = format!(
                "{name} is not what an arbiter writes; if you know that no guest runs, remove \
                 the directory"
            );
            self.failure(what, error)
        })?;
        Ok(Some(value))
    }

    /// Gives new content a name that nothing has yet. Returns whether it got it.
    fn link_new(&self, name: &str, content: &impl Serialize) -> Result<bool, ArbiterError> {
        let temporary = self.write_temporary(content)?;
        let linked = self.files.link(&temporary.path, &self.path.join(name));
        match linked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(self.failure(format!("cannot link {name}"), error)),
        }
    }

    /// Writes content durably to a file that no reader looks at.
    fn write_temporary(&self, content: &impl Serialize) -> Result<Temporary<'_>, ArbiterError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!(
            "{TEMPORARY}{:08x}-{}-{number}",
            rand::random::<u32>(),
            std::process::id()
        );
        let temporary = Temporary {
            files: &*self.files,
            path: self.path.join(name),
        };
        let write = || -> std::io::Result<()> {
            let file = self.files.open(&temporary.path, Open::New)?;
            let mut text = serde_json::to_string(content).map_err(std::io::Error::other)?;
            text.push('\n');
            file.write_at(0, text.as_bytes())?;
            file.sync()
        };
        match write() {
            Ok(()) => Ok(temporary),
            Err(error) => Err(self.failure("cannot be written", error)),
        }
    }
}

/// There is no arbiter at `path`.
pub(super) fn missing(files: Arc<dyn HostFiles>, path: PathBuf) -> ArbiterError {
    let why = "nobody has made an arbiter here, or its storage is not mounted";
    Store::unidentified(files, path).failure("there is none", why)
}

fn note_name(generation: Generation) -> String {
    format!("{}.note", generation.0)
}
