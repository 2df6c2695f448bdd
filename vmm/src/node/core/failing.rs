//! What fails on this host, and may not on the standby's. While anything does, the guest is to go on there.
//!
//! It is handed over as soon as somebody could take it. If that does not come about, it is tried again later, so that two
//! hosts with the same trouble do not keep each other busy. What must not be done here: decide whether a guest may be
//! handed over at all.

use std::collections::BTreeMap;
use std::time::Duration;

/// How soon it is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// How long a guest stays that has just been taken over.
const STAYS: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Failing {
    /// What is wrong, by what it is about: a disk, a network.
    what: BTreeMap<String, String>,
    /// The guest is being handed over because of it.
    is_under_way: bool,
    /// Not before this time.
    not_before: Duration,
}

impl Failing {
    pub(super) fn begin(&mut self, topic: &str, what: String) {
        self.what.insert(topic.to_owned(), what);
    }

    /// Returns whether it was wrong.
    pub(super) fn end(&mut self, topic: &str) -> bool {
        self.what.remove(topic).is_some()
    }

    /// All that is wrong, in plain words.
    pub(super) fn in_words(&self) -> Option<String> {
        let what: Vec<&str> = self.what.values().map(String::as_str).collect();
        (!what.is_empty()).then(|| what.join("; "))
    }

    /// When to try, if a standby could take the guest.
    pub(super) fn due(&self) -> Option<Duration> {
        (!self.what.is_empty() && !self.is_under_way).then_some(self.not_before)
    }

    /// The guest is handed over from now on; returns why.
    pub(super) fn escape(&mut self, now: Duration) -> Option<String> {
        self.due().filter(|at| *at <= now)?;
        self.is_under_way = true;
        self.in_words()
    }

    /// The guest was taken over. If both hosts have the same trouble, it does not go back and forth all the time.
    pub(super) fn came(&mut self, now: Duration) {
        self.not_before = now + STAYS;
    }

    /// Whether it is tried so soon that the guest can wait for that.
    pub(super) fn may_try_soon(&self, now: Duration) -> bool {
        self.is_under_way || self.not_before <= now + AGAIN
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.is_under_way
    }

    /// It was not.
    pub(super) fn stayed(&mut self, now: Duration) {
        if std::mem::take(&mut self.is_under_way) {
            self.not_before = now + AGAIN;
        }
    }
}
