use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::{Backing, GuestRam, Memory};

/// An ELF file with one segment, which begins at byte 0x1000.
fn image(start: u64, code: &[u8], memory_bytes: u64) -> Vec<u8> {
    let mut image = vec![0; 0x1000];
    image[..4].copy_from_slice(b"\x7fELF");
    image[4] = 2;
    image[5] = 1;
    image[18] = 62;
    image[24..32].copy_from_slice(&start.to_le_bytes());
    image[32] = 64;
    image[54] = 56;
    image[56] = 1;
    image[64] = 1;
    image[72..80].copy_from_slice(&0x1000u64.to_le_bytes());
    image[80..88].copy_from_slice(&start.to_le_bytes());
    image[88..96].copy_from_slice(&start.to_le_bytes());
    image[96..104].copy_from_slice(&(code.len() as u64).to_le_bytes());
    image[104..112].copy_from_slice(&memory_bytes.to_le_bytes());
    image.extend_from_slice(code);
    image
}

const LOW_RAM_END: u64 = 0x9_fc00;

fn load_kernel(ram: &GuestRam, image: &[u8]) -> Result<EntryPoint, BootError> {
    let cmdline = Cmdline::new(["hello"])?;
    load(ram, &payload(image, None), &cmdline, &hardware())
}

fn hardware() -> Hardware {
    Hardware {
        vcpus: 1,
        virtio_mmio: Vec::new(),
        serial: PortDevice {
            base: 0x3f8,
            count: 8,
            gsi: 4,
        },
        power: PowerRegisters {
            event_port: 0x600,
            event_ports: 4,
            control_port: 0x604,
            control_ports: 2,
            gsi: 3,
            sleep_type_off: 5,
        },
        panic_port: 0x505,
        watchdog: None,
        reset: (0x64, 0xfe),
    }
}

fn payload(image: &[u8], initrd: Option<&[u8]>) -> Payload {
    Payload {
        protocol: BootProtocol::Auto,
        kernel: image.into(),
        initrd: initrd.map(Into::into),
    }
}

/// A bzImage with one sector of setup and 1 KiB of kernel, which wants to be at 1 MiB and needs 64 KiB.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut set = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    set(0x1f1, &[1]);
    set(0x1f4, &64u32.to_le_bytes());
    set(0x1fe, &0xaa55u16.to_le_bytes());
    set(0x200, &[0xeb, 0x6a]);
    set(0x202, b"HdrS");
    set(0x206, &0x020fu16.to_le_bytes());
    set(0x211, &[1]);
    set(0x22c, &0x7fff_ffffu32.to_le_bytes());
    set(0x236, &1u16.to_le_bytes());
    set(0x238, &100u32.to_le_bytes());
    set(0x250, &0x1234_5678u64.to_le_bytes());
    set(0x258, &0x10_0000u64.to_le_bytes());
    set(0x260, &0x1_0000u32.to_le_bytes());
    image.extend((0..1024u32).map(|byte| byte as u8));
    image
}

fn memory() -> Memory {
    Memory::allocate(2, Backing::Anonymous).unwrap()
}

#[test]
fn a_segment_lands_at_its_physical_address() {
    let memory = memory();
    // As an earlier run may have left it.
    let old = vec![0xaa; 0x3000];
    let start = GuestAddress(0x10_0000);
    memory.ram().write_slice(&old, start).unwrap();
    let entry = load_kernel(memory.ram(), &image(0x10_0000, b"code", 0x2100)).unwrap();
    assert_eq!(entry, EntryPoint::Linux64(0x10_0000));
    let mut loaded = vec![0; 0x3000];
    memory.ram().read_slice(&mut loaded, start).unwrap();
    assert_eq!(&loaded[..4], b"code");
    assert!(loaded[4..0x2100].iter().all(|byte| *byte == 0));
    assert_eq!(loaded[0x2100..], old[0x2100..], "no more than that");
}

#[test]
fn each_kind_of_bad_image_is_named() {
    let ram = memory().ram().clone();
    let good = image(0x10_0000, b"code", 0x100);
    let error = |image: &[u8]| load_kernel(&ram, image).unwrap_err();

    for (image, words) in [
        (&b""[..], "it is empty"),
        (b"#!/bin/sh\nexit", r##"begins with the text "#!/bin/s""##),
        (
            b"MZ\0\0 not a kernel",
            "begins with the bytes 4d 5a 00 00 20",
        ),
    ] {
        let text = error(image).to_string();
        assert!(text.contains(words), "{text}");
    }
    let mut program = good.clone();
    program[64] = 3;
    assert!(matches!(error(&program), BootError::Program));
    assert!(matches!(error(&good[..40]), BootError::Truncated { .. }));
    assert!(matches!(error(&good[..100]), BootError::Truncated { .. }));
    let error_text = error(&good[..good.len() - 1]).to_string();
    assert_eq!(
        error_text,
        "the kernel image is truncated: segment 0 ends at byte 0x1004, the image has 0x1003"
    );
    let mut arm = good.clone();
    arm[18] = 183;
    assert!(matches!(error(&arm), BootError::WrongMachine { .. }));
    let mut narrow = good.clone();
    narrow[4] = 1;
    assert!(matches!(error(&narrow), BootError::WrongMachine { .. }));
    let mut elsewhere = good.clone();
    elsewhere[24..32].copy_from_slice(&0x20_0000u64.to_le_bytes());
    assert!(matches!(
        error(&elsewhere),
        BootError::EntryOutside(0x20_0000)
    ));
    let mut nothing = good;
    nothing[64] = 4;
    assert!(matches!(error(&nothing), BootError::Empty));
}

#[test]
fn a_kernel_that_does_not_fit_is_refused_with_the_limits() {
    let ram = memory().ram().clone();
    for (start, bytes) in [(0x10_0000, 0x10_0001), (0x20_0000, 4), (u64::MAX, 9)] {
        let error = load_kernel(&ram, &image(start, b"code", bytes)).unwrap_err();
        assert!(
            matches!(
                error,
                BootError::DoesNotFit {
                    ram_end: 0x20_0000,
                    ..
                }
            ),
            "{error}"
        );
        let helps = start.saturating_add(bytes) <= 3 << 30;
        assert_eq!(
            error.to_string().contains("give the guest more memory"),
            helps,
            "{error}"
        );
    }
    let low = load_kernel(&ram, &image(0xf_ffff, b"code", 4)).unwrap_err();
    assert!(
        matches!(
            low,
            BootError::TooLow {
                start: 0xf_ffff,
                ..
            }
        ),
        "{low}"
    );
}

#[test]
fn the_command_line_is_bounded_and_plain() {
    let cmdline = Cmdline::new(["workload=counter", "", "nr_cpus=1"]).unwrap();
    assert_eq!(cmdline.as_str(), "workload=counter nr_cpus=1");
    assert!(Cmdline::new(["x".repeat(CMDLINE_BYTES_MAX - 1)]).is_ok());
    let error = Cmdline::new(["x".repeat(CMDLINE_BYTES_MAX)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel command line has 2048 bytes, the limit is 2047"
    );
    let error = Cmdline::new(["a\nb"]).unwrap_err();
    assert!(matches!(
        error,
        BootError::CmdlineByte {
            byte: 10,
            offset: 1
        }
    ));
}

struct ZeroPage<'a>(&'a GuestRam);

/// Offsets as in the kernel's Documentation/arch/x86/boot.rst and zero-page.rst.
impl ZeroPage<'_> {
    fn at<T: vm_memory::ByteValued>(&self, offset: u64) -> T {
        let address = GuestAddress(BOOT_PARAMS_ADDRESS + offset);
        self.0.read_obj(address).unwrap()
    }

    /// Start, length and type of the memory map's ranges.
    fn map(&self) -> Vec<(u64, u64, u32)> {
        (0..u64::from(self.at::<u8>(0x1e8)))
            .map(|number| 0x2d0 + number * 20)
            .map(|at| (self.at(at), self.at(at + 8), self.at(at + 16)))
            .collect()
    }
}

#[test]
fn boot_params_point_to_the_command_line_and_describe_ram() {
    let memory = Memory::allocate(4096, Backing::Anonymous).unwrap();
    load_kernel(memory.ram(), &image(0x10_0000, b"code", 0x100)).unwrap();
    let page = ZeroPage(memory.ram());
    assert_eq!(page.at::<u32>(0x228), 0x2_0000);
    assert_eq!(page.at::<u32>(0x238), 5);
    let mut text = [1; 6];
    memory
        .ram()
        .read_slice(&mut text, GuestAddress(CMDLINE_ADDRESS))
        .unwrap();
    assert_eq!(&text, b"hello\0");
    let (ram, reserved, acpi) = (1, 2, 3);
    assert_eq!(
        page.map(),
        [
            (0, LOW_RAM_END, ram),
            (LOW_RAM_END, 0xe_0000 - LOW_RAM_END, reserved),
            (0xe_0000, 0x2_0000, acpi),
            (0x10_0000, 0xC000_0000 - 0x10_0000, ram),
            (0x1_0000_0000, 1 << 30, ram)
        ]
    );
    assert_eq!(
        page.at::<u64>(0x70),
        0xe_0000,
        "the root of the ACPI tables"
    );
    let mut root = [0; 8];
    memory
        .ram()
        .read_slice(&mut root, GuestAddress(0xe_0000))
        .unwrap();
    assert_eq!(&root, b"RSD PTR ");
    let mut code = [0; 4];
    memory
        .ram()
        .read_slice(&mut code, GuestAddress(0xf_fff0))
        .unwrap();
    assert_eq!(code, [0xb0, 0xfe, 0xe6, 0x64], "the reset vector");
}

#[test]
fn a_bzimage_gets_its_header_back_completed() {
    let memory = memory();
    let initrd = [7; 5000];
    let payload = payload(&bzimage(), Some(&initrd));
    let cmdline = Cmdline::new(["hello"]).unwrap();
    let entry = load(memory.ram(), &payload, &cmdline, &hardware()).unwrap();
    assert_eq!(entry, EntryPoint::Linux64(0x10_0200));
    let mut code = [0; 4];
    memory
        .ram()
        .read_slice(&mut code, GuestAddress(0x10_0000))
        .unwrap();
    assert_eq!(code, [0, 1, 2, 3]);
    let page = ZeroPage(memory.ram());
    assert_eq!(page.at::<u16>(0x206), 0x020f, "the kernel's own");
    assert_eq!(page.at::<u64>(0x258), 0x10_0000, "the kernel's own");
    assert_eq!(page.at::<u8>(0x210), 0xff, "type of loader");
    assert_eq!(
        page.at::<u64>(0x250),
        0,
        "setup data, of which there is none"
    );
    assert_eq!(page.at::<u32>(0x228), 0x2_0000);
    // The highest page boundary below 2 MiB with 5000 bytes behind it.
    assert_eq!(page.at::<u32>(0x218), 0x1f_e000);
    assert_eq!(page.at::<u32>(0x21c), 5000);
    let mut copied = [0; 5001];
    memory
        .ram()
        .read_slice(&mut copied, GuestAddress(0x1f_e000))
        .unwrap();
    assert_eq!(copied[..5000], initrd);
    assert_eq!(copied[5000], 0);
}

#[test]
fn each_kind_of_bad_bzimage_is_named() {
    let error = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut image = bzimage();
        change(&mut image);
        plan(&payload(&image, None), 0x20_0000).unwrap_err()
    };
    let truncated = error(&|image| image.truncate(2047)).to_string();
    assert_eq!(
        truncated,
        "the kernel image is truncated: the compressed kernel ends at byte 0x800, the image has 0x7ff"
    );
    let truncated = error(&|image| image.truncate(0x210)).to_string();
    assert!(truncated.contains("the setup header"), "{truncated}");
    assert!(matches!(
        error(&|image| image[0x206] = 0x0b),
        BootError::OldProtocol {
            major: 2,
            minor: 11
        }
    ));
    assert!(matches!(
        error(&|image| image[0x236] = 2),
        BootError::No64BitEntry
    ));
    assert!(matches!(
        error(&|image| image[0x211] = 0),
        BootError::No64BitEntry
    ));
    let no_room = error(&|image| image[0x262] = 0x11).to_string();
    assert!(no_room.contains("the bzImage needs"), "{no_room}");
    assert!(matches!(
        error(&|image| image[0x25a] = 0),
        BootError::TooLow { .. }
    ));
}

#[test]
fn an_initramfs_goes_where_the_kernel_and_memory_allow() {
    let place = |image: &[u8], bytes: usize, ram_end| {
        plan(&payload(image, Some(&vec![1; bytes])), ram_end)
            .map(|plan| plan.initrd().cloned().unwrap())
    };
    // Between the kernel's end at 0x11_0000 and the end of memory.
    let image = bzimage();
    assert_eq!(
        place(&image, 0xf_0000, 0x20_0000).unwrap(),
        0x11_0000..0x20_0000
    );
    let error = place(&image, 0xf_0001, 0x20_0000).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the initramfs of 0xf0001 bytes does not fit: the kernel leaves it guest memory 0x110000 to \
         0x200000; give the guest more memory"
    );
    assert!(matches!(
        place(&image, 0, 0x20_0000),
        Err(BootError::InitrdEmpty)
    ));
    let error = place(&image, 0x7fff_0000, 0xC000_0000).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("takes none higher up, so it must be smaller"),
        "{error}"
    );
    // Below what the kernel's header allows.
    assert_eq!(
        place(&image, 0x1000, 0xC000_0000).unwrap(),
        0x7fff_f000..0x8000_0000
    );
    let elf = self::image(0x10_0000, b"code", 0x100);
    assert_eq!(
        place(&elf, 0x1000, 0xC000_0000).unwrap(),
        0x7fff_f000..0x8000_0000
    );
}

#[test]
fn a_command_line_may_be_as_long_as_the_kernel_says() {
    let plan = plan(&payload(&bzimage(), None), 0x20_0000).unwrap();
    let cmdline = |bytes| Cmdline::new(["x".repeat(bytes)]).unwrap();
    plan.check_cmdline(&cmdline(100)).unwrap();
    let error = plan.check_cmdline(&cmdline(101)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel command line has 101 bytes, the limit is 100"
    );
}

/// An image whose note says that its 32-bit entry point is at `entry`.
fn with_note(mut image: Vec<u8>, entry: u32) -> Vec<u8> {
    image[56] = 2;
    image[120] = 4;
    image[128..136].copy_from_slice(&0x200u64.to_le_bytes());
    image[152..160].copy_from_slice(&44u64.to_le_bytes());
    let name = u32::from_le_bytes(*b"Xen\0");
    // Another note first, whose name and content are padded.
    let words = [5, 1, 18, 0x756e_6547, 0x6e, 7, 4, 4, 18, name, entry];
    for (number, word) in words.into_iter().enumerate() {
        image[0x200 + 4 * number..][..4].copy_from_slice(&u32::to_le_bytes(word));
    }
    image
}

#[test]
fn pvh_is_for_images_that_offer_it_and_nothing_else_or_if_asked_for() {
    let entry = |image: &[u8], protocol| {
        let payload = Payload {
            protocol,
            ..payload(image, None)
        };
        plan(&payload, 0x20_0000).map(|plan| plan.entry())
    };
    let plain = image(0x10_0000, b"code", 0x100);
    let both = with_note(plain.clone(), 0x10_0002);
    let mut only = both.clone();
    only[24..32].copy_from_slice(&0x8000_0000u64.to_le_bytes());
    let (linux, pvh) = (EntryPoint::Linux64(0x10_0000), EntryPoint::Pvh(0x10_0002));
    assert_eq!(entry(&both, BootProtocol::Auto).unwrap(), linux);
    assert_eq!(entry(&both, BootProtocol::Linux).unwrap(), linux);
    assert_eq!(entry(&both, BootProtocol::Pvh).unwrap(), pvh);
    assert_eq!(entry(&only, BootProtocol::Auto).unwrap(), pvh);
    for (image, protocol) in [
        (&only, BootProtocol::Linux),
        (&with_note(plain.clone(), 0x10_0100), BootProtocol::Pvh),
        (&with_note(plain.clone(), 0xf_ffff), BootProtocol::Pvh),
    ] {
        let error = entry(image, protocol).unwrap_err();
        assert!(matches!(error, BootError::EntryOutside(_)), "{error}");
    }
    for image in [&plain, &bzimage()] {
        let error = entry(image, BootProtocol::Pvh).unwrap_err();
        assert!(matches!(error, BootError::NoPvh(_)), "{error}");
    }
    for (text, protocol) in [
        ("auto", BootProtocol::Auto),
        ("linux", BootProtocol::Linux),
        ("pvh", BootProtocol::Pvh),
    ] {
        assert_eq!(text.parse(), Ok(protocol));
    }
    assert!("bios".parse::<BootProtocol>().unwrap_err().contains("pvh"));
}

#[test]
fn pvh_kernels_find_start_info_module_and_memory_map() {
    let memory = Memory::allocate(4096, Backing::Anonymous).unwrap();
    let payload = Payload {
        protocol: BootProtocol::Pvh,
        ..payload(
            &with_note(image(0x10_0000, b"code", 0x100), 0x10_0002),
            Some(&[7; 5000]),
        )
    };
    let cmdline = Cmdline::new(["hello"]).unwrap();
    let entry = load(memory.ram(), &payload, &cmdline, &hardware()).unwrap();
    assert_eq!(entry, EntryPoint::Pvh(0x10_0002));
    let regs = initial_regs(entry);
    assert_eq!((regs.rip, regs.rflags), (0x10_0002, 2));
    let u32_at = |at: u64| memory.ram().read_obj::<u32>(GuestAddress(at)).unwrap();
    let u64_at = |at: u64| memory.ram().read_obj::<u64>(GuestAddress(at)).unwrap();
    let info = regs.rbx;
    assert_eq!(
        [0, 4, 8, 12].map(|at| u32_at(info + at)),
        [0x336e_c578, 1, 0, 1]
    );
    assert_eq!(u64_at(info + 24), CMDLINE_ADDRESS);
    assert_eq!(u64_at(info + 32), 0xe_0000, "the root of the ACPI tables");
    let module = u64_at(info + 16);
    assert_eq!((u64_at(module), u64_at(module + 8)), (0x7fff_e000, 5000));
    assert_eq!(u32_at(0x7fff_e000), 0x0707_0707);
    let map = u64_at(info + 40);
    let entries: Vec<(u64, u64, u32)> = (0..u64::from(u32_at(info + 48)))
        .map(|number| map + 24 * number)
        .map(|at| (u64_at(at), u64_at(at + 8), u32_at(at + 16)))
        .collect();
    assert_eq!(entries.len(), 5);
    assert_eq!(entries[0], (0, LOW_RAM_END, 1));
    assert_eq!(entries[4], (0x1_0000_0000, 1 << 30, 1));
    let sregs = entry_sregs(entry, Default::default());
    assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
    assert_eq!((sregs.cs.db, sregs.cs.l, sregs.ds.db), (1, 0, 1));
}

proptest! {
    #[test]
    fn no_notes_make_the_planner_panic(
        notes in proptest::collection::vec(any::<u8>(), 0..80),
        words in proptest::collection::vec(0u32..24, 0..12),
    ) {
        let words: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        for notes in [notes, words] {
            let mut image = with_note(image(0x10_0000, b"code", 0x100), 0x10_0000);
            image[152..160].copy_from_slice(&(notes.len() as u64).to_le_bytes());
            image[0x200..0x200 + notes.len()].copy_from_slice(&notes);
            let payload = Payload {
                protocol: BootProtocol::Pvh,
                ..payload(&image, None)
            };
            if let Ok(plan) = plan(&payload, 0x20_0000) {
                prop_assert!(matches!(plan.entry(), EntryPoint::Pvh(0x10_0000..0x10_0100)));
            }
        }
    }

    #[test]
    fn no_image_makes_the_loader_panic(
        at in 0usize..120,
        bytes in proptest::collection::vec(any::<u8>(), 1..16),
        cut in 0usize..0x1010,
    ) {
        let mut image = image(0x10_0000, b"code", 0x100);
        image[at..at + bytes.len()].copy_from_slice(&bytes);
        image.truncate(cut.max(1));
        let memory = memory();
        if let Ok(EntryPoint::Linux64(entry)) = load_kernel(memory.ram(), &image) {
            prop_assert!((KERNEL_START..0x20_0000).contains(&entry));
        }
    }

    #[test]
    fn no_bzimage_makes_the_loader_panic(
        at in 0x1f1usize..0x280,
        bytes in proptest::collection::vec(any::<u8>(), 1..16),
        cut in 0usize..2049,
        initrd_bytes in 0usize..0x12_0000,
    ) {
        let mut image = bzimage();
        image[at..at + bytes.len()].copy_from_slice(&bytes);
        image.truncate(cut);
        let memory = memory();
        let payload = payload(&image, Some(&vec![1; initrd_bytes]));
        let cmdline = Cmdline::new(["hello"]).unwrap();
        if let Ok(EntryPoint::Linux64(entry)) = load(memory.ram(), &payload, &cmdline, &hardware()) {
            prop_assert!((KERNEL_START..0x20_0000).contains(&entry));
        }
    }
}
