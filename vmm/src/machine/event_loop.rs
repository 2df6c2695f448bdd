//! The thread that serves devices: it waits for their descriptors and hands events to them.
//!
//! While the machine is paused the thread does not get its turn, so no device runs.
//!
//! What must not be done here: know what an event means.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use event_manager::{
    EventManager, EventOps, Events as Ready, MutEventSubscriber, RemoteEndpoint, SubscriberOps,
};
use parking_lot::MutexGuard;
use vmm_sys_util::epoll::EventSet;

use super::attach::{Attached, Health};
use super::events::{BreaksOnPanic, Events, MachineEvent};
use crate::devices::{Device, EventSource, lock};

/// Whose turn it is: the thread's, or that of whoever paused the machine.
type Turn = parking_lot::Mutex<()>;

/// The thread, as the machine holds it.
pub(super) struct EventLoop {
    /// Held by the thread while it hands out an event, and by whoever paused the machine. It protects no data.
    turn: Arc<Turn>,
    stop: Arc<AtomicBool>,
    endpoint: RemoteEndpoint<WatchedDevice>,
    thread: Option<JoinHandle<()>>,
}

/// Why devices cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum EventLoopError {
    /// The event loop cannot be set up.
    #[error("cannot set up the event loop for the devices")]
    Setup(#[source] event_manager::Error),
    /// A device's descriptor cannot be watched.
    #[error("device {device}: cannot watch event source {source_index}")]
    Watch {
        /// The device.
        device: String,
        /// Number of the source within the device.
        source_index: usize,
        /// The cause.
        #[source]
        source: event_manager::Error,
    },
    /// No thread can be started.
    #[error("cannot start a thread for the machine's events")]
    Thread(#[source] std::io::Error),
}

impl EventLoop {
    /// Starts to serve `devices`.
    pub(super) fn spawn(
        devices: &mut [Attached],
        events: &Arc<Events>,
    ) -> Result<Self, EventLoopError> {
        let mut manager = EventManager::new().map_err(EventLoopError::Setup)?;
        let turn = Arc::new(Turn::new(()));
        for attached in devices {
            let watched = WatchedDevice {
                name: attached.name.clone(),
                device: attached.device.clone(),
                sources: lock(&attached.device).event_sources(),
                health: attached.health.take(),
                turn: Arc::clone(&turn),
                events: Arc::clone(events),
                failure: None,
            };
            watch(&mut manager, watched)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let endpoint = manager.remote_endpoint();
        let (stopped, events) = (Arc::clone(&stop), Arc::clone(events));
        let thread = std::thread::Builder::new()
            .name("devices".into())
            .spawn(move || serve(manager, &stopped, &events))
            .map_err(EventLoopError::Thread)?;
        Ok(Self {
            turn,
            stop,
            endpoint,
            thread: Some(thread),
        })
    }

    /// Keeps the thread from handing out events; waits for the one it may be handling.
    pub(super) fn hold(&self) -> MutexGuard<'_, ()> {
        self.turn.lock()
    }

    /// Ends the thread.
    pub(super) fn stop(&mut self) {
        let Some(thread) = self.thread.take() else {
            return;
        };
        self.stop.store(true, Ordering::Release);
        if let Err(error) = self.endpoint.kick() {
            // Cannot happen to a counter that nobody else writes; otherwise we would wait forever.
            tracing::error!(%error, "cannot end the devices' event thread");
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

/// A device that the thread serves.
struct WatchedDevice {
    name: String,
    device: Arc<Mutex<dyn Device>>,
    sources: Vec<EventSource>,
    /// Removed once it has reported a loss, so that each loss is reported once.
    health: Option<Health>,
    turn: Arc<Turn>,
    events: Arc<Events>,
    /// `init` cannot return an error.
    failure: Option<(usize, event_manager::Error)>,
}

fn watch(
    manager: &mut EventManager<WatchedDevice>,
    watched: WatchedDevice,
) -> Result<(), EventLoopError> {
    let id = manager.add_subscriber(watched);
    let watched = manager.subscriber_mut(id).map_err(EventLoopError::Setup)?;
    match watched.failure.take() {
        None => Ok(()),
        Some((source_index, source)) => Err(EventLoopError::Watch {
            device: watched.name.clone(),
            source_index,
            source,
        }),
    }
}

fn serve(mut manager: EventManager<WatchedDevice>, stop: &AtomicBool, events: &Events) {
    let whose = "the devices' event thread";
    let _breaks = BreaksOnPanic { events, whose };
    while !stop.load(Ordering::Acquire) {
        if let Err(error) = manager.run() {
            // Only a defect in the loop's set-up gets here.
            return events.break_machine(format!("devices no longer get events: {error}"));
        }
    }
}

impl MutEventSubscriber for WatchedDevice {
    fn process(&mut self, ready: Ready, _: &mut EventOps) {
        let number = ready.data() as usize;
        // One event at a time, so that a pause waits for one handler at most.
        let _turn = self.turn.lock();
        // Told before the turn is over, so that nobody pauses a machine whose device is half changed.
        let _breaks = BreaksOnPanic {
            events: &self.events,
            whose: &self.name,
        };
        lock(&self.device).handle_event(number);
        // Only what is connected to something outside the machine can be lost.
        if matches!(self.sources.get(number), Some(EventSource::Input(_)))
            && let Some(what) = self.health.as_ref().and_then(|health| health())
        {
            self.health = None;
            self.events.tell(&MachineEvent::BackendLost {
                device: self.name.clone(),
                what,
            });
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (index, source) in self.sources.iter().enumerate() {
            let (fd, set) = match *source {
                EventSource::Counter(fd) => (fd, EventSet::IN),
                EventSource::Input(fd) => (fd, EventSet::IN | EventSet::EDGE_TRIGGERED),
            };
            if let Err(error) = ops.add(Ready::with_data_raw(fd, index as u32, set)) {
                self.failure = Some((index, error));
                return;
            }
        }
    }
}
