//! Two hosts on one machine, without privileges: an Ethernet switch in this process, clients with a TCP/IP
//! stack of their own that check every byte, and `vmm` processes that play the hosts. The demo, the
//! end-to-end tests and the benchmarks are built from it.
//!
//! What must not be done here: anything that runs in production.

mod clients;
mod cluster;
mod disks;
mod network;
mod process;
mod stack;
mod switch;

pub use clients::{ClientError, Figures};
pub use cluster::{ClusterOptions, LocalCluster};
pub use disks::{DiskFault, GuestDiskProgress, WorkloadDisk};
pub use network::{GUEST, Network};
pub use process::VmmProcess;
pub use switch::PortCounts;

/// Why a local cluster does not work.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
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
    #[error("the network thread of the local cluster has ended; its panic message is above")]
    Ended,
    /// A `vmm` process did not do what it should.
    #[error("host {name}: {what}; the end of its log:\n{log}")]
    Process {
        /// The host it plays.
        name: String,
        /// What it did or did not do.
        what: String,
        /// The last lines of its log.
        log: String,
    },
}
