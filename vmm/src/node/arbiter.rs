//! Arbiters as people look at them.

use std::path::Path;

use serde::Serialize;
use understudy_replication::arbiter::{Arbiter, ArbiterError, FileArbiter};

/// What an arbiter knows of its guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ArbiterStatus {
    /// Which arbiter this is.
    pub arbiter: String,
    /// The generation in force; 0 if the guest has never run.
    pub generation: u64,
    /// Who holds it.
    pub holder: Option<String>,
    /// Whether the holder lives, as far as the storage knows.
    pub holder_lives: bool,
    /// The backup that may have a copy.
    pub backup: Option<String>,
}

/// Makes a new arbiter in the directory at `path`; returns its identity.
///
/// # Errors
/// If there is one already, or it cannot be made.
pub fn make_arbiter(path: &Path) -> Result<String, ArbiterError> {
    Ok(FileArbiter::make(path)?.id().0.clone())
}

/// What the arbiter in the directory at `path` knows.
///
/// # Errors
/// If there is none, or it cannot be read.
pub fn look_at_arbiter(path: &Path) -> Result<ArbiterStatus, ArbiterError> {
    let found = FileArbiter::find(path)?;
    let record = found.record()?;
    Ok(ArbiterStatus {
        arbiter: record.arbiter.0,
        generation: record.generation.0,
        holder: (record.generation.0 > 0).then_some(record.holder),
        holder_lives: found.holder_lives()?,
        backup: record.backup,
    })
}
