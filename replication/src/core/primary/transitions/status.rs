//! What a primary reports about itself, for people, metrics and the runtime. Changes nothing.

use std::time::Duration;

use super::{Phase, PrimaryCore};
use crate::core::message::Trouble;
use crate::core::primary::epochs::Epochs;
use crate::ids::{EpochId, Generation};

/// Where the primary stands, for people and status pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrimaryPhase {
    /// Runs without a backup. Output leaves at once.
    Alone,
    /// A link is up, but the backup has not answered yet.
    Handshaking,
    /// The initial synchronisation is in progress, up to the acknowledgement of epoch 1.
    Syncing,
    /// Epoch 1 is acked: the backup could take over.
    Protected,
    /// The backup is lost. Output is held until the arbiter has decided.
    Claiming,
    /// Another side owns the guest.
    Fenced,
    /// The guest ended.
    Stopped,
}

/// What a guest's end waits for: its last output must leave its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndingAwaits {
    /// The backup's acknowledgement.
    Backup,
    /// The arbiter's answer.
    Arbiter,
    /// The last writes to shared disks.
    Disks,
}

impl EndingAwaits {
    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Backup => "the standby's acknowledgement",
            Self::Arbiter => "the arbiter",
            Self::Disks => "its shared disks",
        }
    }
}

impl PrimaryPhase {
    /// The phase in one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Alone => "alone",
            Self::Handshaking => "handshaking",
            Self::Syncing => "syncing",
            Self::Protected => "protected",
            Self::Claiming => "claiming",
            Self::Fenced => "fenced",
            Self::Stopped => "stopped",
        }
    }
}

impl PrimaryCore {
    /// How long the backup may be silent now before it counts as lost.
    #[must_use]
    pub fn silence_timeout(&self) -> Duration {
        self.patience.timeout()
    }

    /// Where this primary stands.
    #[must_use]
    pub fn phase(&self) -> PrimaryPhase {
        match &self.phase {
            Phase::Alone => PrimaryPhase::Alone,
            Phase::Handshaking { .. } => PrimaryPhase::Handshaking,
            Phase::Syncing { .. } => PrimaryPhase::Syncing,
            Phase::Protected(epochs) if epochs.acked().0 == 0 => PrimaryPhase::Syncing,
            Phase::Protected(_) => PrimaryPhase::Protected,
            Phase::Claiming { .. } => PrimaryPhase::Claiming,
            Phase::Fenced => PrimaryPhase::Fenced,
            Phase::Stopped => PrimaryPhase::Stopped,
        }
    }

    /// Whether this side goes alone but not everything held has left. A link is useless meanwhile.
    #[must_use]
    pub fn is_opening(&self) -> bool {
        self.opening
    }

    /// What the guest's end waits for; `None` if it has not ended or waits for nothing any more.
    #[must_use]
    pub fn ending_awaits(&self) -> Option<EndingAwaits> {
        self.ending.as_ref()?;
        match &self.phase {
            Phase::Fenced | Phase::Stopped => None,
            Phase::Claiming { .. } => Some(EndingAwaits::Arbiter),
            Phase::Protected(_) if self.doubt.is_some() => Some(EndingAwaits::Arbiter),
            Phase::Protected(epochs) if self.last_epoch() > Some(epochs.acked()) => {
                Some(EndingAwaits::Backup)
            }
            Phase::Protected(epochs) if epochs.is_releasing() => Some(EndingAwaits::Disks),
            Phase::Protected(_) | Phase::Syncing { .. } => Some(EndingAwaits::Arbiter),
            Phase::Alone | Phase::Handshaking { .. } => Some(EndingAwaits::Disks),
        }
    }

    /// The generation held. Every message that this side sends carries it in its header.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The number of the present session, or of the last one; 0 if there was none.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.mark.session
    }

    /// Whether the backup has a whole copy and its takeover would be granted now (R9).
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.phase() == PrimaryPhase::Protected && self.promise.is_kept()
    }

    /// The last epoch that the backup acked in this session.
    #[must_use]
    pub fn acked(&self) -> Option<EpochId> {
        self.epochs().map(Epochs::acked).filter(|epoch| epoch.0 > 0)
    }

    /// The epoch that was captured but is not acked yet.
    #[must_use]
    pub fn in_flight(&self) -> Option<EpochId> {
        self.epochs().and_then(Epochs::in_flight)
    }

    /// The backup's name, from its welcome until it is lost.
    #[must_use]
    pub fn backup_node(&self) -> Option<&str> {
        self.backup_node.as_deref()
    }

    /// What tells the backup's host from others of its name, from its welcome until it is lost.
    #[must_use]
    pub fn backup_host(&self) -> Option<&str> {
        self.backup_host.as_deref()
    }

    /// What fails on the backup's host of what the guest would need there; `None` until it has said
    /// so in this session.
    #[must_use]
    pub fn backup_troubles(&self) -> Option<&[Trouble]> {
        self.backup_troubles.as_deref()
    }

    /// Whether releases wait for the arbiter to confirm the generation.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        self.doubt.is_some()
    }
}
