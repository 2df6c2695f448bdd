//! The arbiter decides which side may run alone.
//!
//! It hands out each generation once (R4). Neither the primary nor the backup can decide alone
//! that the other is gone. The first to claim the generation after the one both know gets it. The
//! other is refused and stops.

#[cfg(feature = "file-arbiter")]
pub mod file;

#[cfg(feature = "file-arbiter")]
pub use file::FileArbiter;

use crate::ids::Generation;

/// What a claimant asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// To start the guest from nothing. Granted only if no holder is alive and no backup may have a
    /// copy that should take over instead.
    Start,
    /// The same, but gives up a copy that a backup may have.
    StartOver,
    /// To own the guest after generation `0` of this variant, the one the claimant knows. Made by a
    /// primary that goes on alone, or by a backup to be promoted. Granted only if no later one has
    /// been granted.
    After(Generation),
}

/// What a holder tells the arbiter about its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note<'a> {
    /// From now on, the backup with this name may have a copy that can take over.
    Backup(&'a str),
    /// No backup has a copy, or the guest has ended and its copies are of no use.
    NoBackup,
}

/// The arbiter's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The claimant holds this generation now.
    Granted(Generation),
    /// Another claimant holds the guest, or a copy should take over.
    Refused {
        /// The generation in force.
        current: Generation,
        /// Who holds it, as text for people.
        holder: String,
    },
}

/// Why an arbiter gave no answer. The claim may have been granted all the same. The claimant may
/// ask again.
#[derive(Debug, thiserror::Error)]
#[error("arbiter {arbiter}: {what}")]
pub struct ArbiterError {
    /// The arbiter, for example the path of its file.
    pub arbiter: String,
    /// What was attempted.
    pub what: String,
    /// The cause.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Hands out generations. Calls may block for as long as storage or the network takes.
pub trait Arbiter: Send + Sync + 'static {
    /// Claims a generation atomically. If the first answer got lost and the holder repeats a
    /// [`Claim::After`], it gets the same generation again.
    ///
    /// # Errors
    /// If the arbiter cannot be asked. The claimant does not know the outcome then.
    fn claim(&self, claim: Claim, claimant: &str) -> Result<Verdict, ArbiterError>;

    /// Notes, for a later [`Claim::Start`], whether a backup may have a copy of the guest. The
    /// holder of `generation` calls this before the copy can be whole, and when the copy is of no
    /// use any more.
    ///
    /// # Errors
    /// If the arbiter cannot be asked, or `generation` is not in force.
    fn note(&self, generation: Generation, note: Note<'_>) -> Result<(), ArbiterError>;

    /// The generation in force and its holder.
    ///
    /// # Errors
    /// If the arbiter cannot be asked.
    fn current(&self) -> Result<(Generation, String), ArbiterError>;
}
