//! What a backup keeps of the output of its epochs: all that the primary has not reported as really out. If the
//! primary dies, it is repeated.
//!
//! The primary's epochs say what is out; that is later than the release. A console may be slow, and a network may
//! wait for shared disks. What is kept is bounded here, whatever the primary says (R5, R6).

use std::collections::VecDeque;

use bytes::{Buf, BytesMut};

use super::limits::{REPEAT_BYTES_MAX, cost};
use super::sealed::{ConsoleOutput, NetworkFrame, SealedOutput};
use crate::ids::EpochId;

/// Most network output that is kept, counted as for
/// [`repeat_bytes_max`](super::GateLimits::repeat_bytes_max). The oldest is dropped first.
pub const KEPT_FRAME_BYTES_MAX: usize = REPEAT_BYTES_MAX;
/// Most console bytes that are kept, for all consoles together. It is more than a primary lets wait. The
/// oldest are dropped first.
pub const KEPT_CONSOLE_BYTES_MAX: usize = 4 << 20;

/// The output of committed epochs that may have to be repeated.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub struct KeptOutput {
    frames: VecDeque<(EpochId, NetworkFrame)>,
    frame_bytes: usize,
    /// Frames of epochs up to this one have left.
    left_through: EpochId,
    consoles: Vec<KeptConsole>,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct KeptConsole {
    device: u16,
    /// Of the first byte.
    position: u64,
    bytes: BytesMut,
}

impl KeptConsole {
    fn end(&self) -> u64 {
        self.position.saturating_add(self.bytes.len() as u64)
    }

    /// Drops what lies before `position`.
    fn drop_before(&mut self, position: u64) {
        let gone = position.saturating_sub(self.position);
        let gone =
            usize::try_from(gone).map_or(self.bytes.len(), |gone| gone.min(self.bytes.len()));
        self.bytes.advance(gone);
        self.position = self.position.saturating_add(gone as u64);
    }
}

impl KeptOutput {
    /// Keeps the output of `epoch`, and forgets what it reports as out.
    pub fn add(&mut self, epoch: EpochId, output: SealedOutput) {
        for frame in output.frames {
            self.frame_bytes += cost(&frame.bytes);
            self.frames.push_back((epoch, frame));
        }
        self.have_left(output.sent_through);
        while self.frame_bytes > KEPT_FRAME_BYTES_MAX
            && let Some((_, frame)) = self.frames.pop_front()
        {
            self.frame_bytes -= cost(&frame.bytes);
        }
        for progress in output.written {
            let mut consoles = self.consoles.iter_mut();
            if let Some(console) = consoles.find(|console| console.device == progress.device) {
                console.drop_before(progress.position);
            }
        }
        for run in output.console {
            self.add_run(run);
        }
        self.consoles.retain(|console| !console.bytes.is_empty());
    }

    /// The frames of all epochs up to this one have left, also of those that are still to be added.
    pub fn have_left(&mut self, through: EpochId) {
        self.left_through = self.left_through.max(through);
        let is_out = |(epoch, _): &mut (EpochId, _)| *epoch <= self.left_through;
        while let Some((_, frame)) = self.frames.pop_front_if(is_out) {
            self.frame_bytes -= cost(&frame.bytes);
        }
    }

    fn add_run(&mut self, run: ConsoleOutput) {
        let others = self
            .consoles
            .iter()
            .filter(|console| console.device != run.device);
        let room =
            KEPT_CONSOLE_BYTES_MAX.saturating_sub(others.map(|console| console.bytes.len()).sum());
        let found = self
            .consoles
            .iter()
            .position(|console| console.device == run.device);
        let at = found.unwrap_or_else(|| {
            self.consoles.push(KeptConsole {
                device: run.device,
                position: run.position,
                bytes: BytesMut::new(),
            });
            self.consoles.len() - 1
        });
        let console = &mut self.consoles[at];
        if run.position != console.end() {
            // An honest primary leaves nothing out.
            console.bytes.clear();
            console.position = run.position;
        }
        console.bytes.extend_from_slice(&run.bytes);
        let over = console.bytes.len().saturating_sub(room);
        console.drop_before(console.position.saturating_add(over as u64));
    }

    /// What is to be repeated, oldest first.
    #[must_use]
    pub fn to_repeat(&self) -> SealedOutput {
        let frames = self.frames.iter().map(|(_, frame)| frame.clone());
        let console = self.consoles.iter().map(|console| ConsoleOutput {
            device: console.device,
            position: console.position,
            bytes: console.bytes.clone().freeze(),
        });
        SealedOutput {
            frames: frames.collect(),
            console: console.collect(),
            ..SealedOutput::default()
        }
    }
}
