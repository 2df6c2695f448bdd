//! `vmm run`: a guest without a second copy.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Result, bail};
use understudy_vmm::machine::MachineEvent;

use super::{signals, vm};
use crate::args::VmArgs;

/// How often signals are looked at while waiting for the guest.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) fn run(arguments: VmArgs) -> Result<()> {
    let config = arguments.merge()?;
    let signalled = signals::listen()?;
    let mut machine = vm::build(&config, vm::Life::Alone)?;
    let events = machine.events();
    // Images that are one of a pair note what changes, and one that is no whole copy is not run.
    machine.disk_set().own()?;
    machine.start()?;
    tracing::info!(cmdline = machine.cmdline(), "the guest runs, unprotected");
    let end = await_end(&events, &signalled);
    machine.shut_down();
    vm::finish_consoles(machine.output_gate());
    match end {
        End::Stopped => Ok(()),
        End::Failed(what) => bail!("{what}"),
    }
}

/// How a guest's life ends.
pub(crate) enum End {
    /// It ended by itself, or somebody asked for it.
    Stopped,
    /// It cannot go on.
    Failed(String),
}

/// Waits until the guest ends or a signal asks for its end.
pub(crate) fn await_end(events: &Receiver<MachineEvent>, signalled: &Receiver<()>) -> End {
    loop {
        match events.recv_timeout(LOOK) {
            Ok(MachineEvent::GuestReset) => {
                tracing::info!(
                    "the guest asked for a reboot and has ended: this version does not start it again"
                );
                return End::Stopped;
            }
            Ok(MachineEvent::GuestPoweredOff) => {
                tracing::info!("the guest has powered itself off");
                return End::Stopped;
            }
            Ok(MachineEvent::GuestShutdown { what }) => {
                return End::Failed(format!("the guest crashed: {what}"));
            }
            Ok(MachineEvent::VcpuFailed { vcpu, what }) => {
                return End::Failed(format!("vCPU {vcpu} cannot go on: {what}"));
            }
            Ok(MachineEvent::BackendLost { device, what }) => {
                tracing::warn!(device, "lost its connection on this host: {what}");
            }
            Ok(MachineEvent::DiskFailed { device, what }) => {
                tracing::error!(device, "this host's disk fails: {what}");
            }
            Err(RecvTimeoutError::Timeout) if signalled.try_recv().is_ok() => {
                tracing::info!("stopping the guest on request");
                return End::Stopped;
            }
            Err(RecvTimeoutError::Timeout) => {}
            // The machine is gone; whoever owns it says why.
            Err(RecvTimeoutError::Disconnected) => return End::Stopped,
        }
    }
}
