//! The image is what a boot loader may rely on.

use super::BUILTIN;

const MIB: u64 = 1 << 20;
/// The guest's heap starts here (builtin/src/memory_map.rs).
const HEAP_START: u64 = 8 * MIB;
const ET_EXEC: u16 = 2;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PF_X: u32 = 1;

struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

fn field<const N: usize>(offset: usize) -> [u8; N] {
    BUILTIN[offset..offset + N].try_into().unwrap()
}

fn u16_at(offset: usize) -> u16 {
    u16::from_le_bytes(field(offset))
}

fn u32_at(offset: usize) -> u32 {
    u32::from_le_bytes(field(offset))
}

fn u64_at(offset: usize) -> u64 {
    u64::from_le_bytes(field(offset))
}

fn segments() -> Vec<Segment> {
    let table = u64_at(32) as usize;
    assert_eq!(u16_at(54), 56, "size of a program header");
    (0..usize::from(u16_at(56)))
        .map(|index| table + index * 56)
        .map(|at| Segment {
            kind: u32_at(at),
            flags: u32_at(at + 4),
            offset: u64_at(at + 8),
            virtual_address: u64_at(at + 16),
            physical_address: u64_at(at + 24),
            file_bytes: u64_at(at + 32),
            memory_bytes: u64_at(at + 40),
        })
        .collect()
}

#[test]
fn it_is_a_static_executable_for_this_machine() {
    assert_eq!(
        &BUILTIN[..7],
        b"\x7fELF\x02\x01\x01",
        "ELF, 64 bits, little endian"
    );
    assert_eq!((u16_at(16), u16_at(18)), (ET_EXEC, EM_X86_64));
    for segment in segments() {
        assert!(
            ![PT_DYNAMIC, PT_INTERP].contains(&segment.kind),
            "it needs a dynamic linker"
        );
    }
}

#[test]
fn its_segments_lie_where_nothing_else_does() {
    let loads: Vec<Segment> = segments()
        .into_iter()
        .filter(|segment| segment.kind == PT_LOAD)
        .collect();
    assert!(!loads.is_empty());
    let mut end_before = MIB;
    for segment in &loads {
        let end = segment.physical_address + segment.memory_bytes;
        assert!(
            segment.physical_address >= end_before,
            "segments overlap or lie below 1 MiB"
        );
        assert!(end <= HEAP_START, "a segment reaches into the heap");
        assert_eq!(
            segment.physical_address, segment.virtual_address,
            "identity mapped"
        );
        assert!(segment.file_bytes <= segment.memory_bytes);
        assert!(segment.offset + segment.file_bytes <= BUILTIN.len() as u64);
        end_before = end;
    }
}

#[test]
fn its_entry_is_code() {
    let entry = u64_at(24);
    let holds = |segment: &Segment| {
        segment.kind == PT_LOAD
            && segment.flags & PF_X != 0
            && (segment.virtual_address..segment.virtual_address + segment.file_bytes)
                .contains(&entry)
    };
    assert!(
        segments().iter().any(holds),
        "entry {entry:#x} is in no executable segment"
    );
}
