//! A press reaches the guest once, wherever it is, by the registers that ACPI describes.

use super::device::{HANDLED, PRESS};
use super::state::{GLOBAL_LOCK, POWER_BUTTON};
use super::{ButtonDevice, PowerButton};
use crate::devices::{BusDevice, Device, DeviceError, DeviceState, Irq, Snapshot};

const STATUS: u64 = 0;
const ENABLE: u64 = 2;

fn device() -> (ButtonDevice, PowerButton, Irq) {
    let irq = Irq::level().unwrap();
    let device = ButtonDevice::new(irq.clone()).unwrap();
    let button = device.button();
    (device, button, irq)
}

/// One that runs and whose guest wants to hear of the button.
fn listened_to() -> (ButtonDevice, PowerButton, Irq) {
    let (mut device, button, irq) = device();
    device.start();
    set(&mut device, ENABLE, POWER_BUTTON);
    (device, button, irq)
}

fn get(device: &mut ButtonDevice, offset: u64) -> u16 {
    let mut data = [0xff; 2];
    device.read(offset, &mut data);
    u16::from_le_bytes(data)
}

fn set(device: &mut ButtonDevice, offset: u64, value: u16) {
    device.write(offset, &value.to_le_bytes());
}

fn press(device: &mut ButtonDevice, button: &PowerButton) {
    button.press();
    device.handle_event(PRESS);
}

/// Whether the line was raised since this was last asked.
fn is_raised(irq: &Irq) -> bool {
    irq.event().read().is_ok()
}

#[test]
fn a_press_interrupts_until_the_guest_clears_it() {
    let (mut device, button, irq) = listened_to();
    assert_eq!(get(&mut device, STATUS), 0);
    press(&mut device, &button);
    assert!(is_raised(&irq));
    // Handled, but not cleared: the line goes up again.
    for _ in 0..2 {
        irq.handled().unwrap().write(1).unwrap();
        device.handle_event(HANDLED);
        assert!(is_raised(&irq));
        assert_eq!(get(&mut device, STATUS), POWER_BUTTON);
    }
    // Ones clear, zeros do not.
    set(&mut device, STATUS, !POWER_BUTTON);
    assert_eq!(get(&mut device, STATUS), POWER_BUTTON);
    set(&mut device, STATUS, POWER_BUTTON);
    assert_eq!(get(&mut device, STATUS), 0);
    assert!(is_raised(&irq), "by the write that cleared nothing");
    irq.handled().unwrap().write(1).unwrap();
    device.handle_event(HANDLED);
    assert!(!is_raised(&irq));
    device.handle_event(PRESS);
    assert_eq!(get(&mut device, STATUS), 0, "nobody pressed again");
}

#[test]
fn the_line_follows_what_is_enabled() {
    let (mut device, button, irq) = device();
    device.start();
    press(&mut device, &button);
    assert_eq!(get(&mut device, STATUS), POWER_BUTTON);
    assert!(!is_raised(&irq), "not enabled");
    set(&mut device, ENABLE, GLOBAL_LOCK);
    assert!(!is_raised(&irq), "something else is");
    set(&mut device, ENABLE, u16::MAX);
    assert!(is_raised(&irq));
    assert_eq!(get(&mut device, ENABLE), GLOBAL_LOCK | POWER_BUTTON);
    set(&mut device, ENABLE, 0);
    irq.handled().unwrap().write(1).unwrap();
    device.handle_event(HANDLED);
    assert!(!is_raised(&irq));
}

#[test]
fn registers_are_bytes_words_or_one() {
    let (mut device, button, _irq) = device();
    device.start();
    device.write(3, &[0x01]);
    press(&mut device, &button);
    let mut all = [0xff; 4];
    device.read(0, &mut all);
    assert_eq!(all, [0, 1, 0, 1]);
    let mut last = [0xff; 4];
    device.read(3, &mut last);
    assert_eq!(last, [1, 0, 0, 0], "nothing behind the last");
    device.write(1, &[1, 0x20, 0, 1]);
    device.read(0, &mut all);
    assert_eq!(all, [0, 0, 0x20, 0]);
}

#[test]
fn on_standby_nothing_happens_neither_then_nor_later() {
    let (mut device, button, irq) = device();
    set(&mut device, ENABLE, POWER_BUTTON);
    press(&mut device, &button);
    device.start();
    assert!(!is_raised(&irq));
    assert_eq!(get(&mut device, STATUS), 0);
}

#[test]
fn a_press_in_flight_is_part_of_the_state() {
    let (mut first, button, _irq) = listened_to();
    let fresh = first.save().unwrap();
    press(&mut first, &button);
    let pressed = first.save().unwrap();
    assert_ne!(fresh, pressed);
    first.restore(&fresh).unwrap();
    assert_eq!(first.save().unwrap(), fresh);

    let (mut second, _button, irq) = device();
    let new = second.save().unwrap();
    second.restore(&pressed).unwrap();
    assert_eq!(second.save().unwrap(), pressed);
    assert!(!is_raised(&irq), "not before it runs");
    second.start();
    assert!(is_raised(&irq));
    assert_eq!(get(&mut second, STATUS), POWER_BUTTON);
    assert_eq!(get(&mut second, ENABLE), POWER_BUTTON);
    second.reset();
    assert_eq!(second.save().unwrap(), new);
}

#[test]
fn a_bad_state_is_refused() {
    let (mut device, _button, _irq) = device();
    let good = device.save().unwrap();
    let mut bad = good.clone();
    bad.version += 1;
    let error = device.restore(&bad).unwrap_err();
    assert!(matches!(error, DeviceError::WrongVersion { found: 3, .. }));
    let mut bad = good.clone();
    bad.body.clear();
    let error = device.restore(&bad).unwrap_err();
    assert!(matches!(error, DeviceError::Malformed { .. }));
    let mut bad = good.clone();
    bad.body.push(0);
    let error = device.restore(&bad).unwrap_err();
    assert!(matches!(error, DeviceError::LeftOver { bytes: 1, .. }));
    // Events that never happen, or cannot be enabled.
    for registers in [(GLOBAL_LOCK, 0), (0, 1u16)] {
        let bad = DeviceState::encode(&good.name, good.version, &registers).unwrap();
        let error = device.restore(&bad).unwrap_err();
        assert!(matches!(error, DeviceError::Invalid { .. }), "{error}");
    }
    assert_eq!(device.save().unwrap(), good);
}
