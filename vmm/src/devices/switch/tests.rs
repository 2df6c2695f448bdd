//! What turns a switch, and that a turned one is state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::device::{SLEEP_TYPE_MASK, SLEEP_TYPE_SHIFT};
use super::{Kind, RESET_COMMAND, Switch};
use crate::devices::{BusDevice, Device, DeviceError, DeviceState, Snapshot};

/// Soft off, enabled.
const OFF: u8 = 0b11_0100;

fn switch(kind: Kind) -> (Switch, Arc<AtomicU32>) {
    let turns = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&turns);
    let count = move || {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    (Switch::new(kind, Box::new(count)), turns)
}

#[test]
fn only_the_reset_command_resets() {
    let (mut device, turns) = switch(Kind::Reset);
    for data in [&[0xfd][..], &[0xfe, 0], &[0, 0xfe], &[], &[OFF]] {
        device.write(0, data);
    }
    assert_eq!(turns.load(Ordering::Relaxed), 0);
    device.write(0, &[0xfe]);
    assert_eq!(turns.load(Ordering::Relaxed), 1);
    let mut status = [0xff];
    device.read(0, &mut status);
    assert_eq!(status, [0]);
}

#[test]
fn only_soft_off_powers_off() {
    let (mut device, turns) = switch(Kind::PowerOff);
    // Not enabled, another sleep, the other byte, another width.
    device.write(0, &[0, 0b01_0100]);
    device.write(0, &[0, 0b10_1100]);
    device.write(1, &[0b01_0100]);
    device.write(0, &[OFF]);
    device.write(0, &[OFF, 0]);
    device.write(1, &[OFF, 0]);
    device.write(0, &[0, OFF, 0, 0]);
    device.write(0, &[]);
    device.write(1, &[RESET_COMMAND & !(SLEEP_TYPE_MASK << SLEEP_TYPE_SHIFT)]);
    assert_eq!(turns.load(Ordering::Relaxed), 0);
    device.write(0, &[0, OFF]);
    assert_eq!(turns.load(Ordering::Relaxed), 1);
    device.write(1, &[OFF]);
    assert_eq!(turns.load(Ordering::Relaxed), 2);
}

#[test]
fn acpi_is_on_and_nothing_else_of_its_control_register() {
    let (mut device, _) = switch(Kind::PowerOff);
    device.write(0, &[0, OFF]);
    let mut register = [0xff; 2];
    device.read(0, &mut register);
    assert_eq!(register, [1, 0]);
    let mut upper = [0xff];
    device.read(1, &mut upper);
    assert_eq!(upper, [0]);
}

#[test]
fn a_turned_switch_is_state_until_the_machine_is_reset() {
    for kind in [Kind::Reset, Kind::PowerOff] {
        let (mut first, _) = switch(kind);
        let fresh = first.save().unwrap();
        first.turn();
        let turned = first.save().unwrap();
        assert_ne!(fresh, turned);
        first.restore(&fresh).unwrap();
        assert_eq!(first.save().unwrap(), fresh);

        let (mut second, turns) = switch(kind);
        second.restore(&turned).unwrap();
        assert_eq!(second.save().unwrap(), turned);
        assert_eq!(turns.load(Ordering::Relaxed), 0);
        second.start();
        assert_eq!(turns.load(Ordering::Relaxed), 1);
        second.reset();
        assert_eq!(second.save().unwrap(), fresh);
    }
}

#[test]
fn a_bad_state_is_refused() {
    let (mut device, _) = switch(Kind::Reset);
    let good = device.save().unwrap();
    let refused = |device: &mut Switch, change: fn(&mut DeviceState)| {
        let mut bad = good.clone();
        change(&mut bad);
        device.restore(&bad).unwrap_err()
    };
    let error = refused(&mut device, |s| s.version += 1);
    assert!(matches!(error, DeviceError::WrongVersion { found: 2, .. }));
    let error = refused(&mut device, |s| s.name = "power".into());
    assert!(matches!(error, DeviceError::WrongDevice { .. }));
    let error = refused(&mut device, |s| s.body.push(0));
    assert!(matches!(error, DeviceError::LeftOver { bytes: 1, .. }));
    let error = refused(&mut device, |s| s.body.clear());
    assert!(matches!(error, DeviceError::Malformed { .. }));
    let error = refused(&mut device, |s| s.body[0] = 7);
    assert!(matches!(error, DeviceError::Malformed { .. }));
}
