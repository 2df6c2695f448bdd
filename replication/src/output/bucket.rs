//! A bucket: the output between two seals, in the order in which the guest sent it. A bucket knows
//! no ports and no sinks.

use bytes::{Bytes, BytesMut};

use super::limits::cost;
use super::sealed::{ConsoleOutput, NetworkFrame, SealedOutput};
use crate::epoch_queue;

#[derive(Default)]
pub(super) struct Bucket {
    pub(super) frames: Vec<NetworkFrame>,
    frame_bytes: usize,
    pub(super) console: Vec<ConsoleRun>,
}

/// Consecutive bytes of one console.
pub(super) struct ConsoleRun {
    pub(super) device: u16,
    pub(super) position: u64,
    pub(super) bytes: BytesMut,
}

impl epoch_queue::Bucket for Bucket {
    /// The cost of the frames. Console bytes have a limit of their own.
    fn bytes(&self) -> u64 {
        self.frame_bytes as u64
    }

    fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.console.is_empty()
    }
}

impl Bucket {
    pub(super) fn push_frame(&mut self, device: u16, bytes: Bytes) {
        self.frame_bytes += cost(&bytes);
        self.frames.push(NetworkFrame { device, bytes });
    }

    /// A copy for the backup: all console output, and the last frames that fit into `bytes_max`.
    pub(super) fn copy(&self, bytes_max: usize) -> SealedOutput {
        let mut bytes = 0;
        let fitting = self.frames.iter().rev().take_while(|frame| {
            bytes += cost(&frame.bytes);
            bytes <= bytes_max
        });
        let first = self.frames.len() - fitting.count();
        let console = self.console.iter().map(|run| ConsoleOutput {
            device: run.device,
            position: run.position,
            bytes: Bytes::copy_from_slice(&run.bytes),
        });
        SealedOutput {
            frames: self.frames[first..].to_vec(),
            console: console.collect(),
            ..SealedOutput::default()
        }
    }

    /// Appends console bytes to their console's run. There are few consoles, and each has at most
    /// one run here: its bytes are always consecutive.
    pub(super) fn push_console(&mut self, device: u16, position: u64, bytes: &[u8]) {
        if let Some(run) = self.console.iter_mut().find(|run| run.device == device) {
            run.bytes.extend_from_slice(bytes);
        } else {
            self.console.push(ConsoleRun {
                device,
                position,
                bytes: BytesMut::from(bytes),
            });
        }
    }
}
