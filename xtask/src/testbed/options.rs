//! The command line of `testbed run`, and the random numbers that scenarios ask for.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::scenarios::{ALL, Scenario};

/// How often, unless the command line says.
const TIMES: u32 = 5;

/// What was asked for.
pub(super) struct Options {
    pub(super) scenarios: Vec<&'static Scenario>,
    /// Figures as JSON.
    pub(super) json: bool,
    /// How often a scenario that repeats something does so.
    pub(super) times: u32,
    state: u64,
}

impl Options {
    pub(super) fn parse(arguments: &[&str]) -> Result<Self> {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let mut options = Self {
            scenarios: Vec::new(),
            json: false,
            times: TIMES,
            state: clock.as_secs(),
        };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut number = || -> Result<u64> {
                let value = rest
                    .next()
                    .with_context(|| format!("{argument} wants a number"))?;
                value.parse().with_context(|| format!("{argument} {value}"))
            };
            match *argument {
                "--json" => options.json = true,
                "--times" => options.times = u32::try_from(number()?)?,
                "--seed" => options.state = number()?,
                "all" => options.scenarios.extend(ALL),
                name => options.scenarios.push(
                    ALL.iter()
                        .find(|scenario| scenario.name == name)
                        .with_context(|| {
                            format!("no scenario {name:?}; `cargo xtask testbed list` shows them")
                        })?,
                ),
            }
        }
        if options.scenarios.is_empty() {
            bail!("which scenario? `cargo xtask testbed list` shows them; `all` runs all");
        }
        Ok(options)
    }

    /// What `--seed` makes come again.
    pub(super) fn seed(&self) -> u64 {
        self.state
    }

    /// A number below `limit` (splitmix64).
    pub(super) fn random(&mut self, limit: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_or_explained() {
        let mut options =
            Options::parse(&["random", "--times", "30", "--seed", "7", "--json"]).unwrap();
        assert_eq!((options.scenarios[0].name, options.times), ("random", 30));
        assert!(options.json);
        let numbers: Vec<u64> = (0..4).map(|_| options.random(1000)).collect();
        let mut again = Options::parse(&["random", "--seed", "7"]).unwrap();
        assert!(numbers.iter().all(|number| *number == again.random(1000)));
        for (wrong, why) in [
            (&["rndom"][..], "no scenario"),
            (&[], "which scenario"),
            (&["random", "--times"], "wants a number"),
        ] {
            let error = Options::parse(wrong)
                .err()
                .expect("it is wrong")
                .to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
