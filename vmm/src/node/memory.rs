//! How much of this process is in memory: a copy that was swapped out is no warm one.
//!
//! What must not be done here: change that.

use serde::{Deserialize, Serialize};

use crate::host::process_field;

/// Swapped-out memory below this is not worth a word: what was used once, at the start.
const SWAPPED_KIB_MIN: u64 = 16 << 10;
/// Neither is less than this part of all.
const SWAPPED_PART: u64 = 16;

/// The memory of the process with the guest's memory, or the copy of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// In memory.
    pub resident_kib: u64,
    /// Swapped out.
    pub swapped_kib: u64,
    /// Locked into memory, used or not.
    pub locked_kib: u64,
}

impl MemoryStatus {
    /// As it is now.
    pub(super) fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self::read(&status)
    }

    fn read(status: &str) -> Self {
        let kib = |name| {
            let number = process_field(status, name)?.strip_suffix("kB")?;
            number.trim().parse().ok()
        };
        Self {
            resident_kib: kib("VmRSS").unwrap_or(0),
            swapped_kib: kib("VmSwap").unwrap_or(0),
            locked_kib: kib("VmLck").unwrap_or(0),
        }
    }

    /// What a person should know.
    pub(super) fn alarm(&self) -> Option<String> {
        let all = self.resident_kib + self.swapped_kib;
        let is_much = self.swapped_kib >= SWAPPED_KIB_MIN && self.swapped_kib > all / SWAPPED_PART;
        is_much.then(|| {
            format!(
                "{} of {} MiB of this process are swapped out: the guest, and a takeover, have to wait for the swap; lock \
                 the memory (`lock_memory`), or give the host more",
                self.swapped_kib >> 10,
                all >> 10
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_swapped_out_is_an_alarm_unless_it_is_little() {
        let read = |swapped: u64| {
            let status = format!("VmLck:\t 7 kB\nVmRSS:\t  262144 kB\nVmSwap:\t {swapped} kB\n");
            MemoryStatus::read(&status)
        };
        assert_eq!(
            read(20_000),
            MemoryStatus {
                resident_kib: 262_144,
                swapped_kib: 20_000,
                locked_kib: 7
            }
        );
        assert_eq!(read(16_383).alarm(), None);
        assert_eq!(read(17_000).alarm(), None, "a small part");
        let alarm = read(65_536).alarm().unwrap();
        assert!(alarm.contains("64 of 320 MiB"), "{alarm}");
    }
}
