//! Where a network device puts the frames that its guest sends.

use std::sync::Arc;

use bytes::Bytes;

use super::line::FrameLine;
use super::signals::{Full, OutputEvent, OutputListener};
use super::sink::SendError;
use super::state::{GateInner, GateMode, Place};

/// A network device's side of the gate. Clones are the same port. The frames of one port stay in
/// the order of the calls, so a device sends while it holds its own lock.
#[derive(Clone)]
pub struct NetPort {
    gate: Arc<GateInner>,
    device: u16,
    line: Arc<FrameLine>,
}

impl NetPort {
    pub(super) fn new(gate: Arc<GateInner>, device: u16, line: Arc<FrameLine>) -> Self {
        Self { gate, device, line }
    }

    /// Sends a frame: at once if the gate is open, later if it holds, never if it is shut.
    ///
    /// # Errors
    /// [`Full`] if the frame was not taken. The port's waker is called when it is worth trying
    /// again.
    pub fn send(&self, frame: Bytes) -> Result<(), Full> {
        let (mut place, mut listener) = self.place(&frame);
        if place == Place::SendNow {
            // Another thread may be handing older frames to the sink. Wait for it, then look again.
            let line = self.line.lock();
            (place, listener) = self.place(&frame);
            if place == Place::SendNow {
                line.hand_over(&frame, &self.gate.counters);
            }
        }
        let event = match place {
            Place::SendNow | Place::Queued | Place::Dropped => return Ok(()),
            Place::Held {
                is_nearly_full: false,
            } => OutputEvent::Waiting,
            Place::Held {
                is_nearly_full: true,
            }
            | Place::Full => OutputEvent::Full,
        };
        // No lock is held here, because the listener may query the gate.
        if let Some(listener) = listener {
            listener(event);
        }
        if place == Place::Full {
            Err(Full)
        } else {
            Ok(())
        }
    }

    /// To be told of every frame that the guest is given, as the backend had it: it follows a guest that is being
    /// handed over.
    pub fn received(&self, frame: &[u8]) {
        let listener = {
            let mut state = self.gate.state.lock();
            let follows = state.incoming.received(self.device, frame);
            follows.then(|| state.listener.clone()).flatten()
        };
        if let Some(listener) = listener {
            listener(OutputEvent::Arrived);
        }
    }

    /// The next frame that came with the guest from its old host, or was kept until it runs, to be given to it
    /// before those of the backend.
    #[must_use]
    pub fn arrived(&self) -> Option<Bytes> {
        let mut state = self.gate.state.lock();
        state.networks[usize::from(self.device)].arrived.pop()
    }

    /// Keeps a frame for a guest that is about to run, as the backend had it. Says whether there was room for it.
    #[must_use]
    pub fn defer(&self, frame: &[u8]) -> bool {
        let mut state = self.gate.state.lock();
        state.networks[usize::from(self.device)].arrived.push(frame)
    }

    /// Sends a frame without holding it: one that the VMM itself makes to say where the guest is,
    /// never one of the guest's. A shut gate stops this too.
    ///
    /// # Errors
    /// If the gate is shut or the backend does not take the frame.
    pub fn announce(&self, frame: &[u8]) -> Result<(), SendError> {
        let line = self.line.lock();
        if self.gate.state.lock().mode == GateMode::Shut {
            return Err(SendError::Closed);
        }
        line.announce(frame)
    }

    /// Decides what becomes of a frame, counts it unless it leaves, and returns the listener to
    /// call.
    fn place(&self, frame: &Bytes) -> (Place, Option<OutputListener>) {
        let mut state = self.gate.state.lock();
        let place = state.place(self.device, frame, self.gate.limits.held_bytes_max);
        let counters = &self.gate.counters;
        match place {
            Place::Held { .. } => counters.delayed.add(frame),
            Place::Dropped => counters.dropped.add(frame),
            Place::Full => counters.add_refusal(),
            Place::SendNow | Place::Queued => return (place, None),
        }
        (place, state.listener.clone())
    }
}
