//! Simulated disks: number 0 is replicated, number 1 is shared. A sector is a number. What the
//! library does with files is done with vectors, here for the side that runs the guest; and what it
//! must never do is checked.

use std::collections::VecDeque;

use bytes::Bytes;
use understudy_replication::core::disk::{DiskWrite, SECTOR_BYTES, What, decode_batch};
use understudy_replication::ids::EpochId;

pub const SECTORS: usize = 16;
pub const DISK_BYTES: [u64; 2] = [SECTORS as u64 * SECTOR_BYTES; 2];
pub const REPLICATED: u16 = 0;
pub const SHARED: u16 = 1;
/// So many sectors are copied in one round.
const COPY_SECTORS: usize = 6;

pub type Image = [u64; SECTORS];

/// One write of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    pub disk: u16,
    pub sector: usize,
    pub value: u64,
}

pub fn apply<'a>(writes: impl IntoIterator<Item = &'a Write>, disk: u16, image: &mut Image) {
    for write in writes.into_iter().filter(|write| write.disk == disk) {
        image[write.sector] = write.value;
    }
}

/// As the library has them.
pub fn encode(writes: &[Write]) -> Vec<DiskWrite> {
    let encoded = writes.iter().map(|write| {
        let mut sector = vec![0; SECTOR_BYTES as usize];
        sector[..8].copy_from_slice(&write.value.to_le_bytes());
        DiskWrite {
            disk: write.disk,
            offset: write.sector as u64 * SECTOR_BYTES,
            what: What::Data(sector.into()),
        }
    });
    encoded.collect()
}

pub fn decode(batch: &Bytes) -> Vec<Write> {
    let mut writes = Vec::new();
    let each = |write: DiskWrite| {
        let What::Data(data) = write.what else {
            panic!("only data is ever sent here");
        };
        // Sectors that lie side by side may have been put into one record.
        for (number, sector) in data.chunks(SECTOR_BYTES as usize).enumerate() {
            writes.push(Write {
                disk: write.disk,
                sector: (write.offset / SECTOR_BYTES) as usize + number,
                value: u64::from_le_bytes(sector[..8].try_into().unwrap()),
            });
        }
    };
    decode_batch(batch, &DISK_BYTES, each).expect("the core has checked it");
    writes
}

/// The disks of a host that runs the guest. The image of the replicated one is the host's.
#[derive(Default)]
pub struct PrimaryDisks {
    /// What the guest sees of the shared disk: with what is held.
    pub shared: Image,
    /// Since the last epoch, or the last round of the copy; `None` without a backup.
    log: Option<Vec<Write>>,
    /// The next sector to be copied.
    copy_from: Option<usize>,
    holding: bool,
    bucket: Vec<Write>,
    held: VecDeque<(EpochId, Vec<Write>)>,
    pub flush: bool,
    /// Epochs with flushes that the guest is to be told of.
    awaited: VecDeque<EpochId>,
    /// Everything through this epoch is on the shared disk.
    pub written_through: EpochId,
}

impl PrimaryDisks {
    pub fn of(shared: Image) -> Self {
        Self {
            shared,
            ..Self::default()
        }
    }

    /// The guest writes; returns whether it may go to the image at once.
    pub fn write(&mut self, write: Write) -> bool {
        let shared = write.disk == SHARED;
        if shared {
            self.shared[write.sector] = write.value;
        }
        if !shared || self.holding {
            self.log.iter_mut().for_each(|log| log.push(write));
        }
        if shared && self.holding {
            self.bucket.push(write);
        }
        !(shared && self.holding)
    }

    pub fn attach(&mut self) {
        self.log = Some(Vec::new());
        self.copy_from = Some(0);
        self.written_through = EpochId(0);
    }

    pub fn detach(&mut self) {
        self.log = None;
        self.copy_from = None;
    }

    pub fn is_copying(&self) -> bool {
        self.copy_from.is_some()
    }

    /// What is to be sent next, before epoch 1.
    pub fn sync_some(&mut self, image: &Image) -> Vec<Write> {
        let mut writes = self.log.as_mut().map(std::mem::take).unwrap_or_default();
        if let Some(from) = self.copy_from {
            let to = (from + COPY_SECTORS).min(SECTORS);
            writes.extend((from..to).map(|sector| Write {
                disk: REPLICATED,
                sector,
                value: image[sector],
            }));
            self.copy_from = (to < SECTORS).then_some(to);
        }
        writes
    }

    /// Ends an epoch; returns its writes, and whether the guest flushed.
    pub fn seal(&mut self, epoch: EpochId) -> (Vec<Write>, bool) {
        self.holding = true;
        self.held
            .push_back((epoch, std::mem::take(&mut self.bucket)));
        let writes = self.log.as_mut().map(std::mem::take).unwrap_or_default();
        let flush = std::mem::take(&mut self.flush);
        self.awaited.extend(flush.then_some(epoch));
        (writes, flush)
    }

    /// The guest is told of its flushes.
    pub fn flushed(&mut self, epoch: EpochId) {
        self.awaited.retain(|awaited| *awaited > epoch);
    }

    /// The oldest epoch with a flush that the guest waits for.
    pub fn awaits(&self) -> Option<EpochId> {
        self.awaited.front().copied()
    }

    /// Takes what is held through `epoch`, to be written.
    pub fn release(&mut self, epoch: EpochId) -> Vec<Write> {
        let mut writes = Vec::new();
        while self.held.front().is_some_and(|(held, _)| *held <= epoch) {
            writes.extend(self.held.pop_front().unwrap().1);
        }
        self.written_through = epoch;
        writes
    }

    /// Whether something is held that belongs to `epoch` or one before.
    pub fn holds_through(&self, epoch: EpochId) -> bool {
        self.held
            .iter()
            .any(|(held, writes)| *held <= epoch && !writes.is_empty())
    }

    /// Whether something is held.
    pub fn holds(&self) -> bool {
        !self.bucket.is_empty() || self.holds_through(EpochId(u64::MAX))
    }

    /// Takes all that is held, to be written; nothing is held from now on.
    pub fn go_alone(&mut self) -> Vec<Write> {
        self.detach();
        self.awaited.clear();
        self.holding = false;
        let held = std::mem::take(&mut self.held);
        let bucket = std::mem::take(&mut self.bucket);
        held.into_iter()
            .flat_map(|(_, writes)| writes)
            .chain(bucket)
            .collect()
    }
}
