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
    read(&raw const PAGES_AT(vcpu).version) != 0
}

#[expect(non_snake_case, reason = "a place, not an action")]
fn PAGES_AT(vcpu: usize) -> &'static Page {
    // SAFETY: entry.s reserves VCPUS_MAX pages of this layout; indexing is checked. The host writes
    // them, so every field is read volatile, under the version protocol.
    unsafe { &(&*&raw const kvmclock_pages)[vcpu] }
}

fn read<T: Copy>(field: *const T) -> T {
    // SAFETY: callers pass pointers to fields of a `Page` that lives forever.
    unsafe { ptr::read_volatile(field) }
}

/// Nanoseconds since the machine was made, never less than an earlier answer on this vCPU.
pub(crate) fn now_ns(vcpu: usize) -> u64 {
    let page = PAGES_AT(vcpu);
    let now = loop {
        let version = read(&raw const page.version);
        fence(Ordering::Acquire);
        // SAFETY: SSE2 and the TSC are part of x86-64.
        let tsc = unsafe {
            _mm_lfence();
            _rdtsc()
        };
        let delta = tsc.wrapping_sub(read(&raw const page.tsc_timestamp));
        let shift = read(&raw const page.tsc_shift);
        let delta = if shift >= 0 { delta << shift } else { delta >> -shift };
        let scaled =
            (u128::from(delta) * u128::from(read(&raw const page.tsc_to_system_mul))) >> 32;
        let now = read(&raw const page.system_time).wrapping_add(scaled as u64);
        fence(Ordering::Acquire);
        if version & 1 == 0 && version == read(&raw const page.version) {
            break now;
        }
    };
    let last = LAST_NS[vcpu].load(Ordering::Relaxed);
    if now <= last {
        return last;
    }
    LAST_NS[vcpu].store(now, Ordering::Relaxed);
    now
}
