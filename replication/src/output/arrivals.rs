//! What comes in for the guest while it is handed over.
//!
//! Frames that the guest was given after its last epoch are in no state that the other host has, and a client
//! that sent one would notice only when its time-out for a repetition expires. So the network devices tell their
//! ports what they give to the guest. Once a handover has begun, copies are kept. They follow the guest, and its
//! devices there take them before anything else.
//!
//! The same goes for what comes in at the new host once the network knows that the guest is there, until it runs.
//!
//! An ordinary epoch's are not kept: a network may lose frames, and all of the guest's input would travel twice.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;

use super::limits::{FRAME_OVERHEAD_BYTES, cost};
use super::sealed::NetworkFrame;

/// How much follows a guest that is handed over, with [`FRAME_OVERHEAD_BYTES`] for each
/// frame. More is left to whoever sent it to repeat.
pub const ARRIVALS_BYTES_MAX: usize = 2 << 20;

/// Frames for the guest, in order, at most [`ARRIVALS_BYTES_MAX`] of them from first to last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Arrivals {
    frames: Vec<NetworkFrame>,
    /// Those that were taken are included.
    bytes: usize,
}

impl Arrivals {
    /// Adds frames as long as there is room for them.
    pub fn add(&mut self, frames: impl IntoIterator<Item = NetworkFrame>) {
        for frame in frames {
            let bytes = self.bytes + cost(&frame.bytes);
            if bytes > ARRIVALS_BYTES_MAX {
                return;
            }
            self.bytes = bytes;
            self.frames.push(frame);
        }
    }

    /// Takes the frames. What is added later still counts together with them.
    pub fn take(&mut self) -> Vec<NetworkFrame> {
        std::mem::take(&mut self.frames)
    }
}

/// What becomes of copies of what the guest is given.
#[derive(Debug, Default)]
pub(super) enum Incoming {
    /// None is made.
    #[default]
    Ignored,
    /// They are kept from the end of the running epoch on.
    Kept(Arrivals),
    /// They follow the guest.
    Followed(Arrivals),
}

impl Incoming {
    /// Whatever came before is part of the epoch that ends.
    pub(super) fn seal(&mut self) {
        if let Self::Kept(arrivals) = self {
            *arrivals = Arrivals::default();
        }
    }

    /// From now on copies follow the guest.
    pub(super) fn follow(&mut self) {
        let arrivals = match std::mem::take(self) {
            Self::Ignored => Arrivals::default(),
            Self::Kept(arrivals) | Self::Followed(arrivals) => arrivals,
        };
        *self = Self::Followed(arrivals);
    }

    /// What is to follow the guest now.
    pub(super) fn take(&mut self) -> Vec<NetworkFrame> {
        match self {
            Self::Followed(arrivals) => arrivals.take(),
            Self::Ignored | Self::Kept(_) => Vec::new(),
        }
    }

    /// The guest was given a frame. Says whether there is now something that is to follow it.
    pub(super) fn received(&mut self, device: u16, frame: &[u8]) -> bool {
        let (arrivals, follows) = match self {
            Self::Ignored => return false,
            Self::Kept(arrivals) => (arrivals, false),
            Self::Followed(arrivals) => (arrivals, true),
        };
        let bytes = Bytes::copy_from_slice(frame);
        arrivals.add([NetworkFrame { device, bytes }]);
        follows && !arrivals.frames.is_empty()
    }
}

/// What waits for the guest to run, for one device.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    frames: VecDeque<Bytes>,
    bytes: usize,
}

impl Arrived {
    /// Adds a frame, if there is room for it.
    pub(super) fn push(&mut self, frame: &[u8]) -> bool {
        let bytes = self.bytes + frame.len() + FRAME_OVERHEAD_BYTES;
        let has_room = bytes <= ARRIVALS_BYTES_MAX;
        if has_room {
            self.bytes = bytes;
            self.frames.push_back(Bytes::copy_from_slice(frame));
        }
        has_room
    }

    /// Puts frames before all others. They are bounded by themselves. What is for everybody reached both hosts; once
    /// is enough.
    pub(super) fn put_first<'a>(
        &mut self,
        frames: impl DoubleEndedIterator<Item = &'a Bytes> + Clone,
    ) {
        let twice: HashSet<&Bytes> = frames.clone().collect();
        self.frames.retain(|frame| !twice.contains(frame));
        for frame in frames.rev() {
            self.frames.push_front(frame.clone());
        }
        self.bytes = self.frames.iter().map(cost).sum();
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let frame = self.frames.pop_front()?;
        self.bytes -= cost(&frame);
        Some(frame)
    }
}
