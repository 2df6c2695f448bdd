//! The thread that serves devices: it waits for their descriptors and hands events to them.
//!
//! While the machine is paused its gate is held, so no device runs. What must not be done here: know what
//! an event means.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::attach::Attached;
use crate::devices::{Device, EventSource, lock};

/// Events taken from the kernel at once.
const EVENTS_PER_WAIT: usize = 32;
/// The token of the descriptor that ends the thread.
const QUIT: u64 = u64::MAX;

/// The thread, as the machine holds it.
pub(super) struct EventLoop {
    /// Held by the thread while it hands out events, and by whoever paused the machine. It guards nothing
    /// but time, so that a panic elsewhere cannot spoil it.
    gate: Arc<Mutex<()>>,
    quit: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    /// Starts to serve `devices`.
    pub(super) fn spawn(devices: &[Attached]) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let quit = EventFd::new(EFD_NONBLOCK)?;
        epoll.ctl(
            ControlOperation::Add,
            quit.as_raw_fd(),
            EpollEvent::new(EventSet::IN, QUIT),
        )?;
        let mut handlers: Vec<(Arc<Mutex<dyn Device>>, usize)> = Vec::new();
        for attached in devices {
            for (number, source) in lock(&attached.device).event_sources().iter().enumerate() {
                let (fd, events) = match source {
                    EventSource::Counter(fd) => (*fd, EventSet::IN),
                    EventSource::Input(fd) => (*fd, EventSet::IN | EventSet::EDGE_TRIGGERED),
                };
                let event = EpollEvent::new(events, handlers.len() as u64);
                epoll.ctl(ControlOperation::Add, fd, event)?;
                handlers.push((attached.device.clone(), number));
            }
        }
        let gate = Arc::new(Mutex::new(()));
        let thread = std::thread::Builder::new().name("devices".into()).spawn({
            let gate = gate.clone();
            move || serve(&epoll, &gate, &handlers)
        })?;
        Ok(Self {
            gate,
            quit,
            thread: Some(thread),
        })
    }

    /// Keeps the thread from handing out events; waits for the one it may be at.
    pub(super) fn hold(&self) -> MutexGuard<'_, ()> {
        hold(&self.gate)
    }

    /// Ends the thread.
    pub(super) fn stop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        if let Err(error) = self.quit.write(1) {
            // Cannot happen to a counter that nobody else writes; waiting would then be for ever.
            tracing::error!("cannot end the devices' event thread: {error}");
            return;
        }
        if thread.join().is_err() {
            tracing::error!("the devices' event thread panicked");
        }
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.stop();
    }
}

fn hold(gate: &Mutex<()>) -> MutexGuard<'_, ()> {
    gate.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(epoll: &Epoll, gate: &Mutex<()>, handlers: &[(Arc<Mutex<dyn Device>>, usize)]) {
    let mut events = vec![EpollEvent::default(); EVENTS_PER_WAIT];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::error!("devices get no events any more: {error}");
                return;
            }
        };
        for event in &events[..count] {
            if event.data() == QUIT {
                return;
            }
            let Some((device, source)) = handlers.get(event.data() as usize) else {
                continue;
            };
            // One event at a time, so that a pause waits for one handler at most.
            let _gate = hold(gate);
            lock(device).handle_event(*source);
        }
    }
}
