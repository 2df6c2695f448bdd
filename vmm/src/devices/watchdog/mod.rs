//! A watchdog: the guest starts it with a time limit, and must start it again before the time is up; if it does
//! not, the machine's owner is told. Two drivers of Linux know it:
//!
//! - `ib700wdt`: the two ports of IB700 boards, for 0 to 30 s. Nothing tells the guest that it is there.
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
//! Time is counted in ticks, and only the ticks that this process sees count: a guest is not blamed for the time
//! in which it was paused, its host was frozen, or another host took over.
//!
//! What must not be done here: decide what follows.

mod device;
mod state;
#[cfg(test)]
mod tests;

pub use device::{COUNT_PORT, PORTS, RUN_PORT, STOP_PORT, TICK_MS, WatchdogDevice};
pub use state::{NAME, TICKS_MAX};
