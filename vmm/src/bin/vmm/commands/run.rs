//! `vmm run`: a guest without a second copy.

use anyhow::{Result, bail};
use understudy_vmm::control::GuestNotes;

use super::keeper::{End, Keeper, Rules};
use super::{signals, vm};
use crate::args::VmArgs;

pub(crate) fn run(arguments: VmArgs) -> Result<()> {
    let config = arguments.merge()?;
    let signalled = signals::listen()?;
    let mut machine = vm::build(&config, vm::Life::Alone)?;
    let events = machine.events();
    // Images that are one of a pair note what changes, and one that is no whole copy is not run.
    machine.disk_set().own()?;
    let rules = Rules::new(&config, machine.can_be_reset());
    let notes = GuestNotes::default();
    machine.start()?;
    tracing::info!(cmdline = machine.cmdline(), "the guest runs, unprotected");
    let end = Keeper::new(rules, &notes).await_end(&events, &signalled, || {
        // That it failed comes as an event.
        if let Err(fault) = machine.reset_guest() {
            tracing::debug!("{}", fault.with_causes());
        }
    });
    machine.shut_down();
    vm::finish_consoles(machine.output_gate());
    match end {
        End::Stopped => Ok(()),
        End::Failed(what) => bail!("{what}"),
    }
}
