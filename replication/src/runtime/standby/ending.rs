//! How a standby's role ends, and since when.

use std::time::Instant;

use crate::ids::{EpochId, Generation};
use crate::output::Arrivals;
use crate::runtime::clock::monotonic_ns;

/// The moment at which the primary counted as lost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Detected {
    pub(super) at: Instant,
    pub(super) monotonic_ns: u64,
    /// The primary's last sign of life before. One that comes later, as with a promotion that was
    /// asked for, belongs to no outage.
    pub(super) last_contact: Instant,
}

impl Detected {
    pub(super) fn now(last_contact: Instant) -> Self {
        Self {
            at: Instant::now(),
            monotonic_ns: monotonic_ns(),
            last_contact,
        }
    }
}

pub(super) enum Ended {
    Promoted(Granted),
    Stopped,
    Starts { known: Generation },
}

/// What the arbiter has granted, and why this side asked.
pub(super) struct Granted {
    pub(super) generation: Generation,
    /// What the guest goes on from.
    pub(super) epoch: EpochId,
    pub(super) cause: String,
    /// The primary's machine has broken.
    pub(super) machine_broke: bool,
    /// What follows the guest from its old host, if it was handed over.
    pub(super) arrivals: Option<Arrivals>,
}
