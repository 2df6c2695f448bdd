//! The primary's work on its disks: it brings a backup up to date while the guest runs, and ends epochs.
//!
//! An image of which nothing is known is compared: the backup gets a check of each block, says which differ, and
//! gets those. A check is a part of the stream of writes like any other, so a block that is found equal was equal at
//! that point of it.
//!
//! What must not be done here: reading a block before it is off the sets of blocks to copy.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::PrimaryImages;
use super::checks::{Check, Next};
use super::log::{Log, ToCopy};
use crate::core::disk::{
    BLOCK_BYTES_MIN, CHECK_BYTES_MAX, DiskSyncPlan, DiskWrite, PairId, PeerDisk, What,
};
use crate::disk::DiskError;
use crate::disk::digest::DigestKey;
use crate::disk::image::{BitSet, Drive, all_turns, shared};
use crate::ids::EpochId;
use crate::ports::disks::{SealedDisks, SyncPlan, SyncStep};

/// At most this much is read from an image at once, or one block if that is larger.
const READ_BYTES: u64 = 1 << 20;
/// A step of the synchronisation waits at most so long for answers.
const ANSWER_PATIENCE: Duration = Duration::from_millis(20);

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
        self.log.end();
        let session = self.next_session.fetch_add(1, Ordering::Relaxed);
        self.releaser.begin_session(session);
        self.marks.begin_session(session);
        let (mut plan, mut compared) = (Vec::new(), Vec::new());
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
            let full = drive.map.is_some() && from.is_none();
            compared.push(full && !peer.replace && !drive.replace.load(Ordering::Relaxed));
            plan.push(DiskSyncPlan {
                candidate,
                full,
                from,
            });
        }
        // Writes under way must finish before the set of blocks is made and logging begins.
        let turns = all_turns(self.drives.iter());
        let mut to_copy = Vec::new();
        let plans = plan.iter().zip(&compared);
        for ((drive, peer), (plan, compare)) in self.drives.iter().zip(peer).zip(plans) {
            to_copy.push(drive.map.as_ref().map(|map| {
                let map = map.lock();
                let blocks = if plan.full {
                    BitSet::full(map.bits().len())
                } else {
                    let mut blocks = BitSet::from_bytes(&peer.dirty, map.bits().len());
                    blocks.unite(map.bits());
                    blocks
                };
                let none = BitSet::new(blocks.len());
                let (blocks, unknown) = if *compare {
                    (none, blocks)
                } else {
                    (blocks, none)
                };
                ToCopy {
                    blocks,
                    unknown,
                    block_bytes: map.block_bytes(),
                    disk_bytes: drive.storage.bytes(),
                }
            }));
        }
        let bytes = to_copy.iter().flatten().map(ToCopy::bytes_left).sum();
        let keys = plan.iter().map(|disk| DigestKey::of(disk.candidate));
        self.log.with_log(|log| log.begin(to_copy, keys.collect()));
        drop(turns);
        // Writes made before marking began must not be lost any more: no mark would record the
        // loss.
        for drive in self.drives.iter().filter(|drive| !drive.is_shared()) {
            drive.flush()?;
        }
        Ok(SyncPlan {
            disks: plan,
            compared,
            bytes,
        })
    }

    pub(super) fn next_step(&self) -> Result<SyncStep, DiskError> {
        let mut writes = self.log.with_log(Log::begin_step);
        let mut left = self.limits.sync_slice_bytes;
        while left > 0 {
            let Some(next) = self.next_blocks(left.min(READ_BYTES)) else {
                break;
            };
            self.copy(&next, &mut writes)?;
            left = left.saturating_sub(next.bytes);
        }
        let mut log = self.log.lock();
        if writes.is_empty() && log.checks.asked_bytes() > 0 {
            self.log.await_answers(&mut log, ANSWER_PATIENCE);
        }
        let (bytes_left, bytes_equal) = (log.bytes_left(), log.checks.equal_bytes());
        drop(log);
        Ok(SyncStep {
            writes,
            bytes_left,
            bytes_equal,
        })
    }

    /// Takes some blocks off the sets. The caller must read them now.
    fn next_blocks(&self, most: u64) -> Option<Blocks<'_>> {
        let mut log = self.log.lock();
        let Log {
            to_copy,
            checks,
            pace,
            ..
        } = &mut *log;
        let mut all = self.drives.iter().zip(to_copy);
        all.find_map(|(drive, to_copy)| {
            let to_copy = to_copy.as_mut()?;
            let block = to_copy.block_bytes;
            let run_max = (most / block).max(1);
            let known = to_copy.blocks.first_run(run_max);
            let (run, ask) = match known {
                Some(run) => {
                    to_copy.blocks.remove(run.clone());
                    (run, false)
                }
                None => {
                    let run = to_copy.unknown.first_run(run_max)?;
                    let next = pace.next(checks.asked_bytes());
                    if next == Next::Wait {
                        return None;
                    }
                    pace.done((run.end - run.start) * block);
                    to_copy.unknown.remove(run.clone());
                    (run, next == Next::Ask)
                }
            };
            let (start, end) = (run.start * block, run.end * block);
            Some(Blocks {
                drive,
                offset: start,
                bytes: end.min(to_copy.disk_bytes) - start,
                ask_by: ask.then_some(block.min(CHECK_BYTES_MAX)),
            })
        })
    }

    /// Reads the blocks, and adds what is to be sent of them to `writes`.
    fn copy(&self, blocks: &Blocks<'_>, writes: &mut Vec<DiskWrite>) -> Result<(), DiskError> {
        let Blocks { drive, offset, .. } = *blocks;
        let mut data = BytesMut::zeroed(blocks.bytes as usize);
        let read = drive.storage.read_at(offset, &mut data);
        read.map_err(|error| drive.failed("read", offset, error))?;
        let (mut rest, mut at) = (data.freeze(), offset);
        let piece = blocks.ask_by.unwrap_or(BLOCK_BYTES_MIN) as usize;
        while !rest.is_empty() {
            let data = rest.split_to(piece.min(rest.len()));
            let length = data.len() as u64;
            let write = |what| DiskWrite {
                disk: drive.number,
                offset: at,
                what,
            };
            if data.iter().all(|byte| *byte == 0) {
                push_zeros(write(What::Zero { bytes: length }), writes);
            } else if blocks.ask_by.is_some() {
                writes.extend(self.check(drive, at, &data).map(write));
            } else {
                writes.push(write(What::Data(data)));
            }
            at += length;
        }
        Ok(())
    }

    /// The check of these data; `None` if the session has ended meanwhile.
    fn check(&self, drive: &Drive, offset: u64, data: &Bytes) -> Option<What> {
        let bytes = data.len() as u64;
        let key = self.log.lock().key(drive.number)?;
        let digest = key.digest(data);
        let disk = drive.number;
        self.log.lock().checks.ask(Check {
            disk,
            offset,
            bytes,
        });
        Some(What::Check { bytes, digest })
    }

    pub(super) fn end_epoch(&self, epoch: EpochId) -> Result<SealedDisks, DiskError> {
        let bytes_left = self.log.lock().copy_left();
        if bytes_left > 0 {
            return Err(DiskError::NotSynced { bytes_left });
        }
        let now = Instant::now();
        for drive in self.drives.iter() {
            // A pause must not wait. If the map is in use, a later epoch rotates it.
            if let Some(mut map) = drive.map.as_ref().and_then(|map| map.try_lock()) {
                // With the map locked: whoever begins to write now marks it after this.
                let under_way = self.log.lock().under_way(drive.number);
                map.rotate(epoch, under_way, now, self.limits.marks_kept);
            }
        }
        let (writes, flush) = self.log.with_log(|log| log.seal(epoch));
        for drive in self.drives.iter() {
            drive.replace.store(false, Ordering::Relaxed);
        }
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

/// Blocks of a disk that are to be read now.
struct Blocks<'a> {
    drive: &'a Drive,
    offset: u64,
    bytes: u64,
    /// The backup is asked to compare them, in pieces of so many bytes.
    ask_by: Option<u64>,
}

/// Merges adjacent zeros: a hole of gigabytes becomes one write.
fn push_zeros(zeros: DiskWrite, writes: &mut Vec<DiskWrite>) {
    if let Some(DiskWrite {
        disk,
        offset,
        what: What::Zero { bytes },
    }) = writes.last_mut()
        && (*disk, *offset + *bytes) == (zeros.disk, zeros.offset)
    {
        *bytes += zeros.bytes();
        return;
    }
    writes.push(zeros);
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
