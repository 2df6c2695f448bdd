//! The CPU under the guest, and what belongs to it: entry, interrupts, timer, clock, serial port.
//!
//! Everything privileged is in the assembler files beside this one; Rust code runs at CPL 3 with I/O
//! privilege and all memory and devices mapped. What must not be done here: anything that knows of
//! packets or workloads.

pub(crate) mod apic;
pub(crate) mod boot;
pub(crate) mod clock;
pub(crate) mod port;
pub(crate) mod serial;
pub(crate) mod timer;

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU32, Ordering};

global_asm!(include_str!("tables.s"));
global_asm!(include_str!("entry.s"));
global_asm!(include_str!("memory_functions.s"));

/// Where `tables.s` puts the CPL 0 stacks, one page a vCPU, each with its pending word at the bottom.
const STACKS: usize = 0x20_9000;
/// The vCPUs the tables are laid out for.
pub(crate) const VCPUS_MAX: usize = understudy_workload::options::VCPUS_MAX as usize;
const _: () = assert!(
    VCPUS_MAX == 4,
    "tables.s has four TSSs, stacks and clock pages"
);

/// The pending bit of the LAPIC timer; GSI g has bit g.
pub(crate) const PENDING_TIMER: u32 = 1;

/// Takes and clears what interrupts have noted for this vCPU since the last call.
pub(crate) fn take_pending(vcpu: usize) -> u32 {
    assert!(vcpu < VCPUS_MAX);
    // SAFETY: `tables.s` reserves a page at this address for each vCPU below VCPUS_MAX; its first
    // word is aligned and only ever accessed as this atomic or by the interrupt stub of the same vCPU.
    let pending = unsafe { &*((STACKS + vcpu * 4096) as *const AtomicU32) };
    if pending.load(Ordering::Relaxed) == 0 {
        return 0; // an idle look must not dirty the page
    }
    pending.swap(0, Ordering::AcqRel)
}

/// Halts until an interrupt is pending for this vCPU; returns at once when one already is.
pub(crate) fn wait_for_interrupt() {
    // SAFETY: traps to the general protection stub, which halts and returns behind the instruction
    // with all registers and memory of this program as they were.
    unsafe { asm!("hlt") };
}

/// The upper byte of ACPI's PM1 control register, and "soft off" in it.
const SLEEP_CONTROL: u16 = 0x605;
const SOFT_OFF: u8 = 0b11_0100;

/// Ends the machine: powers off, or at least resets it where that cannot be done.
pub(crate) fn shut_down() -> ! {
    port::write(SLEEP_CONTROL, SOFT_OFF);
    reset()
}

/// Asks for a reset, by the keyboard controller.
pub(crate) fn reset() -> ! {
    loop {
        port::write(0x64, 0xfe);
        wait_for_interrupt();
    }
}

/// Where `tables.s` goes on after an exception nobody expects.
#[unsafe(no_mangle)]
extern "C" fn fatal_exception(vector: u64, error: u64, rip: u64, cr2: u64) -> ! {
    crate::log!("fatal: exception {vector} error={error:#x} rip={rip:#x} cr2={cr2:#x}");
    shut_down()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    crate::log!("fatal: {info}");
    shut_down()
}

/// Named by cleanup code in the precompiled `alloc` crate. Panics end the machine, nothing unwinds.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    shut_down()
}
