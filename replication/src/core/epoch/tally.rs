//! What an epoch consists of, counted in the same way on both sides. The primary counts what it
//! ships, the backup what it stages, and the backup compares the two.
//!
//! Must not be done here: judging. [`staging`](super::staging) does that.

use crate::core::message::{EpochSummary, wire};
use crate::ids::EpochId;
use crate::output::SealedOutput;

/// The sums over an epoch, which are compared at its `EpochEnd`.
#[derive(Debug, Clone, Default)]
pub struct EpochTally {
    pages: u64,
    batches: u32,
    disk_batches: u32,
    digest: crc32fast::Hasher,
}

impl EpochTally {
    /// An empty epoch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts an `EpochPages` body that holds `pages` pages.
    pub fn batch(&mut self, batch: &[u8], pages: u32) {
        self.pages += u64::from(pages);
        self.batches = self.batches.saturating_add(1);
        self.digest.update(batch);
    }

    /// Counts an `EpochDisk` body.
    pub fn disk_batch(&mut self, batch: &[u8]) {
        self.disk_batches = self.disk_batches.saturating_add(1);
        self.digest.update(batch);
    }

    /// Counts an `EpochState` body.
    pub fn state(&mut self, state: &[u8]) {
        self.digest.update(state);
    }

    /// Counts an `EpochOutput` message.
    pub fn output(&mut self, output: &SealedOutput) {
        self.digest.update(&wire::small(output));
    }

    /// The summary of what was counted, without a flush and with nothing written to shared disks.
    #[must_use]
    pub fn summary(&self) -> EpochSummary {
        EpochSummary {
            pages: self.pages,
            batches: self.batches,
            disk_batches: self.disk_batches,
            flush: false,
            written_through: EpochId(0),
            digest: self.digest.clone().finalize(),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::output::{ConsoleOutput, NetworkFrame};

    fn output() -> SealedOutput {
        SealedOutput {
            frames: vec![NetworkFrame {
                device: 1,
                bytes: Bytes::from_static(&[0xaa, 0xbb]),
            }],
            console: vec![ConsoleOutput {
                device: 0,
                position: 200,
                bytes: Bytes::from_static(b"hi"),
            }],
            ..SealedOutput::default()
        }
    }

    #[test]
    fn tally_depends_on_every_byte_and_count() {
        let whole = |batch: &[u8], pages, disk: &[u8], state: &[u8], output: &SealedOutput| {
            let mut tally = EpochTally::new();
            tally.batch(batch, pages);
            tally.disk_batch(disk);
            tally.state(state);
            tally.output(output);
            tally.summary()
        };
        let reference = whole(&[1, 2], 1, &[9], &[3], &output());
        assert_eq!(reference, whole(&[1, 2], 1, &[9], &[3], &output()));
        assert_ne!(reference, whole(&[1, 0], 1, &[9], &[3], &output()));
        assert_ne!(reference, whole(&[1, 2], 1, &[8], &[3], &output()));
        assert_ne!(reference, whole(&[1, 2], 2, &[9], &[3], &output()));
        assert_ne!(reference, whole(&[1, 2], 1, &[9], &[4], &output()));
        assert_ne!(
            reference,
            whole(&[1, 2], 1, &[9], &[3], &SealedOutput::default())
        );
    }
}
