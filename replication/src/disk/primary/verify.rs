//! Compares the images of a protected guest with the backup's, block by block, while the guest writes.
//!
//! A check is put into the log under the disk's `turn`, so it has its place among the writes, and travels with them in
//! an epoch. The backup does it when it has brought exactly the writes before it to its image. The block is read
//! before that, without hindering anybody; only if it was written meanwhile is it read once more under the `turn`.
//!
//! What must not be done here: waiting for storage or for the backup with the `turn` or the log locked, except for
//! that one block.

use std::time::{Duration, Instant};

use super::checks::Check;
use super::{Disk, PrimaryImages};
use crate::core::disk::{BLOCK_BYTES_MIN, Digest};
use crate::disk::DiskError;
use crate::disk::image::Drive;
use crate::disk::verify::{Differing, VERIFY_RANGES_MAX, Verified, VerifyOptions};

/// At most so much waits for its answer.
const ASKED_BYTES_MAX: u64 = 256 << 20;
/// How often the caller hears of progress, and how long a wait lasts at most.
const LOOK: Duration = Duration::from_millis(50);
/// For so long the backup may answer nothing. It brings its journal to the images twice a second.
pub(crate) const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

fn not_compared(why: impl Into<String>) -> DiskError {
    DiskError::NotCompared { why: why.into() }
}

/// A comparison under way.
struct Verifier<'a> {
    images: &'a PrimaryImages,
    options: VerifyOptions,
    session: u64,
    began: Instant,
    asked_bytes: u64,
    answered_at: Instant,
    found: Verified,
    progress: &'a mut dyn FnMut(&Verified) -> bool,
    told_at: Instant,
    patience: Duration,
    clock: &'a dyn Fn() -> Instant,
}

impl PrimaryImages {
    /// See [`DiskSet::verify`](crate::disk::DiskSet::verify). Answers may keep it waiting for `patience`, by `clock`.
    pub(crate) fn verify(
        &self,
        options: VerifyOptions,
        patience: Duration,
        clock: &dyn Fn() -> Instant,
        progress: &mut dyn FnMut(&Verified) -> bool,
    ) -> Result<Verified, DiskError> {
        let Some(_only) = self.verifying.try_lock() else {
            return Err(not_compared("they are being compared already"));
        };
        let drives = || self.drives.iter().filter(|drive| !drive.is_shared());
        if drives().next().is_none() {
            return Err(not_compared(
                "none is replicated; a shared disk has one image only",
            ));
        }
        let session = self.log.lock().whole_session().ok_or_else(|| {
            not_compared(
                "there is no standby with a whole copy, so there is nothing to compare with",
            )
        })?;
        let now = clock();
        let mut verifier = Verifier {
            images: self,
            options,
            session,
            began: now,
            asked_bytes: 0,
            answered_at: now,
            found: Verified {
                bytes: drives().map(|drive| drive.storage.bytes()).sum(),
                ..Verified::default()
            },
            progress,
            told_at: now,
            patience,
            clock,
        };
        verifier.await_earlier()?;
        for drive in drives() {
            for offset in (0..drive.storage.bytes()).step_by(BLOCK_BYTES_MIN as usize) {
                verifier.wait_for_room()?;
                verifier.ask(drive, offset)?;
            }
        }
        while verifier.collect()? > 0 {
            verifier.wait(LOOK)?;
        }
        Ok(verifier.found)
    }
}

impl Verifier<'_> {
    /// The answers to a comparison that was given up must not count for this one.
    fn await_earlier(&mut self) -> Result<(), DiskError> {
        while self.images.log.lock().checks.asked_bytes() > 0 {
            self.check_patience()?;
            self.wait(LOOK)?;
        }
        self.images.log.lock().checks.take_differing();
        Ok(())
    }

    fn since(&self, then: Instant) -> Duration {
        (self.clock)().saturating_duration_since(then)
    }

    fn check_patience(&self) -> Result<(), DiskError> {
        if self.since(self.answered_at) <= self.patience {
            return Ok(());
        }
        Err(not_compared(format!(
            "the standby has not answered for {} s",
            self.patience.as_secs_f64()
        )))
    }

    /// Waits until the rate, the log and what is still unanswered allow the next check.
    fn wait_for_room(&mut self) -> Result<(), DiskError> {
        let rate = self.options.bytes_per_second.max(1);
        loop {
            let due = Duration::from_secs_f64(self.asked_bytes as f64 / rate as f64);
            let early = due.saturating_sub(self.since(self.began));
            let open = self.collect()?;
            let has_room = self.images.log.lock().bytes_are_few();
            if early.is_zero() && open < ASKED_BYTES_MAX && has_room {
                return Ok(());
            }
            // A short wait would only cost time, so the rate is kept in steps.
            self.wait(early.clamp(Duration::from_millis(1), LOOK))?;
        }
    }

    fn ask(&mut self, drive: &Drive, offset: u64) -> Result<(), DiskError> {
        let bytes = BLOCK_BYTES_MIN.min(drive.storage.bytes() - offset);
        let log = &self.images.log;
        let disk = drive.number;
        let check = Check {
            disk,
            offset,
            bytes,
        };
        let key = {
            let mut log = log.lock();
            log.watch(check);
            log.key(disk).ok_or_else(|| self.lost())?
        };
        let digest = || -> Result<Digest, DiskError> {
            let mut data = vec![0; bytes as usize];
            let read = drive.storage.read_at(offset, &mut data);
            read.map_err(|error| drive.failed("read", offset, error))?;
            Ok(key.digest(&data))
        };
        let before = digest()?;
        let _turn = drive.turn.lock();
        let written = log.lock().was_written();
        let digest = if written { digest()? } else { before };
        log.with_log(|log| {
            if log.whole_session() != Some(self.session) {
                return Err(self.lost());
            }
            log.ask(check, digest);
            Ok(())
        })?;
        self.asked_bytes += bytes;
        Ok(())
    }

    fn lost(&self) -> DiskError {
        not_compared(format!(
            "the standby was lost after {} of {} bytes",
            self.found.compared_bytes, self.found.bytes
        ))
    }

    /// Takes the answers that have come. Returns how much is still unanswered.
    fn collect(&mut self) -> Result<u64, DiskError> {
        let mut log = self.images.log.lock();
        if log.whole_session() != Some(self.session) {
            drop(log);
            return Err(self.lost());
        }
        let differing = log.checks.take_differing();
        let open = log.checks.asked_bytes();
        drop(log);
        let compared = self.asked_bytes - open;
        if compared > self.found.compared_bytes || open == 0 {
            self.answered_at = (self.clock)();
        } else {
            self.check_patience()?;
        }
        self.found.compared_bytes = compared;
        for check in &differing {
            self.differs(check)?;
        }
        if self.since(self.told_at) >= LOOK {
            self.told_at = (self.clock)();
            if !(self.progress)(&self.found) {
                return Err(not_compared("it was given up"));
            }
        }
        Ok(open)
    }

    fn differs(&mut self, check: &Check) -> Result<(), DiskError> {
        let images = self.images;
        let drive = &images.drives[usize::from(check.disk)];
        self.found.differing_blocks += 1;
        note(&mut self.found.first, &drive.name, check);
        if self.options.repair {
            let disk = Disk::new(drive.clone(), images.log.clone());
            while !disk.has_room() && images.log.lock().whole_session() == Some(self.session) {
                self.wait(LOOK)?;
            }
            let sent = disk.send_again(check.offset, check.bytes);
            sent.map_err(|error| drive.failed("send again", check.offset, error))?;
            self.found.repaired_blocks += 1;
        }
        Ok(())
    }

    /// Waits for answers, but at most so long.
    fn wait(&mut self, time: Duration) -> Result<(), DiskError> {
        let mut log = self.images.log.lock();
        if log.whole_session() != Some(self.session) {
            drop(log);
            return Err(self.lost());
        }
        self.images.log.await_answers(&mut log, time);
        Ok(())
    }
}

/// Adds what differs to the first ranges that do.
fn note(first: &mut Vec<Differing>, disk: &str, check: &Check) {
    let goes_on = first
        .last_mut()
        .filter(|last| last.disk == disk && last.offset + last.bytes == check.offset);
    if let Some(last) = goes_on {
        last.bytes += check.bytes;
    } else if first.len() < VERIFY_RANGES_MAX {
        first.push(Differing {
            disk: disk.to_owned(),
            offset: check.offset,
            bytes: check.bytes,
        });
    }
}
