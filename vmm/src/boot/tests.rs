use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::memory::{Backing, Memory};

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

fn memory() -> Memory {
    Memory::allocate(2, Backing::Anonymous).unwrap()
}

#[test]
fn a_segment_lands_at_its_physical_address() {
    let memory = memory();
    let entry = load_kernel(memory.ram(), &image(0x10_0000, b"code", 0x100)).unwrap();
    assert_eq!(entry, EntryPoint(0x10_0000));
    let mut code = [0; 5];
    memory
        .ram()
        .read_slice(&mut code, GuestAddress(0x10_0000))
        .unwrap();
    assert_eq!(&code, b"code\0");
}

#[test]
fn each_kind_of_bad_image_is_named() {
    let ram = memory().ram().clone();
    let good = image(0x10_0000, b"code", 0x100);
    let error = |image: &[u8]| load_kernel(&ram, image).unwrap_err();

    assert!(matches!(error(b""), BootError::NotElf(_)));
    assert!(matches!(
        error(b"MZ\0\0 not a kernel"),
        BootError::NotElf(_)
    ));
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
    for (start, bytes) in [
        (0x10_0000, 0x10_0001),
        (0xf_ffff, 4),
        (0x20_0000, 4),
        (u64::MAX, 9),
    ] {
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
    }
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

#[test]
fn boot_params_point_to_the_command_line_and_describe_ram() {
    let memory = Memory::allocate(4096, Backing::Anonymous).unwrap();
    write_boot_params(memory.ram(), &Cmdline::new(["hello"]).unwrap()).unwrap();
    let u32_at = |at| {
        memory
            .ram()
            .read_obj::<u32>(GuestAddress(BOOT_PARAMS_ADDRESS + at))
            .unwrap()
    };
    let u64_at = |at| {
        memory
            .ram()
            .read_obj::<u64>(GuestAddress(BOOT_PARAMS_ADDRESS + at))
            .unwrap()
    };
    // Offsets as in the kernel's Documentation/arch/x86/boot.rst and zero-page.rst.
    assert_eq!(u32_at(0x228), 0x2_0000);
    assert_eq!(u32_at(0x238), 5);
    let mut text = [1; 6];
    memory
        .ram()
        .read_slice(&mut text, GuestAddress(CMDLINE_ADDRESS))
        .unwrap();
    assert_eq!(&text, b"hello\0");
    assert_eq!(
        memory
            .ram()
            .read_obj::<u8>(GuestAddress(BOOT_PARAMS_ADDRESS + 0x1e8))
            .unwrap(),
        3
    );
    let entry = |number: u64| (u64_at(0x2d0 + number * 20), u64_at(0x2d8 + number * 20));
    assert_eq!(entry(0), (0, 0x9_fc00));
    assert_eq!(entry(1), (0x10_0000, 0xC000_0000 - 0x10_0000));
    assert_eq!(entry(2), (0x1_0000_0000, 1 << 30));
}

proptest! {
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
        if let Ok(EntryPoint(entry)) = load_kernel(memory.ram(), &image) {
            prop_assert!((KERNEL_START..0x20_0000).contains(&entry));
        }
    }
}
