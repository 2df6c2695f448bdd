//! What a backup reports about itself, and the committed state it holds. Changes nothing.

use std::time::Duration;

use bytes::Bytes;

use super::{BackupCore, Phase};
use crate::ids::{EpochId, Generation};
use crate::output::SealedOutput;

/// Where the backup stands, for people and status pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupPhase {
    /// Waits for a primary.
    Listening,
    /// Receives the initial synchronisation, up to the commit of epoch 1.
    Syncing,
    /// Has a committed epoch and could take over.
    Standby,
    /// Asks the arbiter for the guest: the primary is lost, or promotion was asked for.
    Claiming,
    /// Owns the guest now.
    Promoted,
}

impl BackupPhase {
    /// The phase in one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Listening => "listening",
            Self::Syncing => "syncing",
            Self::Standby => "standby",
            Self::Claiming => "claiming",
            Self::Promoted => "promoted",
        }
    }
}

impl BackupCore {
    /// Where this backup stands.
    #[must_use]
    pub fn phase(&self) -> BackupPhase {
        match &self.phase {
            Phase::Listening => BackupPhase::Listening,
            Phase::Syncing => BackupPhase::Syncing,
            Phase::Standby { .. } => BackupPhase::Standby,
            Phase::Claiming { .. } => BackupPhase::Claiming,
            Phase::Promoted => BackupPhase::Promoted,
        }
    }

    /// The generation this side knows: its primary's, or its own after a promotion. Every message
    /// it sends carries this in its header.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The number of the present session, or of the last one; 0 if there was none.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.told.session
    }

    /// Whether this side has a whole copy and its takeover would be granted now (R9).
    #[must_use]
    pub fn is_protecting(&self) -> bool {
        self.phase() == BackupPhase::Standby && self.promise.is_kept()
    }

    /// Whether the arbiter may have granted this side the guest.
    #[must_use]
    pub fn has_asked(&self) -> bool {
        matches!(self.phase, Phase::Claiming { asked: true, .. })
    }

    /// The epoch that memory is at.
    #[must_use]
    pub fn committed_epoch(&self) -> Option<EpochId> {
        self.committed.as_ref().map(|committed| committed.epoch)
    }

    /// Machine state at the end of the committed epoch; empty if there is none.
    #[must_use]
    pub fn committed_state(&self) -> &Bytes {
        self.committed
            .as_ref()
            .map_or(&self.no_state, |committed| &committed.state)
    }

    /// Output of committed epochs that the primary has not reported as really out, oldest first.
    /// A promoted side repeats it.
    #[must_use]
    pub fn output_to_repeat(&self) -> SealedOutput {
        self.kept.to_repeat()
    }

    /// The primary's name, from its introduction until it is lost.
    #[must_use]
    pub fn primary_node(&self) -> Option<&str> {
        self.primary_node.as_deref()
    }

    /// How long the primary may be silent now before it counts as lost.
    #[must_use]
    pub fn silence_timeout(&self) -> Duration {
        self.silence_patience()
    }
}
