//! Where guest RAM lies, and whether the host has enough memory for it.
//!
//! RAM starts at 0, skips the device hole between 3 and 4 GiB, and continues above it. What must
//! not be done here: allocate.

use vm_memory::GuestAddress;

use super::MemoryError;

/// Where the device hole begins: 3 GiB.
pub const MMIO_HOLE_START: u64 = 0xC000_0000;
/// Where RAM continues above the hole: 4 GiB.
const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// Least RAM in MiB: less does not fit what is loaded at 1 MiB and the tables below it.
pub const MIB_MIN: u64 = 2;
/// Most RAM in MiB, 1 TiB: a bound for arithmetic and bitmaps, far beyond what checkpoints can handle.
pub const MIB_MAX: u64 = 1 << 20;

pub(super) fn check_size(mib: u64) -> Result<(), MemoryError> {
    if (MIB_MIN..=MIB_MAX).contains(&mib) {
        Ok(())
    } else {
        Err(MemoryError::Size {
            mib,
            min_mib: MIB_MIN,
            max_mib: MIB_MAX,
        })
    }
}

/// The RAM ranges of a guest with `mib` MiB: start and length in bytes, ascending.
#[must_use]
pub fn ranges(mib: u64) -> Vec<(GuestAddress, usize)> {
    let bytes = mib << 20;
    let low = bytes.min(MMIO_HOLE_START);
    let mut ranges = vec![(GuestAddress(0), low as usize)];
    if bytes > low {
        ranges.push((GuestAddress(HIGH_RAM_START), (bytes - low) as usize));
    }
    ranges
}

/// Memory in MiB that the host can still give out, if it reports that.
pub(crate) fn available_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    parse_available_mib(&text)
}

fn parse_available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_out_the_hole() {
        assert_eq!(ranges(256), [(GuestAddress(0), 256 << 20)]);
        assert_eq!(ranges(3072), [(GuestAddress(0), 3072 << 20)]);
        assert_eq!(
            ranges(4096),
            [
                (GuestAddress(0), 0xC000_0000),
                (GuestAddress(0x1_0000_0000), 1 << 30)
            ]
        );
    }

    #[test]
    fn available_memory_is_read_from_the_kernels_words() {
        let text = "MemTotal:       24 kB\nMemAvailable:   2097152 kB\n";
        assert_eq!(parse_available_mib(text), Some(2048));
        assert_eq!(parse_available_mib("MemFree: 1 kB\n"), None);
    }
}
