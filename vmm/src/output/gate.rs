//! The gate's state: open, holding or shut; the buckets; who may pass.
//!
//! Rules kept here: R1 (nothing held passes before `release` or `open`), order per device, bounds.
//! Locks, in this order: a line's `tx` → `State` → a console line's queue. `State` is never held while
//! a sink is called, so a device that puts output into the gate never waits for the wire while the gate
//! holds. No device lock is ever taken here: `seal` runs while the pauser holds them all.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use understudy_replication::ids::EpochId;
use understudy_replication::ports::{
    NetworkFrame, OutputCounts, OutputEvent, OutputGate, SealedOutput,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::bucket::{Bucket, cost};
use super::console::ConsoleLine;
use super::counters::Counters;
use super::port::{ConsolePort, NetPort};
use super::{ConsoleSink, FrameSink, Full, GateCounters, GateLimits, SendError};

/// Frames taken out of an outbox under one lock.
const BATCH_FRAMES: usize = 64;
/// How long `shut` waits for a console write that is under way.
const SHUT_WAIT: Duration = Duration::from_millis(100);

type Listener = Arc<dyn Fn(OutputEvent) + Send + Sync>;

/// The machine's output gate. Clones are the same gate.
#[derive(Clone)]
pub struct Gate {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    state: Mutex<State>,
    limits: GateLimits,
    counters: Counters,
}

/// ```text
///  Open ◄──hold/open──► Holding       any ──shut──► Shut (for good)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Open,
    Holding,
    Shut,
}

struct State {
    mode: Mode,
    networks: Vec<Network>,
    consoles: Vec<Console>,
    /// Output since the last `seal`; empty unless holding.
    current: Bucket,
    sealed: VecDeque<(EpochId, Bucket)>,
    /// Cost of all frames in `current`, `sealed` and the outboxes.
    waiting_bytes: usize,
    listener: Option<Listener>,
}

struct Network {
    line: Arc<Line>,
    /// Frames that may leave, and have not been handed to the sink yet.
    outbox: VecDeque<Bytes>,
    /// The device was refused and waits for the space event.
    starved: bool,
}

/// The sink side of a network port.
pub(super) struct Line {
    sink: Arc<dyn FrameSink>,
    /// Held by whoever hands frames to `sink`, from taking them out of the outbox until they are sent:
    /// that keeps the order.
    tx: Mutex<()>,
    pub(super) space: EventFd,
}

struct Console {
    line: Arc<ConsoleLine>,
    /// Bytes that the guest has written so far.
    position: u64,
    /// Bytes in `current` and `sealed`.
    held_bytes: usize,
}

/// What becomes of a frame.
enum Place {
    SendNow,
    Held { nearly_full: bool },
    Queued,
    Dropped,
    Full,
}

impl Gate {
    /// An open gate without ports.
    #[must_use]
    pub fn new(limits: GateLimits) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    mode: Mode::Open,
                    networks: Vec::new(),
                    consoles: Vec::new(),
                    current: Bucket::default(),
                    sealed: VecDeque::new(),
                    waiting_bytes: 0,
                    listener: None,
                }),
                limits,
                counters: Counters::default(),
            }),
        }
    }

    /// Adds the next network device, in configuration order.
    ///
    /// # Errors
    /// If the host has no eventfd left.
    ///
    /// # Panics
    /// At the 65,537th network device.
    pub fn add_network(&self, sink: Arc<dyn FrameSink>) -> io::Result<NetPort> {
        let line = Arc::new(Line {
            sink,
            tx: Mutex::new(()),
            space: EventFd::new(EFD_NONBLOCK)?,
        });
        let mut state = self.shared.lock();
        let device = u16::try_from(state.networks.len()).expect("a machine has few devices");
        state.networks.push(Network {
            line: Arc::clone(&line),
            outbox: VecDeque::new(),
            starved: false,
        });
        Ok(NetPort::new(Arc::clone(&self.shared), device, line))
    }

    /// Adds the next console, in configuration order, and starts the thread that writes to `sink`.
    ///
    /// # Errors
    /// If the host has no eventfd or thread left.
    ///
    /// # Panics
    /// At the 65,537th console.
    pub fn add_console(&self, sink: Box<dyn ConsoleSink>) -> io::Result<ConsolePort> {
        let mut state = self.shared.lock();
        let device = u16::try_from(state.consoles.len()).expect("a machine has few devices");
        let line = ConsoleLine::spawn(device, sink)?;
        state.consoles.push(Console {
            line: Arc::clone(&line),
            position: 0,
            held_bytes: 0,
        });
        Ok(ConsolePort::new(Arc::clone(&self.shared), device, line))
    }

    /// [`NetPort::announce`] of network device number `device`.
    ///
    /// # Errors
    /// If there is no such device, the gate is shut or the backend takes nothing.
    pub fn announce(&self, device: u16, frame: &[u8]) -> Result<(), SendError> {
        let line = match self.shared.lock().networks.get(usize::from(device)) {
            Some(network) => Arc::clone(&network.line),
            None => return Err(SendError::Refused),
        };
        self.shared.announce(&line, frame)
    }

    /// Waits until all consoles have written what may leave, at most `timeout` for each. False if one
    /// did not get ready.
    #[must_use]
    pub fn flush_consoles(&self, timeout: Duration) -> bool {
        let is_late = |line: &Arc<ConsoleLine>| !line.wait_idle(timeout);
        let lines = self.shared.console_lines();
        // All of them are waited for, also after one was late.
        lines.into_iter().filter(is_late).count() == 0
    }

    /// What has passed so far.
    #[must_use]
    pub fn counters(&self) -> GateCounters {
        let waiting_bytes = self.shared.lock().waiting_bytes as u64;
        self.shared.counters.read(waiting_bytes)
    }
}

impl OutputGate for Gate {
    fn hold(&self) {
        let mut state = self.shared.lock();
        if state.mode == Mode::Open {
            state.mode = Mode::Holding;
        }
    }

    fn seal(&self, epoch: EpochId) -> SealedOutput {
        let mut state = self.shared.lock();
        let bucket = std::mem::take(&mut state.current);
        let output = bucket.copy(self.shared.limits.repeat_bytes_max);
        // An empty bucket needs no release; leaving it out bounds the list by its bytes.
        if !(bucket.frames.is_empty() && bucket.console.is_empty()) {
            state.sealed.push_back((epoch, bucket));
        }
        output
    }

    fn release(&self, through: EpochId, until: Instant) -> bool {
        {
            let mut state = self.shared.lock();
            if state.mode == Mode::Shut {
                return true;
            }
            while state.sealed.front().is_some_and(|(e, _)| *e <= through) {
                if let Some((_, bucket)) = state.sealed.pop_front() {
                    state.let_go(bucket);
                }
            }
        }
        self.shared.drain_all(Some(until))
    }

    fn open(&self) {
        {
            let mut state = self.shared.lock();
            if state.mode == Mode::Shut {
                return;
            }
            state.mode = Mode::Open;
            while let Some((_, bucket)) = state.sealed.pop_front() {
                state.let_go(bucket);
            }
            let bucket = std::mem::take(&mut state.current);
            state.let_go(bucket);
        }
        self.shared.drain_all(None);
    }

    fn shut(&self) {
        let lines: Vec<_> = {
            let mut state = self.shared.lock();
            state.mode = Mode::Shut;
            self.shared.drop_everything(&mut state);
            state.networks.iter().map(|n| Arc::clone(&n.line)).collect()
        };
        // Whoever was handing frames to a sink has seen the mode by the time we get its line: after
        // this nothing leaves any more.
        for line in lines {
            drop(line.lock());
        }
        for line in self.shared.console_lines() {
            if !line.shut(SHUT_WAIT) {
                tracing::warn!("a console write was still under way when the gate was shut");
            }
        }
    }

    fn repeat(&self, output: &SealedOutput) {
        {
            let mut state = self.shared.lock();
            if state.mode == Mode::Shut {
                return;
            }
            for frame in &output.frames {
                // Both the device and the amount are the dead primary's word: checked here.
                if state.waiting_bytes + cost(&frame.bytes) > self.shared.limits.held_bytes_max {
                    break;
                }
                if let Some(network) = state.networks.get_mut(usize::from(frame.device)) {
                    network.outbox.push_back(frame.bytes.clone());
                    state.waiting_bytes += cost(&frame.bytes);
                    self.shared.counters.repeated();
                }
            }
            for run in &output.console {
                if let Some(console) = state.consoles.get(usize::from(run.device)) {
                    console.line.push(run.position, &run.bytes);
                }
            }
        }
        self.shared.drain_all(None);
    }

    fn set_listener(&self, listener: Listener) {
        self.shared.lock().listener = Some(listener);
    }

    fn counts(&self) -> OutputCounts {
        let counters = self.counters();
        OutputCounts {
            held_bytes: counters.waiting_bytes,
            frames_sent: counters.frames_sent,
            frames_dropped: counters.frames_dropped,
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for line in self.console_lines() {
            line.close();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no thread panics while it holds the gate")
    }

    fn console_lines(&self) -> Vec<Arc<ConsoleLine>> {
        let state = self.lock();
        state.consoles.iter().map(|c| Arc::clone(&c.line)).collect()
    }

    /// [`NetPort::send`].
    pub(super) fn send(&self, device: u16, line: &Line, frame: Bytes) -> Result<(), Full> {
        let (place, listener) = self.place(device, &frame);
        match place {
            Place::SendNow => {}
            Place::Held { nearly_full } => return tell_held(listener, nearly_full),
            Place::Queued | Place::Dropped => return Ok(()),
            Place::Full => return self.refuse(listener),
        }
        // Another thread may be handing older frames to the sink: wait for it, then look again.
        let _tx = line.lock();
        let (place, listener) = self.place(device, &frame);
        match place {
            Place::SendNow => self.hand_over(line, &frame),
            Place::Held { nearly_full } => return tell_held(listener, nearly_full),
            Place::Queued | Place::Dropped => {}
            Place::Full => return self.refuse(listener),
        }
        Ok(())
    }

    /// [`NetPort::announce`].
    pub(super) fn announce(&self, line: &Line, frame: &[u8]) -> Result<(), SendError> {
        let _tx = line.lock();
        if self.lock().mode == Mode::Shut {
            return Err(SendError::Closed);
        }
        line.sink.send(frame)
    }

    /// Decides about a frame, and stores it if it has to wait.
    fn place(&self, device: u16, frame: &Bytes) -> (Place, Option<Listener>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let Some(network) = state.networks.get_mut(usize::from(device)) else {
            return (Place::Dropped, None);
        };
        match state.mode {
            Mode::Shut => {
                self.counters.dropped(frame);
                return (Place::Dropped, None);
            }
            Mode::Open if network.outbox.is_empty() => return (Place::SendNow, None),
            Mode::Open | Mode::Holding => {}
        }
        let waiting_bytes = state.waiting_bytes + cost(frame);
        // One frame always fits, however small the limit.
        if waiting_bytes > self.limits.held_bytes_max && state.waiting_bytes > 0 {
            network.starved = true;
            return (Place::Full, state.listener.clone());
        }
        state.waiting_bytes = waiting_bytes;
        if state.mode == Mode::Open {
            // The thread that filled the outbox empties it: it looks again after every batch.
            network.outbox.push_back(frame.clone());
            return (Place::Queued, None);
        }
        state.current.frames.push(NetworkFrame {
            device,
            bytes: frame.clone(),
        });
        self.counters.held(frame);
        let nearly_full = waiting_bytes > self.limits.held_bytes_max / 4 * 3;
        (Place::Held { nearly_full }, state.listener.clone())
    }

    fn refuse(&self, listener: Option<Listener>) -> Result<(), Full> {
        self.counters.refused();
        if let Some(listener) = listener {
            listener(OutputEvent::Full);
        }
        Err(Full)
    }

    /// Gives a frame to the sink. The line must be locked, `State` must not.
    fn hand_over(&self, line: &Line, frame: &Bytes) {
        match line.sink.send(frame) {
            Ok(()) => {
                self.counters.sent(frame);
            }
            // A network may lose frames; the backend itself reports that it is closed.
            Err(_) => self.counters.dropped(frame),
        }
    }

    /// Empties all outboxes; `false` if `until` passed before that was done.
    fn drain_all(&self, until: Option<Instant>) -> bool {
        let lines: Vec<_> = {
            let state = self.lock();
            state.networks.iter().map(|n| Arc::clone(&n.line)).collect()
        };
        for (device, line) in lines.iter().enumerate() {
            let _tx = line.lock();
            while let Some(mut batch) = self.next_batch(device) {
                while let Some(frame) = batch.front() {
                    if until.is_some_and(|until| Instant::now() > until) {
                        self.put_back(device, batch);
                        return false;
                    }
                    self.hand_over(line, frame);
                    batch.pop_front();
                }
            }
        }
        self.kick_starved();
        true
    }

    /// The next frames of an outbox; `None` when it is empty.
    fn next_batch(&self, device: usize) -> Option<VecDeque<Bytes>> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let outbox = &mut state.networks.get_mut(device)?.outbox;
        let frames = outbox.len().min(BATCH_FRAMES);
        let batch: VecDeque<_> = outbox.drain(..frames).collect();
        state.waiting_bytes -= batch.iter().map(cost).sum::<usize>();
        (!batch.is_empty()).then_some(batch)
    }

    /// Puts frames that must not leave now back to where [`Self::next_batch`] took them from.
    fn put_back(&self, device: usize, batch: VecDeque<Bytes>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.mode == Mode::Shut {
            batch.iter().for_each(|frame| self.counters.dropped(frame));
            return;
        }
        if let Some(network) = state.networks.get_mut(device) {
            state.waiting_bytes += batch.iter().map(cost).sum::<usize>();
            batch
                .into_iter()
                .rev()
                .for_each(|frame| network.outbox.push_front(frame));
        }
    }

    /// Wakes refused devices once there is room worth waking for.
    fn kick_starved(&self) {
        let mut state = self.lock();
        if state.waiting_bytes > self.limits.held_bytes_max / 4 * 3 {
            return;
        }
        state.kick_starved();
    }

    fn drop_everything(&self, state: &mut State) {
        let sealed = state.sealed.drain(..).flat_map(|(_, b)| b.frames);
        let current = std::mem::take(&mut state.current).frames;
        for frame in sealed.chain(current) {
            self.counters.dropped(&frame.bytes);
        }
        for network in &mut state.networks {
            for frame in network.outbox.drain(..) {
                self.counters.dropped(&frame);
            }
        }
        for console in &mut state.consoles {
            console.held_bytes = 0;
        }
        state.waiting_bytes = 0;
        state.kick_starved();
    }

    /// [`ConsolePort::write`].
    pub(super) fn console_write(&self, device: u16, bytes: &[u8]) -> Result<(), Full> {
        let listener = {
            let mut guard = self.lock();
            let state = &mut *guard;
            let Some(console) = state.consoles.get_mut(usize::from(device)) else {
                return Ok(());
            };
            if state.mode == Mode::Shut {
                console.position = console.position.saturating_add(bytes.len() as u64);
                return Ok(());
            }
            let waiting = console.held_bytes + console.line.queued_bytes();
            if waiting + bytes.len() > self.limits.console_bytes_max {
                console.line.set_starved();
                return Err(Full);
            }
            let position = console.position;
            console.position = console.position.saturating_add(bytes.len() as u64);
            if state.mode == Mode::Open {
                console.line.push(position, bytes);
                return Ok(());
            }
            console.held_bytes += bytes.len();
            state.current.push_console(device, position, bytes);
            state.listener.clone()
        };
        if let Some(listener) = listener {
            listener(OutputEvent::Waiting);
        }
        Ok(())
    }

    /// [`ConsolePort::has_room`].
    pub(super) fn console_has_room(&self, device: u16) -> bool {
        let state = self.lock();
        let Some(console) = state.consoles.get(usize::from(device)) else {
            return true;
        };
        let has_room = || {
            let waiting = console.held_bytes + console.line.queued_bytes();
            waiting < self.limits.console_bytes_max / 4 * 3
        };
        if has_room() {
            return true;
        }
        console.line.set_starved();
        // The last write may have ended in between, unaware that somebody waits.
        has_room()
    }

    /// [`ConsolePort::position`].
    pub(super) fn console_position(&self, device: u16) -> u64 {
        let state = self.lock();
        state
            .consoles
            .get(usize::from(device))
            .map_or(0, |c| c.position)
    }

    /// [`ConsolePort::set_position`].
    pub(super) fn set_console_position(&self, device: u16, position: u64) {
        if let Some(console) = self.lock().consoles.get_mut(usize::from(device)) {
            console.position = position;
        }
    }
}

impl State {
    /// Moves a bucket's output to where it may leave.
    fn let_go(&mut self, bucket: Bucket) {
        for frame in bucket.frames {
            if let Some(network) = self.networks.get_mut(usize::from(frame.device)) {
                network.outbox.push_back(frame.bytes);
            }
        }
        for run in bucket.console {
            if let Some(console) = self.consoles.get_mut(usize::from(run.device)) {
                console.held_bytes -= run.bytes.len();
                console.line.push(run.position, &run.bytes);
            }
        }
    }

    fn kick_starved(&mut self) {
        for network in self.networks.iter_mut().filter(|n| n.starved) {
            network.starved = false;
            // Fails only if the counter is full: then a kick is pending anyhow.
            let _ = network.line.space.write(1);
        }
    }
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, ()> {
        self.tx
            .lock()
            .expect("no thread panics while it sends frames")
    }
}

/// Tells the listener of a held frame. No lock is held: it may ask the gate.
fn tell_held(listener: Option<Listener>, nearly_full: bool) -> Result<(), Full> {
    if let Some(listener) = listener {
        listener(if nearly_full {
            OutputEvent::Full
        } else {
            OutputEvent::Waiting
        });
    }
    Ok(())
}
