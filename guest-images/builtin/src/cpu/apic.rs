//! The local and I/O interrupt controllers, the LAPIC timer, and starting other vCPUs.

use core::ptr;

const LAPIC: usize = 0xfee0_0000;
const IOAPIC: usize = 0xfec0_0000;

const LAPIC_TPR: usize = 0x80;
const LAPIC_SPURIOUS: usize = 0xf0;
const LAPIC_ICR_LOW: usize = 0x300;
const LAPIC_ICR_HIGH: usize = 0x310;
const LAPIC_LVT_TIMER: usize = 0x320;
const LAPIC_TIMER_INITIAL: usize = 0x380;
const LAPIC_TIMER_DIVIDE: usize = 0x3e0;

const VECTOR_FIRST: u32 = 32;
const VECTOR_SPURIOUS: u32 = 63;
/// GSIs that have a stub and a bit in the pending word (bit 0 is the timer's).
const GSI_MAX: u32 = 23;

/// KVM's LAPIC bus runs at 1 GHz; divided by 16 a count is 16 ns and the longest shot 68 s.
const NS_PER_COUNT: u64 = 16;
const DIVIDE_BY_16: u32 = 0b0011;

/// Where the start-up IPI sends other vCPUs: page 8, below everything the boot protocol uses.
const TRAMPOLINE: usize = 0x8000;

unsafe extern "C" {
    static trampoline_begin: u8;
    static trampoline_end: u8;
}

fn lapic_write(register: usize, value: u32) {
    // SAFETY: the LAPIC page is mapped uncached at its architectural address and `register` is one of
    // the constants above; the writes change interrupt delivery, not memory.
    unsafe { ptr::write_volatile((LAPIC + register) as *mut u32, value) };
}

fn lapic_read(register: usize) -> u32 {
    // SAFETY: as in `lapic_write`.
    unsafe { ptr::read_volatile((LAPIC + register) as *const u32) }
}

/// Lets this vCPU receive interrupts and prepares its timer.
pub(crate) fn enable() {
    lapic_write(LAPIC_SPURIOUS, 0x100 | VECTOR_SPURIOUS);
    lapic_write(LAPIC_TPR, 0);
    lapic_write(LAPIC_TIMER_DIVIDE, DIVIDE_BY_16);
    lapic_write(LAPIC_LVT_TIMER, VECTOR_FIRST);
}

/// Interrupts this vCPU once after `ns`, instead of any earlier request.
pub(crate) fn set_timer(ns: u64) {
    let counts = (ns / NS_PER_COUNT).clamp(1, u64::from(u32::MAX)) as u32;
    lapic_write(LAPIC_TIMER_INITIAL, counts);
}

/// Routes an edge-triggered GSI to vCPU 0, as pending bit `gsi`. Returns false if it has no bit.
pub(crate) fn route(gsi: u32) -> bool {
    if gsi == 0 || gsi > GSI_MAX {
        return false;
    }
    ioapic_write(0x10 + 2 * gsi + 1, 0);
    ioapic_write(0x10 + 2 * gsi, VECTOR_FIRST + gsi);
    true
}

fn ioapic_write(register: u32, value: u32) {
    // SAFETY: the IOAPIC's select and window registers at their architectural address, mapped
    // uncached; only vCPU 0 calls this, so select and write are not interleaved with others.
    unsafe {
        ptr::write_volatile(IOAPIC as *mut u32, register);
        ptr::write_volatile((IOAPIC + 0x10) as *mut u32, value);
    }
}

/// Starts another vCPU; it comes out in `guest_main` with its own number.
pub(crate) fn start(vcpu: usize) {
    let source = &raw const trampoline_begin;
    let length = &raw const trampoline_end as usize - source as usize;
    // SAFETY: the trampoline is position independent within its page, shorter than a page, and page 8
    // was only used as the boot stack, which vCPU 0 left at entry.
    unsafe { ptr::copy_nonoverlapping(source, TRAMPOLINE as *mut u8, length) };
    for command in [0x4500, 0x4600 | (TRAMPOLINE >> 12) as u32] {
        // INIT, then start-up
        lapic_write(LAPIC_ICR_HIGH, (vcpu as u32) << 24);
        lapic_write(LAPIC_ICR_LOW, command);
        while lapic_read(LAPIC_ICR_LOW) & 0x1000 != 0 {
            core::hint::spin_loop();
        }
    }
}
