//! The `vmm` binary to measure, and how fast its guest works.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use tempfile::TempDir;
use understudy_vmm::local_cluster::{GUEST, Network};

/// Pause between two looks at a console.
const LOOK: Duration = Duration::from_millis(5);
/// A guest that says nothing for so long does not work.
const PATIENCE: Duration = Duration::from_secs(30);

/// The given binaries, or the `vmm` beside this program.
pub(crate) fn binaries(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    if !given.is_empty() {
        return Ok(given.to_vec());
    }
    let here = std::env::current_exe().context("cannot find this program")?;
    let beside = here.with_file_name("vmm");
    if !beside.is_file() {
        bail!(
            "there is no {}; build it (cargo build --release -p understudy-vmm) or name one with --binary",
            beside.display()
        );
    }
    Ok(vec![beside])
}

/// The options to compare: none, if none are given.
pub(crate) fn each_with(given: &[String]) -> impl Iterator<Item = &str> {
    let none = given.is_empty().then_some("");
    none.into_iter().chain(given.iter().map(String::as_str))
}

/// The arguments of a `vmm` whose guest nobody protects, for a network's `port`.
pub(crate) fn alone(memory_mib: u64, port: &Path, workload: &str) -> Vec<String> {
    let arguments = [
        "run",
        "--memory-mib",
        &memory_mib.to_string(),
        "--rng",
        "--net",
        &format!("socket={},mac=52:54:00:75:73:01", port.display()),
        "--cmdline",
        &format!("{workload} ip={GUEST}/24"),
    ];
    arguments.map(ToString::to_string).to_vec()
}

/// Connects so many clients that stream, and that count, and waits until all are served.
pub(crate) fn connect(network: &Network, streams: usize, counters: usize) -> Result<()> {
    network.connect(streams, counters)?;
    let deadline = Instant::now() + PATIENCE;
    while network.figures()?.clients_served < streams + counters {
        if Instant::now() > deadline {
            bail!("not all clients were served within {PATIENCE:?}");
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// A directory for one measurement.
pub(crate) fn scratch() -> Result<TempDir> {
    let directory = tempfile::Builder::new()
        .prefix("understudy-bench-")
        .tempdir()?;
    Ok(directory)
}

/// The word that the command line has for a value.
pub(crate) fn word(value: impl ValueEnum) -> String {
    let value = value.to_possible_value();
    value
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

/// The last part of a binary's path that tells it from others.
pub(crate) fn label(binary: &Path) -> String {
    let name = binary.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Iterations of the `dirty` workload as the guest's console tells them, about once a second for each
/// vCPU. A protected guest's console is a moment late, by the same moment each time.
pub(crate) struct Speedometer {
    console: PathBuf,
    first: Vec<Option<(Instant, u64)>>,
    last: Vec<Option<(Instant, u64)>>,
}

impl Speedometer {
    /// Begins with the next line of each vCPU.
    pub(crate) fn start(console: &Path, vcpus: u8) -> Result<Self> {
        let mut meter = Self {
            console: console.into(),
            first: vec![None; usize::from(vcpus)],
            last: vec![None; usize::from(vcpus)],
        };
        let before = meter.read();
        meter.last = before.clone();
        let deadline = Instant::now() + PATIENCE;
        while meter.first.iter().any(Option::is_none) {
            std::thread::sleep(LOOK);
            meter.look();
            for ((first, last), before) in meter.first.iter_mut().zip(&meter.last).zip(&before) {
                let news = last.map(|(_, count)| count) != before.map(|(_, count)| count);
                if first.is_none() && news {
                    *first = *last;
                }
            }
            if Instant::now() > deadline {
                bail!(
                    "the guest's console {} tells no iterations",
                    console.display()
                );
            }
        }
        Ok(meter)
    }

    /// Takes note of what the console says by now. Call it often: when a line is seen is its time.
    pub(crate) fn look(&mut self) {
        let counts = self.read();
        for (last, now) in self.last.iter_mut().zip(counts) {
            if now.map(|(_, count)| count) != last.map(|(_, count)| count) {
                *last = now;
            }
        }
    }

    /// Looks for that long.
    pub(crate) fn watch(&mut self, time: Duration, mut each: impl FnMut(Duration)) {
        let start = Instant::now();
        while start.elapsed() < time {
            std::thread::sleep(LOOK);
            self.look();
            each(start.elapsed());
        }
    }

    /// Iterations per second of all vCPUs together, between the first and the last line of each.
    pub(crate) fn iterations_per_s(&self) -> f64 {
        self.first
            .iter()
            .zip(&self.last)
            .filter_map(|(first, last)| {
                let (from, to) = ((*first)?, (*last)?);
                let seconds = to.0.duration_since(from.0).as_secs_f64();
                (seconds > 0.0).then(|| (to.1 - from.1) as f64 / seconds)
            })
            .sum()
    }

    fn read(&self) -> Vec<Option<(Instant, u64)>> {
        let now = Instant::now();
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let mut counts = vec![None; self.first.len()];
        // A last line without its end may be half a number.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            if let Some((vcpu, iterations)) = parse(line)
                && let Some(count) = counts.get_mut(vcpu)
            {
                *count = Some((now, iterations));
            }
        }
        counts
    }
}

/// `… dirty: vcpu=N iterations=M …`
fn parse(line: &str) -> Option<(usize, u64)> {
    let (_, rest) = line.split_once("dirty: vcpu=")?;
    let (vcpu, rest) = rest.split_once(" iterations=")?;
    let iterations = rest.split_whitespace().next()?;
    Some((vcpu.parse().ok()?, iterations.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_about_iterations_count() {
        let directory = tempfile::tempdir().unwrap();
        let console = directory.path().join("console");
        let text = "ready: dirty vcpu=0 pages=10\n[1] dirty: vcpu=1 iterations=7 pages=70\r\n\
                    dirty: vcpu=0 iterations=5 pages=50\ndirty: vcpu=0 iterations=9";
        std::fs::write(&console, text).unwrap();
        let meter = Speedometer {
            console,
            first: vec![None; 2],
            last: vec![None; 2],
        };
        let counts: Vec<_> = meter.read().into_iter().map(|c| c.map(|c| c.1)).collect();
        assert_eq!(counts, [Some(5), Some(7)]);
    }
}
