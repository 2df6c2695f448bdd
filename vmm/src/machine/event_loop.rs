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

use super::attach::{Attached, Health};
use super::events::{Events, MachineEvent};
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
    pub(super) fn spawn(devices: &mut [Attached], events: Arc<Events>) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let quit = EventFd::new(EFD_NONBLOCK)?;
        epoll.ctl(
            ControlOperation::Add,
            quit.as_raw_fd(),
            EpollEvent::new(EventSet::IN, QUIT),
        )?;
        let mut sources: Vec<Source> = Vec::new();
        let mut wards = Vec::new();
        for attached in devices {
            wards.push(Ward {
                name: attached.name.clone(),
                device: attached.device.clone(),
                health: attached.health.take(),
            });
            for (number, source) in lock(&attached.device).event_sources().iter().enumerate() {
                let (fd, events) = match source {
                    EventSource::Counter(fd) => (*fd, EventSet::IN),
                    EventSource::Input(fd) => (*fd, EventSet::IN | EventSet::EDGE_TRIGGERED),
                };
                let event = EpollEvent::new(events, sources.len() as u64);
                epoll.ctl(ControlOperation::Add, fd, event)?;
                sources.push(Source {
                    ward: wards.len() - 1,
                    number,
                    is_outside: matches!(source, EventSource::Input(_)),
                });
            }
        }
        let gate = Arc::new(Mutex::new(()));
        let thread = std::thread::Builder::new().name("devices".into()).spawn({
            let gate = gate.clone();
            move || serve(&epoll, &gate, &sources, &mut wards, &events)
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

/// A device in the care of the thread.
struct Ward {
    name: String,
    device: Arc<Mutex<dyn Device>>,
    /// Taken away when it has told of a loss: told once.
    health: Option<Health>,
}

/// One of a device's descriptors.
struct Source {
    ward: usize,
    /// Its number within the device.
    number: usize,
    /// It is connected to something outside the machine, which may be lost.
    is_outside: bool,
}

fn serve(epoll: &Epoll, gate: &Mutex<()>, sources: &[Source], wards: &mut [Ward], events: &Events) {
    let mut ready = vec![EpollEvent::default(); EVENTS_PER_WAIT];
    loop {
        let count = match epoll.wait(-1, &mut ready) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::error!("devices get no events any more: {error}");
                return;
            }
        };
        for event in &ready[..count] {
            if event.data() == QUIT {
                return;
            }
            let Some(source) = sources.get(event.data() as usize) else {
                continue;
            };
            let ward = &mut wards[source.ward];
            // One event at a time, so that a pause waits for one handler at most.
            let _gate = hold(gate);
            lock(&ward.device).handle_event(source.number);
            if source.is_outside
                && let Some(what) = ward.health.as_ref().and_then(|health| health())
            {
                ward.health = None;
                events.tell(&MachineEvent::BackendLost {
                    device: ward.name.clone(),
                    what,
                });
            }
        }
    }
}
