//! How protection ends when nothing has failed.

/// How protection ended. The guest is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ended {
    /// The guest ended by itself or was stopped on request. The backup was told so.
    GuestStopped,
    /// Protection was told to end at once. Output that was still held is lost, and a thread that
    /// waits for storage may be left behind.
    Abandoned,
    /// The backup took the guest over, as it was asked to. Held output was dropped: the guest says
    /// it there.
    HandedOver {
        /// The arbiter's answer, for people.
        reason: String,
    },
    /// The machine has broken, and the backup is to take the guest over. It was not waited for. Held
    /// output was dropped.
    LeftToBackup {
        /// What failed, and why nobody waited, for people.
        reason: String,
    },
    /// Another side owns the guest (R4). Held output was dropped.
    Fenced {
        /// The reason, for people.
        reason: String,
    },
}

impl Ended {
    /// The reason, for people.
    pub(super) fn reason(&self) -> &str {
        match self {
            Self::GuestStopped => "the guest has ended",
            Self::Abandoned => "it was to end at once",
            Self::HandedOver { reason }
            | Self::LeftToBackup { reason }
            | Self::Fenced { reason } => reason,
        }
    }
}
