//! The small traits an embedding VMM implements.
//!
//! [`Machine`] is the VM as replication sees it, [`PausedMachine`] the same VM while its vCPUs stand
//! still and no device touches memory, [`PageMemory`] its RAM. What it says goes into its
//! [`OutputGate`]. A machine with writable disks has [`Disks`]. Nothing here knows KVM.
//!
//! # Contract
//!
//! Three threads call these methods. *Caller* is the thread that calls
//! [`protect`](crate::runtime::PrimaryBuilder::protect) or
//! [`start`](crate::runtime::StandbyBuilder::start). *Capture* is the primary's `capture` thread, a plain
//! one that may block. *Driver* is a side's `driver` thread. Where *in tokio* is said, the thread is inside
//! an asynchronous runtime: the method must not block for long, and must not start or enter a runtime of
//! its own. The machine has one owner at a time, so calls with `&mut self` never overlap. [`PageMemory`] is
//! called from all of them.
//!
//! | method | thread | guest | order | repeated | an error means |
//! | --- | --- | --- | --- | --- | --- |
//! | [`fingerprint`](Machine::fingerprint), [`memory`](Machine::memory), [`gate`](Machine::gate), [`disks`](Machine::disks) | caller; capture and driver when they start | any | before all others | yes; always the same answer | – |
//! | [`run`](Machine::run) | primary: caller; standby: driver, not in tokio | has never run | after the arbiter's grant; on a standby last, after `restore`, `announce` and the gate's `repeat` | no | the guest does not run; the machine is stopped |
//! | [`start_tracking`](Machine::start_tracking) | capture | runs | once the disks are copied, before the first page is read | after each `stop_tracking`, and after a session that failed | the backup is lost, the guest goes on |
//! | [`stop_tracking`](Machine::stop_tracking) | capture | runs | when the backup is lost | only after `start_tracking` | an alarm |
//! | [`harvest_running`](Machine::harvest_running) | capture | runs | while tracking, after each round of the synchronisation | yes | the backup is lost, the guest goes on; no bit may be lost |
//! | [`pause`](Machine::pause) | capture | runs, or has halted by itself | while tracking, at an epoch's end | yes | the epoch is tried again; the backup is lost after five failures in a row |
//! | [`harvest`](PausedMachine::harvest), then [`save`](PausedMachine::save) | capture | paused | once a pause each; memory is read between them | once a pause | as `pause`; bits harvested are kept for the next try |
//! | drop of [`PausedMachine`] | capture | runs again | after the gate was sealed | – | it cannot fail (R7) |
//! | [`reset`](Machine::reset) | capture | runs, not paused | between two epochs | yes | an alarm; the guest goes on as it is |
//! | [`restore`](Machine::restore) | standby: driver, not in tokio | has never run | once, after all memory was written | no | the guest runs nowhere; the machine is stopped |
//! | [`announce`](Machine::announce) | standby: driver, not in tokio | has never run | after `restore`, before `repeat` and `run` | no | it cannot fail: log it |
//! | [`stop`](Machine::stop) | capture, driver or caller, not in tokio | any, or has never run | last, on every way out, also after a panic of another method | yes, idempotent | it cannot fail |
//! | [`read_pages`](PageMemory::read_pages) | capture | paused (epochs) or runs (synchronisation) | – | yes | as `pause` |
//! | [`read_page`](PageMemory::read_page) | standby: driver, in tokio | has never run | – | yes | the epoch is discarded |
//! | [`write_pages`](PageMemory::write_pages), [`clear`](PageMemory::clear) | standby: driver, in tokio | has never run | – | yes | the copy is given up, or the standby ends |
//!
//! A method that panics ends the side: `stop` is called while the panic unwinds, and
//! [`RuntimeError::Panicked`](crate::runtime::RuntimeError::Panicked) is returned. A standby then takes
//! over from a primary.
//!
//! `conformance::check` (feature `conformance`) finds what a machine does against this table.
//!
//! Disks have [a table of their own](disks#contract).
//!
//! Limits: saved state has at most [`STATE_BYTES_MAX`] bytes. A standby's and a primary's
//! [`MemoryLayout`] are equal and never change.

mod disk_error;
pub mod disks;

use std::sync::Arc;

pub use disk_error::DiskError;
pub use disks::{BackupDisks, Disks, NoDisks, PrimaryDisks};

use crate::fingerprint::Fingerprint;
use crate::ids::{PAGE_BYTES, Page, PageIndex};
use crate::output::OutputGate;
use crate::page_set::{MemoryLayout, PageSet};

/// Saved state of a machine has at most so many bytes: it travels in one frame of the logging channel.
/// Memory does not count; it travels page by page.
pub const STATE_BYTES_MAX: usize = 4 << 20;

/// What went wrong in the embedding VMM. The text must name the thing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// Something failed.
    #[error("{what}")]
    Failed {
        /// What was attempted, on what.
        what: String,
        /// The cause.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The machine has no such ability, now or later.
    #[error("this machine cannot {0}")]
    Unsupported(&'static str),
}

impl MachineError {
    /// An error without a further cause.
    pub fn new(what: impl Into<String>) -> Self {
        Self::Failed {
            what: what.into(),
            source: None,
        }
    }

    /// An error with its cause.
    pub fn caused(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Failed {
            what: what.into(),
            source: Some(source.into()),
        }
    }
}

/// Guest RAM, page by page. Safe to use from several threads; that a page read while the guest runs
/// may be torn is the caller's business (such a page is dirty again and will be sent again).
pub trait PageMemory: Send + Sync {
    /// The regions of guest RAM. Never changes.
    fn layout(&self) -> &MemoryLayout;

    /// Copies a page out.
    ///
    /// # Errors
    /// If the page is not guest RAM.
    fn read_page(&self, page: PageIndex, into: &mut Page) -> Result<(), MachineError>;

    /// Overwrites a page. Does not mark it dirty.
    ///
    /// # Errors
    /// If the page is not guest RAM.
    fn write_page(&self, page: PageIndex, from: &Page) -> Result<(), MachineError>;

    /// Copies pages out, each into its frame: one call for a whole epoch (step ③).
    ///
    /// # Errors
    /// If one of them is not guest RAM; frames may have been filled.
    fn read_pages(&self, pages: &mut [(PageIndex, Box<Page>)]) -> Result<(), MachineError> {
        let mut pages = pages.iter_mut();
        pages.try_for_each(|(page, into)| self.read_page(*page, into))
    }

    /// Overwrites pages, each from its frame: one call for many pages (step ⑦). Does not mark them dirty.
    ///
    /// # Errors
    /// If one of them is not guest RAM; those before it have been written.
    fn write_pages(&self, pages: &[(PageIndex, Box<Page>)]) -> Result<(), MachineError> {
        let mut pages = pages.iter();
        pages.try_for_each(|(page, from)| self.write_page(*page, from))
    }

    /// Makes all of memory zero, as in a fresh VM.
    ///
    /// # Errors
    /// If the host cannot.
    fn clear(&self) -> Result<(), MachineError> {
        let all = PageSet::full(self.layout());
        all.iter()
            .try_for_each(|page| self.write_page(page, &[0; PAGE_BYTES]))
    }
}

/// A virtual machine that can be protected, or that can take over another one's state.
pub trait Machine: Send + 'static {
    /// What must be equal on both hosts beside the memory's layout. Nothing unless implemented.
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::new()
    }

    /// Guest RAM.
    fn memory(&self) -> Arc<dyn PageMemory>;

    /// The machine's output gate, always the same one.
    fn gate(&self) -> OutputGate;

    /// The machine's writable disks that are replicated or shared. None unless implemented.
    fn disks(&self) -> Arc<dyn Disks> {
        Arc::new(NoDisks)
    }

    /// Starts to track dirty pages, the guest running. Every page written from now on is dirty; all
    /// others count as clean.
    ///
    /// # Errors
    /// If the host cannot.
    fn start_tracking(&mut self) -> Result<(), MachineError>;

    /// Stops to track dirty pages.
    ///
    /// # Errors
    /// If the host cannot.
    fn stop_tracking(&mut self) -> Result<(), MachineError>;

    /// Adds the pages dirtied since the last harvest to `into` and forgets them, the guest running.
    ///
    /// # Errors
    /// If the host cannot; then no bit is lost: what was read is in `into`, the rest still tracked.
    fn harvest_running(&mut self, into: &mut PageSet) -> Result<(), MachineError>;

    /// Stops vCPUs and devices at a point where the whole state can be saved. The guest resumes when
    /// the returned guard is dropped (R7).
    ///
    /// # Errors
    /// If it cannot be paused; it then runs on.
    fn pause(&mut self) -> Result<Box<dyn PausedMachine + '_>, MachineError>;

    /// Loads state saved by [`PausedMachine::save`] into this machine, which has never run or is
    /// stopped. Memory has been written already.
    ///
    /// # Errors
    /// If the state is malformed or does not fit; the machine must then not be run.
    fn restore(&mut self, state: &[u8]) -> Result<(), MachineError>;

    /// Tells the network where the guest is now (gratuitous ARP, RARP), past the gate. Nothing is told
    /// unless implemented.
    fn announce(&mut self) {}

    /// Runs the guest: for the first time, or after [`Machine::restore`].
    ///
    /// # Errors
    /// If the vCPUs cannot be started.
    fn run(&mut self) -> Result<(), MachineError>;

    /// Starts the running guest over, as the reset button does: memory written on the way is dirty, output
    /// that is held stays held.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] unless implemented. If it failed half-way, the machine has told its
    /// owner, who ends it if it must.
    fn reset(&mut self) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("be reset"))
    }

    /// Stops the guest for good, if it runs. Called on every way out, in any state, possibly twice.
    fn stop(&mut self);
}

/// A machine that stands still; see [`Machine::pause`]. Dropping it lets the guest run on.
pub trait PausedMachine {
    /// Adds the pages dirtied since the last harvest to `into` and forgets them.
    ///
    /// # Errors
    /// As [`Machine::harvest_running`].
    fn harvest(&mut self, into: &mut PageSet) -> Result<(), MachineError>;

    /// Appends the state of devices, VM and vCPUs to `into`, at most [`STATE_BYTES_MAX`] bytes. Does not
    /// write guest memory.
    ///
    /// # Errors
    /// If some state cannot be read.
    fn save(&mut self, into: &mut Vec<u8>) -> Result<(), MachineError>;
}
