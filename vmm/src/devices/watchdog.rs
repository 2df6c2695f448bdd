//! A watchdog: the guest starts it with a time, and again before that is over; if it does not, the machine's
//! owner is told. Two drivers of Linux know it:
//!
//! - `ib700wdt`: the two ports of IB700 boards, for 0 to 30 s. Nothing tells the guest of it.
//! - `wdat_wdt`: the ACPI table `WDAT` says what to do with the other two ports. This is the one that
//!   distributions' kernels for virtual machines have.
//!
//! | port | read | written |
//! | --- | --- | --- |
//! | 0x441 | | stops it |
//! | 0x443 | | starts it; the low four bits say for how long, in steps of 2 s less than 30 s |
//! | 0x444 | ticks left | ticks that a start by 0x445 gives |
//! | 0x445 | 1 while it runs | starts it |
//!
//! Time is counted in ticks, and a tick only when this program was there to count it: a guest that was paused,
//! whose host was frozen, or that was taken over by another, is not punished for it. What must not be done
//! here: decide what follows.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde::{Deserialize, Serialize};

use super::{BusDevice, Device, DeviceError, DeviceState, EventSource, Snapshot};

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
/// Most ticks.
pub const TICKS_MAX: u8 = 240;
/// The device's name.
pub const NAME: &str = "watchdog";

const STOP: u64 = 0;
const START: u64 = 2;
const COUNT: u64 = (COUNT_PORT - STOP_PORT) as u64;
const RUN: u64 = (RUN_PORT - STOP_PORT) as u64;
const TICKS_PER_S: u8 = (1000 / TICK_MS) as u8;
/// The time for code 0; each further code is [`STEP_S`] less.
const LONGEST_S: u8 = 30;
const STEP_S: u8 = 2;
const CODE_MASK: u8 = 0xf;
const STATE_VERSION: u16 = 1;

/// Calls back when the guest has not started it again in time.
pub struct WatchdogDevice {
    state: State,
    running: bool,
    timer: TimerFd,
    on_fired: Box<dyn Fn() + Send>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// Until it fires; `None` if it is stopped.
    ticks_left: Option<u8>,
    /// It has, and has not been started since.
    has_fired: bool,
    /// What a start by [`RUN_PORT`] gives.
    count: u8,
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
            state: State::default(),
            running: false,
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            on_fired,
        })
    }

    /// Makes the timer tick if there is something to count.
    fn wind(&self) {
        let wound = if self.running && self.state.ticks_left.is_some() {
            let tick = Duration::from_millis(TICK_MS.into());
            let every = Expiration::Interval(TimeSpec::from_duration(tick));
            self.timer.set(every, TimerSetTimeFlags::empty())
        } else {
            self.timer.unset()
        };
        if let Err(error) = wound {
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
        self.wind();
    }

    fn stop_counting(&mut self) {
        self.state.ticks_left = None;
        self.state.has_fired = false;
        self.wind();
    }

    fn tick(&mut self) {
        let Some(left) = self.state.ticks_left else {
            return;
        };
        let left = left.saturating_sub(1);
        self.state.ticks_left = Some(left);
        if left == 0 {
            self.fire();
            self.wind();
        }
    }

    fn fire(&mut self) {
        self.state.ticks_left = None;
        self.state.has_fired = true;
        (self.on_fired)();
    }
}

impl BusDevice for WatchdogDevice {
    /// Nothing can be read from the board's own ports.
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
        DeviceState::encode(NAME, STATE_VERSION, &self.state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let state: State = state.decode(NAME, STATE_VERSION)?;
        let counts = match state.ticks_left {
            None => true,
            Some(left) => (1..=TICKS_MAX).contains(&left) && !state.has_fired,
        };
        if !counts || state.count > TICKS_MAX {
            let what = format!("{state:?}; 1 to {TICKS_MAX} ticks are left, or it has fired");
            return Err(DeviceError::Invalid {
                device: NAME.into(),
                what,
            });
        }
        self.state = state;
        self.wind();
        Ok(())
    }
}

impl Device for WatchdogDevice {
    /// It counts on from where the old host was. That it fired there may have had no effect yet.
    fn start(&mut self) {
        self.running = true;
        self.wind();
        if self.state.has_fired {
            (self.on_fired)();
        }
    }

    fn stop(&mut self) {
        self.running = false;
        self.wind();
    }

    fn reset(&mut self) {
        self.state = State::default();
        self.wind();
    }

    fn event_sources(&self) -> Vec<EventSource> {
        vec![EventSource::Counter(self.timer.as_fd().as_raw_fd())]
    }

    /// One tick, however many have passed: then nobody was there to count them.
    fn handle_event(&mut self, _source: usize) {
        // Nothing to read: the guest has started or stopped it meanwhile, or the machine has stopped.
        if self.timer.wait().is_ok() {
            self.tick();
        }
    }
}

#[cfg(test)]
mod tests;
