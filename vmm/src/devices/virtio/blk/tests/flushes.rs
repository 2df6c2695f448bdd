//! A disk with a second copy whose guest flushes: it is told once the other host has done its part, too.

use understudy_replication::ids::EpochId;
use understudy_replication::ports::Disks;
use virtio_bindings::virtio_mmio as reg;

use super::room::small_set;
use super::*;

/// A disk whose copy is whole with epoch 1, and its driver.
fn copied<'a>(
    memory: &'a GuestRam,
    directory: &Path,
    features: u64,
) -> (understudy_replication::disk::DiskSet, Bench<'a>) {
    let set = small_set(directory);
    set.primary().seal(EpochId(1)).unwrap();
    let medium = Medium::Copied(set.disks()[0].clone());
    let bench = Bench::with_medium(memory, medium, false, VERSION_1 | features);
    (set, bench)
}

/// Waits until this host's storage has done all that was asked of it: from then on it does not count as hanging.
fn await_done_here(bench: &mut Bench<'_>) {
    await_that("the storage answers", || {
        serve(&mut bench.device);
        let waiting = bench.device.device().waiting().longest();
        waiting.is_none().then_some(())
    });
}

#[test]
fn a_flush_is_in_flight_until_the_other_host_has_done_its_part() {
    let directory = tempfile::tempdir().unwrap();
    let memory = ram();
    let (set, mut bench) = copied(&memory, directory.path(), FLUSH_FEATURE);
    assert_eq!(bench.request(OUT, 8, &[(DATA, 512, false)]).0, OK);
    bench.offer(FLUSH, 0, &[]);
    bench.device.handle_event(KICK);
    await_done_here(&mut bench);
    assert_eq!((bench.ring.used().len(), bench.status()), (0, UNTOUCHED));
    assert_eq!(bench.counters().in_flight, 1);
    // Others are served meanwhile.
    bench.offer_as(1, OUT, 9, &[(DATA, 512, false)]);
    bench.device.handle_event(KICK);
    bench.await_used(1);
    assert_eq!([0, 1].map(|slot| bench.status_of(slot)), [UNTOUCHED, OK]);
    set.primary().seal(EpochId(2)).unwrap();
    set.primary().flushed(EpochId(1));
    serve(&mut bench.device);
    assert_eq!(bench.ring.used().len(), 0, "that is another epoch");
    set.primary().flushed(EpochId(2));
    bench.await_used(1);
    assert_eq!(bench.status(), OK);
    assert_eq!(
        (bench.counters().flushes, bench.counters().in_flight),
        (1, 0)
    );
}

/// The other host does it again.
#[test]
fn a_flush_that_waits_for_the_other_host_is_part_of_the_state() {
    let directory = tempfile::tempdir().unwrap();
    let memory = ram();
    let (_set, mut bench) = copied(&memory, directory.path(), FLUSH_FEATURE);
    bench.offer(FLUSH, 0, &[]);
    bench.device.handle_event(KICK);
    await_done_here(&mut bench);
    let state = bench.device.save().unwrap();
    let elsewhere = Platter::new();
    let (mut other, _) = device(&memory, Medium::plain(elsewhere.clone()), SECTORS, false);
    other.restore(&state).unwrap();
    other.start();
    await_that("the flush", || {
        serve(&mut other);
        (elsewhere.calls_now() > 0).then_some(())
    });
    assert_eq!(elsewhere.calls(), ["flush"]);
}

/// A driver that knows no flushes has each write made safe, on both hosts.
#[test]
fn a_write_that_must_be_safe_waits_for_the_other_host_too() {
    let directory = tempfile::tempdir().unwrap();
    let memory = ram();
    let (set, mut bench) = copied(&memory, directory.path(), 0);
    bench.offer(OUT, 8, &[(DATA, 512, false)]);
    bench.device.handle_event(KICK);
    await_done_here(&mut bench);
    assert_eq!((bench.ring.used().len(), bench.status()), (0, UNTOUCHED));
    let sealed = set.primary().seal(EpochId(2)).unwrap();
    assert!(sealed.flush && sealed.writes.len() == 1, "{sealed:?}");
    set.primary().flushed(EpochId(2));
    bench.await_used(1);
    assert_eq!((bench.status(), bench.counters().writes), (OK, 1));
}

#[test]
fn after_a_reset_no_flush_is_answered() {
    let directory = tempfile::tempdir().unwrap();
    let memory = ram();
    let (set, mut bench) = copied(&memory, directory.path(), FLUSH_FEATURE);
    bench.offer(FLUSH, 0, &[]);
    bench.device.handle_event(KICK);
    await_done_here(&mut bench);
    write(&mut bench.device, reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(bench.counters().in_flight, 0);
    set.primary().seal(EpochId(2)).unwrap();
    set.primary().flushed(EpochId(2));
    serve(&mut bench.device);
    assert_eq!(bench.status(), UNTOUCHED);
}
