//! QEMU's COLO beside ours: the same guest image, the same workload, the same machine, in turn.
//!
//! COLO is what Linux distributions have of running copies of virtual machines. It runs here as its documentation says,
//! without a network card and without disks, over a Unix socket, which suits it best: over TCP each of its checkpoints
//! waits for delayed acknowledgements. When the guest stands still is told by QEMU's own events.

mod qmp;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::json;

use self::qmp::{Event, Qmp};

/// How long it may take until both sides are in COLO.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks at something that changes by itself.
const LOOK: Duration = Duration::from_millis(1);

/// What one pair is to run.
#[derive(Debug, Clone)]
pub(crate) struct Pair<'a> {
    /// The command that starts QEMU, in words.
    pub(crate) qemu: &'a str,
    /// Sockets, consoles and logs are put there.
    pub(crate) directory: &'a Path,
    pub(crate) memory_mib: u64,
    pub(crate) vcpus: u8,
    pub(crate) workload: &'a str,
}

/// One QEMU; dropping it kills it.
struct Qemu {
    child: Child,
    qmp: Qmp,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A primary that runs the guest, and a secondary that waits for it.
pub(crate) struct Colo {
    primary: Qemu,
    secondary: Qemu,
    channel: String,
}

impl Pair<'_> {
    /// The console of the primary.
    pub(crate) fn console(&self) -> PathBuf {
        self.directory.join("primary.console")
    }

    /// Starts both; the guest runs on the primary, unprotected.
    pub(crate) fn start(&self) -> Result<Colo> {
        let kernel = self.directory.join("guest.elf");
        std::fs::write(&kernel, understudy_guest_images::BUILTIN)?;
        let channel = format!("unix:{}", self.directory.join("channel").display());
        let secondary = self.spawn("secondary", &kernel, &["-incoming", &channel])?;
        let primary = self.spawn("primary", &kernel, &[])?;
        Ok(Colo {
            primary,
            secondary,
            channel,
        })
    }

    fn spawn(&self, name: &str, kernel: &Path, further: &[&str]) -> Result<Qemu> {
        let control = self.directory.join(format!("{name}.qmp"));
        let console = self.directory.join(format!("{name}.console"));
        let log = self.directory.join(format!("{name}.log"));
        let child = Command::new("setpriv")
            // It must not outlive this program.
            .args(["--pdeathsig", "KILL"])
            .args(self.qemu.split_whitespace())
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-name",
                name,
            ])
            .args(["-machine", "pc,accel=kvm", "-cpu", "qemu64"])
            .args(["-m", &self.memory_mib.to_string()])
            .args(["-smp", &self.vcpus.to_string()])
            .arg("-kernel")
            .arg(kernel)
            .args(["-append", self.workload])
            .args(["-serial", &format!("file:{}", console.display())])
            .args([
                "-qmp",
                &format!("unix:{},server=on,wait=off", control.display()),
            ])
            .args(further)
            .stdin(Stdio::null())
            .stdout(File::create(&log)?)
            .stderr(File::options().append(true).open(&log)?)
            .spawn()
            .context("cannot run setpriv (package util-linux)")?;
        let qmp = Qmp::connect(&control).with_context(|| {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            format!("QEMU ({name}) does not start: {}", said.trim())
        })?;
        Ok(Qemu { child, qmp })
    }
}

/// What COLO did in a while.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figures {
    pub(crate) checkpoints: usize,
    /// How long the guest stood still at each, in order of length.
    pub(crate) pauses: Vec<Duration>,
}

impl Figures {
    /// The pause that a part of all do not exceed.
    pub(crate) fn pause(&self, part: f64) -> Duration {
        let last = self.pauses.len().saturating_sub(1);
        let at = (self.pauses.len() as f64 * part) as usize;
        self.pauses.get(at.min(last)).copied().unwrap_or_default()
    }
}

impl Colo {
    /// Begins to checkpoint, so often.
    pub(crate) fn protect(&self, interval: Duration) -> Result<()> {
        let qmp = &self.primary.qmp;
        qmp.execute(
            "migrate-set-capabilities",
            json!({"capabilities": [{"capability": "x-colo", "state": true}]}),
        )?;
        qmp.execute(
            "migrate-set-parameters",
            json!({"x-checkpoint-delay": interval.as_millis() as u64, "max-bandwidth": 100u64 << 30}),
        )?;
        qmp.execute("migrate", json!({"uri": self.channel}))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let migration = qmp.execute("query-migrate", json!({}))?;
            match migration["status"].as_str() {
                Some("colo") => return Ok(()),
                Some("failed" | "completed") => {
                    bail!("this QEMU does not get into COLO: {migration}; Debian 12's, 7.2, does")
                }
                _ if Instant::now() > deadline => bail!("not in COLO in time: {migration}"),
                _ => std::thread::sleep(LOOK),
            }
        }
    }

    /// Waits until it has made so many checkpoints. The first takes long.
    pub(crate) fn await_checkpoints(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.since(0).pauses.len() < count {
            if Instant::now() > deadline {
                bail!("COLO makes no {count} checkpoints in {PATIENCE:?}");
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Where the primary is in its history; for [`since`](Self::since).
    pub(crate) fn mark(&self) -> usize {
        self.primary.qmp.events().len()
    }

    /// What it did since then.
    pub(crate) fn since(&self, mark: usize) -> Figures {
        figures(&self.primary.qmp.events()[mark..])
    }

    /// Kills the primary, has the secondary go on, and returns how long after the kill it ran: nothing of that is
    /// detection, which QEMU leaves to others.
    pub(crate) fn fail_over(&mut self) -> Result<Duration> {
        let mark = self.secondary.qmp.events().len();
        let killed = SystemTime::now().duration_since(UNIX_EPOCH)?;
        self.primary.child.kill()?;
        self.secondary
            .qmp
            .execute("x-colo-lost-heartbeat", json!({}))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = gone_on(&self.secondary.qmp.events()[mark..]) {
                return Ok(at.saturating_sub(killed));
            }
            if Instant::now() > deadline {
                let status = self.secondary.qmp.execute("query-status", json!({}))?;
                bail!("the secondary does not go on: {status}");
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// When a secondary ran that has left COLO. Before, it stops and resumes for checkpoints.
fn gone_on(events: &[Event]) -> Option<Duration> {
    let left = events.iter().position(|it| it.name == "COLO_EXIT")?;
    let stops = |it: &&Event| it.name == "STOP" || it.name == "RESUME";
    let last = events[left..].iter().rfind(stops)?;
    (last.name == "RESUME").then_some(last.at)
}

fn figures(events: &[Event]) -> Figures {
    let (mut pauses, mut stopped, mut checkpoints) = (Vec::new(), None, 0);
    for event in events {
        match &*event.name {
            "STOP" => {
                checkpoints += 1;
                stopped = Some(event.at);
            }
            "RESUME" => pauses.extend(stopped.take().map(|at| event.at.saturating_sub(at))),
            _ => {}
        }
    }
    pauses.sort();
    Figures {
        checkpoints,
        pauses,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, ms: u64) -> Event {
        Event {
            name: name.into(),
            at: Duration::from_millis(ms),
        }
    }

    #[test]
    fn a_secondary_goes_on_when_it_resumes_out_of_colo() {
        let mut events = vec![event("RESUME", 1), event("STOP", 2)];
        assert_eq!(gone_on(&events), None);
        events.extend([event("COLO_EXIT", 3), event("STOP", 4)]);
        assert_eq!(gone_on(&events), None);
        events.push(event("RESUME", 9));
        assert_eq!(gone_on(&events), Some(Duration::from_millis(9)));
    }

    #[test]
    fn a_pause_is_from_a_stop_to_the_next_resume() {
        // It begins in the middle of a pause and ends in another.
        let events = [
            event("RESUME", 1),
            event("STOP", 10),
            event("RESUME", 13),
            event("RTC_CHANGE", 14),
            event("STOP", 20),
            event("RESUME", 22),
            event("STOP", 30),
        ];
        let figures = figures(&events);
        assert_eq!(figures.checkpoints, 3);
        assert_eq!(figures.pauses, [2, 3].map(Duration::from_millis));
        assert_eq!(figures.pause(0.5), Duration::from_millis(3));
        assert_eq!(figures.pause(0.0), Duration::from_millis(2));
        assert_eq!(figures.pause(1.0), Duration::from_millis(3));
    }
}
