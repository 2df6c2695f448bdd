//! A disk with a second copy, whose log has no room.

use bytes::Bytes as Frame;
use understudy_replication::core::disk::{PeerDisk, block_bytes_for};
use understudy_replication::disk::{DiskLimits, DiskMode, DiskSet, DiskSpec};
use understudy_replication::ports::Disks;

use super::*;

/// The event of room in the log.
pub(super) const ROOM: usize = 1;

/// A set with one replicated disk, whose log is full after a few writes; its copy is whole.
pub(super) fn small_set(directory: &Path) -> DiskSet {
    let path = image_of(directory, "disk", SECTORS * SECTOR_BYTES);
    let spec = DiskSpec {
        name: "disk0".into(),
        storage: Box::new(Image::open(&path, false).unwrap()),
        mode: DiskMode::Replicated,
        map_path: directory.join("map"),
    };
    let limits = DiskLimits {
        log_bytes_max: 16 << 10,
        ..DiskLimits::default()
    };
    let set = DiskSet::open(vec![spec], Some(directory.join("journal")), limits).unwrap();
    set.claim_images().unwrap();
    let bytes = SECTORS * SECTOR_BYTES;
    let peer = PeerDisk {
        name: "disk0".into(),
        bytes,
        ids: Vec::new(),
        unfinished: false,
        replace: true,
        block_bytes: block_bytes_for(bytes),
        dirty: Frame::new(),
    };
    set.primary().begin_sync(&[peer]).unwrap();
    while set.primary().sync_some().unwrap().bytes_left > 0 {}
    set
}

/// R5: the guest waits, nothing is lost, and it goes on as soon as there is room.
#[test]
fn a_request_waits_in_the_ring_while_the_log_is_full() {
    let directory = tempfile::tempdir().unwrap();
    let set = small_set(directory.path());
    let memory = ram();
    let medium = Medium::Copied(set.disks()[0].clone());
    let features = VERSION_1 | FLUSH_FEATURE;
    let mut bench = Bench::with_medium(&memory, medium, false, features);
    let data = [(DATA, 4096, false)];
    let mut written = 0;
    loop {
        assert!(written < 100, "the log has no limit");
        bench.offer(OUT, 8, &data);
        bench.device.handle_event(KICK);
        if bench.counters().in_flight == 0 {
            break;
        }
        bench.await_used(1);
        written += 1;
    }
    assert!(written > 0, "it never had room");
    assert_eq!(bench.status(), UNTOUCHED);
    serve(&mut bench.device);
    assert_eq!(bench.ring.used().len(), 0, "it waits still");
    // What was written is handed to the link.
    let logged = set.primary().sync_some().unwrap().writes;
    assert!(!logged.is_empty());
    bench.device.handle_event(ROOM);
    bench.await_used(1);
    assert_eq!(bench.status(), OK);
    assert!(bench.counters().waits > 0);
    assert_eq!(bench.counters().writes, written as u64 + 1);
}

#[test]
fn a_host_that_was_fenced_does_not_say_that_its_disk_fails() {
    let directory = tempfile::tempdir().unwrap();
    let set = small_set(directory.path());
    let memory = ram();
    let medium = Medium::Copied(set.disks()[0].clone());
    let features = VERSION_1 | FLUSH_FEATURE;
    let mut bench = Bench::with_medium(&memory, medium, false, features);
    set.primary().shut();
    // Nor is anything held until the storage is better.
    bench.device.device_mut().hold_failed();
    for (request, data) in [(OUT, false), (IN, true)] {
        bench.offer(request, 8, &[(DATA, 512, data)]);
        bench.device.handle_event(KICK);
        bench.await_used(1);
        assert_eq!(bench.status(), IOERR);
    }
    assert_eq!(bench.counters().failures, 0);
    assert_eq!(*bench.alarms.lock().unwrap(), []);
}
