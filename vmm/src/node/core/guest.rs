//! What becomes of the guest, and what follows from it by the [rules](super::Rules).
//!
//! What must not be done here: anything about roles but their end.

use std::time::Duration;

use super::{Effect, NodeCore, broken, pace};
use crate::config::OnCut;
use crate::machine::{MachineEvent, OnPanic, OnReboot, OnWatchdog};
use crate::node::events::EventKind;
use crate::node::{Ended, Role};

impl NodeCore {
    pub(super) fn guest_event(
        &mut self,
        now: Duration,
        event: MachineEvent,
        effects: &mut Vec<Effect>,
    ) {
        match event {
            MachineEvent::BackendLost { device, what } => {
                let trouble = format!("{device} lost its connection: {what}");
                let topic = device.clone();
                self.tell(EventKind::ConnectionLost { device, what }, effects);
                let on_cut = self.on_cut(&topic);
                if on_cut != OnCut::Ignore {
                    self.lost_connections.insert(topic.clone(), trouble.clone());
                }
                if on_cut == OnCut::Handover {
                    self.host_fails(now, &topic, trouble, effects);
                }
            }
            MachineEvent::DiskFailed { device, what } => {
                self.tell(EventKind::DiskFailed { device, what }, effects);
            }
            MachineEvent::DiskHolds {
                device,
                what,
                waits,
            } => self.disk_holds(now, device, what, waits, effects),
            MachineEvent::DiskStalls { device, what } => {
                let trouble = format!("{device} hangs: {what}");
                self.host_fails(now, &device, trouble, effects);
            }
            MachineEvent::DiskMoves { device } => self.host_works(&device),
            MachineEvent::DiskHangs { device, what } => {
                self.tell(EventKind::DiskHangs { device, what }, effects);
            }
            MachineEvent::DiskAnswers { device, what } => {
                self.tell(EventKind::DiskAnswers { device, what }, effects);
            }
            event if self.role == Role::Standby => self.before_promotion.push(event),
            _ if self.ending.is_some() || self.broken.is_so() => {}
            MachineEvent::GuestReset => {
                self.tell(EventKind::GuestRebooted, effects);
                self.reset(now, Ended::Guest, effects);
            }
            MachineEvent::GuestCrashed { what } => {
                self.tell(EventKind::GuestCrashed { what: what.clone() }, effects);
                let what = format!("the guest crashed: {what}");
                self.reset(now, Ended::GuestFailed { what }, effects);
            }
            MachineEvent::WatchdogFired => self.watchdog_fired(now, effects),
            MachineEvent::GuestPanicked { crash_kernel } => {
                self.panicked(now, crash_kernel, effects);
            }
            MachineEvent::ResetFailed { what } => {
                let what = format!("the guest could not be started over: {what}");
                self.guest_over(Ended::GuestFailed { what }, effects);
            }
            MachineEvent::GuestPoweredOff => {
                self.tell(EventKind::GuestPoweredOff, effects);
                self.guest_over(Ended::Guest, effects);
            }
            MachineEvent::GuestShutdown { what } => {
                self.tell(EventKind::GuestCrashed { what: what.clone() }, effects);
                let what = format!("the guest crashed: {what}");
                self.guest_over(Ended::GuestFailed { what }, effects);
            }
            MachineEvent::BrokeBefore { ago } => self.broken.broke_earlier(now, ago),
            // A hang may end. Nothing is lost by waiting if nobody else has the guest.
            MachineEvent::CaptureHangs { what } if self.may_escape() => {
                effects.push(Effect::BreakMachine(what));
            }
            MachineEvent::CaptureHangs { what } => {
                self.tell(EventKind::CaptureHangs { what }, effects);
            }
            MachineEvent::MachineBroke { what } => self.machine_broke(now, what, effects),
        }
    }

    /// There is a new machine, and it is connected: nothing else brings a lost connection back.
    pub(super) fn connected_anew(&mut self) {
        for device in std::mem::take(&mut self.lost_connections).into_keys() {
            self.host_works(&device);
        }
    }

    fn machine_broke(&mut self, now: Duration, what: String, effects: &mut Vec<Effect>) {
        let told = EventKind::MachineBroke { what: what.clone() };
        self.tell(told, effects);
        self.restart_at = None;
        if let Some(before) = self.broken.broke_before(now) {
            let seconds = before.as_secs();
            let what = format!(
                "{what}; the machine of the other host had broken, too, {seconds} s ago: it is the guest that breaks them"
            );
            return self.guest_over(Ended::GuestFailed { what }, effects);
        }
        if self.role != Role::Primary {
            return self.guest_over(Ended::GuestFailed { what }, effects);
        }
        self.broken.begin(what.clone());
        self.failing.begin(broken::TOPIC, what.clone());
        effects.push(Effect::LeaveMachine(what));
    }

    /// No standby could go on. Returns whether that was to be.
    pub(super) fn stays_broken(&mut self, why: &str, effects: &mut Vec<Effect>) -> bool {
        let Some(what) = self.broken.what() else {
            return false;
        };
        if self.ending.is_none() {
            let what = format!("{what}; nobody else could go on with the guest: {why}");
            self.guest_over(Ended::GuestFailed { what }, effects);
        }
        true
    }

    fn guest_over(&mut self, why: Ended, effects: &mut Vec<Effect>) {
        self.end(why);
        effects.push(Effect::EndRole);
    }

    /// What follows from a reset; `end` if that is the guest's end.
    fn reset(&mut self, now: Duration, end: Ended, effects: &mut Vec<Effect>) {
        match self.rules.on_reboot {
            OnReboot::Exit => self.guest_over(end, effects),
            OnReboot::Restart => self.restart(now, end, effects),
        }
    }

    fn restart(&mut self, now: Duration, end: Ended, effects: &mut Vec<Effect>) {
        if !self.can_restart {
            self.tell(EventKind::RestartImpossible, effects);
            return self.guest_over(end, effects);
        }
        let wait = self.pace.wait(now);
        if !wait.is_zero() {
            let delayed = EventKind::RestartDelayed {
                resets: self.pace.resets_in_a_row(),
                steady_s: pace::STEADY.as_secs(),
                wait_s: wait.as_secs(),
            };
            self.tell(delayed, effects);
        }
        self.restart_at = Some(now + wait);
    }

    fn watchdog_fired(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let action = self.rules.on_watchdog;
        self.tell(EventKind::WatchdogFired { action }, effects);
        let what = "the guest did not feed its watchdog in time".to_owned();
        match action {
            OnWatchdog::Reset => self.reset(now, Ended::GuestFailed { what }, effects),
            OnWatchdog::Poweroff => self.guest_over(Ended::GuestFailed { what }, effects),
            OnWatchdog::None => {}
        }
    }

    fn panicked(&mut self, now: Duration, crash_kernel: bool, effects: &mut Vec<Effect>) {
        self.tell(EventKind::GuestPanicked { crash_kernel }, effects);
        let what = "the guest's kernel has panicked".to_owned();
        match self.rules.on_panic {
            _ if crash_kernel => {}
            OnPanic::Report => {}
            OnPanic::Restart => self.restart(now, Ended::GuestFailed { what }, effects),
            OnPanic::Exit => self.guest_over(Ended::GuestFailed { what }, effects),
        }
    }
}
