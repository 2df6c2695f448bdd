//! What a machine runs under, and the machines that come from one side and may go on with another.

use std::sync::Arc;

use super::arbitration::{Arbitration, claimant};
use super::error::RuntimeError;
use super::metrics::Metrics;
use super::settings::Settings;
use super::status::Side;
use crate::arbiter::{Arbiter, ArbiterId, Record};
use crate::ids::{EpochId, Generation};
use crate::ports::disks::History;
use crate::ports::{Disks, Machine};

/// What a machine runs under, or is to run under.
#[derive(Clone)]
pub(super) struct Reign {
    /// The generation held, or, before this side holds one, the last that it knows of.
    pub(super) generation: Generation,
    pub(super) claimant: String,
    pub(super) metrics: Metrics,
    pub(super) settings: Settings,
    /// Kept, because it shows others that the holder lives.
    pub(super) arbiter: Arc<dyn Arbiter>,
    pub(super) arbiter_id: ArbiterId,
}

impl Reign {
    pub(super) fn new(
        side: Side,
        settings: Settings,
        arbiter: Arc<dyn Arbiter>,
        record: Record,
    ) -> Self {
        Self {
            generation: record.generation,
            arbiter_id: record.arbiter,
            claimant: claimant(&settings.node, settings.host.as_deref()),
            metrics: Metrics::new(side, &settings.vm, &settings.node),
            settings,
            arbiter,
        }
    }

    /// What the disks are to know of the guest in this generation.
    pub(super) fn history(&self, generation: Generation) -> History {
        History {
            arbiter: self.arbiter_id.clone(),
            generation,
        }
    }

    pub(super) fn arbitration(&self) -> Arbitration {
        // A look at the arbiter every so often is what both sides rely on.
        let patience = self.settings.policy.arbiter_check * 2;
        Arbitration::new(Arc::clone(&self.arbiter), self.claimant.clone(), patience)
    }
}

/// Makes sure that the record is of the arbiter that the disks' maps know, and not older than they
/// are (R9).
pub(super) fn check_history(disks: &dyn Disks, record: &Record) -> Result<(), RuntimeError> {
    for (disk, known) in disks.histories() {
        if !known.is_of(&record.arbiter) {
            return Err(RuntimeError::OtherArbiter {
                disk,
                known: known.arbiter.0,
                found: record.arbiter.0.clone(),
            });
        }
        if known.generation > record.generation {
            return Err(RuntimeError::ArbiterWentBack {
                disk,
                known: known.generation,
                found: record.generation,
            });
        }
    }
    Ok(())
}

/// A machine that has taken over and runs. Hand it to [`Primary::attach`](super::Primary::attach)
/// to have it protected again.
pub struct Promoted<M: Machine> {
    /// The machine, running.
    pub machine: M,
    /// The generation it runs under.
    pub generation: Generation,
    /// The epoch it continued from.
    pub epoch: EpochId,
    pub(super) reign: Box<Reign>,
}

/// A machine given back by [`Protection::unprotect`](super::Protection::unprotect). It runs as the
/// arbiter's holder as long as this value exists, so do not take it apart.
/// [`Origin::Unprotected`](super::Origin::Unprotected) protects it again.
pub struct Unprotected<M: Machine> {
    /// The machine, running.
    pub machine: M,
    pub(super) reign: Box<Reign>,
}
