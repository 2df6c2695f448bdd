//! Places in a journal, and the number that tells one journal from another. Maps and journals name them.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, Unaligned};

use crate::ids::{EpochId, Generation};

/// A record's place in the sequence of all records.
pub(crate) type Place = (Generation, EpochId);

/// The place before the first record.
pub(crate) const START: Place = (Generation(0), EpochId(0));

/// Names a journal. It is drawn at random for each copy; it is never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JournalId(pub(crate) u128);

impl JournalId {
    /// A new one.
    pub(crate) fn draw() -> Self {
        Self(rand::random::<u128>().max(1))
    }

    /// As it is stored: 0 stands for none.
    pub(crate) fn stored(number: u128) -> Option<Self> {
        (number != 0).then_some(Self(number))
    }
}

/// A place as it is stored.
#[derive(FromBytes, IntoBytes, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
pub(crate) struct RawPlace {
    generation: U64,
    epoch: U64,
}

impl From<Place> for RawPlace {
    fn from((generation, epoch): Place) -> Self {
        Self {
            generation: generation.0.into(),
            epoch: epoch.0.into(),
        }
    }
}

impl From<RawPlace> for Place {
    fn from(raw: RawPlace) -> Self {
        (Generation(raw.generation.get()), EpochId(raw.epoch.get()))
    }
}
