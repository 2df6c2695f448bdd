//! Keeps a running guest: hears what becomes of it, and does what the configuration says should follow.
//!
//! What must not be done here: touch the machine. How to start the guest over is passed in, as in a protected
//! guest replication owns the machine.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use understudy_vmm::config::Config;
use understudy_vmm::control::GuestNotes;
use understudy_vmm::machine::{MachineEvent, OnPanic, OnReboot, OnWatchdog};

/// How often signals are looked at while waiting for the guest.
const LOOK: Duration = Duration::from_millis(50);
/// A guest that ran that long before it wanted a reset is not in a loop of them.
const STEADY: Duration = Duration::from_secs(10);
/// Resets in a row that come at once; the further ones come later and later.
const AT_ONCE_MAX: u32 = 3;
const WAIT_MAX: Duration = Duration::from_secs(60);

/// How a guest's life ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It ended by itself.
    Stopped,
    /// A signal asks for it.
    Asked,
    /// It cannot go on, or must not.
    Failed(String),
}

/// What is to follow from what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) on_reboot: OnReboot,
    pub(crate) on_panic: OnPanic,
    pub(crate) on_watchdog: OnWatchdog,
    /// Whether there is a kernel to begin anew with.
    pub(crate) can_restart: bool,
}

impl Rules {
    pub(crate) fn new(config: &Config, can_restart: bool) -> Self {
        Self {
            on_reboot: config.on_reboot,
            on_panic: config.machine.on_panic,
            on_watchdog: config.machine.watchdog.unwrap_or_default(),
            can_restart,
        }
    }
}

/// How long a guest that resets itself over and over has to wait, so that it does not keep the host busy.
#[derive(Debug)]
struct Pace {
    started: Instant,
    /// Resets without a steady run between them.
    in_a_row: u32,
}

impl Pace {
    /// The wait before the reset that the guest wants `now`.
    fn wait(&mut self, now: Instant) -> Duration {
        if now.saturating_duration_since(self.started) >= STEADY {
            self.in_a_row = 0;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        match self.in_a_row.checked_sub(AT_ONCE_MAX + 1) {
            None => Duration::ZERO,
            Some(doublings) => Duration::from_secs(1 << doublings.min(6)).min(WAIT_MAX),
        }
    }
}

/// What one event comes to.
enum Step {
    GoOn,
    Restart,
    End(End),
}

/// Keeps one guest.
pub(crate) struct Keeper<'a> {
    rules: Rules,
    notes: &'a GuestNotes,
    pace: Pace,
    /// When the guest that stands still is to be started over.
    restart_at: Option<Instant>,
}

impl<'a> Keeper<'a> {
    pub(crate) fn new(rules: Rules, notes: &'a GuestNotes) -> Self {
        Self {
            rules,
            notes,
            pace: Pace {
                started: Instant::now(),
                in_a_row: 0,
            },
            restart_at: None,
        }
    }

    /// Waits until the guest ends or a signal asks for its end; `restart` starts it over. That it could not
    /// is an event, too.
    pub(crate) fn await_end(
        mut self,
        events: &Receiver<MachineEvent>,
        signalled: &Receiver<()>,
        mut restart: impl FnMut(),
    ) -> End {
        loop {
            match events.recv_timeout(LOOK) {
                Ok(event) => match self.follow(event) {
                    Step::GoOn => {}
                    Step::Restart => self.plan_restart(Instant::now()),
                    Step::End(end) => return end,
                },
                Err(RecvTimeoutError::Timeout) if signalled.try_recv().is_ok() => {
                    return End::Asked;
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The machine is gone; whoever owns it says why.
                Err(RecvTimeoutError::Disconnected) => return End::Stopped,
            }
            let now = Instant::now();
            if self.restart_at.is_some_and(|at| now >= at) {
                self.restart_at = None;
                self.pace.started = now;
                self.notes.restarted();
                tracing::info!("the guest is started over in place");
                restart();
            }
        }
    }

    fn plan_restart(&mut self, now: Instant) {
        let wait = self.pace.wait(now);
        if !wait.is_zero() {
            self.notes.alarm(format!(
                "the guest was reset {} times in a row, each within {} s of its start: it has to wait {} s",
                self.pace.in_a_row,
                STEADY.as_secs(),
                wait.as_secs()
            ));
        }
        self.restart_at = Some(now + wait);
    }

    fn follow(&self, event: MachineEvent) -> Step {
        match event {
            MachineEvent::GuestReset => {
                tracing::info!("the guest asked for a reboot");
                self.reset(End::Stopped)
            }
            MachineEvent::GuestCrashed { what } => {
                self.notes.alarm(format!("the guest crashed: {what}"));
                self.reset(End::Failed(format!("the guest crashed: {what}")))
            }
            MachineEvent::WatchdogFired => self.watchdog_fired(),
            MachineEvent::GuestPanicked { crash_kernel } => self.panicked(crash_kernel),
            MachineEvent::ResetFailed { what } => Step::End(End::Failed(format!(
                "the guest could not be started over: {what}"
            ))),
            MachineEvent::GuestPoweredOff => {
                tracing::info!("the guest is powered off");
                Step::End(End::Stopped)
            }
            MachineEvent::GuestShutdown { what } => {
                Step::End(End::Failed(format!("the guest crashed: {what}")))
            }
            MachineEvent::VcpuFailed { vcpu, what } => {
                Step::End(End::Failed(format!("vCPU {vcpu} cannot go on: {what}")))
            }
            MachineEvent::BackendLost { device, what } => {
                tracing::warn!(device, "lost its connection on this host: {what}");
                Step::GoOn
            }
            MachineEvent::DiskFailed { device, what } => {
                tracing::error!(device, "this host's disk fails: {what}");
                Step::GoOn
            }
        }
    }

    /// What follows from a reset; `end` if that is the guest's end.
    fn reset(&self, end: End) -> Step {
        if self.rules.on_reboot == OnReboot::Exit {
            tracing::info!("that is its end (--on-reboot exit)");
            return Step::End(end);
        }
        self.restart(end)
    }

    fn restart(&self, end: End) -> Step {
        if !self.rules.can_restart {
            tracing::error!(
                "the guest cannot be started over and has ended: this host's configuration names no kernel. \
                 Give a standby the primary's --kernel, --initrd and --cmdline, too"
            );
            return Step::End(end);
        }
        Step::Restart
    }

    fn watchdog_fired(&self) -> Step {
        let why = "the guest did not feed its watchdog in time";
        match self.rules.on_watchdog {
            OnWatchdog::Reset => {
                self.notes.alarm(format!("{why}: it is reset"));
                self.reset(End::Failed(why.into()))
            }
            OnWatchdog::Poweroff => {
                self.notes.alarm(format!("{why}: it is powered off"));
                Step::End(End::Failed(why.into()))
            }
            OnWatchdog::None => {
                self.notes.alarm(why);
                Step::GoOn
            }
        }
    }

    fn panicked(&self, crash_kernel: bool) -> Step {
        let why = "the guest's kernel has panicked";
        if crash_kernel {
            self.notes.alarm(format!("{why}; its crash kernel goes on"));
            return Step::GoOn;
        }
        self.notes.alarm(why);
        match self.rules.on_panic {
            OnPanic::Report => Step::GoOn,
            OnPanic::Restart => self.restart(End::Failed(why.into())),
            OnPanic::Exit => Step::End(End::Failed(why.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    const RULES: Rules = Rules {
        on_reboot: OnReboot::Restart,
        on_panic: OnPanic::Report,
        on_watchdog: OnWatchdog::Reset,
        can_restart: true,
    };

    /// Lets `events` happen under `rules`, and then a power-off; returns how often the guest was started over.
    fn kept(rules: Rules, events: &[MachineEvent]) -> (End, u32, GuestNotes) {
        let (sender, receiver) = sync_channel(16);
        for event in events {
            sender.send(event.clone()).unwrap();
        }
        sender.send(MachineEvent::GuestPoweredOff).unwrap();
        let (_keep, signalled) = sync_channel(1);
        let notes = GuestNotes::default();
        let mut restarts = 0;
        let end = Keeper::new(rules, &notes).await_end(&receiver, &signalled, || restarts += 1);
        (end, restarts, notes)
    }

    fn failed(end: &End) -> bool {
        matches!(end, End::Failed(_))
    }

    #[test]
    fn a_reset_starts_over_or_ends() {
        let (end, restarts, notes) = kept(RULES, &[MachineEvent::GuestReset]);
        assert_eq!((end, restarts), (End::Stopped, 1));
        assert_eq!(notes.report().restarts, 1);
        assert_eq!(notes.report().alarm, None);
        let on_reboot = OnReboot::Exit;
        let exit = Rules { on_reboot, ..RULES };
        let can_restart = false;
        let kernelless = Rules {
            can_restart,
            ..RULES
        };
        for rules in [exit, kernelless] {
            let (end, restarts, _) = kept(rules, &[MachineEvent::GuestReset]);
            assert_eq!((end, restarts), (End::Stopped, 0));
            let what = "triple fault".to_owned();
            let (end, restarts, notes) = kept(rules, &[MachineEvent::GuestCrashed { what }]);
            assert!(failed(&end) && restarts == 0, "{end:?}");
            assert!(notes.report().alarm.unwrap().contains("triple fault"));
        }
    }

    #[test]
    fn a_watchdog_does_what_it_is_told() {
        for (on_watchdog, fails, restarts) in [
            (OnWatchdog::Reset, false, 1),
            (OnWatchdog::Poweroff, true, 0),
            (OnWatchdog::None, false, 0),
        ] {
            let rules = Rules {
                on_watchdog,
                ..RULES
            };
            let (end, times, notes) = kept(rules, &[MachineEvent::WatchdogFired]);
            assert_eq!((failed(&end), times), (fails, restarts), "{on_watchdog:?}");
            assert!(notes.report().alarm.unwrap().contains("watchdog"));
        }
    }

    #[test]
    fn a_panic_is_reported_and_does_what_it_is_told() {
        let panic = |crash_kernel| MachineEvent::GuestPanicked { crash_kernel };
        for (on_panic, fails, restarts) in [
            (OnPanic::Report, false, 0),
            (OnPanic::Restart, false, 1),
            (OnPanic::Exit, true, 0),
        ] {
            let rules = Rules { on_panic, ..RULES };
            let (end, times, notes) = kept(rules, &[panic(false)]);
            assert_eq!((failed(&end), times), (fails, restarts), "{on_panic:?}");
            assert!(notes.report().alarm.unwrap().contains("panicked"));
            let (end, times, notes) = kept(rules, &[panic(true)]);
            assert_eq!((failed(&end), times), (false, 0), "{on_panic:?}");
            assert!(notes.report().alarm.unwrap().contains("crash kernel"));
        }
        // With panic=-1 the guest asks for a reboot right afterwards.
        let (_, times, _) = kept(RULES, &[panic(false), MachineEvent::GuestReset]);
        assert_eq!(times, 1);
    }

    #[test]
    fn a_guest_that_resets_in_a_loop_waits_longer_and_longer() {
        let mut now = Instant::now();
        let mut pace = Pace {
            started: now,
            in_a_row: 0,
        };
        let mut wait_after = |ran: u64| {
            now += Duration::from_secs(ran);
            let wait = pace.wait(now);
            now += wait;
            pace.started = now;
            wait.as_secs()
        };
        let waits: Vec<u64> = (0..12).map(|_| wait_after(1)).collect();
        assert_eq!(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(wait_after(10), 0, "it has run steadily");
        assert_eq!([wait_after(9), wait_after(9), wait_after(9)], [0, 0, 1]);
    }

    #[test]
    fn a_failed_reset_is_the_end() {
        let what = "as ordered".to_owned();
        let (end, _, _) = kept(RULES, &[MachineEvent::ResetFailed { what }]);
        let End::Failed(why) = end else {
            panic!("it goes on");
        };
        assert!(why.contains("as ordered"), "{why}");
    }
}
