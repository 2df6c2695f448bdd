//! When the watchdog fires, and that only counted time counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{Expiration, TimerSetTimeFlags};

use super::device::{COUNT, RUN, START, STOP};
use super::state::{VERSION, WatchdogState};
use super::{NAME, TICKS_MAX, WatchdogDevice};
use crate::devices::{BusDevice, Device, DeviceError, DeviceState, Snapshot};

fn watchdog() -> (WatchdogDevice, Arc<AtomicU32>) {
    let fired = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&fired);
    let count = move || {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    (WatchdogDevice::new(Box::new(count)).unwrap(), fired)
}

fn count(fired: &AtomicU32) -> u32 {
    fired.load(Ordering::Relaxed)
}

#[test]
fn it_fires_once_after_the_time_that_was_asked_for() {
    // The codes of the board's manual.
    for (code, seconds) in [(0, 30), (1, 28), (7, 16), (14, 2)] {
        let (mut device, fired) = watchdog();
        device.start();
        device.write(START, &[code]);
        for _ in 0..seconds * 2 - 1 {
            device.tick();
        }
        assert_eq!(count(&fired), 0, "code {code}");
        (0..5).for_each(|_| device.tick());
        assert_eq!(count(&fired), 1, "code {code}");
    }
    let (mut device, fired) = watchdog();
    device.start();
    device.write(START, &[15]);
    assert_eq!(count(&fired), 1, "0 s are over at once");
}

#[test]
fn started_again_it_waits_again_and_stopped_for_ever() {
    let (mut device, fired) = watchdog();
    device.start();
    for _ in 0..10 {
        device.write(START, &[14]);
        (0..3).for_each(|_| device.tick());
    }
    device.write(STOP, &[0]);
    (0..100).for_each(|_| device.tick());
    // Other widths and ports are no commands.
    device.write(START, &[14, 0]);
    device.write(1, &[14]);
    (0..100).for_each(|_| device.tick());
    assert_eq!(count(&fired), 0);
    let mut data = [0];
    device.read(0, &mut data);
    assert_eq!(data, [0xff]);
}

/// As the ACPI table says that it is driven.
#[test]
fn its_other_ports_take_and_give_ticks() {
    let (mut device, fired) = watchdog();
    device.start();
    let read = |device: &mut WatchdogDevice, port: u64| {
        let mut data = [0xaa];
        device.read(port, &mut data);
        data[0]
    };
    assert_eq!((read(&mut device, RUN), read(&mut device, COUNT)), (0, 0));
    device.write(COUNT, &[4]);
    assert_eq!((read(&mut device, RUN), read(&mut device, COUNT)), (0, 0));
    for _ in 0..10 {
        device.write(RUN, &[1]);
        assert_eq!((read(&mut device, RUN), read(&mut device, COUNT)), (1, 4));
        (0..3).for_each(|_| device.tick());
    }
    assert_eq!(read(&mut device, COUNT), 1);
    device.write(STOP, &[0]);
    assert_eq!((read(&mut device, RUN), read(&mut device, COUNT)), (0, 0));
    device.tick();
    assert_eq!(count(&fired), 0);
    device.write(RUN, &[1]);
    (0..4).for_each(|_| device.tick());
    assert_eq!(count(&fired), 1);
    device.write(COUNT, &[255]);
    device.write(RUN, &[1]);
    assert_eq!(read(&mut device, COUNT), TICKS_MAX);
}

/// The timer itself: it ticks while the device runs, and many expirations that nobody looked at are one.
#[test]
fn ticks_come_from_the_timer_and_only_counted_ones_count() {
    let (mut device, fired) = watchdog();
    device.start();
    device.write(START, &[14]);
    let before = device.save().unwrap();
    // As if the timer had expired long ago, over and over.
    let often = Expiration::Interval(TimeSpec::from_duration(Duration::from_nanos(100)));
    device.timer.set(often, TimerSetTimeFlags::empty()).unwrap();
    while device.save().unwrap() == before {
        device.handle_event(0);
    }
    assert_eq!(device.state.ticks_left, Some(3));
    assert_eq!(count(&fired), 0);
    device.stop();
    device.handle_event(0);
    assert_eq!(device.state.ticks_left, Some(3), "not while it is stopped");
    assert!(device.timer.get().unwrap().is_none());
    device.start();
    assert!(device.timer.get().unwrap().is_some());
}

#[test]
fn the_time_left_is_state_and_does_not_pass_on_standby() {
    let (mut first, _) = watchdog();
    first.start();
    let fresh = first.save().unwrap();
    first.write(COUNT, &[9]);
    first.write(START, &[13]);
    (0..3).for_each(|_| first.tick());
    let saved = first.save().unwrap();
    assert_ne!(fresh, saved);
    first.restore(&fresh).unwrap();
    assert_eq!(first.save().unwrap(), fresh);
    assert!(first.timer.get().unwrap().is_none());

    let (mut second, fired) = watchdog();
    second.restore(&saved).unwrap();
    assert_eq!(second.save().unwrap(), saved);
    assert!(second.timer.get().unwrap().is_none(), "on standby");
    second.start();
    assert!(second.timer.get().unwrap().is_some());
    (0..4).for_each(|_| second.tick());
    assert_eq!(count(&fired), 0);
    second.tick();
    assert_eq!(count(&fired), 1);

    // That it fired is state too, until the machine is reset.
    let saved = second.save().unwrap();
    let (mut third, fired) = watchdog();
    third.restore(&saved).unwrap();
    assert_eq!(count(&fired), 0);
    third.start();
    assert_eq!(count(&fired), 1);
    third.reset();
    assert_eq!(third.save().unwrap(), fresh);
}

#[test]
fn a_bad_state_is_refused() {
    let (mut device, _) = watchdog();
    for (ticks_left, has_fired, count) in [
        (Some(0), false, 9),
        (Some(241), false, 9),
        (Some(5), true, 9),
        (None, false, 241),
    ] {
        let state = WatchdogState {
            ticks_left,
            has_fired,
            count,
        };
        let bad = DeviceState::encode(NAME, VERSION, &state).unwrap();
        let error = device.restore(&bad).unwrap_err();
        assert!(matches!(error, DeviceError::Invalid { .. }), "{state:?}");
    }
    let good = device.save().unwrap();
    let mut bad = good.clone();
    bad.version += 1;
    let error = device.restore(&bad).unwrap_err();
    assert!(matches!(error, DeviceError::WrongVersion { found: 2, .. }));
    let mut bad = good;
    bad.body.push(0);
    let error = device.restore(&bad).unwrap_err();
    assert!(matches!(error, DeviceError::LeftOver { bytes: 1, .. }));
}
