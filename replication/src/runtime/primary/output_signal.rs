//! Tells the driver, for device threads, that output waits. It does so at most once per epoch: a guest that
//! streams must not wake the driver for each frame.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::output::OutputEvent;

#[derive(Debug, Default)]
pub(super) struct OutputSignal {
    /// Output has come since the last seal that the driver knows of.
    fresh: AtomicBool,
    /// The gate is nearly full.
    full: AtomicBool,
    /// Something is to follow the guest that the driver does not know of.
    arrived: AtomicBool,
    notify: Notify,
}

impl OutputSignal {
    pub(super) fn listener(self: &Arc<Self>) -> Arc<dyn Fn(OutputEvent) + Send + Sync> {
        let signal = Arc::clone(self);
        Arc::new(move |event| {
            let flag = match event {
                OutputEvent::Waiting => &signal.fresh,
                OutputEvent::Full => &signal.full,
                OutputEvent::Arrived => &signal.arrived,
            };
            if !flag.swap(true, Ordering::AcqRel) {
                signal.notify.notify_one();
            }
        })
    }

    /// Waits for the first output since the last [`OutputSignal::clear_fresh`], for a full gate, or for
    /// something that is to follow the guest.
    pub(super) async fn wait(&self) {
        self.notify.notified().await;
    }

    /// Further output is to wake the driver again.
    pub(super) fn clear_fresh(&self) {
        self.fresh.store(false, Ordering::SeqCst);
    }

    /// Whether the gate has filled up since the last call.
    pub(super) fn take_full(&self) -> bool {
        self.full.swap(false, Ordering::AcqRel)
    }

    /// Whether something has come since the last call that is to follow the guest.
    pub(super) fn take_arrived(&self) -> bool {
        self.arrived.swap(false, Ordering::AcqRel)
    }

    /// Whether output has come since the last [`OutputSignal::clear_fresh`].
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh.load(Ordering::Acquire)
    }
}
