//! The disk between a driver and an image.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use understudy_replication::disk::Storage;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::testing::*;
use crate::devices::{BusDevice, Device, DeviceError, Irq, Snapshot};
use crate::memory::GuestRam;

mod flushes;
mod hangs;
mod held;
mod identity;
mod locks;
mod platter;
mod resumed;
mod room;

use platter::Platter;

const RING: u64 = 0x1000;
const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x5000;
const DATA: u64 = 0x1_0000;
const KICK: usize = 0;
const SECTORS: u64 = 64;
const FLUSH_FEATURE: u64 = 1 << 9;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
/// A status that no device writes.
const UNTOUCHED: u8 = 0xee;
/// The event of the storage's answers.
const DONE: usize = 2;
/// The event of a request that is old.
const OLD: usize = 5;
/// The event of storage in which nothing moves.
const STILL: usize = 4;
/// The event of somebody's word about requests that failed.
const WORD: usize = 3;
/// Nothing here takes so long unless it is broken.
const DEADLINE: Duration = Duration::from_secs(60);

type Alarms = Arc<Mutex<Vec<DiskNews>>>;

fn device(
    memory: &GuestRam,
    medium: Medium,
    sectors: u64,
    read_only: bool,
) -> (MmioTransport<BlkDevice>, Alarms) {
    let alarms = Alarms::default();
    let told = alarms.clone();
    let alarm: Alarm = Box::new(move |news| told.lock().unwrap().push(news));
    let mut device = BlkDevice::new("disk0", medium, sectors, read_only, alarm).unwrap();
    device.hangs_after(Duration::from_millis(20));
    let transport = MmioTransport::new(device, memory.clone(), Irq::new().unwrap()).unwrap();
    (transport, alarms)
}

/// Handles those events of the device that are there, as the event thread does.
fn serve(device: &mut MmioTransport<BlkDevice>) {
    for source in [KICK, room::ROOM, DONE] {
        device.handle_event(source);
    }
}

fn await_that<T>(what: &str, mut is_so: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = is_so() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A disk whose driver is ready, and that driver.
struct Bench<'a> {
    memory: &'a GuestRam,
    device: MmioTransport<BlkDevice>,
    ring: Ring<'a>,
    alarms: Alarms,
}

impl<'a> Bench<'a> {
    fn new(memory: &'a GuestRam, platter: &Platter, read_only: bool) -> Self {
        Self::with_features(memory, platter, read_only, VERSION_1 | FLUSH_FEATURE)
    }

    fn with_features(
        memory: &'a GuestRam,
        platter: &Platter,
        read_only: bool,
        features: u64,
    ) -> Self {
        let medium = Medium::plain(platter.clone());
        Self::with_medium(memory, medium, read_only, features)
    }

    fn with_medium(memory: &'a GuestRam, medium: Medium, read_only: bool, features: u64) -> Self {
        let (mut device, alarms) = device(memory, medium, SECTORS, read_only);
        device.start();
        let ring = Ring::new(memory, RING);
        assert_eq!(initialise(&mut device, features, &[&ring]), READY);
        Self {
            memory,
            device,
            ring,
            alarms,
        }
    }

    fn offer(&mut self, kind: u32, sector: u64, data: &[Buffer]) {
        self.offer_as(0, kind, sector, data);
    }

    /// Offers a request, the header and the status of which have a place of their own.
    fn offer_as(&mut self, slot: u64, kind: u32, sector: u64, data: &[Buffer]) {
        let (header_at, status_at) = (HEADER + slot * 16, STATUS + slot);
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.memory
            .write_slice(&header, GuestAddress(header_at))
            .unwrap();
        self.memory
            .write_obj(UNTOUCHED, GuestAddress(status_at))
            .unwrap();
        let mut chain = vec![(header_at, 16, false)];
        chain.extend_from_slice(data);
        chain.push((status_at, 1, true));
        self.ring.offer(&chain);
    }

    /// One request from beginning to end: its status, and how many bytes the device says it filled.
    fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        self.offer(kind, sector, data);
        self.device.handle_event(KICK);
        let used = self.await_used(1);
        (self.status(), used[0].1)
    }

    /// Serves the device until so many chains have come back.
    fn await_used(&mut self, chains: usize) -> Vec<(u16, u32)> {
        let mut used = self.ring.used();
        await_that("requests come back", || {
            serve(&mut self.device);
            used.extend(self.ring.used());
            (used.len() >= chains).then_some(())
        });
        assert_eq!(used.len(), chains);
        used
    }

    fn status_of(&self, slot: u64) -> u8 {
        self.memory.read_obj(GuestAddress(STATUS + slot)).unwrap()
    }

    fn range(&mut self, kind: u32, sector: u64, sectors: u32, flags: u32) -> u8 {
        let at = GuestAddress(DATA);
        self.memory.write_obj(sector, at).unwrap();
        let rest = u64::from(sectors) | u64::from(flags) << 32;
        self.memory.write_obj(rest, GuestAddress(DATA + 8)).unwrap();
        self.request(kind, 0, &[(DATA, 16, false)]).0
    }

    fn status(&self) -> u8 {
        self.status_of(0)
    }

    fn counters(&self) -> BlkCounters {
        self.device.device().counters()
    }
}

#[test]
fn data_goes_both_ways_in_any_pieces() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::new(&memory, &platter, false);
    let pieces = [(DATA, 100, true), (DATA + 0x1000, 924, true)];
    assert_eq!(bench.request(IN, 5, &pieces), (OK, 1025));
    let mut read = bytes_at(&memory, DATA, 100);
    read.extend(bytes_at(&memory, DATA + 0x1000, 924));
    assert_eq!(read, [platter.sector(5), platter.sector(6)].concat());

    memory
        .write_slice(&[0xaa; 512], GuestAddress(DATA))
        .unwrap();
    let pieces = [(DATA, 500, false), (DATA, 12, false)];
    assert_eq!(bench.request(OUT, SECTORS - 1, &pieces), (OK, 1));
    assert_eq!(platter.sector(SECTORS - 1), [0xaa; 512]);
    assert_eq!(bench.request(FLUSH, 0, &[]), (OK, 1));
    assert_eq!(platter.calls(), ["read", "write", "flush"]);
    assert_eq!(bench.request(GET_ID, 0, &[(DATA, 20, true)]), (OK, 21));
    assert_eq!(bytes_at(&memory, DATA, 6), b"disk0\0");
    assert!(raised(bench.device.irq().event()));
}

#[test]
fn configuration_tells_capacity_and_limits() {
    let (memory, platter) = (ram(), Platter::new());
    for read_only in [false, true] {
        let (mut device, _) = device(&memory, Medium::plain(platter.clone()), SECTORS, read_only);
        let mut space = [0; 64];
        device.read(0x100, &mut space);
        assert_eq!(space[..8], SECTORS.to_le_bytes());
        let field = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
        assert_eq!((field(8), field(12), field(20)), (16 << 10, 64, 512));
        assert_eq!(field(36) > 0, !read_only, "discards");
        assert_eq!(read(&mut device, 0x10) & 1 << 5 != 0, read_only, "RO");
    }
}

#[test]
fn nothing_beyond_the_disk_is_touched() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::new(&memory, &platter, false);
    for (sector, bytes) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512 + 1, 512),
        (0, 0),
        (0, 511),
        (0, 513),
    ] {
        for (kind, writable) in [(IN, true), (OUT, false)] {
            let done = bench.request(kind, sector, &[(DATA, bytes, writable)]);
            assert_eq!(done, (IOERR, 1), "kind {kind}, {bytes} at {sector}");
        }
    }
    for (sector, sectors) in [(0, 0), (SECTORS - 1, 2), (u64::MAX, 1), (0, u32::MAX)] {
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(bench.range(kind, sector, sectors, 0), IOERR);
        }
    }
    assert_eq!(platter.calls(), [] as [&str; 0]);
    assert_eq!(bench.counters().refused, 22);
}

#[test]
fn a_request_has_no_more_data_than_its_limit() {
    let (memory, platter) = (ram(), Platter::new());
    let (device, alarms) = device(
        &memory,
        Medium::plain(platter.clone()),
        u64::MAX / SECTOR_BYTES,
        false,
    );
    let mut bench = Bench {
        memory: &memory,
        device,
        ring: Ring::new(&memory, RING),
        alarms,
    };
    bench.device.start();
    initialise(&mut bench.device, VERSION_1, &[&bench.ring]);
    // Four pieces of almost all memory: more than 1 MiB, though all of it is there.
    let data = [(0, 0xf_f000, false), (0, 0xf_f000, false)];
    assert_eq!(bench.request(OUT, 0, &data), (IOERR, 1));
    assert_eq!(platter.calls(), [] as [&str; 0]);
}

#[test]
fn ranges_become_zero() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::new(&memory, &platter, false);
    assert_eq!(bench.range(DISCARD, 8, 2, 0), OK);
    assert_eq!(bench.range(WRITE_ZEROES, 16, 2, 0), OK);
    assert_eq!(bench.range(WRITE_ZEROES, 32, 1, 1), OK);
    for (sector, zero) in [
        (7, false),
        (8, true),
        (9, true),
        (10, false),
        (17, true),
        (18, false),
        (32, true),
        (33, false),
    ] {
        let is_zero = platter.sector(sector) == [0; 512];
        assert_eq!(is_zero, zero, "sector {sector}");
    }
    assert_eq!(platter.calls(), ["discard", "zero", "unmap"]);
    // Flags that mean nothing, and kinds nobody knows.
    assert_eq!(bench.range(DISCARD, 8, 2, 1), UNSUPP);
    assert_eq!(bench.range(WRITE_ZEROES, 8, 2, 2), UNSUPP);
    assert_eq!(bench.request(99, 0, &[]), (UNSUPP, 1));
}

#[test]
fn a_read_only_disk_is_only_read() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::new(&memory, &platter, true);
    assert_eq!(bench.request(OUT, 0, &[(DATA, 512, false)]), (IOERR, 1));
    assert_eq!(bench.range(DISCARD, 0, 1, 0), IOERR);
    assert_eq!(bench.range(WRITE_ZEROES, 0, 1, 0), IOERR);
    assert_eq!(platter.calls(), [] as [&str; 0]);
    assert_eq!(bench.request(IN, 1, &[(DATA, 512, true)]), (OK, 513));
    assert_eq!(bench.request(FLUSH, 0, &[]), (OK, 1));
}

#[test]
fn a_driver_without_flushes_gets_safe_writes() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::with_features(&memory, &platter, false, VERSION_1);
    assert_eq!(bench.request(OUT, 0, &[(DATA, 512, false)]), (OK, 1));
    assert_eq!(platter.calls(), ["write", "flush"]);
}

#[test]
fn failures_of_the_host_are_io_errors_and_alarms() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::new(&memory, &platter, false);
    platter.fail(Some(io::ErrorKind::StorageFull));
    let write = [(DATA, 512, false)];
    for _ in 0..100 {
        assert_eq!(bench.request(OUT, 3, &write), (IOERR, 1));
    }
    assert_eq!(bench.request(IN, 3, &[(DATA, 512, true)]), (IOERR, 1));
    assert_eq!(bench.request(FLUSH, 0, &[]), (IOERR, 1));
    assert_eq!(bench.range(WRITE_ZEROES, 0, 1, 0), IOERR);
    assert_eq!(bench.counters().failures, 103);
    let alarms = bench.alarms.lock().unwrap().clone();
    assert_eq!(alarms.len(), 7, "1, 2, 4 … 64: {alarms:?}");
    let DiskNews::Failed(what) = &alarms[0] else {
        panic!("{alarms:?}");
    };
    assert!(what.contains("cannot write at byte 1536"), "{what}");
    assert!(what.contains("make room"), "{what}");
    // The guest lives on.
    platter.fail(None);
    assert_eq!(bench.request(OUT, 3, &write), (OK, 1));

    platter.fail(Some(io::ErrorKind::Unsupported));
    assert_eq!(bench.range(DISCARD, 0, 1, 0), UNSUPP);
}

#[test]
fn chains_that_are_no_requests_come_back_empty() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::new(&memory, &platter, false);
    let outside = RAM_BYTES as u64 + 0x1000;
    let chains: [&[Buffer]; 7] = [
        &[(HEADER, 16, false)],
        &[(STATUS, 1, true)],
        &[(HEADER, 15, false), (STATUS, 1, true)],
        &[(STATUS, 1, true), (HEADER, 16, false), (STATUS, 1, true)],
        &[(outside, 16, false), (STATUS, 1, true)],
        &[(HEADER, 16, false), (outside, 1, true)],
        &[
            (HEADER, 16, false),
            (u64::MAX - 3, 512, true),
            (STATUS, 1, true),
        ],
    ];
    for (number, chain) in chains.iter().enumerate() {
        bench.ring.offer(chain);
        bench.device.handle_event(KICK);
        let used = bench.ring.used();
        assert_eq!((used.len(), used[0].1), (1, 0), "chain {number}");
        assert_eq!(bench.counters().malformed_chains, number as u64 + 1);
    }
    assert_eq!(platter.calls(), [] as [&str; 0]);
    assert_eq!(bench.request(FLUSH, 0, &[]), (OK, 1));
}

#[test]
fn snapshot_mutate_restore_compare() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::new(&memory, &platter, false);
    bench.request(IN, 0, &[(DATA, 512, true)]);
    let saved = bench.device.save().unwrap();
    bench.request(OUT, 0, &[(DATA, 512, false)]);
    assert_ne!(bench.device.save().unwrap(), saved);
    bench.device.restore(&saved).unwrap();
    assert_eq!(bench.device.save().unwrap(), saved);

    // On another host the driver's features still hold: writes wait for flushes.
    let elsewhere = Platter::new();
    let (mut other, _) = device(&memory, Medium::plain(elsewhere.clone()), SECTORS, false);
    other.restore(&saved).unwrap();
    assert_eq!(other.save().unwrap(), saved);
    other.start();
    await_that("the write, which was not done yet", || {
        (elsewhere.calls() == ["write"]).then_some(())
    });
}

#[test]
fn another_disk_is_refused() {
    let (memory, platter) = (ram(), Platter::new());
    let (saved, _) = device(&memory, Medium::plain(platter.clone()), SECTORS, false);
    let saved = saved.save().unwrap();
    for (sectors, read_only) in [(SECTORS + 1, false), (SECTORS, true)] {
        let (mut other, _) = device(&memory, Medium::plain(platter.clone()), sectors, read_only);
        let before = other.save().unwrap();
        let error = other.restore(&saved).unwrap_err();
        assert!(matches!(error, DeviceError::Invalid { .. }), "{error}");
        assert_eq!(other.save().unwrap(), before);
    }
}

fn image_of(directory: &Path, name: &str, bytes: u64) -> PathBuf {
    let path = directory.join(name);
    std::fs::File::create(&path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
    path
}

#[test]
fn images_are_read_written_and_made_zero() {
    let directory = tempfile::tempdir().unwrap();
    let path = image_of(directory.path(), "disk", 1 << 20);
    let image = Image::open(&path, false).unwrap();
    assert_eq!(image.capacity_sectors(), 2048);
    image.write_at(4096, &[7; 8192]).unwrap();
    image.flush().unwrap();
    image.write_zeroes(4096, 512, false).unwrap();
    image.write_zeroes(8192, 512, true).unwrap();
    let mut data = [1; 8192];
    image.read_at(4096, &mut data).unwrap();
    for (at, byte) in data.iter().enumerate() {
        let zero = at % 4096 < 512;
        assert_eq!(*byte == 0, zero, "byte {at}");
    }
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
}

#[test]
fn ends_of_images_tell_them_apart() {
    let directory = tempfile::tempdir().unwrap();
    let print = |name: &str, byte_at: u64| {
        let path = image_of(directory.path(), name, 4 << 20);
        let image = Image::open(&path, false).unwrap();
        image.write_at(byte_at, &[1]).unwrap();
        image.ends_crc32().unwrap()
    };
    let prints = [
        print("a", 0),
        print("b", (4 << 20) - 1),
        print("c", 2 << 20),
    ];
    assert_eq!(print("d", 0), prints[0]);
    assert!(prints[0] != prints[1] && prints[1] != prints[2] && prints[0] != prints[2]);
}

#[test]
fn impossible_images_are_named_with_a_hint() {
    let directory = tempfile::tempdir().unwrap();
    let say = |path: &Path| Image::open(path, true).unwrap_err().to_string();
    let missing = say(&directory.path().join("none"));
    assert!(
        missing.contains("none") && missing.contains("truncate"),
        "{missing}"
    );
    let error = say(directory.path());
    assert!(error.contains("is a directory"), "{error}");
    assert!(say(Path::new("/dev/null")).contains("neither"));
    for bytes in [0, 511, 1025] {
        let error = say(&image_of(directory.path(), "odd", bytes));
        assert!(error.contains(&format!("{bytes} bytes")), "{error}");
    }
    let path = image_of(directory.path(), "closed", 512);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o000)).unwrap();
    let root = nix::unistd::geteuid().is_root();
    // Permissions mean nothing to root.
    assert_eq!(Image::open(&path, true).is_ok(), root);
    if !root {
        assert!(say(&path).contains("permission"));
    }
}

proptest! {
    #[test]
    fn any_ring_is_survived(
        descriptors in proptest::collection::vec(
            (0..RAM_BYTES as u64 * 5 / 4, 0..100_000_u32, 0..8_u16, 0..RING_SIZE + 2),
            RING_SIZE as usize,
        ),
        header in proptest::array::uniform16(0..16_u8),
        heads in proptest::collection::vec(0..RING_SIZE + 1, RING_SIZE as usize),
        avail in 0..RING_SIZE + 2,
    ) {
        use virtio_queue::desc::{RawDescriptor, split::Descriptor};
        let (memory, platter) = (ram(), Platter::new());
        let mut bench = Bench::new(&memory, &platter, false);
        for (index, (address, len, flags, next)) in descriptors.iter().enumerate() {
            memory.write_slice(&header, GuestAddress(address % 0xf_0000)).unwrap();
            let raw = RawDescriptor::from(Descriptor::new(*address, *len, *flags, *next));
            bench.ring.descriptors.store(index as u16, raw).unwrap();
            bench.ring.avail.ring().ref_at(index).unwrap().store(heads[index]);
        }
        bench.ring.avail.idx().store(avail);
        for _ in 0..=RING_SIZE {
            serve(&mut bench.device);
        }
        // The disk has kept its size; and a reset cures everything.
        prop_assert_eq!(platter.bytes.lock().unwrap().len() as u64, SECTORS * SECTOR_BYTES);
        let mut bench = Bench { ring: Ring::new(&memory, RING), ..bench };
        bench.ring.avail.idx().store(0);
        bench.ring.used.idx().store(0);
        prop_assert_eq!(initialise(&mut bench.device, VERSION_1, &[&bench.ring]), READY);
        prop_assert_eq!(bench.request(FLUSH, 0, &[]).0, OK);
    }
}
