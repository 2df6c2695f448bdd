//! The disks of a machine as its owner has them, and from which devices and both roles get their handles.
//!
//! What must not be done here: what only one of the two roles does.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::Mutex;

use super::image::map::DirtyMap;
use super::image::{DiskMode, Drive, Drives, FileSystem, HostFiles, shared};
use super::{BackupDisks, Disk, DiskCounts, DiskError, DiskLimits, DiskSpec, PrimaryDisks};

/// The writable disks of a machine. Clones are the same set.
///
/// Devices get their [`Disk`]s from it, replication the handle of its role: [`primary`](Self::primary) of the
/// side that runs the guest, [`backup`](Self::backup) of the side that keeps the copy. A set has one role
/// at a time: what a backup has promoted, or a primary has claimed, is the primary's.
#[derive(Clone)]
pub struct DiskSet {
    disks: Arc<[Disk]>,
    drives: Drives,
    primary: PrimaryDisks,
    backup: BackupDisks,
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
    /// A set of these disks. Nothing is written yet. `journal_path` is needed if one is replicated; the
    /// journal's two files are called so with `.0` and `.1` at the end.
    ///
    /// # Errors
    /// If the journal is needed and missing, or a map cannot be read.
    pub fn open(
        specs: Vec<DiskSpec>,
        journal_path: Option<PathBuf>,
        limits: DiskLimits,
    ) -> Result<Self, DiskError> {
        Self::open_in(specs, journal_path, limits, Arc::new(FileSystem))
    }

    /// As [`DiskSet::open`], with maps and journal in `files`.
    pub(super) fn open_in(
        specs: Vec<DiskSpec>,
        journal_path: Option<PathBuf>,
        limits: DiskLimits,
        files: Arc<dyn HostFiles>,
    ) -> Result<Self, DiskError> {
        let mut drives = Vec::new();
        for (number, spec) in specs.into_iter().enumerate() {
            let bytes = spec.storage.bytes();
            let map = match spec.mode {
                DiskMode::Shared => None,
                DiskMode::Replicated if journal_path.is_none() => {
                    return Err(DiskError::NoJournal { disk: spec.name });
                }
                DiskMode::Replicated => Some(Mutex::new(DirtyMap::open(
                    spec.map_path.clone(),
                    bytes,
                    files.clone(),
                )?)),
            };
            drives.push(Arc::new(Drive {
                number: u16::try_from(number).map_err(|_| DiskError::TooManyDisks)?,
                name: spec.name,
                mode: spec.mode,
                storage: spec.storage,
                map_path: spec.map_path,
                map,
                turn: Mutex::new(()),
                flush_failed: AtomicBool::new(false),
            }));
        }
        let drives: Drives = drives.into();
        let primary = PrimaryDisks::new(drives.clone(), limits);
        Ok(Self {
            disks: primary.devices().into(),
            backup: BackupDisks::new(drives.clone(), limits, journal_path, files),
            primary,
            drives,
        })
    }

    /// A set without disks: every call does nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self::open(Vec::new(), None, DiskLimits::default()).expect("nothing is opened")
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.disks.is_empty()
    }

    /// The disks, in configuration order: a disk's number is its place here.
    #[must_use]
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// Whether some have an image of their own on each host.
    #[must_use]
    pub fn has_replicated(&self) -> bool {
        self.drives.iter().any(|drive| drive.map.is_some())
    }

    /// What the side that runs the guest does.
    #[must_use]
    pub fn primary(&self) -> &PrimaryDisks {
        &self.primary
    }

    /// What the side that keeps the copy does.
    #[must_use]
    pub fn backup(&self) -> &BackupDisks {
        &self.backup
    }

    /// Whether a guest may be run from the images, as far as their maps know.
    ///
    /// # Errors
    /// If one is an unfinished copy, or its map is damaged.
    pub fn check_whole(&self) -> Result<(), DiskError> {
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
        Ok(())
    }

    /// This host runs the guest from now on: locks shared images, brings a journal that was left over
    /// to the images, and marks what the guest writes. May wait for the host's storage.
    ///
    /// # Errors
    /// If an image is an unfinished copy, a shared one is in use, or the host's storage fails.
    pub fn claim_images(&self) -> Result<(), DiskError> {
        self.check_whole()?;
        self.backup.recover()?;
        for drive in shared(&self.drives) {
            if !drive.try_lock()? {
                return Err(DiskError::Locked {
                    disk: drive.name.clone(),
                });
            }
        }
        Ok(())
    }

    /// What is in memory, in the journal and in the maps now.
    #[must_use]
    pub fn counts(&self) -> DiskCounts {
        let (journal_bytes, backup_held_bytes) = self.backup.waiting_bytes();
        let marked = |drive: &Arc<Drive>| {
            let map = drive.map.as_ref()?.lock();
            Some(map.bits().count() * map.block_bytes())
        };
        DiskCounts {
            log_bytes: self.primary.log_bytes(),
            copy_bytes_left: self.primary.copy_bytes_left(),
            journal_bytes,
            backup_held_bytes,
            marked_bytes: self.drives.iter().filter_map(marked).sum(),
        }
    }
}
