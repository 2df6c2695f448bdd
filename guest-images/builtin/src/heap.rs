//! The heap: a fixed range, handed out by `linked_list_allocator`.

use crate::memory_map::{HEAP_BYTES, HEAP_START};
use linked_list_allocator::LockedHeap;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap::empty();

/// Gives the allocator its range.
///
/// # Safety
///
/// Once, before the first allocation, and only after RAM is known to cover the heap's range.
pub(crate) unsafe fn init() {
    // SAFETY: the range is RAM (the caller checked), belongs to nobody else (memory_map.rs), and this
    // runs once (the caller promises).
    unsafe { HEAP.lock().init(HEAP_START as *mut u8, HEAP_BYTES) };
}
