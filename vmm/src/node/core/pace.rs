//! How long a guest that resets itself over and over has to wait, so that it does not keep the host busy.

use std::time::Duration;

/// A guest that ran that long before it wanted a reset is not in a loop of them.
pub(super) const STEADY: Duration = Duration::from_secs(10);
/// Resets in a row that come at once; the further ones come later and later.
const AT_ONCE_MAX: u32 = 3;
const WAIT_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Pace {
    started: Duration,
    in_a_row: u32,
}

impl Pace {
    /// The guest runs from its beginning.
    pub(super) fn started(&mut self, now: Duration) {
        self.started = now;
    }

    /// Resets without a steady run between them.
    pub(super) fn resets_in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// The wait before the reset that the guest wants `now`.
    pub(super) fn wait(&mut self, now: Duration) -> Duration {
        if now.saturating_sub(self.started) >= STEADY {
            self.in_a_row = 0;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        match self.in_a_row.checked_sub(AT_ONCE_MAX + 1) {
            None => Duration::ZERO,
            Some(doublings) => Duration::from_secs(1 << doublings.min(6)).min(WAIT_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_resets_in_a_loop_waits_longer_and_longer() {
        let mut now = Duration::ZERO;
        let mut pace = Pace::default();
        let mut wait_after = |ran: u64| {
            now += Duration::from_secs(ran);
            let wait = pace.wait(now);
            now += wait;
            pace.started(now);
            wait.as_secs()
        };
        let waits: Vec<u64> = (0..12).map(|_| wait_after(1)).collect();
        assert_eq!(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(wait_after(10), 0, "it has run steadily");
        assert_eq!([wait_after(9), wait_after(9), wait_after(9)], [0, 0, 1]);
    }
}
