//! The small traits an embedding VMM implements.
//!
//! [`Machine`] is the VM as replication sees it. [`PausedMachine`] is the same VM while its vCPUs stand
//! still and no device touches memory. [`PageMemory`] is its RAM. The VM's output goes into its
//! [`OutputGate`]. A machine with writable disks has [`Disks`]. Nothing here depends on KVM.
//!
//! # Contract
//!
//! Four threads call these methods. *Caller* is the thread that calls
//! [`protect`](crate::runtime::PrimaryBuilder::protect) or
//! [`start`](crate::runtime::StandbyBuilder::start). *Capture* is the primary's `capture` thread, a plain
//! thread that may block. *Driver* is a side's `driver` thread. *Trial* is a standby's `trial` thread, a
//! plain one, too. *In tokio* means that the thread is inside an asynchronous runtime: the method must not
//! block for long, and must not start or enter a runtime of its own. The machine has one owner at a time, so calls with `&mut self` never overlap. [`PageMemory`] is
//! called from all of them.
//!
//! | method | thread | guest | order | repeated | an error means |
//! | --- | --- | --- | --- | --- | --- |
//! | [`fingerprint`](Machine::fingerprint), [`memory`](Machine::memory), [`gate`](Machine::gate), [`disks`](Machine::disks), [`speed`](Machine::speed) | caller; capture and driver when they start | any | before all others | yes; always the same answer | – |
//! | [`run`](Machine::run) | primary: caller; standby: driver, not in tokio | has never run | after the arbiter's grant; on a standby last, after `restore`, `announce` and the gate's `repeat` | no | the guest does not run; the machine is stopped |
//! | [`start_tracking`](Machine::start_tracking) | capture | runs | once the disks are copied, before the first page is read | after each `stop_tracking`, and after a failed session | the backup is lost, the guest continues |
//! | [`stop_tracking`](Machine::stop_tracking) | capture | runs | when the backup is lost | only after `start_tracking` | an alarm |
//! | [`harvest_running`](Machine::harvest_running) | capture | runs | while tracking, after each round of the synchronisation | yes | the backup is lost, the guest continues; no bit may be lost |
//! | [`pause`](Machine::pause) | capture | runs, or has halted by itself | while tracking, at an epoch's end; before that once for each backup | yes | the epoch is tried again; the backup is lost after five failures in a row |
//! | [`harvest`](PausedMachine::harvest), then [`save`](PausedMachine::save) | capture | paused | once each per pause; memory is read between them; the first pause for a backup has only `save`, to see whether the state can be sent | once per pause | as `pause`; harvested bits are kept for the next try |
//! | drop of [`PausedMachine`] | capture | runs again | after the gate was sealed | – | it cannot fail (R7) |
//! | [`looked`](Machine::looked) | capture | runs | after the pages of an epoch were encoded | once per epoch | it cannot fail |
//! | [`set`](GuestSpeed::set) | driver, in tokio | any | while there is a backup; full once there is none | yes | it cannot fail |
//! | [`reset`](Machine::reset) | capture | runs, not paused | between two epochs | yes | an alarm; the guest continues as it is |
//! | [`try_restore`](Machine::try_restore) | standby: trial | has never run | before the first acknowledgement of each primary's epochs, then now and then | yes | the copy is given up, the primary is told why; the standby ends if the machine is unusable |
//! | [`restore`](Machine::restore) | standby: driver, not in tokio | has never run | once, after all memory was written and the disks are at the epoch | no | the guest runs nowhere; the machine is stopped |
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
//! `conformance::check` (feature `conformance`) finds violations of this table.
//!
//! Disks have [a table of their own](disks#contract).
//!
//! Limits: the saved state has at most [`STATE_BYTES_MAX`] bytes. A standby's and a primary's
//! [`MemoryLayout`] are equal and never change.

mod disk_error;
pub mod disks;

use std::sync::Arc;

pub use disk_error::DiskError;
pub use disks::{BackupDisks, Disks, NoDisks, PrimaryDisks};

use crate::core::throttle::RunShare;
use crate::fingerprint::Fingerprint;
use crate::ids::{PAGE_BYTES, Page, PageIndex};
use crate::open_pages::Looked;
use crate::output::OutputGate;
use crate::page_set::{MemoryLayout, PageSet};

/// Upper limit of a machine's saved state, in bytes: it travels in one frame of the logging
/// channel. Memory does not count, because it travels page by page.
pub const STATE_BYTES_MAX: usize = 4 << 20;

/// An error in the embedding VMM. The text must name the object concerned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// Something failed.
    #[error("{what}")]
    Failed {
        /// What was attempted, and on which object.
        what: String,
        /// The cause.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The machine is of no use any more, for anything but being stopped. The text says why.
    #[error("{0}")]
    Unusable(String),
    /// The machine has no such ability, now or later.
    #[error("this machine cannot {0}")]
    Unsupported(&'static str),
}

impl MachineError {
    /// An error without a cause.
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

/// Guest RAM, page by page. Safe to use from several threads. A page read while the guest runs may
/// be torn. The caller must deal with that: such a page is dirty again and will be sent again.
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

    /// Copies pages out, each into its frame. One call serves a whole epoch (step ③).
    ///
    /// # Errors
    /// If one of them is not guest RAM. Some frames may have been filled by then.
    fn read_pages(&self, pages: &mut [(PageIndex, Box<Page>)]) -> Result<(), MachineError> {
        let mut pages = pages.iter_mut();
        pages.try_for_each(|(page, into)| self.read_page(*page, into))
    }

    /// Overwrites pages, each from its frame. One call serves many pages (step ⑦). Does not mark
    /// them dirty.
    ///
    /// # Errors
    /// If one of them is not guest RAM. The pages before it have been written.
    fn write_pages(&self, pages: &[(PageIndex, Box<Page>)]) -> Result<(), MachineError> {
        let mut pages = pages.iter();
        pages.try_for_each(|(page, from)| self.write_page(*page, from))
    }

    /// Sets all of memory to zero, as in a fresh VM.
    ///
    /// # Errors
    /// If the host cannot do it.
    fn clear(&self) -> Result<(), MachineError> {
        let all = PageSet::full(self.layout());
        all.iter()
            .try_for_each(|page| self.write_page(page, &[0; PAGE_BYTES]))
    }
}

/// How much of its time a guest runs. A pause is not counted: the guest stands still in it whatever its share.
pub trait GuestSpeed: Send + Sync {
    /// Lets each vCPU run for this part of the time from now on, evenly, in slices that are short against the time in
    /// which a client notices. It must not wait for that.
    fn set(&self, share: RunShare);
}

/// A virtual machine that can be protected, or can take over another machine's state.
pub trait Machine: Send + 'static {
    /// What must be equal on both hosts besides the memory layout. Nothing by default.
    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::new()
    }

    /// Guest RAM.
    fn memory(&self) -> Arc<dyn PageMemory>;

    /// The machine's output gate. Always the same one.
    fn gate(&self) -> OutputGate;

    /// The machine's writable disks that are replicated or shared. None by default.
    fn disks(&self) -> Arc<dyn Disks> {
        Arc::new(NoDisks)
    }

    /// What slows the guest down. Always the same one. Without one, as by default, the guest is not slowed, however long
    /// its epochs take.
    fn speed(&self) -> Option<Arc<dyn GuestSpeed>> {
        None
    }

    /// Starts tracking dirty pages while the guest runs. Every page written from now on is dirty;
    /// all others count as clean.
    ///
    /// # Errors
    /// If the host cannot track them.
    fn start_tracking(&mut self) -> Result<(), MachineError>;

    /// Stops tracking dirty pages.
    ///
    /// # Errors
    /// If the host cannot stop it.
    fn stop_tracking(&mut self) -> Result<(), MachineError>;

    /// Adds the pages dirtied since the last harvest to `into` and forgets them, while the guest
    /// runs.
    ///
    /// # Errors
    /// If the host cannot read them. No bit is lost then: pages already read are in `into`, the
    /// rest are still tracked.
    fn harvest_running(&mut self, into: &mut PageSet) -> Result<(), MachineError>;

    /// Takes what was found out about the pages that the last harvest of a paused guest reported. A machine that
    /// leaves pages open ([`OpenPages`](crate::open_pages::OpenPages)) decides by it which. Returns how many are
    /// open. Ignored by default.
    fn looked(&mut self, _looked: Looked<'_>) -> u64 {
        0
    }

    /// Stops vCPUs and devices at a point where the whole state can be saved. The guest resumes when
    /// the returned guard is dropped (R7).
    ///
    /// # Errors
    /// If the guest cannot be paused. It keeps running then.
    fn pause(&mut self) -> Result<Box<dyn PausedMachine + '_>, MachineError>;

    /// Loads state saved by [`PausedMachine::save`] into this machine, which has never run or is
    /// stopped. Memory was written before.
    ///
    /// # Errors
    /// If the state is malformed or does not fit. The machine must not be run then.
    fn restore(&mut self, state: &[u8]) -> Result<(), MachineError>;

    /// Loads a state on trial, as [`Machine::restore`] would, and undoes that, so that neither the guest's memory
    /// nor anybody outside notices: nothing is sent, no timer runs, and another state can be tried or restored
    /// afterwards. It must not wait for storage. Memory is of an earlier moment than the state, or not there yet.
    /// A machine on which a restore has no effect before it runs can restore the state.
    ///
    /// While this hangs, the standby claims nothing and takes no other copy, as nobody can take the machine back.
    ///
    /// # Errors
    /// If the state cannot be loaded. The text names what of it: this host protects the guest no longer.
    /// [`MachineError::Unusable`] if the trial could not be undone: the standby ends.
    fn try_restore(&mut self, state: &[u8]) -> Result<(), MachineError>;

    /// Tells the network where the guest is now (gratuitous ARP, RARP), bypassing the gate. Does
    /// nothing by default.
    fn announce(&mut self) {}

    /// Runs the guest, for the first time or after [`Machine::restore`].
    ///
    /// # Errors
    /// If the vCPUs cannot be started.
    fn run(&mut self) -> Result<(), MachineError>;

    /// Restarts the running guest, as the reset button does. Memory written by the reset is dirty.
    /// Held output stays held.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`] by default. If the reset failed half-way, the machine has told
    /// its owner, who stops it if necessary.
    fn reset(&mut self) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("be reset"))
    }

    /// Stops the guest for good, if it runs. Called on every way out, in any state, possibly more
    /// than once.
    fn stop(&mut self);
}

/// A paused machine; see [`Machine::pause`]. Dropping it resumes the guest.
pub trait PausedMachine {
    /// Adds the pages dirtied since the last harvest to `into` and forgets them.
    ///
    /// # Errors
    /// See [`Machine::harvest_running`].
    fn harvest(&mut self, into: &mut PageSet) -> Result<(), MachineError>;

    /// Whether no vCPU had anything to do when the guest was paused: all of them had halted. Then the pause costs
    /// the guest nothing, and output need not wait until one is affordable. Asked after [`PausedMachine::save`], which
    /// reads what tells it anyway. No by default.
    fn is_idle(&self) -> bool {
        false
    }

    /// Appends the state of devices, VM and vCPUs to `into`, at most [`STATE_BYTES_MAX`] bytes. Does not
    /// write guest memory.
    ///
    /// # Errors
    /// If a part of the state cannot be read.
    fn save(&mut self, into: &mut Vec<u8>) -> Result<(), MachineError>;
}
