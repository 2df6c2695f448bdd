//! A kernel that PVH alone can boot: it says what it was given.

use super::*;
use crate::boot::BootProtocol;

/// Says what is at the start of `hvm_start_info` and of what it points to. 32-bit code.
const TELLING: &[u8] = &[
    0xba, 0xe8, 0x02, 0x00, 0x00, // mov edx, 0x2e8
    0x8b, 0x03, 0xef, // mov eax, [ebx]; out dx, eax: the magic number
    0x8b, 0x43, 0x0c, 0xef, // [ebx + 12]: how many modules
    0x8b, 0x43, 0x30, 0xef, // [ebx + 48]: how many ranges of memory
    0x8b, 0x43, 0x18, 0x8b, 0x00, 0xef, // [[ebx + 24]]: the command line
    0x8b, 0x43, 0x20, 0x8b, 0x00, 0xef, // [[ebx + 32]]: the root of the ACPI tables
    0x8b, 0x43, 0x10, 0x8b, 0x00, 0x8b, 0x00, 0xef, // [[[ebx + 16]]]: the first module
    0x0f, 0x20, 0xc0, 0xef, // mov eax, cr0; out dx, eax
    0xeb, 0xfe, // for ever
];

/// Gives an image a note behind its first program header, and a 64-bit entry point that is none.
fn with_note(mut image: Vec<u8>) -> Vec<u8> {
    image[24..32].copy_from_slice(&0xffff_ffff_8100_0000u64.to_le_bytes());
    image[56] = 2;
    image[120] = 4;
    image[128..136].copy_from_slice(&0x200u64.to_le_bytes());
    image[152..160].copy_from_slice(&20u64.to_le_bytes());
    let entry = boot::KERNEL_START as u32;
    for (number, word) in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), entry]
        .into_iter()
        .enumerate()
    {
        image[0x200 + 4 * number..][..4].copy_from_slice(&word.to_le_bytes());
    }
    image
}

#[test]
fn a_kernel_with_only_a_pvh_entry_finds_everything() {
    let directory = tempfile::tempdir().unwrap();
    let initrd = directory.path().join("initrd");
    std::fs::write(&initrd, b"module").unwrap();
    for boot_protocol in [BootProtocol::Auto, BootProtocol::Pvh] {
        let config = MachineConfig {
            kernel: Some(Kernel::Bytes(with_note(elf(TELLING)))),
            boot_protocol,
            initrd: Some(initrd.clone()),
            cmdline: "panic=-1".into(),
            ..config(TELLING)
        };
        let mut rig = rig_with(config, &["numbers"]);
        rig.machine.start().unwrap();
        assert_eq!(rig.next(), 0x336e_c578);
        assert_eq!([rig.next(), rig.next()], [1, 4]);
        let text = u32::from_le_bytes;
        assert_eq!(rig.next(), text(*b"pani"));
        assert_eq!(rig.next(), text(*b"RSD "));
        assert_eq!(rig.next(), text(*b"modu"));
        // Protected mode without paging; caches are as they were.
        assert_eq!(rig.next() & 0x8000_0001, 1);
    }
}
