//! SIGTERM and SIGINT as wishes to stop cleanly: one more than there are wishes ends the process as usual.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Starts to listen; the receiver gets an item for each of so many times that a person or the service manager wants
/// an end.
pub(crate) fn listen(wishes: usize) -> Result<Receiver<()>> {
    let (sender, receiver) = sync_channel(wishes);
    pass_on(sender, wishes)?;
    Ok(receiver)
}

/// The same for a channel on which there are other such wishes, too.
pub(crate) fn pass_on(sender: SyncSender<()>, wishes: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot listen for signals")?;
    let (mut terminate, mut interrupt) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?,
            signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?,
        )
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                for number in 0.. {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                    if number < wishes {
                        // Nobody may be interested any more.
                        let _ = sender.try_send(());
                    } else {
                        tracing::warn!("one more signal: ending at once");
                        std::process::exit(i32::from(crate::exit::FAILED));
                    }
                }
            });
        })
        .context("cannot listen for signals")?;
    Ok(())
}
