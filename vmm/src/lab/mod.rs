//! A whole cluster on one machine, without privileges: an Ethernet switch in this process, clients
//! with a TCP/IP stack of their own that check every byte, and `vmm` processes as hosts. `vmm demo`,
//! the end-to-end tests and the benchmarks are made of it. Nothing of it runs in production.

mod clients;
mod disks;
mod hosts;
mod network;
mod pair;
mod stack;
mod switch;

pub use clients::{ClientError, Figures, Load};
pub use disks::{DiskFault, DiskWords, WorkloadDisk};
pub use hosts::Host;
pub use network::{GUEST, Network};
pub use pair::{Pair, PairDisk, PairOptions};
pub use switch::{PortCounts, Switch};

/// Why a lab cannot work.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The operating system refused something.
    #[error("cannot {what}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The clients could not connect.
    #[error("the clients cannot connect: {0}")]
    Connect(String),
    /// A disk's image cannot be made, or is not what it must be.
    #[error("a disk's image")]
    Disk(#[from] DiskFault),
    /// The network's thread has ended.
    #[error("the lab's network thread has ended; see its message above")]
    Ended,
    /// A host did not do what it should.
    #[error("host {name}: {what}; the end of its log:\n{log}")]
    Host {
        /// The host.
        name: String,
        /// What it did or did not do.
        what: String,
        /// The last lines of its log.
        log: String,
    },
}
