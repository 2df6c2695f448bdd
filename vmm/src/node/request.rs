//! What a person or a program can ask of a node, and why it may be denied.
//!
//! What must not be done here: decide whether it is denied. The core does.

use serde::{Deserialize, Serialize};

/// What can be asked of a node. All of them go through one bounded queue. How things stand is no request but a
/// value: [`NodeHandle::status`](super::NodeHandle::status).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Request {
    /// Have the guest go on at the standby: asked of a standby, it is promoted; asked of a primary, the guest is
    /// handed over.
    Failover,
    /// End the node as a signal to end does. A guest that a standby could take over goes on there, if that is what
    /// is configured; otherwise, or if that fails, the same as [`Request::Stop`]. Asked again, nothing new happens
    /// until it is known what comes of it.
    Leave,
    /// End the node. A guest that runs here stops as if its power were cut; what it has said before still leaves
    /// by the rules. Asked of a primary again, it waits for nothing.
    Stop,
    /// Press the guest's power button.
    PowerButton,
    /// End the epoch as soon as possible.
    Checkpoint,
}

/// Why a node does not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Denial {
    /// There is no guest and no standby yet.
    #[error("it is just starting; try again")]
    Starting,
    /// The guest is not started before the other host has said what it has.
    #[error("{why}")]
    Waiting {
        /// Why it has not, and what to do.
        why: String,
    },
    /// Its role is over.
    #[error("the guest has ended, and this vmm is about to")]
    Ended,
    /// Requests come faster than they can be done.
    #[error("other requests wait already; try again")]
    Busy,
    /// The request is queued, but what was asked before takes long.
    #[error("it has not been done within {seconds} s, and may still be")]
    NoAnswer {
        /// How long was waited.
        seconds: u64,
    },
    /// The guest has no second copy.
    #[error("this guest runs unprotected (`vmm run`): it has no standby")]
    Unprotected,
    /// No standby could take the guest over.
    #[error("the guest is not protected now: no standby could take it over")]
    NotProtected,
    /// The guest runs on another host.
    #[error("the guest does not run here; ask the primary's control socket")]
    GuestElsewhere,
    /// The standby has no copy that could be run.
    #[error("this standby is not in sync ({phase}): there is nothing to promote")]
    NotInSync {
        /// What it does instead.
        phase: String,
    },
    /// The disks' images cannot be compared with the standby's, or not to the end.
    #[error("{why}")]
    NotCompared {
        /// Why not.
        why: String,
    },
    /// The standby takes nothing, as it is about to be the primary.
    #[error("the standby is becoming the primary; try again")]
    Promoting,
}
