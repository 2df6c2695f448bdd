//! The arbiter: who may run alone.
//!
//! It hands out generations, each once (R4). Neither the primary nor the backup can decide alone
//! that the other is gone: the first that claims the generation after the one both know gets it, the
//! other is refused and stops.

#[cfg(feature = "file-arbiter")]
pub mod file;

#[cfg(feature = "file-arbiter")]
pub use file::FileArbiter;

use crate::ids::Generation;

/// What a claimant asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// To start the guest from nothing. Granted only if no holder is alive, and no backup may have a
    /// copy that should go on instead.
    Start,
    /// The same, giving up a copy that a backup may have.
    StartOver,
    /// To own the guest after generation `0`, which is the one the claimant knows: a primary that goes
    /// on alone, or a backup that is promoted. Granted only if nobody was granted a later one.
    After(Generation),
}

/// What a holder tells the arbiter about its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note<'a> {
    /// From now on the backup of this name may have a copy that can take over.
    Backup(&'a str),
    /// Nobody has a copy, or the guest has ended and its copies mean nothing.
    NoBackup,
}

/// The arbiter's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The claimant holds this generation now.
    Granted(Generation),
    /// Somebody else holds the guest.
    Refused {
        /// The generation in force.
        current: Generation,
        /// Who holds it, in words for a person.
        holder: String,
    },
}

/// Why an arbiter gave no answer. The claimant holds nothing; it may ask again.
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

/// Hands out generations. Calls may block for as long as storage or network take.
pub trait Arbiter: Send + Sync + 'static {
    /// Claims a generation, atomically. A repeated claim by the holder itself, made because the first
    /// answer got lost, is granted again with the same generation.
    ///
    /// # Errors
    /// If the arbiter cannot be asked; the claimant then knows nothing.
    fn claim(&self, claim: Claim, claimant: &str) -> Result<Verdict, ArbiterError>;

    /// Notes, for a later [`Claim::Start`], whether somebody else has a copy of the guest. The holder of
    /// `generation` calls this before the copy can be whole, and when it is of no use any more.
    ///
    /// # Errors
    /// If the arbiter cannot be asked, or `generation` is not in force.
    fn note(&self, generation: Generation, note: Note<'_>) -> Result<(), ArbiterError>;

    /// The generation in force and its holder.
    ///
    /// # Errors
    /// As [`Arbiter::claim`].
    fn current(&self) -> Result<(Generation, String), ArbiterError>;
}
