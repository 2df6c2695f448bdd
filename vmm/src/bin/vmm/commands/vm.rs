//! What is left to do when a guest has ended.

use std::time::Duration;

use understudy_replication::output::OutputGate;

/// Longest wait for a console that takes no more, when all else is over.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(5);
/// A wait that is not worth a word.
const CONSOLE_SOON: Duration = Duration::from_millis(100);

/// Lets the consoles take what the guest said last, before the process ends under their threads.
pub(crate) fn finish_consoles(gate: &OutputGate) {
    if gate.flush_consoles(CONSOLE_SOON) {
        return;
    }
    tracing::info!("waiting for the guest's console to take its last output");
    if !gate.flush_consoles(CONSOLE_PATIENCE) {
        tracing::warn!("the guest's console takes no more: its last output is lost");
    }
}
