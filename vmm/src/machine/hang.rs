//! Notices that KVM, or a device, does not let the guest stand still, or does not say what its state is: a capture would
//! wait without end, and clients with it, while this host looks well to everybody else.
//!
//! Looks are counted, not time: after this process stood still, every call is old.
//!
//! What must not be done here: decide what follows from it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use super::events::{Events, MachineEvent};

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// A call that is seen so often in a row hangs: it has taken three and a half seconds, at least.
const LOOKS: u32 = 8;

/// Calls that end within milliseconds, unless KVM or a device hangs. There is one at a time.
#[derive(Debug, Default)]
pub(super) struct Calls {
    /// Of those that began and those that ended together: odd while one is under way.
    count: AtomicU64,
}

/// A call that is under way.
pub(super) struct Call<'a>(&'a Calls);

impl Calls {
    pub(super) fn begin(&self) -> Call<'_> {
        // Nothing else is read or written by what this number says.
        self.count.fetch_add(1, Ordering::Relaxed);
        Call(self)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.0.count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Judges look by look.
#[derive(Debug, Default)]
struct Judge {
    call: u64,
    looks: u32,
}

impl Judge {
    /// Whether the call that is under way hangs, said again and again.
    fn look(&mut self, count: u64) -> bool {
        if count.is_multiple_of(2) || count != self.call {
            (self.call, self.looks) = (count, 0);
        }
        self.looks += u32::from(!count.is_multiple_of(2));
        self.looks > 0 && self.looks.is_multiple_of(LOOKS)
    }
}

/// The thread that looks. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) calls: Arc<Calls>,
    /// Nothing is ever sent.
    _end: SyncSender<()>,
}

impl Watch {
    pub(super) fn start(events: &Arc<Events>) -> std::io::Result<Self> {
        let calls = Arc::new(Calls::default());
        let (end, ended) = sync_channel(0);
        let (seen, events) = (Arc::clone(&calls), Arc::clone(events));
        std::thread::Builder::new()
            .name("hang".into())
            .spawn(move || {
                let mut judge = Judge::default();
                while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                    if judge.look(seen.count.load(Ordering::Relaxed)) {
                        let least = LOOK * (LOOKS - 1);
                        let what = format!(
                            "KVM or a device has not let the guest be captured for {least:?}"
                        );
                        events.tell(&MachineEvent::CaptureHangs { what });
                    }
                }
            })?;
        Ok(Self { calls, _end: end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_hangs_when_it_is_seen_often_in_a_row() {
        let calls = Calls::default();
        let mut judge = Judge::default();
        let mut look = || judge.look(calls.count.load(Ordering::Relaxed));
        // However many there are, if each of them ends.
        for _ in 0..3 * LOOKS {
            let call = calls.begin();
            assert!(!look());
            drop(call);
        }
        for _ in 0..3 * LOOKS {
            assert!(!look(), "nothing is under way");
        }
        let call = calls.begin();
        for _ in 0..2 {
            assert!((1..LOOKS).all(|_| !look()));
            assert!(look());
        }
        drop(call);
        assert!(!look());
    }
}
