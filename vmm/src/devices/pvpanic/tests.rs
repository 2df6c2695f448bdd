//! What is told of a panic, and how often.

use std::sync::mpsc::{Receiver, channel};

use super::{Panic, PanicDevice};
use crate::devices::{BusDevice, Device, DeviceError, DeviceState, Snapshot};

fn device() -> (PanicDevice, Receiver<Panic>) {
    let (sender, told) = channel();
    let device = PanicDevice::new(Box::new(move |panic| sender.send(panic).unwrap()));
    (device, told)
}

fn heard(told: &Receiver<Panic>) -> Vec<Panic> {
    told.try_iter().collect()
}

#[test]
fn a_panic_is_told_once_a_run() {
    let (mut device, told) = device();
    let mut events = [0];
    device.read(0, &mut events);
    assert_eq!(events, [3]);
    for data in [&[0][..], &[4], &[0x80], &[1, 0], &[]] {
        device.write(0, data);
    }
    assert!(heard(&told).is_empty());
    device.write(0, &[2]);
    device.write(0, &[2]);
    assert_eq!(heard(&told), [Panic::CrashKernel]);
    device.write(0, &[1]);
    device.write(0, &[3]);
    assert_eq!(heard(&told), [Panic::Final]);
    device.reset();
    device.write(0, &[3]);
    assert_eq!(heard(&told), [Panic::Final]);
}

#[test]
fn a_panic_is_state_until_the_machine_is_reset() {
    let (mut first, _told) = device();
    let fresh = first.save().unwrap();
    first.write(0, &[1]);
    let panicked = first.save().unwrap();
    assert_ne!(fresh, panicked);
    first.restore(&fresh).unwrap();
    assert_eq!(first.save().unwrap(), fresh);

    let (mut second, told) = device();
    second.restore(&panicked).unwrap();
    assert_eq!(second.save().unwrap(), panicked);
    assert!(heard(&told).is_empty());
    second.start();
    assert_eq!(heard(&told), [Panic::Final]);
    second.reset();
    assert_eq!(second.save().unwrap(), fresh);
}

#[test]
fn a_bad_state_is_refused() {
    let (mut device, _told) = device();
    let good = device.save().unwrap();
    let refused = |device: &mut PanicDevice, change: fn(&mut DeviceState)| {
        let mut bad = good.clone();
        change(&mut bad);
        device.restore(&bad).unwrap_err()
    };
    let error = refused(&mut device, |s| s.version += 1);
    assert!(matches!(error, DeviceError::WrongVersion { found: 2, .. }));
    let error = refused(&mut device, |s| s.body.push(0));
    assert!(matches!(error, DeviceError::LeftOver { bytes: 1, .. }));
    let error = refused(&mut device, |s| s.body[0] = 4);
    assert!(matches!(error, DeviceError::Invalid { .. }));
}
