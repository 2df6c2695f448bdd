//! Time: kvmclock, the paravirtual clock that a restored machine continues from its checkpoint.
//!
//! The page is registered at CPL 0 (entry.s) and read here. Time never goes backwards, whatever the
//! host does: each vCPU remembers the last value it gave out.

use super::VCPUS_MAX;
use core::arch::x86_64::{_mm_lfence, _rdtsc};
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering, fence};

unsafe extern "C" {
    static kvmclock_pages: [Page; VCPUS_MAX];
}

/// `pvclock_vcpu_time_info` of the KVM interface, in a cache line of its own.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Page {
    version: u32,
    pad0: u32,
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
    flags: u8,
    pad: [u8; 2],
}

static LAST_NS: [AtomicU64; VCPUS_MAX] = [const { AtomicU64::new(0) }; VCPUS_MAX];

/// Whether the host keeps the clock page of this vCPU.
pub(crate) fn is_present(vcpu: usize) -> bool {
    snapshot(vcpu).0.version != 0
}

/// The clock page of a vCPU. The host writes it, so there is no reference to it, only volatile reads.
fn page(vcpu: usize) -> *const Page {
    assert!(vcpu < VCPUS_MAX);
    (&raw const kvmclock_pages)
        .cast::<Page>()
        .wrapping_add(vcpu)
}

/// One consistent copy of a clock page, and the TSC at that time.
fn snapshot(vcpu: usize) -> (Page, u64) {
    let page = page(vcpu);
    loop {
        // SAFETY: entry.s reserves VCPUS_MAX pages of this layout, `page` checked the index, and the
        // fields are aligned. The host's concurrent writes are seen through its version protocol: the
        // number is odd while it writes, and another one afterwards.
        let version = unsafe { ptr::read_volatile(&raw const (*page).version) };
        fence(Ordering::Acquire);
        // SAFETY: as above; a torn copy is thrown away below. SSE2 and the TSC are part of x86-64.
        let (copy, tsc) = unsafe {
            let copy = ptr::read_volatile(page);
            _mm_lfence();
            (copy, _rdtsc())
        };
        fence(Ordering::Acquire);
        // SAFETY: as for the first read.
        if version & 1 == 0 && version == unsafe { ptr::read_volatile(&raw const (*page).version) }
        {
            return (copy, tsc);
        }
    }
}

/// Nanoseconds since the machine was made, never less than an earlier answer on this vCPU.
pub(crate) fn now_ns(vcpu: usize) -> u64 {
    let (page, tsc) = snapshot(vcpu);
    // The host may have written the page on a CPU whose TSC is slightly ahead of this one's.
    let passed = tsc.saturating_sub(page.tsc_timestamp);
    let shift = page.tsc_shift;
    let passed = if shift >= 0 {
        passed << shift
    } else {
        passed >> -shift
    };
    let passed_ns = (u128::from(passed) * u128::from(page.tsc_to_system_mul)) >> 32;
    let now = page.system_time.wrapping_add(passed_ns as u64);
    let last = LAST_NS[vcpu].load(Ordering::Relaxed);
    if now <= last {
        return last;
    }
    LAST_NS[vcpu].store(now, Ordering::Relaxed);
    now
}
