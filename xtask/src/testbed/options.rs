//! The command line of `testbed run`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser};

use super::scenarios::{ALL, Scenario};

/// Stands for every scenario.
const EVERY: &str = "all";

/// What the command line says.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The scenarios to run, in this order.
    #[arg(value_name = "SCENARIO", required = true, value_parser = names())]
    scenarios: Vec<String>,
    /// Print figures as JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// How often a scenario that repeats something does so.
    #[arg(long, value_name = "N", default_value_t = 5)]
    times: u32,
    /// Makes the random numbers of an earlier run come again [default: from the clock].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

fn names() -> PossibleValuesParser {
    let scenarios = ALL.iter();
    let scenarios = scenarios.map(|one| PossibleValue::new(one.name).help(one.about));
    let every = PossibleValue::new(EVERY).help("each of them");
    PossibleValuesParser::new(scenarios.chain([every]))
}

impl RunArgs {
    pub(super) fn into_options(self) -> Result<Options> {
        let mut scenarios = Vec::new();
        for name in &self.scenarios {
            if name == EVERY {
                scenarios.extend(ALL);
            } else {
                let found = ALL.iter().find(|scenario| scenario.name == name);
                scenarios.push(found.with_context(|| format!("no scenario {name}"))?);
            }
        }
        let seed = match self.seed {
            Some(seed) => seed,
            None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        };
        Ok(Options {
            scenarios,
            json: self.json,
            times: self.times,
            seed,
        })
    }
}

/// What was asked for.
pub(super) struct Options {
    pub(super) scenarios: Vec<&'static Scenario>,
    /// Figures as JSON.
    pub(super) json: bool,
    /// How often a scenario that repeats something does so.
    pub(super) times: u32,
    /// What `--seed` makes come again.
    pub(super) seed: u64,
}

impl Options {
    /// The command line that asks for the same, seed included.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["run".to_owned()];
        arguments.extend(self.json.then(|| "--json".to_owned()));
        arguments.extend(["--times".into(), self.times.to_string()]);
        arguments.extend(["--seed".into(), self.seed.to_string()]);
        arguments.extend(self.scenarios.iter().map(|one| one.name.to_owned()));
        arguments
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    fn parse<S: AsRef<str>>(arguments: &[S]) -> Result<Options> {
        let words = arguments.iter().map(AsRef::as_ref);
        Line::try_parse_from(["run"].into_iter().chain(words))?
            .run
            .into_options()
    }

    #[test]
    fn options_are_read_or_explained() {
        let options = parse(&["random", "--times", "30", "--seed", "7", "--json"]).unwrap();
        assert_eq!((options.scenarios[0].name, options.times), ("random", 30));
        assert!(options.json);
        let again = parse(&options.arguments()[1..]).unwrap();
        assert_eq!(again.arguments(), options.arguments());
        assert_eq!(parse(&["all"]).unwrap().scenarios.len(), ALL.len());
        for (wrong, why) in [
            (&["rndom"][..], "'random'"),
            (&[], "SCENARIO"),
            (&["random", "--times"], "a value is required"),
        ] {
            let error = parse(wrong).err().expect("it is wrong").to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
