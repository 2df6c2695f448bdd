//! The serial console as a driver sees it.

use std::time::Duration;

use proptest::prelude::*;
use understudy_replication::ids::EpochId;
use understudy_replication::output::{GateLimits, MemoryConsole, OutputGate};

use super::{SerialDevice, state};
use crate::devices::{BusDevice, Device, DeviceError, DeviceState, Irq, Snapshot};
use crate::output::SpaceEvent;

const DEADLINE: Duration = Duration::from_secs(20);
const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
const INTERRUPT_ID: u64 = 2;
const LINE_CONTROL: u64 = 3;
const LINE_STATUS: u64 = 5;

/// Numbers of the device's event sources.
const INPUT: usize = 0;
const SPACE: usize = 1;

struct Bench {
    gate: OutputGate,
    screen: MemoryConsole,
    device: SerialDevice,
}

fn bench(limits: GateLimits) -> Bench {
    let gate = OutputGate::new(limits);
    let screen = MemoryConsole::default();
    let space = SpaceEvent::new().unwrap();
    let port = gate.add_console(Box::new(screen.clone()), space.waker());
    let device = SerialDevice::new("serial0", port.unwrap(), space, Irq::new().unwrap()).unwrap();
    Bench {
        gate,
        screen,
        device,
    }
}

impl Bench {
    fn read(&mut self, register: u64) -> u8 {
        let mut data = [0xee];
        self.device.read(register, &mut data);
        data[0]
    }

    fn write(&mut self, register: u64, value: u8) {
        self.device.write(register, &[value]);
    }

    fn say(&mut self, text: &str) {
        text.bytes().for_each(|byte| self.write(DATA, byte));
    }

    fn shown(&self) -> String {
        assert!(self.gate.flush_consoles(DEADLINE));
        String::from_utf8(self.screen.contents()).unwrap()
    }

    fn interrupted(&self) -> bool {
        self.device.irq().event().read().is_ok()
    }
}

#[test]
fn output_goes_through_the_gate() {
    let mut bench = bench(GateLimits::default());
    bench.device.start();
    bench.say("now ");
    assert_eq!(bench.shown(), "now ");
    bench.gate.hold();
    bench.say("later");
    assert_eq!(bench.shown(), "now ");
    let sealed = bench.gate.seal(EpochId(1));
    assert_eq!(sealed.console[0].position, 4);
    bench.gate.release(EpochId(1), || true);
    assert_eq!(bench.shown(), "now later");
}

#[test]
fn input_is_read_in_order_and_bounded() {
    let mut bench = bench(GateLimits::default());
    bench.device.start();
    bench.write(INTERRUPT_ENABLE, 1);
    let input = bench.device.input();
    let typed: Vec<u8> = (0..5000_u32).map(|n| n as u8).collect();
    assert_eq!(input.push(&typed), 4096);
    bench.device.handle_event(INPUT);
    assert!(bench.interrupted());
    let mut read = Vec::new();
    while bench.read(LINE_STATUS) & 1 != 0 {
        read.push(bench.read(DATA));
    }
    assert!(read == typed[..4096], "{} bytes", read.len());
    // More interrupts came while there was more to read; now there is none.
    bench.interrupted();
    bench.read(LINE_STATUS);
    assert!(!bench.interrupted());
}

#[test]
fn on_standby_input_is_dropped() {
    let mut bench = bench(GateLimits::default());
    assert_eq!(bench.device.input().push(b"lost"), 4);
    bench.device.handle_event(INPUT);
    bench.device.start();
    assert_eq!(bench.read(LINE_STATUS) & 1, 0);
}

#[test]
fn a_full_gate_looks_like_a_busy_line() {
    let mut bench = bench(GateLimits {
        console_bytes_max: 40,
        ..GateLimits::default()
    });
    bench.device.start();
    bench.write(INTERRUPT_ENABLE, 2);
    bench.gate.hold();
    let mut said = 0;
    while bench.read(LINE_STATUS) & 0x60 == 0x60 {
        bench.say("x");
        said += 1;
    }
    assert_eq!((said, bench.device.lost_bytes()), (30, 0));
    // A driver that does not ask runs over.
    bench.say("yyyyyyyyyyyy");
    assert_eq!(bench.device.lost_bytes(), 2);
    bench.read(INTERRUPT_ID);
    bench.interrupted();
    bench.gate.open();
    assert_eq!(bench.shown(), "x".repeat(30) + &"y".repeat(10));
    bench.device.handle_event(SPACE);
    assert!(bench.interrupted());
    assert_eq!(bench.read(INTERRUPT_ID) & 0x0f, 2);
    assert_eq!(bench.read(LINE_STATUS) & 0x60, 0x60);
}

#[test]
fn snapshot_mutate_restore_compare() {
    let mut bench = bench(GateLimits::default());
    bench.device.start();
    bench.write(INTERRUPT_ENABLE, 1);
    bench.say("hello");
    assert_eq!(bench.device.input().push(b"typed"), 5);
    bench.device.handle_event(INPUT);
    let saved = bench.device.save().unwrap();

    bench.say(" again");
    bench.read(DATA);
    bench.write(LINE_CONTROL, 0x80);
    assert_ne!(bench.device.save().unwrap(), saved);
    bench.device.restore(&saved).unwrap();
    assert_eq!(bench.device.save().unwrap(), saved);

    let mut other = self::bench(GateLimits::default());
    other.device.restore(&saved).unwrap();
    assert_eq!(other.device.save().unwrap(), saved);
    assert!(!other.interrupted(), "no interrupt before the start");
    other.device.start();
    assert!(other.interrupted(), "what was pending is raised again");
    assert_eq!(other.read(DATA), b't');
    other.gate.hold();
    other.say("!");
    assert_eq!(other.gate.seal(EpochId(1)).console[0].position, 5);
}

#[test]
fn bad_states_are_refused() {
    let mut bench = bench(GateLimits::default());
    let good = bench.device.save().unwrap();
    let mut state: state::ConsoleState = good.decode("serial0", state::VERSION).unwrap();
    let mut uart = state.clone().into_uart();
    uart.in_buffer = vec![0; 65];
    state = state::ConsoleState::new(uart, state.position);
    let bad = DeviceState::encode("serial0", state::VERSION, &state).unwrap();
    let error = bench.device.restore(&bad).unwrap_err();
    assert!(matches!(error, DeviceError::Invalid { .. }), "{error}");
    for len in 0..good.body.len() {
        let mut short = good.clone();
        short.body.truncate(len);
        let error = bench.device.restore(&short).unwrap_err();
        assert!(matches!(error, DeviceError::Malformed { .. }), "{error}");
    }
    assert_eq!(bench.device.save().unwrap(), good);
}

proptest! {
    #[test]
    fn any_access_and_state_are_survived(
        accesses in proptest::collection::vec((0..9_u64, 0..3_usize, any::<u8>(), any::<bool>()), 0..60),
        body in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut bench = bench(GateLimits::default());
        bench.device.start();
        let mut state = bench.device.save().unwrap();
        state.body = body;
        // Most are refused, some are not; either way the device goes on.
        let _ = bench.device.restore(&state);
        for (register, len, value, is_write) in accesses {
            let mut data = [value; 2];
            if is_write {
                bench.device.write(register, &data[..len]);
            } else {
                bench.device.read(register, &mut data[..len]);
            }
            let _ = bench.device.input().push(&[value]);
            bench.device.handle_event(usize::from(value % 2));
        }
        let saved = bench.device.save().unwrap();
        let mut other = self::bench(GateLimits::default());
        other.device.restore(&saved).unwrap();
        prop_assert_eq!(other.device.save().unwrap(), saved);
    }
}
