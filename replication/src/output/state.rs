//! What the gate holds, and for how long: the mode, the buckets, and the outboxes of output that
//! may leave.
//!
//! Rule R1 is decided here. Unless the gate is open, output goes into the current bucket. It leaves
//! its bucket only through [`GateState::release`] and [`GateState::open`]. No sink is called here.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::arrivals::{Arrived, Incoming};
use super::block::Block;
use super::bucket::Bucket;
use super::counters::Counters;
use super::limits::{GateLimits, cost, nearly_full};
use super::line::FrameLine;
use super::sealed::{ConsoleOutput, ConsoleProgress, SealedOutput};
use super::signals::{OutputListener, Waker};
use super::writer::ConsoleWriter;
use crate::epoch_queue::{Bucket as _, EpochQueue};
use crate::ids::EpochId;

/// Frames taken out of an outbox under one lock.
const BATCH_FRAMES: usize = 64;
/// The epoch under which everything held can be sealed and released.
const LAST_EPOCH: EpochId = EpochId(u64::MAX);

/// Whether output may leave.
///
/// ```text
///  Open ◄──hold/open──► Holding       any ──shut──► Shut (for good)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateMode {
    /// Output leaves at once.
    Open,
    /// Output waits until its epoch is released.
    Holding,
    /// Nothing leaves any more.
    Shut,
}

/// What the gate and its ports share.
pub(super) struct GateInner {
    pub(super) state: Mutex<GateState>,
    pub(super) limits: GateLimits,
    pub(super) counters: Counters,
}

pub(super) struct GateState {
    pub(super) mode: GateMode,
    /// Only added to, so that a port's number stays valid.
    pub(super) networks: Vec<Network>,
    /// As `networks`.
    pub(super) consoles: Vec<Console>,
    /// Output that waits for its epoch's release. The current bucket is empty unless the gate
    /// holds.
    held: EpochQueue<Bucket>,
    /// Nothing was sealed since the gate began to hold.
    is_first: bool,
    /// The frames of all epochs up to this one were handed to their sinks.
    pub(super) sent_through: EpochId,
    /// The same, and the sinks took each.
    pub(super) left_through: EpochId,
    /// A sink has refused a frame of an epoch after `sent_through`.
    pub(super) is_some_refused: bool,
    /// Cost of all frames in the outboxes.
    outbox_bytes: usize,
    /// Where small frames are copied to.
    block: Block,
    /// What the guest is given.
    pub(super) incoming: Incoming,
    pub(super) listener: Option<OutputListener>,
}

pub(super) struct Network {
    pub(super) line: Arc<FrameLine>,
    /// Frames that may leave but have not been handed to the sink yet.
    outbox: VecDeque<Bytes>,
    /// The device was refused and waits to be woken.
    device_waits: bool,
    /// For the device to give to the guest.
    pub(super) arrived: Arrived,
}

pub(super) struct Console {
    pub(super) writer: Arc<ConsoleWriter>,
    /// Bytes that the guest has written so far.
    pub(super) position: u64,
    /// Bytes in buckets.
    held_bytes: usize,
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    SendNow,
    Held { is_nearly_full: bool },
    Queued,
    Dropped,
    Full,
}

impl Network {
    pub(super) fn new(line: Arc<FrameLine>) -> Self {
        Self {
            line,
            outbox: VecDeque::new(),
            device_waits: false,
            arrived: Arrived::default(),
        }
    }
}

impl Console {
    pub(super) fn new(writer: Arc<ConsoleWriter>) -> Self {
        Self {
            writer,
            position: 0,
            held_bytes: 0,
        }
    }

    /// Whether its device is refused that finds so many bytes held or not yet written. It is woken once there is
    /// less.
    pub(super) fn refuses(&self, is_full: impl FnOnce(usize) -> bool) -> bool {
        self.writer
            .refuses(|queued| is_full(self.held_bytes + queued))
    }
}

impl GateState {
    pub(super) fn new() -> Self {
        Self {
            mode: GateMode::Open,
            networks: Vec::new(),
            consoles: Vec::new(),
            held: EpochQueue::default(),
            is_first: false,
            sent_through: EpochId(0),
            left_through: EpochId(0),
            is_some_refused: false,
            outbox_bytes: 0,
            block: Block::default(),
            incoming: Incoming::default(),
            listener: None,
        }
    }

    /// Holds output from now on, for a backup that has got nothing yet.
    pub(super) fn hold(&mut self) {
        if self.mode == GateMode::Open {
            self.mode = GateMode::Holding;
            self.is_first = true;
            self.sent_through = EpochId(0);
            self.left_through = EpochId(0);
            self.is_some_refused = false;
        }
    }

    /// Whether there is something in the current bucket.
    pub(super) fn is_collecting(&self) -> bool {
        !self.held.current().is_empty()
    }

    /// Ends the current bucket as that of `epoch`.
    pub(super) fn seal(&mut self, epoch: EpochId, repeat_bytes_max: usize) -> SealedOutput {
        let mut output = self.held.current().copy(repeat_bytes_max);
        self.held.seal(epoch);
        self.incoming.seal();
        output.sent_through = self.sent_through;
        for (device, console) in (0..).zip(&self.consoles) {
            let (written, pending) = console.writer.progress(self.is_first);
            if let Some(position) = written {
                output.written.push(ConsoleProgress { device, position });
            }
            let pending = pending.into_iter().map(|(position, bytes)| ConsoleOutput {
                device,
                position,
                bytes,
            });
            output.console.splice(0..0, pending);
        }
        self.is_first = false;
        output
    }

    /// Moves the output of all epochs up to and including `through` to the outboxes and the console
    /// writers.
    pub(super) fn release(&mut self, through: EpochId) {
        for bucket in self.held.release(through) {
            for frame in bucket.frames {
                self.outbox_bytes += cost(&frame.bytes);
                let network = &mut self.networks[usize::from(frame.device)];
                network.outbox.push_back(frame.bytes);
            }
            for run in bucket.console {
                let console = &mut self.consoles[usize::from(run.device)];
                console.held_bytes -= run.bytes.len();
                console.writer.push(run.position, &run.bytes);
            }
        }
    }

    /// What was released through this epoch was handed to the sinks.
    pub(super) fn sent(&mut self, through: EpochId) {
        self.sent_through = self.sent_through.max(through);
        if !std::mem::take(&mut self.is_some_refused) {
            self.left_through = self.sent_through;
        }
    }

    /// Opens the gate and moves everything to the outboxes and the console writers.
    pub(super) fn open(&mut self) {
        self.mode = GateMode::Open;
        self.held.seal(LAST_EPOCH);
        self.release(LAST_EPOCH);
    }

    /// Drops everything, for good.
    pub(super) fn shut(&mut self, counters: &Counters) {
        self.mode = GateMode::Shut;
        self.held.seal(LAST_EPOCH);
        for frame in self.held.release(LAST_EPOCH).flat_map(|it| it.frames) {
            counters.dropped.add(&frame.bytes);
        }
        for network in &mut self.networks {
            for frame in network.outbox.drain(..) {
                counters.dropped.add(&frame);
            }
        }
        for console in &mut self.consoles {
            console.held_bytes = 0;
        }
        self.outbox_bytes = 0;
    }

    /// The cost of all waiting frames, in buckets and outboxes.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.outbox_bytes + self.held.bytes() as usize
    }

    /// Moves the frames and bytes of a dead primary to the outboxes and the console writers. The
    /// dead primary said which devices they are for and how many there are, so both are checked
    /// here (R6).
    pub(super) fn repeat(
        &mut self,
        output: &SealedOutput,
        held_bytes_max: usize,
        counters: &Counters,
    ) {
        for frame in &output.frames {
            let frame_bytes = cost(&frame.bytes);
            if self.waiting_bytes() + frame_bytes > held_bytes_max {
                break;
            }
            if let Some(network) = self.networks.get_mut(usize::from(frame.device)) {
                network.outbox.push_back(frame.bytes.clone());
                self.outbox_bytes += frame_bytes;
                counters.add_repeated();
            }
        }
        for run in &output.console {
            if let Some(console) = self.consoles.get(usize::from(run.device)) {
                console.writer.push(run.position, &run.bytes);
            }
        }
    }

    /// Decides what becomes of a frame that the guest sends, and stores it if it must wait.
    pub(super) fn place(&mut self, device: u16, frame: &Bytes, held_bytes_max: usize) -> Place {
        let before = self.waiting_bytes();
        let network = &mut self.networks[usize::from(device)];
        match self.mode {
            GateMode::Shut => return Place::Dropped,
            GateMode::Open if network.outbox.is_empty() => return Place::SendNow,
            GateMode::Open | GateMode::Holding => {}
        }
        let waiting_bytes = before + cost(frame);
        // One frame always fits, however small the limit.
        if waiting_bytes > held_bytes_max && before > 0 {
            network.device_waits = true;
            return Place::Full;
        }
        if self.mode == GateMode::Open {
            // The thread that filled the outbox also empties it: it looks again after every batch.
            self.outbox_bytes += cost(frame);
            network.outbox.push_back(self.block.keep(frame));
            return Place::Queued;
        }
        let frame = self.block.keep(frame);
        self.held.current_mut().push_frame(device, frame);
        Place::Held {
            is_nearly_full: waiting_bytes > nearly_full(held_bytes_max),
        }
    }

    /// Stores console bytes that must wait, or hands them to the writer's thread.
    pub(super) fn place_console(&mut self, device: u16, bytes: &[u8]) {
        let console = &mut self.consoles[usize::from(device)];
        let position = console.position;
        console.position = position.saturating_add(bytes.len() as u64);
        match self.mode {
            GateMode::Open => console.writer.push(position, bytes),
            GateMode::Holding => {
                console.held_bytes += bytes.len();
                let bucket = self.held.current_mut();
                bucket.push_console(device, position, bytes);
            }
            GateMode::Shut => {}
        }
    }

    /// The next frames of an outbox; `None` when it is empty.
    pub(super) fn next_batch(&mut self, device: usize) -> Option<VecDeque<Bytes>> {
        let outbox = &mut self.networks[device].outbox;
        let frames = outbox.len().min(BATCH_FRAMES);
        let batch: VecDeque<_> = outbox.drain(..frames).collect();
        self.outbox_bytes -= batch.iter().map(cost).sum::<usize>();
        (!batch.is_empty()).then_some(batch)
    }

    /// Puts frames that must not leave now back where [`GateState::next_batch`] took them from.
    pub(super) fn put_back(&mut self, device: usize, batch: VecDeque<Bytes>, counters: &Counters) {
        if self.mode == GateMode::Shut {
            batch.iter().for_each(|frame| counters.dropped.add(frame));
            return;
        }
        self.outbox_bytes += batch.iter().map(cost).sum::<usize>();
        let outbox = &mut self.networks[device].outbox;
        batch
            .into_iter()
            .rev()
            .for_each(|frame| outbox.push_front(frame));
    }

    /// The wakers of refused network devices, to be called without the lock. None while more than
    /// `bytes_max` are waiting.
    pub(super) fn take_waiting_devices(&mut self, bytes_max: usize) -> Vec<Waker> {
        if self.waiting_bytes() > bytes_max {
            return Vec::new();
        }
        let waiting = self.networks.iter_mut().filter(|n| n.device_waits);
        waiting
            .map(|network| {
                network.device_waits = false;
                network.line.waker()
            })
            .collect()
    }

    pub(super) fn frame_lines(&self) -> Vec<Arc<FrameLine>> {
        self.networks.iter().map(|n| Arc::clone(&n.line)).collect()
    }

    pub(super) fn console_writers(&self) -> Vec<Arc<ConsoleWriter>> {
        self.consoles
            .iter()
            .map(|c| Arc::clone(&c.writer))
            .collect()
    }
}

impl Drop for GateInner {
    fn drop(&mut self) {
        for writer in self.state.get_mut().console_writers() {
            writer.close();
        }
    }
}
