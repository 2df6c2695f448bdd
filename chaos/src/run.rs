//! One run: a guest is protected and serves clients, something fails and is put right, the guest must be protected
//! again; then its host is lost, and the other one must go on with it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use understudy_vmm::local_cluster::{GuestDiskProgress, WorkloadDisk};

use crate::clients::{Clients, Losses, Seen};
use crate::failures;
use crate::hosts::{DISK_BLOCKS, Guest, World};
use crate::network::Side;
use crate::schedule::Schedule;
use crate::speakers::{self, Sniffer};

/// How long a guest may take to boot, be copied and serve its clients.
const START: Duration = Duration::from_secs(60);
/// How long it may take after everything is put right until the guest is protected again.
const REPAIR: Duration = Duration::from_secs(10);
/// How long a client may wait then. More than that is no back-off of TCP any more.
const SERVICE: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(10);

/// What a run showed.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) title: String,
    /// How many failures it had.
    pub(crate) failures: usize,
    /// What must not be. Empty if all was well.
    pub(crate) faults: Vec<String>,
    /// More than one host spoke for the guest.
    pub(crate) two_speakers: bool,
    /// Not protected again, or not served again, in time.
    pub(crate) is_stuck: bool,
    #[serde(flatten)]
    pub(crate) losses: Losses,
    pub(crate) bytes: u64,
    pub(crate) writes: u64,
    /// Writes to the disk that the guest had told to be safe.
    pub(crate) flushed: u64,
    /// The image lacks some of them, or is not of one moment.
    pub(crate) disk_is_wrong: bool,
    /// The longest wait of a client, from the first failure until the guest was protected again.
    pub(crate) outage_ms: Option<f64>,
    /// From when all was put right until it was protected again.
    pub(crate) repair_ms: Option<f64>,
    /// The longest wait of a client when the host was lost in the end.
    pub(crate) last_outage_ms: Option<f64>,
    /// Why the guest's memory was gone, where docs/SAFETY.md says that it may be: it was started from its disk.
    pub(crate) started_over: Option<&'static str>,
}

/// Does the run in `directory`, and leaves it to the caller. Whatever cannot be done is a fault, too.
pub(crate) fn run(schedule: &Schedule, directory: &Path, vmm: &Path) -> Outcome {
    let outcome = Outcome {
        seed: schedule.seed,
        title: schedule.title(),
        failures: schedule.failures.len(),
        ..Outcome::default()
    };
    let (mut outcome, done) = match Run::start(outcome.clone(), directory, vmm) {
        Ok(mut run) => {
            let done = run.work(schedule);
            run.look_at_logs();
            (run.end(), done)
        }
        Err(error) => (outcome, Err(error)),
    };
    if let Err(error) = done {
        outcome.faults.push(format!("{error:#}"));
    }
    outcome
}

struct Run {
    outcome: Outcome,
    clients: Clients,
    /// Clients of the guest's memory that is gone.
    former: Seen,
    sniffer: Sniffer,
    world: World,
}

impl Run {
    fn start(outcome: Outcome, directory: &Path, vmm: &Path) -> Result<Self> {
        let mut world = World::new(directory, vmm, Guest::default(), &[])?;
        let sniffer = Sniffer::start(&world.network)?;
        protect(&mut world)?;
        await_some(&mut world, START, |world| {
            // On a busy machine it may have been taken over already.
            let consoles = world.consoles().into_iter();
            let mut words = consoles.filter_map(|it| GuestDiskProgress::latest(&it).ok().flatten());
            words.any(|it| it.flushed > 0).then_some(())
        })?
        .with_context(|| format!("the guest flushes nothing within {START:?}"))?;
        Ok(Self {
            outcome,
            clients: Clients::start(&world.network),
            former: Seen::default(),
            sniffer,
            world,
        })
    }

    fn work(&mut self, schedule: &Schedule) -> Result<()> {
        self.await_service(START)?;
        self.rest(Duration::from_millis(schedule.lead_ms))?;
        self.clients.forget_gaps();
        self.fail(schedule)?;
        let healed = Instant::now();
        let primary = await_some(&mut self.world, REPAIR, World::primary)?;
        let repair = healed.elapsed();
        let Some(primary) = primary else {
            self.outcome.is_stuck = true;
            bail!("stuck: not protected within {REPAIR:?} after everything was put right");
        };
        self.outcome.repair_ms = Some(repair.as_secs_f64() * 1e3);
        self.replace_clients();
        self.await_service(SERVICE)?;
        if self.outcome.started_over.is_none() {
            self.outcome.outage_ms = Some(self.clients.longest_gap().as_secs_f64() * 1e3);
        }
        self.check_speakers()?;
        self.lose(primary)
    }

    /// Makes and undoes what is planned, each at its time.
    fn fail(&mut self, schedule: &Schedule) -> Result<()> {
        let all = schedule.failures.iter();
        let mut moments: Vec<_> = all
            .flat_map(|one| [(one.begins(), one, true), (one.ends(), one, false)])
            .collect();
        moments.sort_by_key(|(at, ..)| *at);
        let begin = Instant::now();
        for (at, planned, begins) in moments {
            self.rest(at.saturating_sub(begin.elapsed()))?;
            failures::set(&mut self.world, planned, begins).with_context(|| {
                let what = if begins { "make" } else { "undo" };
                format!("cannot {what}: {}", planned.failure)
            })?;
        }
        Ok(())
    }

    /// The host that runs the protected guest is lost: the other one must go on.
    fn lose(&mut self, primary: Side) -> Result<()> {
        self.clients.forget_gaps();
        let former = self.world.lost.take();
        self.world.kill(primary)?;
        if let Some(lost) = std::mem::replace(&mut self.world.lost, former) {
            self.outcome.is_stuck = true;
            bail!(
                "it was protected, and the other host cannot go on: {}",
                lost.why
            );
        }
        self.await_service(SERVICE)?;
        self.outcome.last_outage_ms = Some(self.clients.longest_gap().as_secs_f64() * 1e3);
        self.check_speakers()?;
        self.world.kill(primary.other())?;
        await_some(&mut self.world, START, |world| {
            world.is_over().then_some(())
        })?
        .context("the processes do not end")?;
        self.check_disk(primary.other())
    }

    /// The image must hold all that the guest told to be safe, and be of one moment.
    fn check_disk(&mut self, side: Side) -> Result<()> {
        for console in self.world.consoles() {
            match GuestDiskProgress::latest(&console) {
                Ok(words) => {
                    let flushed = words.map_or(0, |words| words.flushed);
                    self.outcome.flushed = self.outcome.flushed.max(flushed);
                }
                Err(line) => self.outcome.faults.push(format!("the guest says: {line}")),
            }
        }
        let image = WorkloadDisk::at(&self.world.image(side), DISK_BLOCKS);
        let flushed = self.outcome.flushed;
        // After a start from the disk, what was written after the last flush may be there or not.
        let found = match &self.outcome.started_over {
            None => image.check_exact(flushed),
            Some(_) => image.check(flushed),
        };
        if let Err(fault) = found {
            self.outcome.disk_is_wrong = true;
            self.outcome.faults.push(format!("the disk: {fault}"));
        }
        if flushed == 0 {
            bail!("the guest flushed nothing");
        }
        Ok(())
    }

    fn check_speakers(&mut self) -> Result<()> {
        let checked = speakers::check(&self.sniffer.so_far(), &self.world.granted());
        if let Err(fault) = checked {
            self.outcome.two_speakers = true;
            bail!(fault);
        }
        Ok(())
    }

    /// Where the guest's memory may be gone, and is, there is a new guest for new clients. Nothing else is excused, and
    /// not with one failure.
    fn replace_clients(&mut self) {
        let seen = self.clients.seen();
        if let Some(lost) = self.world.lost
            && self.outcome.failures > 1
            && seen.wrong.is_empty()
            && !seen.broken.is_empty()
        {
            self.outcome.started_over = Some(lost.why);
            self.former = Seen {
                broken: Vec::new(),
                ..seen
            };
            self.clients = Clients::start(&self.world.network);
        }
    }

    /// Waits until each client has got something that it had not.
    fn await_service(&mut self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut before = self.clients.progress();
        loop {
            self.world.supervise()?;
            let seen = self.clients.seen();
            if !seen.broken.is_empty() && self.outcome.started_over.is_none() {
                self.replace_clients();
                if self.outcome.started_over.is_some() {
                    before = self.clients.progress();
                    continue;
                }
            }
            if !seen.broken.is_empty() || !seen.wrong.is_empty() {
                bail!("clients have found faults");
            }
            let now = self.clients.progress();
            if now.iter().zip(&before).all(|(now, before)| now > before) {
                return Ok(());
            }
            if Instant::now() > deadline {
                self.outcome.is_stuck = true;
                bail!("stuck: clients wait for {patience:?}: from {before:?} to {now:?}");
            }
            std::thread::sleep(TICK);
        }
    }

    fn rest(&mut self, time: Duration) -> Result<()> {
        await_some(&mut self.world, time, |_| None::<()>)?;
        Ok(())
    }

    fn look_at_logs(&mut self) {
        for (name, log) in self.world.logs() {
            if let Some(line) = log.lines().find(|line| line.contains("panicked")) {
                self.outcome.faults.push(format!("{name}: {line}"));
            }
        }
    }

    /// Ends everything.
    fn end(self) -> Outcome {
        let Self {
            mut outcome,
            clients,
            former,
            sniffer,
            world,
        } = self;
        for seen in [former, clients.seen()] {
            outcome.bytes += seen.bytes;
            outcome.writes += seen.writes;
            outcome.losses.add(&seen.losses);
            outcome.faults.extend(seen.broken);
            outcome.faults.extend(seen.wrong);
        }
        drop(clients);
        drop(world);
        if let Err(error) = sniffer.finish() {
            outcome.faults.push(format!("{error:#}"));
        }
        outcome
    }
}

/// Starts both hosts, and waits until the guest is protected.
pub(crate) fn protect(world: &mut World) -> Result<()> {
    for side in [Side::B, Side::A] {
        world.start(side)?;
    }
    await_some(world, START, World::primary)?
        .with_context(|| format!("the guest is not protected within {START:?}"))?;
    Ok(())
}

/// Looks again and again, while the service managers do their work. `None` if nothing is found in time.
pub(crate) fn await_some<T>(
    world: &mut World,
    patience: Duration,
    mut look: impl FnMut(&mut World) -> Option<T>,
) -> Result<Option<T>> {
    let deadline = Instant::now() + patience;
    loop {
        world.supervise()?;
        if let Some(found) = look(world) {
            return Ok(Some(found));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        std::thread::sleep(left.min(TICK));
    }
}
