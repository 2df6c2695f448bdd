//! The rate of a rate-limited stream, and with it what a client of `/stream` may expect.
//!
//! A [`Budget`] grows with time and is spent in pieces of about a segment. It is capped: a client
//! that was held up, or a guest that was stopped and restored, gets no burst afterwards. No clock in
//! here: the caller says what time it is.

/// Streams are looked at on this grid, so that many of them do not mean many wake-ups.
const TICK_NS: u64 = 5_000_000;
/// Budget is kept for this long (or for two pieces, whichever is more).
const KEPT_NS_MAX: u64 = 20_000_000;
/// The largest piece a stream waits for: the payload of one full Ethernet frame.
const PIECE_BYTES_MAX: u64 = 1460;

const NS_PER_S: u64 = 1_000_000_000;

/// What one stream may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    rate: u64,
    /// In bytes times nanoseconds per second: no fraction of a byte is lost.
    saved: u64,
    at_ns: u64,
}

impl Budget {
    /// An empty budget at `now_ns` that grows by `rate` bytes per second. A rate of 0 counts as 1, and
    /// one above 2³³ as 2³³.
    #[must_use]
    pub fn new(rate: u64, now_ns: u64) -> Self {
        Self {
            rate: rate.clamp(1, 1 << 33),
            saved: 0,
            at_ns: now_ns,
        }
    }

    /// What is worth sending at once: a full segment, or for a slow stream what it gets in the time
    /// budget is kept.
    #[must_use]
    fn piece_bytes(&self) -> u64 {
        (self.rate / (NS_PER_S / KEPT_NS_MAX)).clamp(1, PIECE_BYTES_MAX)
    }

    /// Bytes that may be sent at `now_ns`, in whole pieces. Time that goes backwards stands still.
    pub fn available_bytes(&mut self, now_ns: u64) -> u64 {
        let cap = (self.rate * KEPT_NS_MAX).max(2 * self.piece_bytes() * NS_PER_S);
        // More than this long always reaches the cap; the product stays below 2⁶⁴.
        let passed_ns = now_ns.saturating_sub(self.at_ns).min(2 * NS_PER_S);
        self.at_ns = self.at_ns.max(now_ns);
        let grown = u128::from(self.saved) + u128::from(self.rate) * u128::from(passed_ns);
        self.saved = u64::try_from(grown).unwrap_or(u64::MAX).min(cap);
        let bytes = self.saved / NS_PER_S;
        bytes - bytes % self.piece_bytes()
    }

    /// Takes what was sent off the budget.
    pub fn spend(&mut self, bytes: u64) {
        self.saved = self.saved.saturating_sub(bytes.saturating_mul(NS_PER_S));
    }

    /// The first point of the grid at which a piece may be sent.
    #[must_use]
    pub fn next_ns(&self) -> u64 {
        let missing = (self.piece_bytes() * NS_PER_S).saturating_sub(self.saved);
        let ready_ns = self.at_ns.saturating_add(missing.div_ceil(self.rate));
        ready_ns.div_ceil(TICK_NS).saturating_mul(TICK_NS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sends all it may at every moment the budget asks for: bytes sent until `end_ns`.
    fn run(budget: &mut Budget, start_ns: u64, end_ns: u64) -> u64 {
        let mut now_ns = start_ns;
        let mut sent = 0;
        while now_ns <= end_ns {
            let bytes = budget.available_bytes(now_ns);
            budget.spend(bytes);
            sent += bytes;
            let next_ns = budget.next_ns();
            assert!(next_ns > now_ns, "it would spin");
            now_ns = next_ns;
        }
        sent
    }

    #[test]
    fn a_pause_brings_no_burst() {
        let mut budget = Budget::new(1_000_000, 0);
        run(&mut budget, 0, NS_PER_S);
        assert!(budget.available_bytes(60 * NS_PER_S) <= 20_000);
    }

    proptest! {
        #[test]
        fn the_rate_is_met_and_never_passed(rate in 200_u64..20_000_000, start_ns in 0..1_u64 << 50) {
            let mut budget = Budget::new(rate, start_ns);
            let seconds = 5;
            let sent = run(&mut budget, start_ns, start_ns + seconds * NS_PER_S);
            prop_assert!(sent <= rate * seconds, "{sent} bytes");
            let late = rate * (TICK_NS + KEPT_NS_MAX) / NS_PER_S + 2 * budget.piece_bytes();
            prop_assert!(sent + late >= rate * seconds, "{sent} bytes");
        }

        #[test]
        fn any_clock_and_any_rate_are_survived(rate: u64, times: [u64; 8]) {
            let mut budget = Budget::new(rate, times[0]);
            for now_ns in times {
                let bytes = budget.available_bytes(now_ns);
                prop_assert!(bytes.is_multiple_of(budget.piece_bytes()));
                budget.spend(bytes);
                let _ = budget.next_ns();
            }
        }
    }
}
