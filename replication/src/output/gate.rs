//! The gate as the runtime sees it: hold, seal, release, open, shut, repeat.
//!
//! Locks, in this order: a [`FrameLine`]'s → `GateState` → a console writer's queue. `GateState` is
//! never locked while a sink, a waker or the listener is called. So a device that puts output into
//! the gate never waits for the wire while the gate holds. The gate takes no device lock: `seal`
//! runs while the pauser holds them all.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::arrivals::{Arrivals, Incoming};
use super::console::ConsolePort;
use super::counters::{Counters, OutputCounts};
use super::limits::{GateLimits, nearly_full};
use super::line::FrameLine;
use super::network::NetPort;
use super::sealed::{NetworkFrame, SealedOutput};
use super::signals::OutputListener;
use super::sink::{ConsoleSink, FrameSink};
use super::state::{Console, GateInner, GateMode, GateState, Network};
use super::writer::ConsoleWriter;
use crate::ids::EpochId;

/// How long `shut` waits for a console write in progress.
const SHUT_WAIT: Duration = Duration::from_millis(100);

/// The machine's output gate. All of the guest's output passes through it (step ⑨). Clones are the
/// same gate.
///
/// A gate starts *open*: output passes at once. [`hold`](Self::hold) closes it: output collects in
/// the current bucket. [`seal`](Self::seal) ends the bucket and gives it to an epoch.
/// [`release`](Self::release) lets sealed buckets leave, in order. The gate is bounded. When it is
/// full, the devices stop taking output from the guest, nothing is dropped, and the listener is
/// told.
#[derive(Clone)]
pub struct OutputGate {
    inner: Arc<GateInner>,
}

impl Default for OutputGate {
    /// An open gate without ports, with the usual limits.
    fn default() -> Self {
        Self::new(GateLimits::default())
    }
}

/// For the machine that owns the gate.
impl OutputGate {
    /// An open gate without ports.
    #[must_use]
    pub fn new(limits: GateLimits) -> Self {
        Self {
            inner: Arc::new(GateInner {
                state: Mutex::new(GateState::new()),
                limits,
                counters: Counters::default(),
            }),
        }
    }

    /// Adds the next network device, in configuration order. `wake` is called from any thread when
    /// a refused device may try again; it must not block.
    ///
    /// # Panics
    /// At the 65,537th network device.
    pub fn add_network(
        &self,
        sink: Arc<dyn FrameSink>,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> NetPort {
        let line = Arc::new(FrameLine::new(sink, Arc::new(wake)));
        let mut state = self.inner.state.lock();
        let device = u16::try_from(state.networks.len()).expect("a machine has few devices");
        state.networks.push(Network::new(Arc::clone(&line)));
        NetPort::new(Arc::clone(&self.inner), device, line)
    }

    /// Adds the next console, in configuration order, and starts the thread that writes to `sink`.
    /// `wake` is as for [`OutputGate::add_network`].
    ///
    /// # Errors
    /// If the host has no thread left.
    ///
    /// # Panics
    /// At the 65,537th console.
    pub fn add_console(
        &self,
        sink: Box<dyn ConsoleSink>,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<ConsolePort> {
        let mut state = self.inner.state.lock();
        let device = u16::try_from(state.consoles.len()).expect("a machine has few devices");
        let bytes_max = self.inner.limits.console_bytes_max;
        let writer = ConsoleWriter::spawn(device, sink, Arc::new(wake), bytes_max)?;
        state.consoles.push(Console::new(writer));
        Ok(ConsolePort::new(Arc::clone(&self.inner), device))
    }

    /// Waits until every console has written what may leave, at most `timeout` for each. False if a
    /// console did not finish in time.
    #[must_use]
    pub fn flush_consoles(&self, timeout: Duration) -> bool {
        let writers = self.inner.state.lock().console_writers();
        let is_late = |writer: &Arc<ConsoleWriter>| !writer.wait_idle(timeout);
        // Waits for all of them, even after one was late.
        writers.into_iter().filter(is_late).count() == 0
    }

    /// Whether output may leave now.
    #[must_use]
    pub fn mode(&self) -> GateMode {
        self.inner.state.lock().mode
    }

    /// What has passed so far, and what is waiting.
    #[must_use]
    pub fn counts(&self) -> OutputCounts {
        let state = self.inner.state.lock();
        let held_bytes = state.waiting_bytes() as u64;
        let lost = state
            .consoles
            .iter()
            .map(|console| console.writer.lost_bytes());
        self.inner.counters.read(held_bytes, lost.sum())
    }
}

/// For the runtime that protects the guest.
impl OutputGate {
    /// Holds output from now on. Called while the guest is paused.
    pub fn hold(&self) {
        self.inner.state.lock().hold();
    }

    /// Ends the current bucket as that of `epoch` and returns a copy for the backup. Called while
    /// the guest is paused and the gate holds.
    pub fn seal(&self, epoch: EpochId) -> SealedOutput {
        let repeat_bytes_max = self.inner.limits.repeat_bytes();
        self.inner.state.lock().seal(epoch, repeat_bytes_max)
    }

    /// Whether there is output that is not sealed yet.
    #[must_use]
    pub fn is_collecting(&self) -> bool {
        self.inner.state.lock().is_collecting()
    }

    /// Lets the output of all epochs up to and including `through` leave. Once `is_in_time` says no,
    /// stops between two frames and returns `false`: this process was stalled and may no longer own
    /// the guest. The rest stays held until the next call of `release` or `open`.
    pub fn release(&self, through: EpochId, is_in_time: impl Fn() -> bool) -> bool {
        {
            let mut state = self.inner.state.lock();
            if state.mode == GateMode::Shut {
                return true;
            }
            state.release(through);
        }
        let all = self.drain(is_in_time);
        if all {
            self.inner.state.lock().sent(through);
        }
        all
    }

    /// The frames of all epochs up to this one have left, and the networks took each. Who takes the guest over need not
    /// repeat them.
    #[must_use]
    pub fn left_through(&self) -> EpochId {
        self.inner.state.lock().left_through
    }

    /// Lets everything leave and opens the gate: the arbiter granted this side to run alone.
    pub fn open(&self) {
        {
            let mut state = self.inner.state.lock();
            if state.mode == GateMode::Shut {
                return;
            }
            state.open();
        }
        self.drain(|| true);
    }

    /// Drops everything held. Nothing leaves any more, for good: another side owns the guest.
    pub fn shut(&self) {
        let (lines, writers) = {
            let mut state = self.inner.state.lock();
            state.shut(&self.inner.counters);
            (state.frame_lines(), state.console_writers())
        };
        self.wake_devices();
        // A thread that was handing frames to a sink has seen the mode by the time we get its line.
        // Nothing leaves after this.
        for line in lines {
            drop(line.lock());
        }
        for writer in writers {
            if !writer.shut(SHUT_WAIT) {
                tracing::warn!("a console write was still under way when the gate was shut");
            }
        }
    }

    /// Sends `output` of the last committed epoch again, after a promotion and before the guest
    /// runs. Leaves out console bytes that the console already has.
    pub fn repeat(&self, output: &SealedOutput) {
        {
            let mut state = self.inner.state.lock();
            if state.mode == GateMode::Shut {
                return;
            }
            let held_bytes_max = self.inner.limits.held_bytes_max;
            state.repeat(output, held_bytes_max, &self.inner.counters);
        }
        self.drain(|| true);
    }

    /// From the end of the running epoch on, keeps copies of what the guest is given: it is to be handed over.
    pub fn keep_arrivals(&self) {
        self.inner.state.lock().incoming = Incoming::Kept(Arrivals::default());
    }

    /// The guest goes on elsewhere. What it was given since follows it, see [`OutputGate::take_arrivals`]; the
    /// listener is told when there is more.
    pub fn follow_arrivals(&self) {
        self.inner.state.lock().incoming.follow();
    }

    /// Takes what is to follow the guest, if anything is.
    pub fn take_arrivals(&self) -> Vec<NetworkFrame> {
        self.inner.state.lock().incoming.take()
    }

    /// The guest stays. It has had everything itself.
    pub fn forget_arrivals(&self) {
        self.inner.state.lock().incoming = Incoming::Ignored;
    }

    /// Gives the devices what came with the guest from its old host, before all that they have kept for it. Called
    /// before the guest runs.
    pub fn deliver(&self, arrivals: &[NetworkFrame]) {
        let mut state = self.inner.state.lock();
        for (device, network) in (0..).zip(&mut state.networks) {
            let is_its_own = |frame: &&NetworkFrame| frame.device == device;
            let own = arrivals.iter().filter(is_its_own);
            network.arrived.put_first(own.map(|it| &it.bytes));
        }
    }

    /// Sets the listener, which is told that output has begun to wait, that the gate is nearly
    /// full, or that something is to follow the guest. It is called from device threads and must be cheap.
    /// It replaces the one before.
    pub fn set_listener(&self, listener: OutputListener) {
        self.inner.state.lock().listener = Some(listener);
    }

    /// Empties all outboxes; `false` if the time was over first.
    fn drain(&self, is_in_time: impl Fn() -> bool) -> bool {
        let GateInner {
            state, counters, ..
        } = &*self.inner;
        let lines = state.lock().frame_lines();
        for (device, line) in lines.iter().enumerate() {
            let line = line.lock();
            loop {
                let Some(mut batch) = state.lock().next_batch(device) else {
                    break;
                };
                while let Some(frame) = batch.front() {
                    if !is_in_time() {
                        state.lock().put_back(device, batch, counters);
                        return false;
                    }
                    if !line.hand_over(frame, counters) {
                        state.lock().is_some_refused = true;
                    }
                    batch.pop_front();
                }
            }
        }
        self.wake_devices();
        true
    }

    /// Wakes refused devices once there is enough room.
    fn wake_devices(&self) {
        let bytes_max = nearly_full(self.inner.limits.held_bytes_max);
        let wakers = self.inner.state.lock().take_waiting_devices(bytes_max);
        wakers.iter().for_each(|wake| wake());
    }
}
