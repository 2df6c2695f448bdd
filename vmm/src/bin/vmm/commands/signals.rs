//! SIGTERM, SIGINT and SIGHUP as requests to leave: the last one ends the process as usual.

use std::future::pending;

use anyhow::{Context, Result};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use understudy_vmm::node::{NodeHandle, Request};

/// Signals that are caught and wait to be heard.
pub(crate) struct Signals {
    runtime: Runtime,
    caught: Caught,
}

struct Caught {
    terminate: Signal,
    interrupt: Signal,
    /// The terminal has gone. `None` if whoever started the program wants it to live on then, as nohup does.
    hangup: Option<Signal>,
}

impl Caught {
    /// The next signal's name.
    async fn next(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = hangup => "SIGHUP",
        }
    }
}

impl Signals {
    /// Catches them from now on.
    pub(crate) fn listen() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot listen for signals")?;
        let caught = {
            let _inside = runtime.enter();
            let hangup = SignalKind::hangup();
            Caught {
                terminate: signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
                interrupt: signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
                hangup: (!is_ignored(hangup))
                    .then(|| signal(hangup))
                    .transpose()
                    .context("cannot listen for SIGHUP")?,
            }
        };
        Ok(Self { runtime, caught })
    }

    /// Has `node` leave for each signal, so many times; one more ends the process at once.
    pub(crate) fn stop(self, node: NodeHandle, times: usize) -> Result<()> {
        let mut heard = 0;
        self.each(move |_| {
            if heard == times {
                tracing::warn!("one more signal: ending at once");
                std::process::exit(i32::from(crate::exit::FAILED));
            }
            heard += 1;
            if let Err(denial) = node.post(Request::Leave) {
                tracing::warn!("a signal to stop is not heard: {denial}");
            }
        })
    }

    /// Calls `hear` with the name of each signal, on a thread of its own.
    pub(crate) fn each(self, mut hear: impl FnMut(&'static str) + Send + 'static) -> Result<()> {
        let Self {
            runtime,
            mut caught,
        } = self;
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                loop {
                    hear(runtime.block_on(caught.next()));
                }
            })
            .context("cannot listen for signals")?;
        Ok(())
    }
}

/// Whether the process was started with this signal ignored.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| {
        let mask = line.strip_prefix("SigIgn:")?;
        u64::from_str_radix(mask.trim(), 16).ok()
    });
    mask.unwrap_or(0) & 1 << (kind.as_raw_value() - 1) != 0
}
