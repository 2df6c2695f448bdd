//! How often scenarios repeat something, and the random numbers that they ask for.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// See the [module documentation](self).
pub(super) struct Luck {
    /// How often a scenario that repeats something does so.
    pub(super) times: u32,
    numbers: StdRng,
}

impl Luck {
    /// The same seed gives the same numbers.
    pub(super) fn new(times: u32, seed: u64) -> Self {
        let numbers = StdRng::seed_from_u64(seed);
        Self { times, numbers }
    }

    /// A number below `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.numbers.random_range(0..limit)
    }
}
