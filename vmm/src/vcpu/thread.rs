//! The thread of a vCPU.
//!
//! ```text
//!            run order                    exit byte + signal
//!  parked ───────────────► running ──────────────────────────► parked
//!    │                        │
//!    │ stop order             │ it fails
//!    └──────────► ended ◄─────┘
//! ```
//!
//! While the guest is slowed, a vCPU that should run is *held* again and again: it is parked in all but name, too. In between
//! it runs for a slice of time, whose end it sees to itself.
//!
//! While the guest is *halted* (it wants a reset, or wants to end), a vCPU that should run stands
//! still too. It is parked in all but name, so its state can be saved like any other.
//!
//! The descriptor's lock is held while running and free while parked, so that the code that paused
//! the vCPU can read and write its state.
//!
//! Pending port or memory I/O: when `KVM_RUN` returns for an access, the instruction is only half
//! done. The *next* `KVM_RUN` takes in the result, so a state saved in between would lose it. The
//! thread therefore never parks after an access. It parks only when `KVM_RUN` returns `EINTR`. With
//! the exit byte set, the next call does just that: it completes what is pending (including any
//! further accesses of the same instruction), does not enter the guest, and returns `EINTR`.
//!
//! What must not be done here: save state, or decide when to pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use parking_lot::{Condvar, Mutex};
use vmm_sys_util::signal::{Killable, SIGRTMIN};

use super::VcpuError;
use super::ending::Ending;
use super::slice::Slice;
use crate::devices::Bus;
use crate::kvm::{AlarmTimer, Leaves, VcpuHandle, exit_signal};

/// How long a vCPU may take to leave the guest before it counts as stuck. It usually takes 0.2 ms.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Where the guest's accesses go.
#[derive(Clone)]
pub struct Buses {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Memory-mapped I/O.
    pub mmio: Arc<Bus>,
    /// While it is set, no vCPU enters the guest. It is cleared only while all are parked.
    pub halted: Arc<AtomicBool>,
}

/// Called when a vCPU stops on its own.
pub type OnEnd = Arc<dyn Fn(u8, Ending) + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Park,
    Run,
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Parked,
    Running,
    Ended,
}

/// What the thread should do and what it does.
#[derive(Debug)]
struct State {
    order: Order,
    /// The guest is slowed: a vCPU that should run stands still for a moment.
    held: bool,
    /// It may run for so long, and is held then.
    slice: Option<Slice>,
    phase: Phase,
}

/// The state, with a condition variable for both sides.
#[derive(Debug)]
struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

/// A vCPU's thread, as its machine holds it. Dropping this ends the thread.
pub struct VcpuThread {
    handle: Arc<VcpuHandle>,
    control: Arc<Control>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl VcpuThread {
    /// Starts a thread in the parked state.
    ///
    /// # Errors
    /// If the host cannot start another thread.
    pub fn spawn(handle: Arc<VcpuHandle>, buses: Buses, on_end: OnEnd) -> Result<Self, VcpuError> {
        let vcpu = handle.id();
        exit_signal::register().map_err(|source| VcpuError::Signal { vcpu, source })?;
        let control = Arc::new(Control {
            state: Mutex::new(State {
                order: Order::Park,
                held: false,
                slice: None,
                phase: Phase::Parked,
            }),
            changed: Condvar::new(),
        });
        let runner = Runner {
            handle: handle.clone(),
            control: control.clone(),
            buses,
            on_end,
        };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{vcpu}"))
            .spawn(move || runner.run_orders())
            .map_err(|source| VcpuError::Spawn { vcpu, source })?;
        Ok(Self {
            handle,
            control,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The vCPU itself. Its descriptor can be locked only while the vCPU is parked or ended.
    #[must_use]
    pub fn handle(&self) -> &Arc<VcpuHandle> {
        &self.handle
    }

    /// Lets the vCPU run.
    pub fn resume(&self) {
        let mut state = self.control.state.lock();
        if state.order == Order::Park {
            state.order = Order::Run;
            self.control.changed.notify_all();
        }
    }

    /// Asks the vCPU to stop, without waiting. Ask all vCPUs first, then wait for all, so that they
    /// stop in parallel.
    ///
    /// # Errors
    /// If the thread cannot be signalled.
    pub fn request_park(&self) -> Result<(), VcpuError> {
        self.request(Order::Park)
    }

    fn request(&self, order: Order) -> Result<(), VcpuError> {
        let mut state = self.control.state.lock();
        if state.order == Order::Stop {
            return Ok(());
        }
        state.order = order;
        self.interrupt(&state)
    }

    /// Has the thread look at its state.
    fn interrupt(&self, state: &State) -> Result<(), VcpuError> {
        // Byte first, then the signal: see `ExitPage`. Both under the lock, so that the thread
        // cannot start to run in between and clear the byte.
        self.handle.exit().request();
        self.control.changed.notify_all();
        let thread = self.thread.lock();
        if state.phase == Phase::Running
            && let Some(thread) = &*thread
        {
            thread.kill(SIGRTMIN()).map_err(|error| VcpuError::Signal {
                vcpu: self.handle.id(),
                source: error.into(),
            })?;
        }
        Ok(())
    }

    /// Keeps the vCPU from running until [`VcpuThread::release`], whatever else it is told, without waiting for it to
    /// stop.
    ///
    /// # Errors
    /// If the thread cannot be signalled.
    pub fn hold(&self) -> Result<(), VcpuError> {
        let mut state = self.control.state.lock();
        state.held = true;
        match state.phase {
            Phase::Running => self.interrupt(&state),
            Phase::Parked | Phase::Ended => Ok(()),
        }
    }

    /// Lets a vCPU that is held run for so long, if it should run at all, and holds it again. One that is not held begins a
    /// slice, too.
    ///
    /// # Errors
    /// If the thread cannot be signalled.
    pub fn run_for(&self, time: Duration) -> Result<(), VcpuError> {
        let mut state = self.control.state.lock();
        state.held = false;
        state.slice = Some(Slice::new(time));
        match state.phase {
            // It sets its timer when it runs again.
            Phase::Running => self.interrupt(&state),
            Phase::Parked | Phase::Ended => {
                self.control.changed.notify_all();
                Ok(())
            }
        }
    }

    /// Whether it is kept from running, or has come to the end of its slice.
    #[cfg(test)]
    pub(crate) fn is_held(&self) -> bool {
        self.control.state.lock().held
    }

    /// For how long it has run since [`VcpuThread::run_for`].
    #[must_use]
    pub fn ran_for(&self) -> Duration {
        let slice = self.control.state.lock().slice;
        slice.map_or(Duration::ZERO, |slice| slice.ran(Instant::now()))
    }

    /// Ends what [`VcpuThread::hold`] or [`VcpuThread::run_for`] began.
    pub fn release(&self) {
        let mut state = self.control.state.lock();
        state.held = false;
        state.slice = None;
        drop(state);
        self.control.changed.notify_all();
    }

    /// Waits until the vCPU stands still.
    ///
    /// # Errors
    /// If it does not stop, or if it has ended and there is nothing left to pause.
    pub fn wait_parked(&self) -> Result<(), VcpuError> {
        self.wait_parked_for(STOP_LIMIT)
    }

    /// The same, for so long at most.
    ///
    /// # Errors
    /// As [`VcpuThread::wait_parked`].
    pub fn wait_parked_for(&self, limit: Duration) -> Result<(), VcpuError> {
        let vcpu = self.handle.id();
        let started = Instant::now();
        let mut state = self.control.state.lock();
        while state.phase == Phase::Running {
            let left = limit.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(VcpuError::Stuck {
                    vcpu,
                    waited_ms: limit.as_millis(),
                });
            }
            self.control.changed.wait_for(&mut state, left);
        }
        if state.phase == Phase::Ended {
            return Err(VcpuError::Ended { vcpu });
        }
        Ok(())
    }

    /// Ends the thread and waits for it.
    pub fn stop(&self) {
        if let Err(error) = self.request(Order::Stop) {
            tracing::error!("{error}");
        }
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the thread of vCPU {} panicked", self.handle.id());
        }
    }
}

impl Drop for VcpuThread {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The thread's side.
struct Runner {
    handle: Arc<VcpuHandle>,
    control: Arc<Control>,
    buses: Buses,
    on_end: OnEnd,
}

/// Marks the vCPU as ended however the thread leaves, so that nobody waits for a thread that
/// panicked.
struct EndGuard<'a>(&'a Runner);

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        let Runner {
            handle,
            control,
            on_end,
            ..
        } = self.0;
        control.state.lock().phase = Phase::Ended;
        control.changed.notify_all();
        if std::thread::panicking() {
            on_end(handle.id(), Ending::of_panic());
        }
    }
}

impl Runner {
    fn run_orders(self) {
        let _end = EndGuard(&self);
        let _leaves = Leaves::by(self.handle.exit());
        // Without one, whoever gives slices has to end them.
        let timer = AlarmTimer::new()
            .inspect_err(|error| tracing::warn!("a vCPU has no timer for its slices: {error}"))
            .ok();
        while self.park(timer.as_ref()) {
            let ending = {
                let mut fd = self.handle.lock();
                self.run(&mut fd)
            };
            match ending {
                None => {}
                Some(Ending::TripleFault) => (self.on_end)(self.handle.id(), Ending::TripleFault),
                Some(ending) => return (self.on_end)(self.handle.id(), ending),
            }
        }
    }

    /// Waits for an order. Returns `false` on the order to stop.
    fn park(&self, timer: Option<&AlarmTimer>) -> bool {
        let mut state = self.control.state.lock();
        let is_over = |slice: &mut Slice| slice.stop(Instant::now());
        if state.slice.as_mut().is_some_and(is_over) {
            state.held = true;
        }
        state.phase = Phase::Parked;
        self.control.changed.notify_all();
        while state.order == Order::Park
            || (state.order == Order::Run && (state.held || self.is_halted()))
        {
            self.control.changed.wait(&mut state);
        }
        if state.order == Order::Stop {
            return false;
        }
        state.phase = Phase::Running;
        self.handle.exit().clear();
        if let (Some(slice), Some(timer)) = (&mut state.slice, timer)
            && let Err(error) = timer.set(slice.start(Instant::now()))
        {
            tracing::debug!("a vCPU's slice is not ended by its timer: {error}");
        }
        true
    }

    fn is_halted(&self) -> bool {
        self.buses.halted.load(Ordering::Acquire)
    }

    /// Runs the guest until the vCPU is asked to exit (`None`) or ends.
    fn run(&self, fd: &mut VcpuFd) -> Option<Ending> {
        loop {
            if self.is_halted() {
                // Completes the access that halted the guest, then leaves it.
                self.handle.exit().request();
            }
            return match fd.run() {
                Ok(VcpuExit::IoOut(port, data)) => {
                    self.write_port(port, data);
                    continue;
                }
                Ok(VcpuExit::IoIn(port, data)) => {
                    self.read_port(port, data);
                    continue;
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    self.buses.mmio.read(address, data);
                    continue;
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    self.buses.mmio.write(address, data);
                    continue;
                }
                Ok(VcpuExit::Intr) => continue,
                Ok(VcpuExit::InternalError) => Some(Ending::of_internal_error(fd)),
                Ok(exit) => Some(Ending::of_exit(&exit)),
                // The thread may park only here: see the top of the file.
                Err(error) if error.errno() == libc::EINTR => {
                    if self.handle.exit().is_requested() {
                        return None;
                    }
                    continue;
                }
                // A vCPU that was waiting for its start signal got it: enter again.
                Err(error) if error.errno() == libc::EAGAIN => continue,
                Err(error) => Some(Ending::of_error(&error.into())),
            };
        }
    }

    fn write_port(&self, port: u16, data: &[u8]) {
        for part in data.chunks(port_access_bytes(data.len())) {
            self.buses.ports.write(u64::from(port), part);
        }
    }

    fn read_port(&self, port: u16, data: &mut [u8]) {
        for part in data.chunks_mut(port_access_bytes(data.len())) {
            self.buses.ports.read(u64::from(port), part);
        }
    }
}

/// Port accesses are 1, 2 or 4 bytes wide.
const PORT_BYTES_MAX: usize = 4;

/// The width of each access when `bytes` bytes arrive at once. A string instruction may produce
/// several accesses, and KVM does not say how wide each is. The devices on ports here are
/// byte-wide, so if there are more bytes than one access can carry, each byte is an access.
fn port_access_bytes(bytes: usize) -> usize {
    if bytes > PORT_BYTES_MAX {
        1
    } else {
        bytes.max(1)
    }
}
