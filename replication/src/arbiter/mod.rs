//! The arbiter decides which side may run alone.
//!
//! It hands out each generation once (R4). Neither the primary nor the backup can decide alone
//! that the other is gone. The first to claim the generation after the one both know gets it. The
//! other is refused and stops.

#[cfg(feature = "file-arbiter")]
pub mod file;

#[cfg(feature = "file-arbiter")]
pub use file::FileArbiter;

use serde::{Deserialize, Serialize};

use crate::ids::Generation;

/// Tells an arbiter from every other one. It is made once, with the arbiter, and never changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ArbiterId(pub String);

/// What the holder wrote last, so that its backup can tell that both see the same record and not
/// copies of it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Mark {
    /// The session between the two sides: a random number that both of them have chosen.
    pub session: u64,
    /// Counts up within a session.
    pub beat: u64,
}

impl Mark {
    /// The one to be written next.
    #[must_use]
    pub fn next(self) -> Self {
        Self {
            beat: self.beat.saturating_add(1),
            ..self
        }
    }

    /// Whether a record with this mark is the one that `told` was written to, then or later.
    #[must_use]
    pub fn shows(self, told: Self) -> bool {
        self.session == told.session && self.beat >= told.beat
    }
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "mark {} of session {:016x}", self.beat, self.session)
    }
}

/// What an arbiter knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Which arbiter this is.
    pub arbiter: ArbiterId,
    /// The generation in force; 0 if none was ever granted.
    pub generation: Generation,
    /// Who holds it.
    pub holder: String,
    /// The backup that may have a copy of the holder's guest.
    pub backup: Option<String>,
    /// What the holder wrote last in this generation; the default if nothing.
    pub mark: Mark,
}

/// What a claimant asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// To start the guest from nothing. Granted only if no holder is alive, no backup may have a
    /// copy that should take over instead, and no generation later than `known` was granted.
    Start {
        /// The generation in force when it was decided that this side may start the guest.
        known: Generation,
    },
    /// The same, but the noted backup was asked, and has no copy.
    Restart {
        /// The generation in force when it was asked.
        known: Generation,
    },
    /// The same as `Start`, but gives up a copy that a backup may have, and whatever was granted
    /// meanwhile.
    StartOver,
    /// To own the guest after the generation that the claimant knows. Made by a primary that goes
    /// on alone, or by a backup to be promoted. Granted only if no later one has been granted.
    After {
        /// The generation that the claimant knows.
        known: Generation,
        /// What the holder wrote last, as the claimant was told. A record that does not
        /// [show](Mark::shows) it belongs to another arbiter or is outdated: an error, whatever it
        /// says.
        mark: Mark,
    },
}

/// What a holder tells the arbiter about its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Note<'a> {
    /// From now on, the backup that is [called so](crate::core::start::backup) may have a copy that
    /// can take over.
    Backup(&'a str),
    /// No backup has a copy, or the guest has ended and its copies are of no use.
    NoBackup,
    /// A sign for the backup of the present session. It replaces the mark before.
    Mark(Mark),
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
///
/// A record that is older than what the asker knows, or that has vanished, is an error and never a
/// refusal: a refused side gives up what it has.
pub trait Arbiter: Send + Sync + 'static {
    /// Claims a generation atomically: a claimant that stalls for any time between reading and
    /// writing must not overwrite a grant given meanwhile. If the first answer got lost and the
    /// holder repeats its claim, it gets the same generation again.
    ///
    /// # Errors
    /// If the arbiter cannot be asked, or its record is not the one that the claimant knows. The
    /// claimant does not know the outcome then.
    fn claim(&self, claim: Claim, claimant: &str) -> Result<Verdict, ArbiterError>;

    /// Notes something about the guest, for as long as `generation` is in force. The holder calls
    /// this before a copy can be whole, when the copy is of no use any more, and every few seconds
    /// to show that it still holds the guest.
    ///
    /// # Errors
    /// If the arbiter cannot be asked, or `generation` is not in force.
    fn note(&self, generation: Generation, note: Note<'_>) -> Result<(), ArbiterError>;

    /// The record as it is now, not as a cache remembers it.
    ///
    /// # Errors
    /// If the arbiter cannot be asked.
    fn record(&self) -> Result<Record, ArbiterError>;

    /// Whether a process that may hold a generation is known to live.
    ///
    /// # Errors
    /// If the arbiter cannot be asked.
    fn holder_lives(&self) -> Result<bool, ArbiterError>;

    /// The record, and makes sure that a claim could be granted now: that the arbiter can also be
    /// written.
    ///
    /// # Errors
    /// If the arbiter cannot be asked or written.
    fn rehearse(&self) -> Result<Record, ArbiterError>;
}
