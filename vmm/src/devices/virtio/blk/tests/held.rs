//! Requests that the storage fails: they are held until somebody says what becomes of them.

use virtio_bindings::virtio_mmio as reg;

use super::*;

fn holding<'a>(memory: &'a GuestRam, platter: &Platter) -> (Bench<'a>, FailedRequests) {
    let mut bench = Bench::new(memory, platter, false);
    let failed = bench.device.device_mut().hold_failed();
    platter.fail(Some(io::ErrorKind::StorageFull));
    memory
        .write_slice(&[0xaa; 512], GuestAddress(DATA))
        .unwrap();
    bench.offer_as(0, OUT, 3, &[(DATA, 512, false)]);
    bench.device.handle_event(KICK);
    await_held(&mut bench, 1);
    (bench, failed)
}

/// Waits until `count` requests have failed.
fn await_held(bench: &mut Bench<'_>, count: u64) {
    await_that("a failure", || {
        serve(&mut bench.device);
        (bench.counters().failures == count).then_some(())
    });
    assert_eq!(bench.ring.used(), []);
    assert_eq!(bench.status_of(0), UNTOUCHED);
}

fn news(bench: &Bench<'_>) -> Vec<DiskNews> {
    std::mem::take(&mut bench.alarms.lock().unwrap())
}

#[test]
fn what_fails_is_held_and_told_once_until_the_guest_is_to_see_it() {
    let (memory, platter) = (ram(), Platter::new());
    let (mut bench, failed) = holding(&memory, &platter);
    assert!(matches!(&news(&bench)[..], [DiskNews::Holds(what)] if what.contains("write")));
    bench.offer_as(1, FLUSH, 0, &[]);
    bench.device.handle_event(KICK);
    await_held(&mut bench, 2);
    assert_eq!(news(&bench), [], "that is known");
    assert_eq!(bench.counters().in_flight, 2);
    failed.answer();
    bench.device.handle_event(WORD);
    assert_eq!(bench.ring.used().len(), 2);
    assert_eq!([0, 1].map(|slot| bench.status_of(slot)), [IOERR; 2]);
    assert!(matches!(&news(&bench)[..], [DiskNews::Failed(_)]));
    // The next one is held again.
    bench.offer_as(0, FLUSH, 0, &[]);
    bench.device.handle_event(KICK);
    await_that("a failure", || {
        serve(&mut bench.device);
        (bench.counters().failures == 3).then_some(())
    });
    assert!(matches!(&news(&bench)[..], [DiskNews::Holds(_)]));
}

#[test]
fn what_is_held_is_done_again_until_it_succeeds() {
    let (memory, platter) = (ram(), Platter::new());
    let (mut bench, failed) = holding(&memory, &platter);
    for tries in 2..4 {
        failed.retry();
        bench.device.handle_event(WORD);
        await_held(&mut bench, tries);
        let [DiskNews::Holds(_), rest @ ..] = &news(&bench)[..] else {
            panic!("nobody was told");
        };
        assert!(rest.len() < 2, "{rest:?}");
    }
    platter.fail(None);
    failed.retry();
    bench.device.handle_event(WORD);
    bench.await_used(1);
    assert_eq!(bench.status_of(0), OK);
    assert_eq!(platter.sector(3), [0xaa; 512]);
    assert_eq!(news(&bench), []);
    assert_eq!(bench.counters().in_flight, 0);
}

/// The host says once that it has lost what was written before, and a second flush would succeed.
#[test]
fn a_flush_that_failed_is_not_done_again_here() {
    let (memory, platter) = (ram(), Platter::new());
    let (mut bench, failed) = holding(&memory, &platter);
    bench.offer_as(1, FLUSH, 0, &[]);
    bench.device.handle_event(KICK);
    await_held(&mut bench, 2);
    platter.fail(None);
    platter.calls();
    failed.retry();
    bench.device.handle_event(WORD);
    bench.await_used(2);
    assert_eq!([0, 1].map(|slot| bench.status_of(slot)), [OK, IOERR]);
    assert_eq!(platter.calls(), ["write"]);
}

/// The guest goes on elsewhere and does not hear of it.
#[test]
fn what_is_held_goes_along_with_the_state() {
    let (memory, platter) = (ram(), Platter::new());
    let (bench, _) = holding(&memory, &platter);
    let state = bench.device.save().unwrap();
    let elsewhere = Platter::new();
    let (mut other, _) = device(&memory, Medium::plain(elsewhere.clone()), SECTORS, false);
    other.restore(&state).unwrap();
    other.start();
    await_that("the write", || {
        serve(&mut other);
        (elsewhere.sector(3) == [0xaa; 512]).then_some(())
    });
}

#[test]
fn after_a_reset_nothing_is_held_and_a_word_about_it_means_nothing() {
    let (memory, platter) = (ram(), Platter::new());
    let (mut bench, failed) = holding(&memory, &platter);
    let before = bytes_at(&memory, STATUS, 16);
    write(&mut bench.device, reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(bench.counters().in_flight, 0);
    for word in [FailedRequests::answer, FailedRequests::retry] {
        word(&failed);
        bench.device.handle_event(WORD);
    }
    assert_eq!(bytes_at(&memory, STATUS, 16), before);
    assert_eq!(platter.calls_now(), 1, "nothing is done again");
}

#[test]
fn a_chain_that_is_held_breaks_the_ring_if_it_is_offered_again() {
    let (memory, platter) = (ram(), Platter::new());
    let (mut bench, _) = holding(&memory, &platter);
    bench.ring.offer_head(0);
    bench.device.handle_event(KICK);
    assert_eq!(bench.device.faults(), 1);
}
