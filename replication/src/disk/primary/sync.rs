//! The primary's work on its disks: it brings a backup up to date while the guest runs, and ends epochs.
//!
//! What must not be done here: reading a block before it is off the set of blocks to copy.

use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::BytesMut;

use super::PrimaryImages;
use super::log::ToCopy;
use crate::core::disk::{DiskSyncPlan, DiskWrite, PairId, PeerDisk, What};
use crate::disk::DiskError;
use crate::disk::image::{BitSet, Drive, shared};
use crate::ids::EpochId;
use crate::ports::disks::{SealedDisks, SyncPlan, SyncStep};

/// At most this much is read from an image at once, or one block if that is larger.
const READ_BYTES: u64 = 1 << 20;

impl PrimaryImages {
    fn check_peer(&self, peer: &[PeerDisk]) -> Result<(), DiskError> {
        let differs = |what: String| Err(DiskError::PeerDiffers { what });
        if peer.len() != self.drives.len() {
            return differs(format!(
                "it has {} disks, here are {}",
                peer.len(),
                self.drives.len()
            ));
        }
        for (drive, peer) in self.drives.iter().zip(peer) {
            if drive.name != peer.name {
                return differs(format!(
                    "its disk {} is {}, here it is {}",
                    drive.number, peer.name, drive.name
                ));
            }
            let bytes = drive.storage.bytes();
            if peer.bytes != bytes {
                return differs(format!(
                    "its disk {} has {} bytes, here it has {bytes}",
                    peer.name, peer.bytes
                ));
            }
            if let Err(what) = peer.check() {
                return differs(format!("disk {}: {what}", peer.name));
            }
        }
        Ok(())
    }

    pub(super) fn begin(&self, peer: &[PeerDisk]) -> Result<SyncPlan, DiskError> {
        self.check_peer(peer)?;
        self.log.with_log(|log| log.end());
        let session = 1 + self.sessions.fetch_add(1, Ordering::Relaxed);
        self.releaser.begin_session(session);
        let mut plan = Vec::new();
        for (drive, peer) in self.drives.iter().zip(peer) {
            let candidate = new_id();
            let from = match &drive.map {
                None => None,
                Some(map) => {
                    let mut map = map.lock();
                    let comparable = peer.block_bytes == map.block_bytes();
                    let from = map.begin_session(session, &peer.ids, candidate)?;
                    map.in_use(&*drive.storage)?;
                    from.filter(|_| comparable)
                }
            };
            plan.push(DiskSyncPlan {
                candidate,
                full: drive.map.is_some() && from.is_none(),
                from,
            });
        }
        // Writes under way must finish before the set of blocks is made and logging begins.
        let turns: Vec<_> = self.drives.iter().map(|drive| drive.turn.lock()).collect();
        let mut to_copy = Vec::new();
        for ((drive, peer), plan) in self.drives.iter().zip(peer).zip(&plan) {
            to_copy.push(drive.map.as_ref().map(|map| {
                let map = map.lock();
                let blocks = if plan.full {
                    BitSet::full(map.bits().len())
                } else {
                    let mut blocks = BitSet::from_bytes(&peer.dirty, map.bits().len());
                    blocks.unite(map.bits());
                    blocks
                };
                ToCopy {
                    blocks,
                    block_bytes: map.block_bytes(),
                    disk_bytes: drive.storage.bytes(),
                }
            }));
        }
        let bytes = to_copy.iter().flatten().map(ToCopy::bytes_left).sum();
        self.log.with_log(|log| log.begin(to_copy));
        drop(turns);
        // Writes made before marking began must not be lost any more: no mark would record the
        // loss.
        for drive in self.drives.iter().filter(|drive| !drive.is_shared()) {
            drive.flush()?;
        }
        Ok(SyncPlan { disks: plan, bytes })
    }

    pub(super) fn next_step(&self) -> Result<SyncStep, DiskError> {
        let mut writes = self.log.with_log(|log| log.drain());
        let mut left = self.limits.sync_slice_bytes;
        while left > 0 {
            let Some((drive, offset, bytes)) = self.next_blocks(left.min(READ_BYTES)) else {
                break;
            };
            self.copy(drive, offset, bytes, &mut writes)?;
            left = left.saturating_sub(bytes);
        }
        let bytes_left = self.log.lock().bytes_left();
        if bytes_left == 0 && !self.is_holding() {
            // This leaves little to flush while the guest is paused.
            self.flush_shared()?;
        }
        Ok(SyncStep { writes, bytes_left })
    }

    /// Takes some blocks off the set. The caller must read them now.
    fn next_blocks(&self, most: u64) -> Option<(&Drive, u64, u64)> {
        let mut log = self.log.lock();
        for (drive, to_copy) in self.drives.iter().zip(&mut log.to_copy) {
            let Some(to_copy) = to_copy else { continue };
            let block = to_copy.block_bytes;
            let Some(run) = to_copy.blocks.next_run(0, (most / block).max(1)) else {
                continue;
            };
            to_copy.blocks.remove(run.clone());
            let (start, end) = (run.start * block, run.end * block);
            return Some((drive, start, end.min(to_copy.disk_bytes) - start));
        }
        None
    }

    fn copy(
        &self,
        drive: &Drive,
        offset: u64,
        bytes: u64,
        writes: &mut Vec<DiskWrite>,
    ) -> Result<(), DiskError> {
        let mut data = BytesMut::zeroed(bytes as usize);
        let read = drive.storage.read_at(offset, &mut data);
        read.map_err(|error| drive.failed("read", offset, error))?;
        let (mut rest, mut at) = (data.freeze(), offset);
        let piece = crate::core::disk::BLOCK_BYTES_MIN as usize;
        while !rest.is_empty() {
            let data = rest.split_to(piece.min(rest.len()));
            let length = data.len() as u64;
            let what = if data.iter().all(|byte| *byte == 0) {
                What::Zero { bytes: length }
            } else {
                What::Data(data)
            };
            match (&what, writes.last_mut()) {
                // Merge adjacent zeros: a hole of gigabytes becomes one write.
                (
                    What::Zero { .. },
                    Some(DiskWrite {
                        disk,
                        offset: before,
                        what: What::Zero { bytes },
                    }),
                ) if *disk == drive.number && *before + *bytes == at => *bytes += length,
                _ => writes.push(DiskWrite {
                    disk: drive.number,
                    offset: at,
                    what,
                }),
            }
            at += length;
        }
        Ok(())
    }

    pub(super) fn end_epoch(&self, epoch: EpochId) -> Result<SealedDisks, DiskError> {
        let bytes_left = self.log.lock().copy_left();
        if bytes_left > 0 {
            return Err(DiskError::NotSynced { bytes_left });
        }
        let now = Instant::now();
        for map in self.drives.iter().filter_map(|drive| drive.map.as_ref()) {
            // A pause must not wait. If the map is in use, a later epoch rotates it.
            if let Some(mut map) = map.try_lock() {
                map.rotate(epoch, now, self.limits.marks_kept);
            }
        }
        let (writes, flush) = self.log.with_log(|log| log.seal(epoch));
        Ok(SealedDisks {
            writes,
            flush,
            written_through: self.releaser.written_through(),
        })
    }

    pub(super) fn flush_shared(&self) -> Result<(), DiskError> {
        shared(&self.drives).try_for_each(|drive| drive.flush())
    }
}

/// A random id. It is unique for practical purposes, and not 0.
fn new_id() -> PairId {
    loop {
        let id = rand::random::<u128>();
        if id != 0 {
            return PairId(id);
        }
    }
}
