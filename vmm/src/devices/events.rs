//! The event thread: waits for the descriptors of all devices and calls the device that is meant, with
//! its mutex locked. It must not know what a device does with an event.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, RemoteEndpoint, SubscriberOps,
};
use vmm_sys_util::epoll::EventSet;

use super::{Device, EventSource, lock};

/// The thread that serves all devices of a machine. Dropping it ends it; no device may be locked by
/// whoever does that.
pub struct EventThread {
    stop: Arc<AtomicBool>,
    endpoint: RemoteEndpoint<Watch>,
    thread: Option<JoinHandle<()>>,
}

/// Why devices cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum EventError {
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
    #[error("cannot start the event thread")]
    Thread(#[source] std::io::Error),
}

/// One device, as the event loop sees it.
struct Watch {
    device: Arc<Mutex<dyn Device>>,
    sources: Vec<EventSource>,
    /// `init` cannot return an error.
    failure: Option<(usize, event_manager::Error)>,
}

impl EventThread {
    /// Starts to serve `devices`.
    ///
    /// # Errors
    /// If the host has no descriptors or threads left.
    pub fn spawn(
        devices: impl IntoIterator<Item = Arc<Mutex<dyn Device>>>,
    ) -> Result<Self, EventError> {
        let mut manager = EventManager::new().map_err(EventError::Setup)?;
        for device in devices {
            watch(&mut manager, device)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let endpoint = manager.remote_endpoint();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("devices".to_owned())
            .spawn(move || serve(manager, &stopped))
            .map_err(EventError::Thread)?;
        Ok(Self {
            stop,
            endpoint,
            thread: Some(thread),
        })
    }
}

fn watch(
    manager: &mut EventManager<Watch>,
    device: Arc<Mutex<dyn Device>>,
) -> Result<(), EventError> {
    let (name, sources) = {
        let device = lock(&device);
        (device.name().to_owned(), device.event_sources())
    };
    let id = manager.add_subscriber(Watch {
        device,
        sources,
        failure: None,
    });
    let watch = manager.subscriber_mut(id).map_err(EventError::Setup)?;
    match watch.failure.take() {
        None => Ok(()),
        Some((source_index, source)) => Err(EventError::Watch {
            device: name,
            source_index,
            source,
        }),
    }
}

fn serve(mut manager: EventManager<Watch>, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        if let Err(error) = manager.run() {
            // Only a bug in the loop's set-up gets here. Without events the guest's devices stand
            // still, which its peers and the heartbeat's application checks see.
            tracing::error!(%error, "the event thread ends");
            return;
        }
    }
}

impl MutEventSubscriber for Watch {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        lock(&self.device).handle_event(events.data() as usize);
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (index, source) in self.sources.iter().enumerate() {
            let (fd, set) = match *source {
                EventSource::Counter(fd) => (fd, EventSet::IN),
                EventSource::Input(fd) => (fd, EventSet::IN | EventSet::EDGE_TRIGGERED),
            };
            if let Err(error) = ops.add(Events::with_data_raw(fd, index as u32, set)) {
                self.failure = Some((index, error));
                return;
            }
        }
    }
}

impl Drop for EventThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Err(error) = self.endpoint.kick() {
            tracing::error!(%error, "the event thread cannot be woken to end");
            return;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the event thread panicked");
        }
    }
}
