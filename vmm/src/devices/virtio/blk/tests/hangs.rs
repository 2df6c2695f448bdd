//! Storage that hangs: what goes on meanwhile, and what comes of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use virtio_bindings::virtio_mmio as reg;

use super::*;
use crate::devices::lock;

const NEEDS_RESET: u32 = 0x40;
const WRITE_NEXT: [u16; 2] = [1, 2];

fn write_of(bench: &mut Bench<'_>, slot: u64, sector: u64, byte: u8) {
    let at = DATA + slot * SECTOR_BYTES;
    let data = [byte; SECTOR_BYTES as usize];
    bench.memory.write_slice(&data, GuestAddress(at)).unwrap();
    bench.offer_as(slot, OUT, sector, &[(at, 512, false)]);
}

#[test]
fn a_write_that_hangs_keeps_no_other_request_and_no_pause_waiting() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::new(&memory, &platter, false);
    platter.hang(&["write"]);
    write_of(&mut bench, 0, 3, 0xaa);
    bench.device.handle_event(KICK);
    bench.offer_as(1, IN, 5, &[(DATA + 0x1000, 512, true)]);
    bench.device.handle_event(KICK);
    bench.await_used(1);
    assert_eq!((bench.status_of(0), bench.status_of(1)), (UNTOUCHED, OK));
    bench.device.save().unwrap();
    assert_eq!(bench.counters().in_flight, 1);
    // What the guest does to its buffer now is too late.
    memory
        .write_slice(&[0xbb; 512], GuestAddress(DATA))
        .unwrap();
    platter.hang(&[]);
    bench.await_used(1);
    assert_eq!(bench.status_of(0), OK);
    assert_eq!(platter.sector(3), [0xaa; 512]);
    assert_eq!(bench.counters().in_flight, 0);
}

#[test]
fn a_flush_that_hangs_keeps_no_write_waiting() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::new(&memory, &platter, false);
    platter.hang(&["flush"]);
    bench.offer_as(0, FLUSH, 0, &[]);
    bench.device.handle_event(KICK);
    write_of(&mut bench, 1, 3, 0xaa);
    bench.device.handle_event(KICK);
    bench.await_used(1);
    assert_eq!(bench.status_of(1), OK);
    platter.hang(&[]);
    bench.await_used(1);
    assert_eq!(bench.status_of(0), OK);
}

/// Threads of the disk save the way over the event thread; but a paused machine is not touched.
#[test]
fn a_thread_answers_unless_the_device_is_held() {
    let (memory, platter) = (Box::leak(Box::new(ram())), Platter::new());
    let Bench {
        device, mut ring, ..
    } = Bench::new(memory, &platter, false);
    let device = Arc::new(Mutex::new(device));
    let (answering, busy) = (Arc::downgrade(&device), Arc::new(AtomicUsize::new(0)));
    let found_busy = busy.clone();
    lock(&device).device().answer_by(move || {
        let device = answering.upgrade().unwrap();
        let mut free = device.try_lock();
        let is_free = free
            .as_mut()
            .map(|device| device.handle_event(DONE))
            .is_ok();
        found_busy.fetch_add(usize::from(!is_free), Ordering::SeqCst);
        is_free
    });
    ring.offer(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    lock(&device).handle_event(KICK);
    await_that("an answer", || (ring.used() == [(0, 513)]).then_some(()));

    let mut paused = lock(&device);
    let before = bytes_at(memory, 0, RAM_BYTES);
    ring.offer(&[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    let offered = bytes_at(memory, 0, RAM_BYTES);
    assert!(before != offered);
    paused.handle_event(KICK);
    await_that("a thread that finds the device busy", || {
        (busy.load(Ordering::SeqCst) == 1).then_some(())
    });
    assert_eq!(ring.used(), []);
    await_that("the event for later", || {
        paused.handle_event(DONE);
        (ring.used() == [(3, 513)]).then_some(())
    });
}

#[test]
fn storage_that_hangs_is_said_once_and_its_return_too() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::new(&memory, &platter, false);
    let waiting = bench.device.device().waiting().clone();
    assert_eq!(waiting.longest(), None);
    platter.hang(&["flush"]);
    bench.offer(FLUSH, 0, &[]);
    bench.device.handle_event(KICK);
    await_that("an alarm", || {
        bench.device.handle_event(OLD);
        (!bench.alarms.lock().unwrap().is_empty()).then_some(())
    });
    assert!(waiting.longest() >= Some(Duration::from_millis(20)));
    assert!(bench.counters().oldest_wait_ms >= 20);
    for _ in 0..100 {
        bench.device.handle_event(OLD);
    }
    platter.hang(&[]);
    bench.await_used(1);
    assert_eq!(waiting.longest(), None);
    let alarms = bench.alarms.lock().unwrap().clone();
    let [DiskNews::Hangs(hangs), DiskNews::Answers(answers)] = &alarms[..] else {
        panic!("{alarms:?}");
    };
    assert!(hangs.contains("1 requests"), "{hangs}");
    assert!(answers.contains("has answered"), "{answers}");
}

/// What the device has told, once it has told `count` things.
fn told(bench: &mut Bench<'_>, count: usize) -> Vec<DiskNews> {
    await_that("news", || {
        bench.device.handle_event(STILL);
        (bench.alarms.lock().unwrap().len() >= count).then_some(())
    });
    for _ in 0..20 {
        bench.device.handle_event(STILL);
    }
    bench.alarms.lock().unwrap().clone()
}

/// A bench whose storage is said to stall soon, and never to hang.
fn impatient<'a>(memory: &'a GuestRam, platter: &Platter) -> Bench<'a> {
    let mut bench = Bench::new(memory, platter, false);
    let device = bench.device.device_mut();
    device.stalls_after(Duration::from_millis(20));
    device.hangs_after(DEADLINE);
    bench
}

#[test]
fn storage_in_which_nothing_moves_stalls_until_something_does() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = impatient(&memory, &platter);
    platter.hang(&["write"]);
    write_of(&mut bench, 0, 3, 0xaa);
    bench.device.handle_event(KICK);
    let news = told(&mut bench, 1);
    assert!(matches!(&news[..], [DiskNews::Stalls(_)]), "{news:?}");
    // Reads that move do not make writes move.
    bench.offer_as(1, IN, 5, &[(DATA + 0x1000, 512, true)]);
    bench.device.handle_event(KICK);
    bench.await_used(1);
    assert_eq!(bench.alarms.lock().unwrap().len(), 1);
    platter.hang(&[]);
    bench.await_used(1);
    let news = bench.alarms.lock().unwrap().clone();
    assert!(
        matches!(&news[..], [DiskNews::Stalls(_), DiskNews::Moves]),
        "{news:?}"
    );
    // It is looked at again.
    platter.hang(&["read"]);
    bench.offer_as(0, IN, 5, &[(DATA, 512, true)]);
    bench.device.handle_event(KICK);
    assert!(matches!(told(&mut bench, 3)[2], DiskNews::Stalls(_)));
    platter.hang(&[]);
}

#[test]
fn a_flush_that_takes_too_long_is_storage_that_stalls_whatever_else_moves() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = impatient(&memory, &platter);
    platter.hang(&["flush"]);
    bench.offer_as(0, FLUSH, 0, &[]);
    bench.device.handle_event(KICK);
    write_of(&mut bench, 1, 3, 0xaa);
    bench.device.handle_event(KICK);
    bench.await_used(1);
    let news = told(&mut bench, 1);
    assert!(matches!(&news[..], [DiskNews::Stalls(_)]), "{news:?}");
    platter.hang(&[]);
    bench.await_used(1);
    assert!(matches!(told(&mut bench, 2)[1], DiskNews::Moves));
}

/// After a process stood still, every request is old. One that was answered meanwhile is no alarm.
#[test]
fn a_request_that_is_old_only_because_nobody_looked_is_no_alarm() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::new(&memory, &platter, false);
    platter.hang(&["flush"]);
    bench.offer(FLUSH, 0, &[]);
    bench.device.handle_event(KICK);
    let waiting = bench.device.device().waiting().clone();
    await_that("an old request", || {
        (waiting.longest() > Some(Duration::from_millis(40))).then_some(())
    });
    bench.device.handle_event(OLD);
    platter.hang(&[]);
    bench.await_used(1);
    bench.device.handle_event(OLD);
    assert_eq!(*bench.alarms.lock().unwrap(), []);
}

/// Kernels that start over after a crash, and guests that reboot, do this.
#[test]
fn a_reset_waits_for_nothing_and_nothing_of_before_it_comes_after_it() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::new(&memory, &platter, false);
    platter.hang(&["write"]);
    for slot in 0..5 {
        write_of(&mut bench, slot, slot, 0xaa);
    }
    bench.device.handle_event(KICK);
    await_that("four threads that hang", || {
        (platter.calls_now() == 4).then_some(())
    });
    bench.ring.avail.idx().store(0);
    let ring = Ring::new(&memory, RING);
    let status = initialise(&mut bench.device, VERSION_1 | FLUSH_FEATURE, &[&ring]);
    assert_eq!(status, READY);
    bench.ring = ring;
    write_of(&mut bench, 0, 0, 0xbb);
    serve(&mut bench.device);
    assert_eq!(platter.calls(), ["write"; 4]);
    assert_eq!(bench.counters().in_flight, 4, "the new one is not taken");
    let state = bench.device.save().unwrap();

    platter.hang(&[]);
    bench.await_used(1);
    assert_eq!((bench.status(), bench.status_of(1)), (OK, UNTOUCHED));
    assert_eq!(platter.sector(0), [0xbb; 512]);
    assert_eq!(
        platter.calls(),
        ["write"],
        "the one that waited was dropped"
    );
    assert_eq!(platter.sector(4), [4; 512]);
    assert_eq!(bench.counters().writes, 1);

    // Elsewhere, too, nothing of before the reset is done.
    let elsewhere = Platter::new();
    let (mut other, _) = device(&memory, Medium::plain(elsewhere.clone()), SECTORS, false);
    other.restore(&state).unwrap();
    assert_eq!(other.device().counters().in_flight, 0);
}

#[test]
fn a_queue_that_the_driver_has_taken_back_is_not_touched() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::new(&memory, &platter, false);
    platter.hang(&["read"]);
    bench.offer(IN, 5, &[(DATA, 512, true)]);
    bench.device.handle_event(KICK);
    write(&mut bench.device, reg::VIRTIO_MMIO_QUEUE_SEL, 0);
    write(&mut bench.device, reg::VIRTIO_MMIO_QUEUE_READY, 0);
    let before = bytes_at(&memory, 0, RAM_BYTES);
    platter.hang(&[]);
    await_that("the storage's answer", || {
        serve(&mut bench.device);
        (bench.counters().in_flight == 0).then_some(())
    });
    assert!(bytes_at(&memory, 0, RAM_BYTES) == before);
}

#[test]
fn a_chain_that_is_in_flight_already_breaks_the_ring() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::new(&memory, &platter, false);
    platter.hang(&["flush"]);
    bench.offer(FLUSH, 0, &[]);
    bench.device.handle_event(KICK);
    assert_eq!(bench.device.faults(), 0);
    bench.ring.offer_head(0);
    bench.device.handle_event(KICK);
    assert_eq!(bench.device.faults(), 1);
    let status = read(&mut bench.device, reg::VIRTIO_MMIO_STATUS);
    assert_ne!(status & NEEDS_RESET, 0);
    platter.hang(&[]);
    await_that("the storage's answer", || {
        serve(&mut bench.device);
        (bench.counters().in_flight == 0).then_some(())
    });
    assert_eq!(bench.ring.used(), [], "nobody is to hear of it");
}

/// R5: a driver whose chains share their descriptors could ask for any amount.
#[test]
fn requests_in_flight_hold_a_bounded_amount_of_memory() {
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    let (memory, platter) = (ram(), Platter::new());
    let (sectors, bytes) = (1 << 20, 0xf_0000);
    let (device, alarms) = device(&memory, Medium::plain(platter.clone()), sectors, false);
    let mut bench = Bench {
        memory: &memory,
        device,
        ring: Ring::new(&memory, RING),
        alarms,
    };
    bench.device.start();
    initialise(&mut bench.device, VERSION_1, &[&bench.ring]);
    platter.hang(&["write"]);
    let header = [OUT, 0, 0, 0].map(u32::to_le_bytes).concat();
    memory.write_slice(&header, GuestAddress(HEADER)).unwrap();
    let [next, writable] = WRITE_NEXT;
    let store = |index, descriptor| {
        let raw = RawDescriptor::from(descriptor);
        bench.ring.descriptors.store(index, raw).unwrap();
    };
    let (data, status) = (RING_SIZE - 2, RING_SIZE - 1);
    store(data, Descriptor::new(0, bytes, next, status));
    store(status, Descriptor::new(STATUS, 1, writable, 0));
    for head in 0..data {
        store(head, Descriptor::new(HEADER, 16, next, data));
    }
    (0..data).for_each(|head| bench.ring.offer_head(head));
    bench.device.handle_event(KICK);
    // Two at once, so that no pause waits for the copying of more.
    assert_eq!(bench.counters().in_flight, 2);
    assert!(raised(&bench.device.queue_events()[0]), "more may wait");
    for _ in 0..RING_SIZE {
        bench.device.handle_event(KICK);
    }
    assert_eq!(bench.counters().in_flight, 5, "4 MiB and one request");
    // Each makes room for another one: all come back, with the storage's error.
    platter.fail(Some(io::ErrorKind::StorageFull));
    platter.hang(&[]);
    bench.await_used(data.into());
}

/// Who ends a machine must not hang with its storage.
#[test]
fn giving_up_a_disk_does_not_wait_for_storage_that_hangs() {
    let (told, dropped) = mpsc::channel();
    let platter = Platter::new();
    let hanging = platter.clone();
    std::thread::spawn(move || {
        let memory = ram();
        let mut bench = Bench::new(&memory, &hanging, false);
        hanging.hang(&["flush"]);
        bench.offer(FLUSH, 0, &[]);
        bench.device.handle_event(KICK);
        drop(bench);
        told.send(()).unwrap();
    });
    dropped.recv_timeout(DEADLINE).unwrap();
    platter.hang(&[]);
    await_that("the storage is let go of when it answers", || {
        (Arc::strong_count(&platter.bytes) == 1).then_some(())
    });
}

#[test]
fn a_thread_that_panics_is_told_of() {
    let (memory, platter) = (ram(), Platter::new());
    let mut bench = Bench::new(&memory, &platter, false);
    platter.panics.store(true, Ordering::Release);
    write_of(&mut bench, 0, 3, 0xaa);
    bench.device.handle_event(KICK);
    let is_told = |bench: &Bench<'_>| {
        let alarms = bench.alarms.lock().unwrap();
        alarms.iter().any(|news| matches!(news, DiskNews::Broke(_)))
    };
    let end = Instant::now() + DEADLINE;
    while !is_told(&bench) {
        assert!(Instant::now() < end, "nobody noticed");
        serve(&mut bench.device);
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(bench.status_of(0), UNTOUCHED);
}
