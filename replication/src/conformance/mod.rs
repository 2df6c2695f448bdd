//! Checks whether a virtual machine keeps the [contract of the ports](crate::ports#contract), for the tests of
//! those who implement them.
//!
//! [`check`] makes machines and calls them as the runtime does. Their guest must do two things for as long as
//! it runs: change memory, not always the same page alone, and count in memory how far it is. A guest that
//! counts in a register and writes the number down also shows whether registers are restored.
//!
//! ```
//! use understudy_replication::conformance::{Breach, check};
//! use understudy_replication::ports::{Machine, PageMemory};
//! use understudy_replication::{PAGE_BYTES, PageIndex};
//!
//! /// This guest counts at the beginning of page 2.
//! fn count(memory: &dyn PageMemory) -> u64 {
//!     let mut page = [0; PAGE_BYTES];
//!     memory.read_page(PageIndex(2), &mut page).expect("page 2 is guest RAM");
//!     u64::from_le_bytes(page[..8].try_into().expect("a page has 8 bytes"))
//! }
//!
//! fn check_mine<M: Machine>(new: impl FnMut() -> M) -> Result<(), Breach> {
//!     check(new, count)
//! }
//! ```
//!
//! What must not be done here: asking for more than the contract says.

mod guest;
mod memory;

use std::thread;

use self::guest::Guest;
use crate::causes::causes;
use crate::output::GateMode;
use crate::ports::{Machine, MachineError, PageMemory};

/// What a machine does against the contract.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{method}` breaks the contract: {what}")]
pub struct Breach {
    /// The method of [`Machine`], [`PausedMachine`](crate::ports::PausedMachine) or [`PageMemory`].
    pub method: &'static str,
    /// What it does, and what it should do.
    pub what: String,
}

fn breach<T>(method: &'static str, what: impl Into<String>) -> Result<T, Breach> {
    let what = what.into();
    Err(Breach { method, what })
}

/// An error that the contract does not provide for.
fn works<T>(method: &'static str, result: Result<T, MachineError>) -> Result<T, Breach> {
    result.or_else(|error| breach(method, format!("it failed: {}", causes(&error))))
}

/// Checks the machines that `make` makes. They are all alike and have never run; guest and memory are as
/// the [module](self) says. `progress` reads how far the guest is, which is only asked of a guest that is
/// paused. Takes about a second, and 10 with a guest that does not go on.
///
/// # Errors
/// The first breach of the contract that was found.
pub fn check<M: Machine>(
    mut make: impl FnMut() -> M,
    progress: impl Fn(&dyn PageMemory) -> u64 + Sync,
) -> Result<(), Breach> {
    let (mut unused, mut primary) = (make(), make());
    never_changing(&unused, &primary)?;
    memory::check(&*unused.memory())?;
    // It has never run, and nothing says that it was not stopped before.
    unused.stop();
    unused.stop();

    works("run", primary.run())?;
    // The runtime, too, runs a machine on one thread and pauses it on another one.
    let saved = elsewhere(|| {
        let mut guest = Guest::new(primary, &progress)?;
        guest.runs_tracked_and_paused()?;
        guest.adds_to_sets()?;
        guest.reports_pages_once()?;
        guest.is_tracked_anew()?;
        let saved = guest.saved()?;
        guest.is_reset()?;
        guest.stops()?;
        Ok(saved)
    })?;

    for bytes in [
        0,
        saved.state.len() / 2,
        saved.state.len().saturating_sub(1),
    ] {
        let mut machine = make();
        if bytes < saved.state.len() && machine.restore(&saved.state[..bytes]).is_ok() {
            let all = saved.state.len();
            let what = format!("it accepts {bytes} bytes of a state of {all} bytes");
            return breach("restore", what);
        }
        machine.stop();
    }

    let mut standby = make();
    saved.load_into(&mut standby)?;
    standby.announce();
    standby.gate().repeat(&Default::default());
    works("run", standby.run())?;
    elsewhere(|| {
        let mut guest = Guest::new(standby, &progress)?;
        guest.goes_on_from(saved.progress)?;
        guest.runs_tracked_and_paused()?;
        guest.stops()
    })
}

/// Does it on a thread of its own.
fn elsewhere<T: Send>(work: impl FnOnce() -> Result<T, Breach> + Send) -> Result<T, Breach> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// What is always the same of a machine, and of both hosts' machines.
fn never_changing<M: Machine>(machine: &M, other: &M) -> Result<(), Breach> {
    for other in [machine, other] {
        let differences = machine.fingerprint().differences(&other.fingerprint());
        if !differences.is_empty() {
            let what = format!("two answers differ: {differences:?}");
            return breach("fingerprint", what);
        }
        if machine.memory().layout() != other.memory().layout() {
            return breach("layout", "two answers differ");
        }
        if machine.disks().list() != other.disks().list() {
            return breach("disks", "two answers differ");
        }
    }
    if machine
        .memory()
        .layout()
        .regions()
        .iter()
        .all(|region| region.pages == 0)
    {
        return breach("layout", "there is no guest RAM");
    }
    machine.gate().hold();
    if machine.gate().mode() != GateMode::Holding {
        return breach("gate", "it answers with another gate each time");
    }
    machine.gate().open();
    Ok(())
}
