//! Held writes of shared disks: in order for the image, and as an overlay for readers.
//!
//! What must not be done here: I/O, or forgetting a write that is not on the image.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::core::disk::{DiskWrite, What};
use crate::disk::epoch_writes::EpochWrites;
use crate::epoch_queue::EpochQueue;
use crate::ids::EpochId;

/// The newest held content of a range.
#[derive(Debug, Clone)]
struct Extent {
    end: u64,
    /// None for zeros.
    data: Option<Bytes>,
    /// Number of the write.
    number: u64,
}

/// Ranges that do not overlap, by their start.
#[derive(Debug, Default)]
struct Overlay {
    extents: BTreeMap<u64, Extent>,
}

impl Extent {
    fn part(&self, start: u64, from: u64, to: u64) -> Self {
        let slice = |data: &Bytes| data.slice((from - start) as usize..(to - start) as usize);
        Self {
            end: to,
            data: self.data.as_ref().map(slice),
            number: self.number,
        }
    }
}

impl Overlay {
    /// Starts of the extents that overlap `from..to`.
    fn touched(&self, from: u64, to: u64) -> Vec<u64> {
        let before = self.extents.range(..from).next_back();
        let before = before.filter(|(_, extent)| extent.end > from);
        let inside = self.extents.range(from..to);
        before
            .into_iter()
            .chain(inside)
            .map(|(at, _)| *at)
            .collect()
    }

    fn insert(&mut self, from: u64, extent: Extent) {
        let to = extent.end;
        for start in self.touched(from, to) {
            let Some(old) = self.extents.remove(&start) else {
                continue;
            };
            if start < from {
                self.extents.insert(start, old.part(start, start, from));
            }
            if old.end > to {
                self.extents.insert(to, old.part(start, to, old.end));
            }
        }
        self.extents.insert(from, extent);
    }
}

/// Held content to lay over data that was read.
#[derive(Debug, Default)]
pub(crate) struct Patch(Vec<(u64, Extent)>);

impl Patch {
    /// Lays it over `data`, which was read from `offset`.
    pub(crate) fn lay_over(&self, offset: u64, data: &mut [u8]) {
        for (start, extent) in &self.0 {
            let (start, end) = ((start - offset) as usize, (extent.end - offset) as usize);
            match &extent.data {
                Some(bytes) => data[start..end].copy_from_slice(bytes),
                None => data[start..end].fill(0),
            }
        }
    }
}

/// The held writes of a set.
#[derive(Debug)]
pub(crate) struct Held {
    holding: bool,
    overlays: Vec<Overlay>,
    epochs: EpochQueue<EpochWrites>,
    /// Number of the last write.
    number: u64,
    /// Number of the last write that is on its image.
    written: u64,
}

/// Held writes that are to go to their images.
#[derive(Debug, Default)]
pub(crate) struct Due {
    /// In order.
    pub(crate) writes: Vec<DiskWrite>,
    /// The writes must be made durable at the end.
    pub(crate) flush: bool,
}

impl Held {
    pub(crate) fn new(disks: usize) -> Self {
        Self {
            holding: false,
            overlays: (0..disks).map(|_| Overlay::default()).collect(),
            epochs: EpochQueue::default(),
            number: 0,
            written: 0,
        }
    }

    pub(crate) fn is_holding(&self) -> bool {
        self.holding
    }

    pub(crate) fn hold(&mut self) {
        self.holding = true;
    }

    /// Memory in use.
    pub(crate) fn bytes(&self) -> u64 {
        self.epochs.bytes()
    }

    pub(crate) fn push(&mut self, write: DiskWrite) {
        self.number += 1;
        let data = match &write.what {
            What::Data(data) => Some(data.clone()),
            What::Zero { .. } | What::Discard { .. } | What::Check { .. } => None,
        };
        let extent = Extent {
            end: write.offset + write.bytes(),
            data,
            number: self.number,
        };
        self.overlays[usize::from(write.disk)].insert(write.offset, extent);
        self.epochs.current_mut().push(write);
    }

    pub(crate) fn flushed(&mut self) {
        self.epochs.current_mut().flush = true;
    }

    /// The held content of a range. Call this before reading the image: what is no longer held is
    /// on the image already.
    pub(crate) fn patch(&self, disk: u16, offset: u64, bytes: u64) -> Patch {
        let overlay = &self.overlays[usize::from(disk)];
        let (from, to) = (offset, offset + bytes);
        let part = |start: u64| {
            let extent = overlay.extents.get(&start)?;
            let (at, end) = (start.max(from), extent.end.min(to));
            Some((at, extent.part(start, at, end)))
        };
        Patch(
            overlay
                .touched(from, to)
                .into_iter()
                .filter_map(part)
                .collect(),
        )
    }

    pub(crate) fn seal(&mut self, epoch: EpochId) {
        if self.holding {
            self.epochs.seal(epoch);
        }
    }

    /// The writes of the current epoch.
    pub(crate) fn current(&self) -> &[DiskWrite] {
        &self.epochs.current().writes
    }

    pub(crate) fn unseal(&mut self, epoch: EpochId) {
        self.epochs.unseal(epoch, EpochWrites::append);
    }

    /// What must go to the images so that they have everything up to `epoch`.
    pub(crate) fn due(&self, epoch: EpochId) -> Due {
        let mut due = Due::default();
        for sealed in self.epochs.sealed_through(epoch) {
            due.writes.extend(sealed.writes.iter().cloned());
            due.flush |= sealed.flush;
        }
        due
    }

    /// Everything up to `epoch` is on the images, though perhaps not for long: until [`Held::safe`], reads are still
    /// answered from what was held.
    pub(crate) fn written(&mut self, epoch: EpochId) {
        let released = self.epochs.release(epoch);
        let writes: u64 = released.map(|sealed| sealed.writes.len() as u64).sum();
        self.written += writes;
    }

    /// What has been written is durable.
    pub(crate) fn safe(&mut self) {
        let last = self.written;
        for overlay in &mut self.overlays {
            overlay.extents.retain(|_, extent| extent.number > last);
        }
    }

    /// Ends the current epoch without a number of its own. It becomes due with the last sealed one.
    pub(crate) fn seal_all(&mut self) {
        let last = self.epochs.last_sealed().unwrap_or(EpochId(0));
        self.seal(last);
    }

    /// Writes pass from now on. What is held is dropped.
    pub(crate) fn let_go(&mut self) {
        *self = Self::new(self.overlays.len());
    }
}
