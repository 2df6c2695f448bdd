//! The ports, and the timer that ticks.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::state::{NAME, TICKS_MAX, VERSION, WatchdogState};
use crate::devices::{BusDevice, Device, DeviceError, DeviceState, EventSource, Snapshot};

/// The first port. Writing it stops the watchdog.
pub const STOP_PORT: u16 = 0x441;
/// The port with the number of ticks.
pub const COUNT_PORT: u16 = 0x444;
/// The port that starts it and says whether it runs.
pub const RUN_PORT: u16 = 0x445;
/// How many ports there are.
pub const PORTS: u16 = 5;
/// A tick, in milliseconds.
pub const TICK_MS: u16 = 500;

pub(super) const STOP: u64 = 0;
pub(super) const START: u64 = 2;
pub(super) const COUNT: u64 = (COUNT_PORT - STOP_PORT) as u64;
pub(super) const RUN: u64 = (RUN_PORT - STOP_PORT) as u64;
const TICKS_PER_S: u8 = (1000 / TICK_MS) as u8;
/// The time for code 0; each further code is [`STEP_S`] less.
const LONGEST_S: u8 = 30;
const STEP_S: u8 = 2;
const CODE_MASK: u8 = 0xf;

/// Calls back when the guest has not started the watchdog again in time.
pub struct WatchdogDevice {
    pub(super) state: WatchdogState,
    running: bool,
    pub(super) timer: TimerFd,
    on_fired: Box<dyn Fn() + Send>,
}

impl WatchdogDevice {
    /// A stopped watchdog, on standby. `on_fired` is called with the device's mutex locked: it should set a
    /// flag or an event and return.
    ///
    /// # Errors
    /// If the host has no timer left.
    pub fn new(on_fired: Box<dyn Fn() + Send>) -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Self {
            state: WatchdogState::default(),
            running: false,
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            on_fired,
        })
    }

    /// Lets the timer tick exactly while there is something to count.
    fn update_timer(&self) {
        let set = if self.running && self.state.ticks_left.is_some() {
            let tick = Duration::from_millis(TICK_MS.into());
            let every = Expiration::Interval(TimeSpec::from_duration(tick));
            self.timer.set(every, TimerSetTimeFlags::empty())
        } else {
            self.timer.unset()
        };
        if let Err(error) = set {
            // Cannot happen to a timer of our own and constants.
            tracing::error!(%error, "the watchdog's timer cannot be set");
        }
    }

    fn start_counting(&mut self, ticks: u8) {
        self.state.ticks_left = Some(ticks);
        self.state.has_fired = false;
        if ticks == 0 {
            self.fire();
        }
        self.update_timer();
    }

    fn stop_counting(&mut self) {
        self.state.ticks_left = None;
        self.state.has_fired = false;
        self.update_timer();
    }

    pub(super) fn tick(&mut self) {
        let Some(left) = self.state.ticks_left else {
            return;
        };
        let left = left.saturating_sub(1);
        self.state.ticks_left = Some(left);
        if left == 0 {
            self.fire();
            self.update_timer();
        }
    }

    fn fire(&mut self) {
        self.state.ticks_left = None;
        self.state.has_fired = true;
        (self.on_fired)();
    }
}

impl BusDevice for WatchdogDevice {
    /// The board's own ports cannot be read.
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let [value] = data {
            *value = match offset {
                COUNT => self.state.ticks_left.unwrap_or(0),
                RUN => self.state.ticks_left.is_some().into(),
                _ => 0xff,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (STOP, &[_]) => self.stop_counting(),
            (START, &[code]) => {
                let seconds = LONGEST_S - STEP_S * (code & CODE_MASK);
                self.start_counting(seconds * TICKS_PER_S);
            }
            (COUNT, &[ticks]) => self.state.count = ticks.min(TICKS_MAX),
            (RUN, &[_]) => self.start_counting(self.state.count),
            _ => {}
        }
    }
}

impl Snapshot for WatchdogDevice {
    fn name(&self) -> &str {
        NAME
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        DeviceState::encode(NAME, VERSION, &self.state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let state: WatchdogState = state.decode(NAME, VERSION)?;
        if !state.is_possible() {
            let what = format!("{state:?}; 1 to {TICKS_MAX} ticks are left, or it has fired");
            return Err(DeviceError::Invalid {
                device: NAME.into(),
                what,
            });
        }
        self.state = state;
        self.update_timer();
        Ok(())
    }
}

impl Device for WatchdogDevice {
    /// Counts on from where the old host was. If it fired there, that may have had no effect yet: it is reported
    /// again.
    fn start(&mut self) {
        self.running = true;
        self.update_timer();
        if self.state.has_fired {
            (self.on_fired)();
        }
    }

    fn stop(&mut self) {
        self.running = false;
        self.update_timer();
    }

    fn reset(&mut self) {
        self.state = WatchdogState::default();
        self.update_timer();
    }

    fn event_sources(&self) -> Vec<EventSource> {
        vec![EventSource::Counter(self.timer.as_fd().as_raw_fd())]
    }

    /// Counts one tick, however many have passed: those were not seen by anybody.
    fn handle_event(&mut self, _source: usize) {
        // There is nothing to read if the guest has started or stopped the watchdog meanwhile, or if the machine
        // has stopped.
        if self.timer.wait().is_ok() {
            self.tick();
        }
    }
}
