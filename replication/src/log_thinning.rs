//! Keeps a flood of like events from becoming a flood of log lines.
//!
//! Must not be done here: counting for people. What a stranger can cause is counted in the status;
//! this only decides what the log says.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The shortest time between two lines of one kind.
const INTERVAL: Duration = Duration::from_secs(1);
/// How many kinds are told apart. What comes on top within a second is one kind.
const KINDS_MAX: usize = 32;
/// That kind.
const OTHER: &str = "other";

/// Lets one line a second of each kind through.
///
/// ```
/// # use understudy_replication::LogThinning;
/// let mut log = LogThinning::default();
/// if let Some(left_out) = log.line("refused") {
///     eprintln!("refused somebody (since the last line, {left_out} others were not logged)");
/// }
/// assert_eq!(log.line("refused"), None);
/// ```
#[derive(Debug, Default)]
pub struct LogThinning {
    kinds: HashMap<String, Kind>,
}

#[derive(Debug)]
struct Kind {
    logged_at: Instant,
    left_out: u64,
}

impl LogThinning {
    /// To be called for every event of this kind. `Some` if it is to be logged, with the number of
    /// events since the last line that were not.
    pub fn line(&mut self, kind: &str) -> Option<u64> {
        self.line_at(kind, Instant::now())
    }

    fn line_at(&mut self, kind: &str, now: Instant) -> Option<u64> {
        let is_recent = |kind: &Kind| now.saturating_duration_since(kind.logged_at) < INTERVAL;
        let mut name = kind;
        if !self.kinds.contains_key(kind) && self.kinds.len() >= KINDS_MAX {
            self.kinds.retain(|_, kind| is_recent(kind));
            if self.kinds.len() >= KINDS_MAX {
                name = OTHER;
            }
        }
        let Some(kind) = self.kinds.get_mut(name) else {
            let first = Kind {
                logged_at: now,
                left_out: 0,
            };
            self.kinds.insert(name.to_owned(), first);
            return Some(0);
        };
        if is_recent(kind) {
            kind.left_out += 1;
            return None;
        }
        kind.logged_at = now;
        Some(std::mem::take(&mut kind.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_one_line_a_second_that_says_how_many_had_none() {
        let mut log = LogThinning::default();
        let begin = Instant::now();
        let mut at = |kind, ms| log.line_at(kind, begin + Duration::from_millis(ms));
        assert_eq!(at("a", 0), Some(0));
        assert_eq!(at("a", 1), None);
        assert_eq!(at("b", 1), Some(0));
        assert_eq!(at("a", 999), None);
        assert_eq!(at("a", 1000), Some(2));
        assert_eq!(at("a", 1999), None);
        assert_eq!(at("b", 5000), Some(0));
        assert_eq!(at("a", 5000), Some(1));
    }

    #[test]
    fn ever_new_kinds_are_one_kind() {
        let mut log = LogThinning::default();
        let begin = Instant::now();
        let lines = (0..10_000).filter(|kind| log.line_at(&kind.to_string(), begin).is_some());
        assert_eq!(lines.count(), KINDS_MAX + 1);
        assert_eq!(log.line_at("new", begin + INTERVAL), Some(0), "room again");
        assert!(log.kinds.len() <= KINDS_MAX + 1);
    }
}
