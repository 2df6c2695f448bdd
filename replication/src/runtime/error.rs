//! Why protection could not start or go on.

use std::net::SocketAddr;

use understudy_transport::ConnectError;

use super::ended::Ended;
use crate::Generation;
use crate::arbiter::ArbiterError;
use crate::ports::{DiskError, MachineError};

/// Why protection could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// The embedding VMM failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The arbiter gave no answer.
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
    /// The disks cannot be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Another side owns the guest.
    #[error("the arbiter does not let the guest be started here: {generation} belongs to {holder}")]
    Owned {
        /// Who holds the guest.
        holder: String,
        /// Since which generation.
        generation: Generation,
    },
    /// The guest last ran on another host, which has the newer disks.
    #[error(
        "the guest ran last as {generation} of {holder}, so this host's disks may be older: if it still runs there, \
         start this side as its standby; if not, start it there, or start over here and give up what was written there"
    )]
    OlderDisks {
        /// Who held the guest.
        holder: String,
        /// Since which generation.
        generation: Generation,
    },
    /// The arbiter knows of no guest yet, but somebody runs it.
    #[error(
        "a primary of this guest sends heartbeats from {peer}, yet the arbiter here has never granted anything: \
         mount the directory that the other host uses as its arbiter, or stop that primary first"
    )]
    RunsElsewhere {
        /// Where the heartbeats come from.
        peer: SocketAddr,
    },
    /// The other side goes on with the guest, so this one is to be its standby.
    #[error("{node} has a copy of the guest, and takes over: start this side as its standby")]
    Follows {
        /// The other side's name.
        node: String,
    },
    /// The other side may have something newer of the guest, and cannot be asked. Try again.
    #[error(
        "the guest is not started before the other host has said what it has: {peer}: {why}. Start its standby there; \
         if that host is gone for good, start over here and give up {lost}"
    )]
    NotAsked {
        /// Where the other side should be.
        peer: String,
        /// Why it cannot be asked.
        why: String,
        /// What may exist only there.
        lost: String,
    },
    /// The arbiter knows of no guest yet, but the other side does.
    #[error(
        "the arbiter here has never granted anything, yet {peer} knows of the guest ({what}): mount the directory \
         that the other host uses as its arbiter, or stop that side first"
    )]
    KnownElsewhere {
        /// The other side.
        peer: String,
        /// What it knows.
        what: String,
    },
    /// The arbiter is another one than the disks' maps know.
    #[error(
        "the disk {disk} belongs to a guest of another arbiter: its map knows {known}, here is {found}. Mount the \
         directory that decided about this guest, or give up what these disks hold"
    )]
    OtherArbiter {
        /// A disk.
        disk: String,
        /// The arbiter that its map knows.
        known: String,
        /// The arbiter that is asked.
        found: String,
    },
    /// The arbiter's record is older than the disks' maps.
    #[error(
        "the arbiter's record went back: {found} is in force there, the map of the disk {disk} knows of {known}. \
         Restore the arbiter's directory, or give up what these disks hold"
    )]
    ArbiterWentBack {
        /// A disk.
        disk: String,
        /// The generation that its map knows.
        known: Generation,
        /// The generation in force at the arbiter.
        found: Generation,
    },
    /// The logging channel could not be set up.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The heartbeat socket could not be set up.
    #[error("cannot bind UDP {listen} for heartbeats; is the address this host's, and free?")]
    Heartbeat {
        /// The local address.
        listen: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A setting is missing or contradictory.
    #[error("{0}")]
    Setting(String),
    /// The machine was to be given back, but protection ended in another way. The guest is stopped.
    #[error("the machine cannot be given back: {}", .0.reason())]
    Ended(Ended),
    /// An operating system resource was not available.
    #[error("cannot {what}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A standby's role is over, but not a trial on its machine.
    #[error(
        "a trial of the guest's state does not come to an end on the machine, which is left behind: end this process \
         before the machine's files and devices are used again"
    )]
    TrialHangs,
    /// A thread of the runtime panicked. That is a defect of this program.
    #[error("the {0} thread panicked; see its message above")]
    Panicked(&'static str),
}
