//! The disks of a machine as their owner sees them. Devices and both roles get their handles here.
//!
//! What must not be done here: what only one of the two roles does.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::backup::BackupImages;
use super::image::header::Header;
use super::image::map::DirtyMap;
use super::image::{DiskMode, Drive, Drives, Storage, shared};
use super::primary::{ANSWER_PATIENCE, PrimaryImages};
use super::{Disk, DiskError, DiskLimits, DiskSpec, Verified, VerifyOptions};
use crate::files::{FileSystem, HostFiles, Open};
use crate::ports::disks::{BackupDisks, DiskCounts, DiskStatus, Disks, History, PrimaryDisks};

/// How long the counts may wait.
const PATIENCE: Duration = Duration::from_millis(20);

/// The writable disks of a machine. Clones are the same set.
///
/// Devices get their [`Disk`]s from it, and a machine gives it to replication as its
/// [`Disks`](crate::ports::Machine::disks).
#[derive(Clone)]
pub struct DiskSet {
    disks: Arc<[Disk]>,
    drives: Drives,
    primary: Arc<PrimaryImages>,
    backup: Arc<BackupImages>,
    /// What the maps marked when they were last looked at, in bytes.
    marked_bytes: Arc<AtomicU64>,
}

impl Default for DiskSet {
    fn default() -> Self {
        Self::empty()
    }
}

impl std::fmt::Debug for DiskSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&*self.disks).finish()
    }
}

impl DiskSet {
    /// A set of these disks. Writes nothing yet. `journal_path` is needed if a disk is replicated.
    /// The names of the journal's two files are this path with `.0` and `.1` appended.
    ///
    /// # Errors
    /// If the journal path is needed and missing, a map cannot be read, or there are too many
    /// disks.
    pub fn open(
        specs: Vec<DiskSpec>,
        journal_path: Option<PathBuf>,
        limits: DiskLimits,
    ) -> Result<Self, DiskError> {
        Self::open_in(specs, journal_path, limits, Arc::new(FileSystem))
    }

    /// Like [`DiskSet::open`], with maps and journal in `files`.
    pub(super) fn open_in(
        specs: Vec<DiskSpec>,
        journal_path: Option<PathBuf>,
        limits: DiskLimits,
        files: Arc<dyn HostFiles>,
    ) -> Result<Self, DiskError> {
        let mut drives = Vec::new();
        for (number, spec) in specs.into_iter().enumerate() {
            let map = match spec.mode {
                DiskMode::Shared => None,
                DiskMode::Replicated if journal_path.is_none() => {
                    return Err(DiskError::NoJournal { disk: spec.name });
                }
                DiskMode::Replicated => {
                    let (path, image) = (spec.map_path.clone(), &*spec.storage);
                    Some(DirtyMap::open(path, image, files.clone())?)
                }
            };
            if let Some(why) = map.as_ref().and_then(DirtyMap::distrust) {
                let disk = &spec.name;
                tracing::warn!(
                    disk,
                    why,
                    "its image is not as its map knows it: all of it will be copied"
                );
            }
            drives.push(Arc::new(Drive {
                number: u16::try_from(number).map_err(|_| DiskError::TooManyDisks)?,
                name: spec.name,
                mode: spec.mode,
                storage: spec.storage,
                map_path: spec.map_path,
                map: map.map(Mutex::new),
                wanted: Mutex::default(),
                turn: Mutex::new(()),
                flush_failed: AtomicBool::new(false),
                replace: AtomicBool::new(false),
            }));
        }
        let drives: Drives = drives.into();
        let primary = PrimaryImages::new(drives.clone(), limits);
        let backup = BackupImages::new(drives.clone(), limits, journal_path, files);
        Ok(Self {
            disks: primary.devices().into(),
            backup: Arc::new(backup),
            primary: Arc::new(primary),
            drives,
            marked_bytes: Arc::default(),
        })
    }

    /// A set without disks. Every call does nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self::open(Vec::new(), None, DiskLimits::default()).expect("nothing is opened")
    }

    /// What is known of the images and the other host's is not believed any more: the next
    /// synchronisation copies everything, without comparing first.
    ///
    /// # Errors
    /// If a map cannot be written.
    pub fn copy_everything(&self) -> Result<(), DiskError> {
        for drive in self.drives.iter() {
            if let Some(map) = &drive.map {
                map.lock().forget_pair()?;
                drive.replace.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Compares the images of replicated disks with the standby's, block by block, while the guest writes. Both sides
    /// are compared at the same point of the stream of writes. `progress` is called several times a second with what
    /// was found so far, and returns whether to go on.
    ///
    /// Returns what was found once all is compared. To be called on the primary, on a thread of the caller's.
    ///
    /// # Errors
    /// If nobody has a whole copy or it is lost meanwhile, the standby does not answer, an image cannot be read,
    /// `progress` ended it, no disk is replicated, or a comparison is under way.
    pub fn verify(
        &self,
        options: VerifyOptions,
        progress: &mut dyn FnMut(&Verified) -> bool,
    ) -> Result<Verified, DiskError> {
        let clock = &std::time::Instant::now;
        self.primary
            .verify(options, ANSWER_PATIENCE, clock, progress)
    }

    /// The same, with less patience, by another clock.
    #[cfg(test)]
    pub(super) fn verify_within(
        &self,
        patience: Duration,
        clock: &dyn Fn() -> std::time::Instant,
        progress: &mut dyn FnMut(&Verified) -> bool,
    ) -> Result<Verified, DiskError> {
        let options = VerifyOptions {
            bytes_per_second: u64::MAX,
            repair: false,
        };
        self.primary.verify(options, patience, clock, progress)
    }

    /// Whether the copy that is kept here has failed.
    #[cfg(test)]
    pub(super) fn copy_has_failed(&self) -> bool {
        self.backup.has_failed()
    }

    /// Whether the set has no disks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.disks.is_empty()
    }

    /// The disks, in configuration order: a disk's number is its place here.
    #[must_use]
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }
}

/// The drives with maps.
fn maps(drives: &Drives) -> impl Iterator<Item = (&Drive, &Mutex<DirtyMap>)> {
    let drives = drives.iter();
    drives.filter_map(|drive| Some((&**drive, drive.map.as_ref()?)))
}

impl Disks for DiskSet {
    fn list(&self) -> Vec<DiskStatus> {
        let status = |disk: &Disk| DiskStatus {
            name: disk.name().to_owned(),
            mode: disk.mode().to_string(),
            bytes: disk.bytes(),
        };
        self.disks.iter().map(status).collect()
    }

    fn has_replicated(&self) -> bool {
        self.drives.iter().any(|drive| drive.map.is_some())
    }

    fn has_shared(&self) -> bool {
        self.drives.iter().any(|drive| drive.is_shared())
    }

    fn check_whole(&self) -> Result<(), DiskError> {
        for drive in self.drives.iter() {
            let Some(map) = &drive.map else { continue };
            let (disk, path) = (drive.name.clone(), drive.map_path.clone());
            let map = map.lock();
            if map.is_unfinished() {
                return Err(DiskError::Unfinished { disk, map: path });
            }
            if map.is_damaged() {
                return Err(DiskError::MapDamaged { disk, map: path });
            }
        }
        self.backup.check_recovery()
    }

    fn histories(&self) -> Vec<(String, History)> {
        let known = self.drives.iter().filter_map(|drive| {
            let history = drive.map.as_ref()?.lock().history().cloned()?;
            Some((drive.name.clone(), history))
        });
        known.collect()
    }

    fn claim_images(&self) -> Result<(), DiskError> {
        self.check_whole()?;
        self.backup.recover()?;
        for (_, map) in maps(&self.drives) {
            map.lock().adopt()?;
        }
        for drive in shared(&self.drives) {
            if !drive.try_lock()? {
                return Err(DiskError::Locked {
                    disk: drive.name.clone(),
                });
            }
        }
        Ok(())
    }

    fn note(&self, history: &History) -> Result<(), DiskError> {
        for (drive, map) in maps(&self.drives) {
            let mut map = map.lock();
            map.note(history)?;
            map.in_use(&*drive.storage)?;
        }
        Ok(())
    }

    fn counts(&self) -> DiskCounts {
        // A map that is being written is locked, and so are a standby's disks while it is promoted.
        // Whoever wants to know does not wait for storage that hangs: it gets the last count.
        let deadline = Instant::now() + PATIENCE;
        let (journal_bytes, backup_held_bytes) = self.backup.waiting_bytes(deadline);
        let marked = |drive: &Arc<Drive>| match &drive.map {
            None => Some(0),
            Some(map) => map
                .try_lock_until(deadline)
                .map(|map| map.bits().count() * map.block_bytes()),
        };
        let bytes: Option<u64> = self.drives.iter().map(marked).sum();
        if let Some(bytes) = bytes {
            self.marked_bytes.store(bytes, Ordering::Relaxed);
        }
        DiskCounts {
            log_bytes: self.primary.log_bytes(),
            copy_bytes_left: self.primary.copy_bytes_left(),
            journal_bytes,
            backup_held_bytes,
            marked_bytes: self.marked_bytes.load(Ordering::Relaxed),
        }
    }
    fn primary(&self) -> Arc<dyn PrimaryDisks> {
        self.primary.clone()
    }

    fn backup(&self) -> Arc<dyn BackupDisks> {
        self.backup.clone()
    }
}

/// What is known of the guest that an image belongs to, whose map is at `map_path`; `None` if the
/// image belongs to no guest, or there is no readable map.
///
/// # Errors
/// If the file cannot be read.
pub fn history(map_path: &Path) -> io::Result<Option<History>> {
    match FileSystem.open(map_path, Open::Reading) {
        Ok(file) => Ok(Header::read(&*file)?.and_then(|header| header.history)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
