//! The sink side of a network port. It knows no modes and no epochs.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use super::counters::Counters;
use super::signals::Waker;
use super::sink::{FrameSink, SendError};

pub(super) struct FrameLine {
    sink: Arc<dyn FrameSink>,
    /// Held by the thread that hands frames to `sink`, from taking them out of the outbox until
    /// they are sent. This keeps their order.
    sending: Mutex<()>,
    waker: Waker,
}

/// The right to hand frames to a line's sink.
pub(super) struct LineGuard<'a> {
    sink: &'a dyn FrameSink,
    _sending: MutexGuard<'a, ()>,
}

impl FrameLine {
    pub(super) fn new(sink: Arc<dyn FrameSink>, waker: Waker) -> Self {
        Self {
            sink,
            sending: Mutex::new(()),
            waker,
        }
    }

    /// Waits until no other thread hands frames to the sink. The gate's state must not be locked.
    pub(super) fn lock(&self) -> LineGuard<'_> {
        LineGuard {
            _sending: self.sending.lock(),
            sink: &*self.sink,
        }
    }

    pub(super) fn waker(&self) -> Waker {
        Arc::clone(&self.waker)
    }
}

impl LineGuard<'_> {
    /// Gives one of the guest's frames to the sink. The gate's state must not be locked. Says whether the sink took it.
    pub(super) fn hand_over(&self, frame: &Bytes, counters: &Counters) -> bool {
        let is_taken = self.sink.send(frame).is_ok();
        match is_taken {
            true => counters.sent.add(frame),
            // A network may lose frames. The backend itself reports that it is closed.
            false => counters.dropped.add(frame),
        }
        is_taken
    }

    /// Gives one of the VMM's own frames to the sink.
    pub(super) fn announce(&self, frame: &[u8]) -> Result<(), SendError> {
        self.sink.send(frame)
    }
}
