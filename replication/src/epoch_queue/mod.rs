//! What collects while an epoch runs, is sealed under its number, and leaves once that epoch may.
//!
//! ```text
//!  current ── seal(n) ──► n-1, n ── release(through) ──► out, oldest first
//!     ▲                      │
//!     └──────── unseal ◄─────┘   (the epoch will never be shipped)
//! ```
//!
//! The queue is bounded by its owner, who compares [`EpochQueue::bytes`] with a limit before it lets more in (R5).
//! Epochs in which nothing happened take no place. What must not be done here: I/O, or deciding that
//! an epoch may leave.

use std::collections::VecDeque;

use crate::ids::EpochId;

#[cfg(test)]
mod tests;

/// What one epoch has collected.
pub(crate) trait Bucket: Default {
    /// What it counts against its owner's limit.
    fn bytes(&self) -> u64;

    /// Whether there is nothing in it that anybody would miss.
    fn is_empty(&self) -> bool;
}

/// The buckets of the epoch that runs and of those that are sealed, in order.
#[derive(Debug)]
pub(crate) struct EpochQueue<B> {
    current: B,
    sealed: VecDeque<(EpochId, B)>,
    sealed_bytes: u64,
}

impl<B: Default> Default for EpochQueue<B> {
    fn default() -> Self {
        Self {
            current: B::default(),
            sealed: VecDeque::new(),
            sealed_bytes: 0,
        }
    }
}

impl<B: Bucket> EpochQueue<B> {
    /// The bucket of the epoch that runs.
    pub(crate) fn current(&self) -> &B {
        &self.current
    }

    /// The bucket of the epoch that runs, to put something in.
    pub(crate) fn current_mut(&mut self) -> &mut B {
        &mut self.current
    }

    /// What all buckets count.
    pub(crate) fn bytes(&self) -> u64 {
        self.sealed_bytes + self.current.bytes()
    }

    /// The last epoch that is sealed and has something.
    pub(crate) fn last_sealed(&self) -> Option<EpochId> {
        self.sealed.back().map(|(epoch, _)| *epoch)
    }

    /// Ends the epoch: its bucket is `epoch`'s from now on, and a new one begins. Epochs come in order.
    pub(crate) fn seal(&mut self, epoch: EpochId) {
        let bucket = std::mem::take(&mut self.current);
        if !bucket.is_empty() {
            self.sealed_bytes += bucket.bytes();
            self.sealed.push_back((epoch, bucket));
        }
    }

    /// Gives what is sealed under `from` and later epochs back to the epoch that runs. `append` adds what
    /// came later to an earlier bucket.
    pub(crate) fn unseal(&mut self, from: EpochId, append: impl Fn(&mut B, B)) {
        while let Some((_, mut bucket)) = self.sealed.pop_back_if(|(epoch, _)| *epoch >= from) {
            self.sealed_bytes -= bucket.bytes();
            append(&mut bucket, std::mem::take(&mut self.current));
            self.current = bucket;
        }
    }

    /// The buckets of all sealed epochs up to `through`, oldest first. They stay.
    pub(crate) fn sealed_through(&self, through: EpochId) -> impl Iterator<Item = &B> {
        let sealed = self.sealed.iter();
        sealed
            .take_while(move |(epoch, _)| *epoch <= through)
            .map(|(_, bucket)| bucket)
    }

    /// Takes the buckets of all sealed epochs up to `through` out, oldest first. Those that the caller does
    /// not ask for stay.
    pub(crate) fn release(&mut self, through: EpochId) -> impl Iterator<Item = B> {
        std::iter::from_fn(move || {
            let (_, bucket) = self.sealed.pop_front_if(|(epoch, _)| *epoch <= through)?;
            self.sealed_bytes -= bucket.bytes();
            Some(bucket)
        })
    }
}
