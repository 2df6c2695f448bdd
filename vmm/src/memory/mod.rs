//! Guest RAM.

/// Guest RAM whose VMM-side writes are marked in a bitmap per region.
pub type GuestRam = vm_memory::GuestMemoryMmap<vm_memory::bitmap::AtomicBitmap>;
