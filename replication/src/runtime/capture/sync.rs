//! The first copy: disks, then all of memory, then what was dirtied since, round by round, while the guest runs.

use std::time::{Duration, Instant};

use super::target::Target;
use super::{Capturer, ShipError, check_size, new_frame};
use crate::core::codec::Encoder;
use crate::core::disk::PeerDisk;
use crate::core::epoch::assemble::{BatchBytes, MessageSink, SyncAssembler};
use crate::core::message::Message;
use crate::core::primary::PrimaryInput;
use crate::page_set::PageSet;
use crate::ports::Machine;
use crate::runtime::disk_progress::DiskStep;

/// How many pages are read at once (256 KiB): they stay in the processor's cache.
const SYNC_PAGES: usize = 64;

impl<M: Machine> Capturer<M> {
    pub(super) fn start_sync(&mut self, peer: &[PeerDisk]) -> Result<(), ShipError> {
        let Some(mut target) = self.target.clone() else {
            return Ok(());
        };
        // What no epoch could carry must not be found out after a copy of the whole guest.
        let mut state = Vec::new();
        self.machine.pause()?.save(&mut state)?;
        check_size(&state)?;
        // Noted before there can be a copy, so that no copy is ever forgotten.
        self.notes.backup(target.generation, &target.backup)?;
        self.copying = true;
        if !self.disks.is_empty() {
            let plan = self.disks.begin_sync(peer)?;
            self.metrics.disks_planned(&plan);
            self.progress.begin(&*self.disks, &plan);
            target.put(Message::SyncDisks(plan.disks))?;
        }
        self.sync_round()
    }

    /// Ships the next piece of the disks. Returns how far the copy is.
    fn sync_disks(&self, target: Target) -> Result<DiskStep, ShipError> {
        if self.disks.is_empty() {
            return Ok(DiskStep::default());
        }
        let step = self.disks.sync_some()?;
        let mut assembler = SyncAssembler::new(BatchBytes::default(), target);
        assembler.disk(&step.writes)?;
        let bytes = assembler.end()?.disk_bytes;
        // Without what the guest has written meanwhile: that may never stop.
        let bytes_left = self.disks.copy_bytes_left();
        let step = DiskStep {
            bytes_sent: bytes,
            bytes_left,
            bytes_equal: step.bytes_equal,
        };
        self.metrics.disks_synchronised(step);
        Ok(step)
    }

    /// One round of the synchronisation. Disks come first because they take longest: memory need
    /// not be tracked in that time.
    pub(super) fn sync_round(&mut self) -> Result<(), ShipError> {
        let Some(target) = self.target.clone() else {
            return Ok(());
        };
        let step = self.sync_disks(target.clone())?;
        if !self.copying {
            return self.memory_round(target, false);
        }
        self.progress.step(step);
        let disk_bytes_left = step.bytes_left;
        if disk_bytes_left > 0 {
            self.report(PrimaryInput::SyncRoundShipped {
                pages_left: self.dirty.len(),
                disk_bytes_left,
                left_takes: Duration::ZERO,
            });
            return Ok(());
        }
        self.copying = false;
        self.machine.start_tracking()?;
        self.tracking = true;
        self.dirty = PageSet::full(self.memory.layout());
        self.memory_round(target, true)
    }

    /// One pre-copy round. The running guest may tear pages; then they are dirty again. The
    /// backup's memory starts as zero, so the first round leaves out zero pages.
    fn memory_round(&mut self, target: Target, first: bool) -> Result<(), ShipError> {
        // A separate encoder: these pages would only crowd the cache of the epochs' encoder.
        let mut encoder = Encoder::new(0);
        let mut assembler = SyncAssembler::new(BatchBytes::default(), target.clone());
        let (mut left, mut read) = (self.dirty.iter(), Vec::with_capacity(SYNC_PAGES));
        // Pages that are left out are quickly read.
        let (mut sending, mut sent) = (Duration::ZERO, 0);
        loop {
            let (began, sent_before) = (Instant::now(), sent);
            read.extend(left.by_ref().take(SYNC_PAGES).map(|page| {
                let frame = self.spare.pop().unwrap_or_else(new_frame);
                (page, frame)
            }));
            if read.is_empty() {
                break;
            }
            self.memory.read_pages(&mut read)?;
            for (page, frame) in read.drain(..) {
                if first && frame.iter().all(|byte| *byte == 0) {
                    self.spare.push(frame);
                    continue;
                }
                sent += 1;
                self.spare
                    .extend(assembler.page(&mut encoder, page, frame)?.spare);
                if assembler.is_between_batches() {
                    // A guest that writes to disks meanwhile must not be slowed for a whole round.
                    self.sync_disks(target.clone())?;
                }
            }
            if sent > sent_before {
                sending += began.elapsed();
            }
        }
        drop(left);
        let began = Instant::now();
        self.metrics.synchronised(assembler.end()?.machine_bytes);
        // What is only queued says nothing about how long it takes.
        target.queue.blocking_written()?;
        let took = sending + began.elapsed();
        self.dirty.clear();
        self.machine.harvest_running(&mut self.dirty)?;
        let pages_left = self.dirty.len();
        self.provide_frames(pages_left);
        self.report(PrimaryInput::SyncRoundShipped {
            pages_left,
            disk_bytes_left: 0,
            left_takes: scaled(took, pages_left, sent),
        });
        Ok(())
    }
}

/// How long `pages` take if `sent` took this long.
fn scaled(took: Duration, pages: u64, sent: u64) -> Duration {
    took.mul_f64(pages as f64 / sent.max(1) as f64)
}
