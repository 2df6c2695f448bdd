//! Checkpoint replication of a running virtual machine.
//!
//! A *primary* runs a guest; a *standby* on another host keeps a second copy of it. The guest is paused for
//! a moment many times a second, and what has changed in that *epoch* is shipped. What the guest says leaves
//! its host only once the standby has the epoch in which it was said. So when the primary's host dies, the
//! standby goes on from a state that fits everything the clients have seen. An *arbiter* that both can
//! reach says who may go on, each *generation* once, so that never two guests speak.
//!
//! # In a VMM of your own
//!
//! Implement [`ports::Machine`], [`ports::PausedMachine`] and [`ports::PageMemory`] for your virtual machine;
//! the table in [`ports`] says which thread calls what, and when. Then the primary's host does this:
//!
//! ```
//! use std::sync::Arc;
//!
//! use understudy_replication::arbiter::FileArbiter;
//! use understudy_replication::ports::Machine;
//! use understudy_replication::runtime::{Ended, Origin, Primary, RuntimeError};
//! use understudy_transport::Endpoint;
//!
//! /// Runs a guest that has never run, protected whenever a standby listens at `backup`.
//! fn run_protected(machine: impl Machine, backup: Endpoint) -> Result<Ended, RuntimeError> {
//!     let arbiter = FileArbiter::open("/shared/vm.arbiter")?;
//!     let protection = Primary::attach(Origin::Fresh(machine))
//!         .arbiter(Arc::new(arbiter))
//!         .backup(backup)
//!         .node("host-a")
//!         .protect()?; // the guest runs; the initial synchronisation has begun
//!
//!     // Looks at it and makes requests, from any thread: `checkpoint`, `set_backup`, `stop` …
//!     let handle = protection.handle();
//!     let mut events = handle.subscribe();
//!     std::thread::spawn(move || {
//!         while let Some(event) = events.blocking_recv() {
//!             println!("{}: {:?}", event.node, event.kind);
//!         }
//!     });
//!     protection.wait()
//! }
//! ```
//!
//! A machine that runs already is attached as [`Origin::Running`](runtime::Origin::Running), and
//! [`Protection::unprotect`](runtime::Protection::unprotect) gives it back as it runs. The other host
//! waits, takes over, and is a primary from then on:
//!
//! ```
//! use std::sync::Arc;
//!
//! use understudy_replication::arbiter::FileArbiter;
//! use understudy_replication::ports::Machine;
//! use understudy_replication::runtime::{Origin, Outcome, Primary, RuntimeError, Standby};
//! use understudy_transport::Endpoint;
//!
//! /// Keeps a copy in `machine`, which has the same memory and devices and has never run.
//! fn stand_by(machine: impl Machine, listen: Endpoint) -> Result<(), RuntimeError> {
//!     let arbiter = FileArbiter::open("/shared/vm.arbiter")?;
//!     let standby = Standby::builder(machine)
//!         .arbiter(Arc::new(arbiter))
//!         .listen(listen)
//!         .node("host-b")
//!         .start()?;
//!     match standby.await_promotion()? {
//!         // The guest runs here now, under the names and the arbiter of the standby.
//!         Outcome::Promoted(promoted) => {
//!             Primary::attach(Origin::Promoted(promoted)).protect()?.wait()?;
//!             Ok(())
//!         }
//!         _ => Ok(()), // it was stopped
//!     }
//! }
//! ```
//!
//! # Rooms
//!
//! - [`core`]: decides. Two cores without sockets, threads, clocks or KVM; input in, effects out.
//! - [`ports`]: the traits an embedding VMM implements, and [`arbiter`]: who may run alone.
//! - [`output`]: the gate that holds what the guest says until its epoch is on the backup.
//! - [`open_pages`]: which pages are cheaper to look at in every epoch than to protect.
//! - [`disk`]: the disks' files on both sides: log, journal, dirty-block map.
//! - [`runtime`]: obeys. Drives the core with real threads, links and clocks.
//! - `conformance`: checks an implementation of the ports, for your tests.
//!
//! # Features
//!
//! Each feature adds one room. Without any, the crate has the core, the ports and the gate, needs neither
//! tokio nor files, and is driven by a runtime of your own.
//!
//! | feature | default | adds |
//! | --- | --- | --- |
//! | `runtime` | yes | [`runtime`] |
//! | `disks` | yes | [`disk`]; without it a machine has [`NoDisks`](ports::NoDisks), or disks of your own |
//! | `file-arbiter` | yes | [`FileArbiter`](arbiter::FileArbiter); without it you bring an [`Arbiter`](arbiter::Arbiter) |
//! | `conformance` | no | the module of this name |
#![forbid(unsafe_code)]

pub mod arbiter;
#[cfg(any(feature = "runtime", feature = "disks", feature = "conformance"))]
mod causes;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod core;
#[cfg(feature = "disks")]
pub mod disk;
#[cfg_attr(
    not(feature = "disks"),
    allow(dead_code, reason = "some of it is for disks")
)]
mod epoch_queue;
#[cfg(any(feature = "disks", feature = "file-arbiter"))]
#[cfg_attr(
    not(all(feature = "disks", feature = "file-arbiter")),
    allow(dead_code, reason = "some of it is for disks, some for the arbiter")
)]
mod files;
pub mod fingerprint;
pub mod ids;
mod log_thinning;
pub mod open_pages;
pub mod output;
pub mod page_set;
mod peer_words;
pub mod ports;
#[cfg(feature = "runtime")]
pub mod runtime;

pub use fingerprint::Fingerprint;
pub use ids::{EpochId, Generation, PAGE_BYTES, PageIndex};
pub use log_thinning::LogThinning;
pub use open_pages::OpenPages;
pub use page_set::{MemoryLayout, PageSet, Region};
