//! A press reaches the guest once, wherever it is.

use super::{ButtonDevice, EVENT_PRESSED, PowerButton};
use crate::devices::{BusDevice, Device, DeviceError, Irq, Snapshot};

fn device() -> (ButtonDevice, PowerButton, Irq) {
    let irq = Irq::new().unwrap();
    let device = ButtonDevice::new(irq.clone()).unwrap();
    let button = device.button();
    (device, button, irq)
}

fn events(device: &mut ButtonDevice) -> u8 {
    let mut data = [0xff];
    device.read(0, &mut data);
    data[0]
}

#[test]
fn a_press_interrupts_and_is_read_once() {
    let (mut device, button, irq) = device();
    device.start();
    assert_eq!(events(&mut device), 0);
    button.press();
    button.press();
    device.handle_event(0);
    assert_eq!(irq.event().read().unwrap(), 1);
    assert_eq!(events(&mut device), EVENT_PRESSED);
    assert_eq!(events(&mut device), 0);
    device.handle_event(0);
    assert!(irq.event().read().is_err(), "nobody pressed again");
}

#[test]
fn on_standby_nothing_happens_neither_then_nor_later() {
    let (mut device, button, irq) = device();
    button.press();
    device.handle_event(0);
    device.start();
    assert!(irq.event().read().is_err());
    assert_eq!(events(&mut device), 0);
}

#[test]
fn a_press_in_flight_is_part_of_the_state() {
    let (mut first, button, _irq) = device();
    first.start();
    let fresh = first.save().unwrap();
    button.press();
    first.handle_event(0);
    let pressed = first.save().unwrap();
    assert_ne!(fresh, pressed);
    first.restore(&fresh).unwrap();
    assert_eq!(first.save().unwrap(), fresh);

    let (mut second, _button, irq) = device();
    second.restore(&pressed).unwrap();
    assert_eq!(second.save().unwrap(), pressed);
    assert!(irq.event().read().is_err(), "not before it runs");
    second.start();
    assert_eq!(irq.event().read().unwrap(), 1);
    assert_eq!(events(&mut second), EVENT_PRESSED);
    second.restore(&pressed).unwrap();
    second.reset();
    assert_eq!(second.save().unwrap(), fresh);
}

#[test]
fn a_bad_state_is_refused() {
    let (mut device, _button, _irq) = device();
    let good = device.save().unwrap();
    let mut bad = good.clone();
    bad.version += 1;
    let error = device.restore(&bad).unwrap_err();
    assert!(matches!(error, DeviceError::WrongVersion { found: 2, .. }));
    let mut bad = good.clone();
    bad.body[0] = 2;
    let error = device.restore(&bad).unwrap_err();
    assert!(matches!(error, DeviceError::Malformed { .. }));
    let mut bad = good;
    bad.body.push(0);
    let error = device.restore(&bad).unwrap_err();
    assert!(matches!(error, DeviceError::LeftOver { bytes: 1, .. }));
}
