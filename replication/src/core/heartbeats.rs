//! Which heartbeats count. The runtime and the simulator ask this before a heartbeat is put into a
//! core.
//!
//! Must not be done here: concluding anything from a heartbeat, or from none. The cores do that.

use crate::ids::Generation;

/// A heartbeat, as it was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// From a side that runs the guest.
    pub from_primary: bool,
    /// The session that it says it belongs to.
    pub session: u64,
    /// The sender's generation.
    pub generation: Generation,
    /// Counts the sender's heartbeats.
    pub sequence: u64,
}

/// Lets heartbeats of the present session pass, each once and in order. Anyone who has seen one
/// could otherwise keep a dead side alive with it.
#[derive(Debug)]
pub struct HeartbeatFilter {
    /// Whether this side runs the guest.
    is_primary: bool,
    /// The last heartbeat that passed, by kind of sender: session and sequence.
    last: [Option<(u64, u64)>; 2],
}

impl HeartbeatFilter {
    /// A filter for a side that runs the guest, or for one that keeps the copy.
    #[must_use]
    pub fn new(is_primary: bool) -> Self {
        Self {
            is_primary,
            last: [None; 2],
        }
    }

    /// Whether a heartbeat counts while this side is in `session`; 0 if it is in none.
    ///
    /// A backup hears primaries only, because another backup would keep a dead primary alive. A
    /// primary also hears primaries: one may have been promoted.
    pub fn admits(&mut self, heartbeat: &Heartbeat, session: u64) -> bool {
        if session == 0 || heartbeat.session != session {
            // It is not remembered either: a stranger's would make an old one look new.
            return false;
        }
        if !heartbeat.from_primary && !self.is_primary {
            return false;
        }
        let last = &mut self.last[usize::from(heartbeat.from_primary)];
        if last.is_some_and(|(of, sequence)| of == session && heartbeat.sequence <= sequence) {
            return false;
        }
        *last = Some((session, heartbeat.sequence));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SESSION: u64 = 7;

    fn beat(from_primary: bool, session: u64, sequence: u64) -> Heartbeat {
        Heartbeat {
            from_primary,
            session,
            generation: Generation(1),
            sequence,
        }
    }

    #[test]
    fn each_counts_once_and_in_order() {
        let mut filter = HeartbeatFilter::new(false);
        assert!(filter.admits(&beat(true, SESSION, 0), SESSION));
        assert!(!filter.admits(&beat(true, SESSION, 0), SESSION), "repeated");
        assert!(filter.admits(&beat(true, SESSION, 2), SESSION));
        assert!(
            !filter.admits(&beat(true, SESSION, 1), SESSION),
            "overtaken"
        );
    }

    #[test]
    fn those_of_other_sessions_do_not_count_and_do_not_make_old_ones_new() {
        let mut filter = HeartbeatFilter::new(false);
        assert!(filter.admits(&beat(true, SESSION, 5), SESSION));
        assert!(!filter.admits(&beat(true, 8, 0), SESSION), "a stranger's");
        assert!(!filter.admits(&beat(true, SESSION, 5), SESSION), "recorded");
        assert!(filter.admits(&beat(true, 8, 0), 8), "the next session");
    }

    #[test]
    fn without_a_session_none_counts() {
        let mut filter = HeartbeatFilter::new(true);
        assert!(!filter.admits(&beat(true, 0, 0), 0));
        assert!(!filter.admits(&beat(true, SESSION, 0), 0));
    }

    #[test]
    fn a_backup_hears_no_backups_and_a_primary_hears_both_kinds() {
        let mut filter = HeartbeatFilter::new(false);
        assert!(!filter.admits(&beat(false, SESSION, 1), SESSION));
        let mut filter = HeartbeatFilter::new(true);
        assert!(filter.admits(&beat(false, SESSION, 1), SESSION));
        assert!(filter.admits(&beat(true, SESSION, 1), SESSION));
    }
}
