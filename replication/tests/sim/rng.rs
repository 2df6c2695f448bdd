//! The one source of chance: a seed replays everything.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// ChaCha with 8 rounds: it is documented to yield the same numbers for a seed on every platform
/// and in every version. What is made of them here is our own for the same reason: ranges of `rand`
/// may change between versions.
pub struct Rng(ChaCha8Rng);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True `permille` times in a thousand.
    pub fn chance(&mut self, permille: u64) -> bool {
        self.below(1000) < permille
    }

    /// A time from `from_us` to below `to_us`.
    pub fn micros(&mut self, from_us: u64, to_us: u64) -> Duration {
        Duration::from_micros(from_us + self.below(to_us - from_us))
    }
}
