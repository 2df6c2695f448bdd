//! What a whole report is made of: which benchmarks run with which options, what of them is shown, and what it says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::surroundings::Surroundings;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Which parts [default: all].
    #[arg(value_name = "NAME", value_parser = names())]
    names: Vec<String>,
    /// Where the results go, a file for each part.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    results: PathBuf,
    /// The `vmm` to measure; repeat to compare several in turn [default: the one beside this program].
    #[arg(long, value_name = "PATH")]
    binary: Vec<PathBuf>,
    /// Measure QEMU's COLO, too: the command that starts QEMU 7.2.
    #[arg(long, value_name = "COMMAND")]
    colo: Option<String>,
    /// What the results are of: a revision.
    #[arg(long, value_name = "TEXT", default_value = "unknown")]
    revision: String,
}

fn names() -> clap::builder::PossibleValuesParser {
    SUITES
        .iter()
        .map(|suite| suite.name)
        .collect::<Vec<_>>()
        .into()
}

/// One part of the report.
#[derive(Debug)]
pub(crate) struct Suite {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// What is measured and how to read it.
    pub(crate) says: &'static str,
    pub(crate) runs: &'static [Run],
    /// Columns of its table, and their headings. Those with text say which rows are of a kind.
    pub(crate) columns: &'static [(&'static str, &'static str)],
    pub(crate) charts: &'static [Chart],
}

/// One call of a benchmark.
#[derive(Debug)]
pub(crate) struct Run {
    /// Its name and options, between blanks.
    options: &'static str,
    /// Options of `vmm` to compare.
    with: &'static [&'static str],
    /// What else the guest does.
    dirty: Option<&'static str>,
    /// Rows are told from those of other runs by this.
    guest: Option<&'static str>,
    /// It takes binaries to compare.
    compares: bool,
    /// It takes COLO.
    colo: bool,
}

impl Run {
    const fn new(options: &'static str) -> Self {
        Self {
            options,
            with: &[],
            dirty: None,
            guest: None,
            compares: true,
            colo: false,
        }
    }

    /// Ours beside Remus' way, and stop and send.
    const fn three_ways(self) -> Self {
        self.with(&["", "--checkpointing remus", "--checkpointing stop-and-send"])
    }

    const fn with(mut self, with: &'static [&'static str]) -> Self {
        self.with = with;
        self
    }

    const fn and_colo(mut self) -> Self {
        self.colo = true;
        self
    }

    const fn of(mut self, guest: &'static str) -> Self {
        self.guest = Some(guest);
        self
    }

    const fn dirty(mut self, options: &'static str) -> Self {
        self.dirty = Some(options);
        self
    }

    /// It measures the program that it is part of.
    const fn itself(mut self) -> Self {
        self.compares = false;
        self
    }

    fn words(&self) -> Vec<&'static str> {
        let mut words: Vec<_> = self.options.split_whitespace().collect();
        words.extend(self.with.iter().flat_map(|with| ["--with", with]));
        words.extend(self.dirty.iter().flat_map(|dirty| ["--dirty", dirty]));
        words
    }
}

/// A picture of one column.
#[derive(Debug)]
pub(crate) struct Chart {
    pub(crate) file: &'static str,
    pub(crate) title: &'static str,
    pub(crate) column: &'static str,
    /// By the logarithm: values are orders of magnitude apart.
    pub(crate) log: bool,
}

/// All parts, in the order of the report.
pub(crate) const SUITES: [Suite; 7] = [
    Suite {
        name: "speed",
        title: "Speed of a busy guest, and how long it stands still",
        says: "A guest without anything else to do rewrites memory as fast as it can: a word of each of N pages, or whole pages \
               of noise. `speed` is what protection leaves of the unprotected guest's. The guest, its image and its work are \
               the same in QEMU. `--checkpointing remus` and `stop-and-send` are this project's own programs, which then make \
               epochs at a fixed interval, protect every page again and send it as it is, after the guest runs again or before.",
        runs: &[
            Run::new(
                "epochs --rate 0 --pages 100,1000,10000 --mode word,page --epoch-ms 20,50 --seconds 3",
            )
            .three_ways()
            .and_colo(),
            Run::new(
                "epochs --rate 0 --pages 1000,10000 --pattern random,hotcold --epoch-ms 20 --seconds 3",
            )
            .three_ways()
            .and_colo(),
        ],
        columns: &[
            ("scenario", "guest"),
            ("vmm", "program"),
            ("with", "with"),
            ("ratio", "speed"),
            ("epochs_per_s", "epochs/s"),
            ("pause_p50_ms", "pause p50 ms"),
            ("p99", "p99"),
            ("ack_p50_ms", "ack p50 ms"),
            ("wire_mib_per_s", "wire MiB/s"),
            ("raw_by_wire", "raw by wire"),
        ],
        charts: &[
            Chart {
                file: "speed",
                title: "Speed of the protected guest (unprotected is 1)",
                column: "ratio",
                log: false,
            },
            Chart {
                file: "pause",
                title: "Pause, median, in milliseconds",
                column: "pause_p50_ms",
                log: true,
            },
        ],
    },
    Suite {
        name: "pause",
        title: "What the pause is made of",
        says: "One process holds both sides and times each step of the pause; words of N pages, once in each epoch of 25 ms. \
               With 50,000 pages the guest does not come round in an epoch.",
        runs: &[
            Run::new("pause --pages 0,100,1000,10000,50000 --memory-mib 512 --pauses 200").of("512 MiB, 1 vCPU").itself(),
            Run::new("pause --pages 1000 --memory-mib 64 --pauses 200").of("64 MiB, 1 vCPU").itself(),
            Run::new("pause --pages 1000 --memory-mib 1024 --pauses 200").of("1 GiB, 1 vCPU").itself(),
            Run::new("pause --pages 1000 --memory-mib 4096 --pauses 200").of("4 GiB, 1 vCPU").itself(),
            Run::new("pause --pages 1000 --memory-mib 8192 --pauses 200").of("8 GiB, 1 vCPU").itself(),
            Run::new("pause --pages 1000 --memory-mib 512 --vcpus 2 --pauses 200").of("512 MiB, 2 vCPUs").itself(),
            Run::new("pause --pages 1000 --memory-mib 512 --vcpus 4 --pauses 200").of("512 MiB, 4 vCPUs").itself(),
        ],
        columns: &[
            ("guest", "guest"),
            ("pages", "pages"),
            ("dirty_p50", "dirty p50"),
            ("stop_vcpus_us", "stop vcpus µs"),
            ("harvest_us", "harvest"),
            ("copy_us", "copy"),
            ("save_us", "save"),
            ("resume_us", "resume"),
            ("pause_p50_us", "pause p50 µs"),
            ("pause_p99_us", "p99"),
            ("ack_p50_us", "ack p50 µs"),
        ],
        charts: &[],
    },
    Suite {
        name: "answers",
        title: "How long a client waits for its answer",
        says: "One client asks as soon as it is answered (INCR over TCP), through a switch in this machine; of a guest that is \
               all but idle, and of one that rewrites words of 400 random pages as fast as it can.",
        runs: &[
            Run::new("stream --clients 0 --counters 1 --seconds 5 --repeat 3")
                .dirty("dirty.pages=1 dirty.rate=1")
                .three_ways()
                .of("idle"),
            Run::new("stream --clients 0 --counters 1 --seconds 5 --repeat 3")
                .three_ways()
                .of("busy"),
        ],
        columns: &[
            ("guest", "guest"),
            ("vmm", "program"),
            ("with", "with"),
            ("answer_p50_ms_alone", "unprotected p50 ms"),
            ("answer_p99_ms_alone", "p99"),
            ("answer_p50_ms", "protected p50 ms"),
            ("answer_p99_ms", "p99"),
            ("ratio", "speed"),
            ("epochs_per_s", "epochs/s"),
        ],
        charts: &[Chart {
            file: "answers",
            title: "Answer of a protected guest, median, in milliseconds",
            column: "answer_p50_ms",
            log: true,
        }],
    },
    Suite {
        name: "streams",
        title: "Streams",
        says: "Clients stream, each with 262,144 bytes a second, while the guest rewrites words of 400 random pages as fast as it \
               can.",
        runs: &[
            Run::new("stream --clients 1 --counters 1 --seconds 5")
                .three_ways()
                .of("1 client"),
            Run::new("stream --clients 10 --counters 1 --seconds 5")
                .three_ways()
                .of("10 clients"),
            Run::new("stream --clients 30 --counters 1 --seconds 5")
                .three_ways()
                .of("30 clients"),
        ],
        columns: &[
            ("guest", "guest"),
            ("vmm", "program"),
            ("with", "with"),
            ("stream_mb_per_s", "stream MB/s"),
            ("longest_gap_ms", "longest gap ms"),
            ("answer_p50_ms", "answer p50 ms"),
            ("ratio", "speed"),
        ],
        charts: &[Chart {
            file: "gaps",
            title: "Longest wait of a streaming client, in milliseconds",
            column: "longest_gap_ms",
            log: true,
        }],
    },
    Suite {
        name: "outage",
        title: "Outage",
        says: "The primary's process is killed, or stopped without a word, while 20 clients stream and 5 count. `outage` is \
               from the fault to the first instruction of the promoted guest, of which `reaction` passes until the standby \
               knows; `gap` is the longest wait of a client for a byte. COLO detects nothing by itself: a program sends its \
               secondary the command as soon as it has killed the primary, and there are no clients.",
        runs: &[
            Run::new("outage --fault kill --runs 50").and_colo(),
            Run::new("outage --fault kill --runs 15 --memory-mib 4096").with(&["", "--lock-memory all"]),
            Run::new("outage --fault freeze --runs 20"),
        ],
        columns: &[
            ("scenario", "guest, fault"),
            ("vmm", "program"),
            ("with", "with"),
            ("runs", "runs"),
            ("outage_p50_ms", "outage p50 ms"),
            ("outage_p99_ms", "p99"),
            ("outage_max_ms", "longest"),
            ("reaction_p50_ms", "reaction p50"),
            ("recovery_p50_ms", "recovery p50"),
            ("client_gap_p50_ms", "gap p50"),
            ("client_gap_max_ms", "longest gap"),
        ],
        charts: &[Chart {
            file: "outage",
            title: "Outage, median, in milliseconds",
            column: "outage_p50_ms",
            log: true,
        }],
    },
    Suite {
        name: "copy",
        title: "The first copy",
        says: "A guest that has filled its memory with noise, which nothing makes shorter, gets a new standby. A plain sender hands as \
               many bytes out of memory to a Unix socket, whose other end puts them into memory: that is as fast as it gets \
               with one stream.",
        runs: &[Run::new("copy --noise-mib 2048 --repeat 5")],
        columns: &[
            ("noise_mib", "noise MiB"),
            ("vmm", "program"),
            ("took_ms", "took ms"),
            ("mb_per_s", "MB/s"),
            ("plain_mb_per_s", "plain sender MB/s"),
            ("by_plain", "part of it"),
        ],
        charts: &[],
    },
    Suite {
        name: "codec",
        title: "Encoding pages",
        says: "Rounds over 2,000 pages of real guest memory, and what a page costs against copying it.",
        runs: &[Run::new("codec --rounds 40").itself()],
        columns: &[
            ("pages", "pages"),
            ("bytes_a_page", "bytes a page"),
            ("copy_ns", "copy ns"),
            ("capture_ns", "capture"),
            ("encode_ns", "encode"),
            ("decode_ns", "decode"),
            ("commit_ns", "commit"),
        ],
        charts: &[],
    },
];

/// The results of one part, as they are kept.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) suite: String,
    pub(crate) surroundings: Surroundings,
    pub(crate) rows: Vec<Map<String, Value>>,
}

impl Results {
    /// What was kept in `directory` of a part; `None` if nothing was.
    pub(crate) fn read(directory: &Path, suite: &str) -> Result<Option<Self>> {
        let path = file(directory, suite);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let results = serde_json::from_slice(&text);
        results
            .map(Some)
            .with_context(|| format!("{} has no results; measure again", path.display()))
    }
}

fn file(directory: &Path, suite: &str) -> PathBuf {
    directory.join(suite).with_extension("json")
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    fs::create_dir_all(&arguments.results)
        .with_context(|| format!("cannot make {}", arguments.results.display()))?;
    for suite in &SUITES {
        if !arguments.names.is_empty() && !arguments.names.iter().any(|name| name == suite.name) {
            continue;
        }
        eprintln!("{}", suite.title);
        let mut results = Results {
            suite: suite.name.into(),
            surroundings: Surroundings::now(&arguments.revision)?,
            rows: Vec::new(),
        };
        for run in suite.runs {
            results.rows.extend(arguments.rows(run)?);
        }
        results.surroundings.ends();
        let path = file(&arguments.results, suite.name);
        fs::write(&path, serde_json::to_vec_pretty(&results)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("{}: {}", suite.title, path.display());
    }
    Ok(())
}

impl Arguments {
    /// Runs one benchmark in a process of its own, so that none has what another left behind.
    fn rows(&self, run: &Run) -> Result<Vec<Map<String, Value>>> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--json").args(run.words());
        if run.compares {
            for binary in &self.binary {
                command.arg("--binary").arg(binary);
            }
        }
        if let Some(colo) = self.colo.as_ref().filter(|_| run.colo) {
            command.args(["--colo", colo]);
        }
        let output = command.stderr(Stdio::inherit()).output()?;
        let options = run.options;
        ensure!(
            output.status.success(),
            "{options} failed ({})",
            output.status
        );
        let rows: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{options} printed no results"))?;
        let Value::Array(rows) = rows else {
            bail!("{options} printed something else than rows");
        };
        Ok(rows
            .into_iter()
            .filter_map(|row| match row {
                Value::Object(mut row) => {
                    if let Some(guest) = run.guest {
                        row.insert("guest".into(), guest.into());
                    }
                    Some(row)
                }
                _ => None,
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::Cli;

    #[test]
    fn every_run_has_options_that_its_benchmark_takes() {
        for suite in &SUITES {
            for run in suite.runs {
                let mut words = vec!["understudy-benches"];
                words.extend(run.words());
                if run.compares {
                    words.extend(["--binary", "vmm"]);
                }
                if run.colo {
                    words.extend(["--colo", "qemu"]);
                }
                let parsed = Cli::try_parse_from(words);
                assert!(parsed.is_ok(), "{}: {}", suite.name, parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn charts_are_of_columns_that_are_shown() {
        for suite in &SUITES {
            for chart in suite.charts {
                let shown = suite.columns.iter().any(|(name, _)| *name == chart.column);
                assert!(shown, "{}: {}", suite.name, chart.column);
            }
        }
    }
}
