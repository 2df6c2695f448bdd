//! Starts the runtime's threads, and the asynchronous runtime in them.

use std::thread::JoinHandle;

use super::error::RuntimeError;

/// Starts one of a side's threads.
pub(super) fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, RuntimeError> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(body)
        .map_err(|source| RuntimeError::System {
            what: "start a thread",
            source,
        })
}

pub(super) fn tokio_runtime() -> Result<tokio::runtime::Runtime, RuntimeError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| RuntimeError::System {
            what: "start the asynchronous runtime",
            source,
        })
}
