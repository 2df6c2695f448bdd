//! When a primary looks for a standby again.
//!
//! A port where nobody answers is tried often: that costs nothing, and the standby may be there in
//! a moment. One that is busy may be free in a moment, but if it stays busy, pauses double. A
//! synchronisation costs a copy of the whole guest. If one after the other comes to nothing, the pauses
//! between them double.

use std::time::Duration;

use tokio::time::Instant;

use crate::core::policy::TRY_EVERY;

/// Pause between two attempts to reach a standby, and after a session that was of use.
const PAUSE: Duration = Duration::from_millis(250);
/// The same after a standby refused: a person must change something.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause after a standby said that it is busy.
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(4);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A guest that was protected for this long shows that its standby is of use: it has loaded states
/// on trial meanwhile.
const STEADY: Duration = TRY_EVERY.saturating_mul(3);

#[derive(Debug)]
pub(super) struct Retry {
    /// No attempt before this.
    at: Instant,
    /// The last reason for having no standby.
    why: Option<String>,
    /// A synchronisation of the present session has begun.
    synchronising: bool,
    /// Since when the guest has been protected in the present session.
    protected_at: Option<Instant>,
    /// Synchronisations in a row that were of no use.
    useless: u32,
    /// How often in a row the standby has said that it is busy.
    busy: u32,
}

impl Retry {
    pub(super) fn new() -> Self {
        Self {
            at: Instant::now(),
            why: None,
            synchronising: false,
            protected_at: None,
            useless: 0,
            busy: 0,
        }
    }

    /// When the next attempt is due.
    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// There was no session, or none that was of use. Returns whether this is news.
    pub(super) fn failed(&mut self, why: &str) -> bool {
        self.not_before(PAUSE);
        let is_news = self.why.as_deref() != Some(why);
        self.why = Some(why.to_owned());
        is_news
    }

    /// The standby is busy.
    pub(super) fn busy(&mut self) {
        let pause = PAUSE.saturating_mul(1 << self.busy.min(16));
        self.busy += 1;
        self.not_before(pause.min(BUSY_PAUSE_MAX));
    }

    /// The standby does not want this primary, or cannot serve it.
    pub(super) fn refused(&mut self) {
        self.busy = 0;
        self.not_before(REFUSED_PAUSE);
    }

    pub(super) fn synchronisation_begins(&mut self) {
        self.why = None;
        self.busy = 0;
        self.synchronising = true;
    }

    /// The guest is protected.
    pub(super) fn protected(&mut self, now: Instant) {
        self.protected_at.get_or_insert(now);
    }

    pub(super) fn session_ended(&mut self, now: Instant) {
        let protected_at = self.protected_at.take();
        if protected_at.is_some_and(|at| now.saturating_duration_since(at) >= STEADY) {
            self.useless = 0;
        }
        let mut pause = PAUSE;
        if std::mem::take(&mut self.synchronising) {
            pause = PAUSE
                .saturating_mul(1 << self.useless.min(16))
                .min(PAUSE_MAX);
            self.useless += 1;
        }
        self.at = self.at.max(now + pause);
    }

    fn not_before(&mut self, pause: Duration) {
        self.at = self.at.max(Instant::now() + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A session with a synchronisation that ends after `protected`. Returns the pause after it.
    fn session(retry: &mut Retry, now: &mut Instant, protected: Option<Duration>) -> Duration {
        *now = retry.at().max(*now);
        retry.synchronisation_begins();
        if let Some(time) = protected {
            retry.protected(*now);
            *now += time;
        }
        retry.session_ended(*now);
        retry.at() - *now
    }

    #[test]
    fn pauses_double_while_copies_are_useless_and_a_useful_one_ends_that() {
        let mut retry = Retry::new();
        let mut now = retry.at();
        let short = Some(Duration::from_secs(1));
        let pauses: Vec<_> = [None, short, None, short, None, None, None, short, None]
            .map(|protected| session(&mut retry, &mut now, protected).as_millis())
            .into();
        let expected = [250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000];
        assert_eq!(pauses, expected);
        let pause = session(&mut retry, &mut now, Some(STEADY));
        assert_eq!(pause, PAUSE);
    }

    /// It says so some time after it has a whole copy, each time.
    #[test]
    fn a_standby_that_gives_its_copy_up_at_the_next_trial_is_of_no_use() {
        let mut retry = Retry::new();
        let mut now = retry.at();
        let protected = Some(TRY_EVERY + Duration::from_secs(5));
        let pauses = [(); 4].map(|()| session(&mut retry, &mut now, protected).as_millis());
        assert_eq!(pauses, [250, 500, 1000, 2000]);
    }

    #[test]
    fn a_session_without_a_copy_costs_nothing() {
        let mut retry = Retry::new();
        let mut now = retry.at();
        for _ in 0..5 {
            now = retry.at();
            retry.session_ended(now);
            assert_eq!(retry.at() - now, PAUSE);
        }
        assert_eq!(session(&mut retry, &mut now, None), PAUSE);
    }

    #[test]
    fn pauses_double_while_the_standby_is_busy_until_it_says_something_else() {
        /// The pause, rounded to what it was meant to be.
        fn busy(retry: &mut Retry) -> u128 {
            let before = Instant::now();
            retry.at = before;
            retry.busy();
            (retry.at() - before).as_millis() / 250 * 250
        }
        let mut retry = Retry::new();
        let pauses = [(); 6].map(|()| busy(&mut retry));
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 4000]);
        retry.refused();
        assert_eq!(busy(&mut retry), 250);
        busy(&mut retry);
        retry.synchronisation_begins();
        assert_eq!(busy(&mut retry), 250);
    }

    #[test]
    fn a_reason_is_news_once() {
        let mut retry = Retry::new();
        assert!(retry.failed("refused"));
        assert!(!retry.failed("refused"));
        assert!(retry.failed("unreachable"));
        retry.synchronisation_begins();
        assert!(retry.failed("unreachable"));
    }
}
