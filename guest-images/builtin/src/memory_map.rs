//! Who owns which guest-physical memory. The image itself is laid out by `link.ld`.
//!
//! ```text
//! 0x0000_8000  trampoline for starting other vCPUs (the boot stack before that)
//! 0x0020_0000  the image: CPU tables, text, data, stacks   (ends below 8 MiB)
//! 0x0080_0000  heap, 16 MiB
//! 0x0200_0000  pages of the `dirty` workload, one range a vCPU  (to the end of RAM)
//! ```

/// Start of the heap.
pub(crate) const HEAP_START: usize = 0x0080_0000;
/// Length of the heap: everything the guest ever allocates fits, and no peer can make it grow.
pub(crate) const HEAP_BYTES: usize = 16 << 20;
/// Start of the `dirty` workload's first range.
pub(crate) const DIRTY_START: usize = 0x0200_0000;
/// RAM must reach at least here.
pub(crate) const RAM_END_MIN: usize = DIRTY_START;

const _: () = assert!(
    HEAP_START + HEAP_BYTES <= DIRTY_START,
    "heap and dirty ranges overlap"
);
