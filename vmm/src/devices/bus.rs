//! An address space of devices: the guest's I/O ports, or its MMIO addresses.
//!
//! It finds the device of an access and locks it. It must not know any device.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::{BusDevice, lock};

/// Devices by address range. Filled while the machine is built, then shared by the vCPU threads.
#[derive(Default)]
pub struct Bus {
    /// Sorted by base, disjoint.
    entries: Vec<Entry>,
    unknown: AtomicU64,
}

struct Entry {
    base: u64,
    /// Last address of the range, so that a range may end at the end of the address space.
    last: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Why a device cannot be put on a bus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range has no addresses or passes the end of the address space.
    #[error("range {base:#x} + {len:#x} is empty or too long")]
    BadRange {
        /// First address.
        base: u64,
        /// Number of addresses.
        len: u64,
    },
    /// Another device is there.
    #[error("range {base:#x} + {len:#x} overlaps the device at {other:#x}")]
    Overlap {
        /// First address.
        base: u64,
        /// Number of addresses.
        len: u64,
        /// First address of the other device.
        other: u64,
    },
}

impl Bus {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `len` addresses from `base` on.
    ///
    /// # Errors
    /// If the range is impossible or taken.
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|more| base.checked_add(more))
            .ok_or(BusError::BadRange { base, len })?;
        if let Some(other) = self
            .entries
            .iter()
            .find(|e| e.base <= last && base <= e.last)
        {
            return Err(BusError::Overlap {
                base,
                len,
                other: other.base,
            });
        }
        let at = self.entries.partition_point(|e| e.base < base);
        self.entries.insert(at, Entry { base, last, device });
        Ok(())
    }

    /// The guest reads. Where no device is, all bits are one, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((entry, offset)) => lock(&entry.device).read(offset, data),
            None => {
                data.fill(0xff);
                self.count_unknown("read", address, data.len());
            }
        }
    }

    /// The guest writes. Where no device is, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.find(address, data.len()) {
            Some((entry, offset)) => lock(&entry.device).write(offset, data),
            None => self.count_unknown("write", address, data.len()),
        }
    }

    /// How many accesses found no device.
    #[cfg(test)]
    fn unknown_accesses(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }

    fn find(&self, address: u64, len: usize) -> Option<(&Entry, u64)> {
        let after = self.entries.partition_point(|e| e.base <= address);
        let entry = &self.entries[after.checked_sub(1)?];
        let last = address.checked_add((len as u64).checked_sub(1)?)?;
        // An access that reaches over the end of the device is no access to it.
        (last <= entry.last).then(|| (entry, address - entry.base))
    }

    fn count_unknown(&self, what: &str, address: u64, len: usize) {
        let count = self.unknown.fetch_add(1, Ordering::Relaxed) + 1;
        // The guest decides how often this happens: log the 1st, 2nd, 4th, 8th ...
        if count.is_power_of_two() {
            tracing::debug!(what, address, len, count, "guest access where no device is");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(Vec<(u64, Vec<u8>)>);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    fn echo() -> Arc<Mutex<Echo>> {
        Arc::new(Mutex::new(Echo(Vec::new())))
    }

    #[test]
    fn accesses_reach_the_device_at_its_offset() {
        let mut bus = Bus::new();
        let (low, high) = (echo(), echo());
        bus.insert(0x2000, 0x10, high.clone()).unwrap();
        bus.insert(0x1000, 0x10, low.clone()).unwrap();
        bus.write(0x100f, &[1]);
        bus.write(0x2000, &[2, 3]);
        assert_eq!(lock(&low).0, [(0xf, vec![1])]);
        assert_eq!(lock(&high).0, [(0, vec![2, 3])]);
        let mut data = [0; 4];
        bus.read(0x1008, &mut data);
        assert_eq!(data, [8; 4]);
        assert_eq!(bus.unknown_accesses(), 0);
    }

    #[test]
    fn nothing_there_reads_as_ones_and_is_counted() {
        let mut bus = Bus::new();
        let device = echo();
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        for address in [0, 0xfff, 0x100e, 0x1010, u64::MAX] {
            let mut data = [0; 4];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff; 4], "{address:#x}");
            bus.write(address, &data);
        }
        bus.read(0x1000, &mut []);
        assert_eq!(bus.unknown_accesses(), 11);
        assert!(lock(&device).0.is_empty());
    }

    #[test]
    fn overlaps_and_impossible_ranges_are_refused() {
        let mut bus = Bus::new();
        bus.insert(0x1000, 0x10, echo()).unwrap();
        for (base, len) in [(0x1000, 0x10), (0xff1, 0x10), (0x100f, 1), (0, 0x10000)] {
            let overlap = BusError::Overlap {
                base,
                len,
                other: 0x1000,
            };
            assert_eq!(bus.insert(base, len, echo()), Err(overlap));
        }
        for (base, len) in [(0, 0), (u64::MAX, 2)] {
            let bad = BusError::BadRange { base, len };
            assert_eq!(bus.insert(base, len, echo()), Err(bad));
        }
        bus.insert(u64::MAX, 1, echo()).unwrap();
        bus.insert(0x1010, 1, echo()).unwrap();
    }
}
