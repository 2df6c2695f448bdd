//! How vCPU 0 enters the kernel: by the Linux 64-bit boot protocol, or by PVH.
//!
//! Tables are written to guest memory below 1 MiB. Registers are returned; the caller sets them. What must not be
//! done here: talk to KVM.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::params::BOOT_PARAMS_ADDRESS;
use super::pvh::START_INFO_ADDRESS;
use super::{BootError, EntryPoint};
use crate::memory::GuestRam;

const GDT_ADDRESS: u64 = 0x500;
const STACK_POINTER: u64 = 0x8ff0;
const PML4_ADDRESS: u64 = 0x9000;
const PDPT_ADDRESS: u64 = 0xa000;
const PD_ADDRESS: u64 = 0xb000;

/// GiB that are mapped one to one.
const IDENTITY_GIB: u64 = 4;
const ENTRIES_PER_TABLE: u64 = 512;
const LARGE_PAGE_BYTES: u64 = 2 << 20;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const LARGE: u64 = 1 << 7;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

const CR0_PE: u64 = 1;
const CR0_MP: u64 = 1 << 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// This bit is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// 0 and 1: null; 2: flat 64-bit code; 3: flat data; 4 and 5: a busy TSS, unused but required.
const GDT: [u64; 6] = [
    0,
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x0000_8b00_0000_0067,
    0,
];

/// Writes the GDT and identity page tables (first 4 GiB, 2 MiB pages, supervisor only).
///
/// # Errors
/// If guest memory has no room for them.
pub(super) fn write_tables(ram: &GuestRam) -> Result<(), BootError> {
    let write = |what, address: u64, entries: &[u64]| {
        let bytes: Vec<u8> = entries
            .iter()
            .flat_map(|entry| entry.to_le_bytes())
            .collect();
        ram.write_slice(&bytes, GuestAddress(address))
            .map_err(|source| BootError::Write { what, source })
    };
    write("the GDT", GDT_ADDRESS, &GDT)?;
    write(
        "the page tables",
        PML4_ADDRESS,
        &[PDPT_ADDRESS | PRESENT | WRITABLE],
    )?;
    let directories: Vec<u64> = (0..IDENTITY_GIB)
        .map(|gib| (PD_ADDRESS + gib * 4096) | PRESENT | WRITABLE)
        .collect();
    write("the page tables", PDPT_ADDRESS, &directories)?;
    let pages: Vec<u64> = (0..IDENTITY_GIB * ENTRIES_PER_TABLE)
        .map(|page| (page * LARGE_PAGE_BYTES) | PRESENT | WRITABLE | LARGE)
        .collect();
    write("the page tables", PD_ADDRESS, &pages)
}

/// General registers at entry.
#[must_use]
pub fn initial_regs(entry: EntryPoint) -> kvm_regs {
    match entry {
        EntryPoint::Linux64(entry) => kvm_regs {
            rip: entry,
            rsi: BOOT_PARAMS_ADDRESS,
            rsp: STACK_POINTER,
            rbp: STACK_POINTER,
            rflags: RFLAGS_RESERVED,
            ..Default::default()
        },
        EntryPoint::Pvh(entry) => kvm_regs {
            rip: entry.into(),
            rbx: START_INFO_ADDRESS,
            rflags: RFLAGS_RESERVED,
            ..Default::default()
        },
    }
}

/// System registers at entry, based on those after reset.
#[must_use]
pub fn entry_sregs(entry: EntryPoint, reset: kvm_sregs) -> kvm_sregs {
    match entry {
        EntryPoint::Linux64(_) => initial_sregs(reset),
        EntryPoint::Pvh(_) => pvh_sregs(reset),
    }
}

/// 32-bit protected mode, flat segments, no paging.
fn pvh_sregs(reset: kvm_sregs) -> kvm_sregs {
    let mut sregs = initial_sregs(reset);
    // The GDT has no 32-bit code segment. Kernels load their own GDT before they load a segment.
    (sregs.cs.l, sregs.cs.db) = (0, 1);
    sregs.cr0 = CR0_PE | CR0_ET;
    (sregs.cr3, sregs.cr4, sregs.efer) = (0, 0, 0);
    sregs
}

/// System registers of 64-bit mode. The rest, as the APIC base, stays as after reset.
#[must_use]
pub fn initial_sregs(reset: kvm_sregs) -> kvm_sregs {
    let mut sregs = reset;
    sregs.gdt.base = GDT_ADDRESS;
    sregs.gdt.limit = (size_of_val(&GDT) - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = segment(CODE_SELECTOR, 0b1011, true);
    let data = segment(DATA_SELECTOR, 0b0011, false);
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.tr = kvm_segment {
        base: 0,
        limit: 0x67,
        selector: TASK_SELECTOR,
        type_: 0b1011,
        present: 1,
        ..Default::default()
    };
    sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_PG;
    sregs.cr3 = PML4_ADDRESS;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
    sregs
}

fn segment(selector: u16, type_: u8, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    }
}
