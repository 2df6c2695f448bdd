//! Requests that the host's storage has failed wait here for somebody's word: the guest sees the error, or they are done again.
//!
//! What must not be done here: decide which.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

/// What becomes of requests that are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    /// The guest sees the error.
    Answer,
    Retry,
}

#[derive(Debug)]
struct Inner {
    word: Mutex<Option<Word>>,
    event: EventFd,
}

/// The requests of a disk that its storage has failed and that are held. Clones are the same.
#[derive(Debug, Clone)]
pub struct FailedRequests(Arc<Inner>);

impl FailedRequests {
    pub(super) fn new() -> io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let word = Mutex::new(None);
        Ok(Self(Arc::new(Inner { word, event })))
    }

    /// The guest sees the errors of those that are held now.
    pub fn answer(&self) {
        self.say(Word::Answer);
    }

    /// Those that are held now are done again; but of a flush the guest sees the error: what it was to make safe may be lost.
    pub fn retry(&self) {
        self.say(Word::Retry);
    }

    fn say(&self, word: Word) {
        *self.0.word.lock() = Some(word);
        // Fails only if the counter is full; the device is going to look then anyway.
        let _ = self.0.event.write(1);
    }

    /// What was said last, once.
    pub(super) fn word(&self) -> Option<Word> {
        // Fails only if there is nothing to read.
        let _ = self.0.event.read();
        self.0.word.lock().take()
    }

    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.0.event.as_raw_fd()
    }
}
