//! SIGTERM and SIGINT as requests to stop: the last one ends the process as usual.

use anyhow::{Context, Result};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use understudy_vmm::node::{NodeHandle, Request};

/// Signals that are caught and wait to be heard.
pub(crate) struct Signals {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Catches them from now on.
    pub(crate) fn listen() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot listen for signals")?;
        let (terminate, interrupt) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
                signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
            )
        };
        Ok(Self {
            runtime,
            terminate,
            interrupt,
        })
    }

    /// Requests a stop of `node` for each signal, so many times; one more ends the process at once.
    pub(crate) fn stop(self, node: NodeHandle, times: usize) -> Result<()> {
        let Self {
            runtime,
            mut terminate,
            mut interrupt,
        } = self;
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                runtime.block_on(async {
                    for number in 0.. {
                        tokio::select! {
                            _ = terminate.recv() => {}
                            _ = interrupt.recv() => {}
                        }
                        if number == times {
                            tracing::warn!("one more signal: ending at once");
                            std::process::exit(i32::from(crate::exit::FAILED));
                        }
                        if let Err(denial) = node.post(Request::Stop) {
                            tracing::warn!("a signal to stop is not heard: {denial}");
                        }
                    }
                });
            })
            .context("cannot listen for signals")?;
        Ok(())
    }
}
