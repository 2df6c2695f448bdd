//! Hosts, time, and what happens when.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use bytes::Bytes;
use understudy_replication::core::backup::BackupInput;
use understudy_replication::core::heartbeats::HeartbeatFilter;
use understudy_replication::core::policy::{Checkpointing, Policy};
use understudy_replication::core::primary::PrimaryInput;
use understudy_replication::ids::{EpochId, Generation};

use super::backup_host::BackupHost;
use super::checks::{CALM, CHECKS};
use super::disk::Image;
use super::events::{Event, Queue};
use super::faults::{Fault, Plan};
use super::hangs::Hangs;
use super::host_disk::HostDisk;
use super::liar::Recorded;
use super::link::Link;
use super::ms;
use super::outside::{Arbiter, Client, Process};
use super::primary_host::PrimaryHost;
use super::rng::Rng;

/// What a run is like.
#[derive(Debug, Clone)]
pub struct Settings {
    pub seed: u64,
    pub hosts: usize,
    pub policy: Policy,
    /// Captures that fail, in a thousand.
    pub capture_failures_permille: u64,
    /// Epochs whose disk writes cannot be persisted, in a thousand.
    pub persist_failures_permille: u64,
    /// Syncs of journal or image that fail, in a thousand.
    pub sync_failures_permille: u64,
    /// Answers of the arbiter lost after it has made up its mind, in a thousand.
    pub answers_lost_permille: u64,
    /// Heartbeats lost on the separate path, in a thousand.
    pub beats_lost_permille: u64,
    /// One byte over the logging channel takes so long: slow links.
    pub byte_ns: u64,
    /// Whether an older side may repeat outputs after a newer one has spoken; see
    /// [`Fault::closes`].
    pub may_repeat_late: bool,
    /// Strangers listen.
    pub strangers: bool,
    /// Faults, in order of time.
    pub faults: Vec<(Duration, Fault)>,
    pub trace: bool,
    /// Whether a digest of all decisions is wanted. It costs a quarter of the time.
    pub digests: bool,
}

/// Policy of all simulated hosts: shorter times than the defaults, for more epochs and failovers.
pub fn policy() -> Policy {
    Policy {
        checkpointing: Checkpointing::Adaptive,
        epoch_interval: ms(8),
        overhead_percent: 10,
        latency_target: ms(12),
        heartbeat_interval: ms(5),
        heartbeat_timeout: ms(40),
        storage_timeout: ms(100),
        arbiter_retry: ms(20),
        arbiter_check: ms(25),
        sync_pages_left: 4,
        sync_rounds_max: 3,
    }
}

/// What a run did, to see that the simulation reaches what it is to test.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub counts: BTreeMap<&'static str, u64>,
    /// Different outputs the client heard.
    pub outputs: u64,
    /// Outputs it heard again.
    pub repeated: u64,
    /// Outputs it heard again from an older side after a newer one had spoken.
    pub late: u64,
    /// Of everything the cores decided, and when: the same for two versions of a core that behave
    /// alike.
    pub digest: u64,
}

pub enum Side {
    Down,
    Primary(Box<PrimaryHost>),
    Backup(Box<BackupHost>),
}

pub struct Host {
    pub starts: u64,
    pub side: Side,
    pub link: Option<usize>,
    /// Counts sessions: work begun for an earlier one is dropped.
    pub session: u64,
    pub frozen: bool,
    pub disk: HostDisk,
    pub hangs: Hangs,
    pub heartbeats: HeartbeatFilter,
    pub beats_sent: u64,
    deferred: Vec<Event>,
    /// When the core is woken.
    wake_at: Option<Duration>,
}

/// The primary's machine at the end of an epoch.
pub struct Snapshot {
    pub memory: u64,
    pub state: Bytes,
    /// What the guest sees of its disks.
    pub disks: [Image; 2],
    /// Whether it wrote to them in this epoch.
    pub wrote: bool,
}

pub struct World {
    pub now: Duration,
    pub settings: Settings,
    pub rng: Rng,
    pub hosts: Vec<Host>,
    pub links: Vec<Link>,
    pub arbiter: Arbiter,
    pub client: Client,
    /// The shared disk, and who has its lock.
    pub shared: Image,
    pub lock: Option<Process>,
    pub report: Report,
    /// By link and epoch.
    pub snapshots: HashMap<(usize, EpochId), Snapshot>,
    /// Last epoch acked over a link.
    pub acked: HashMap<usize, EpochId>,
    /// Last epoch of a link's session that was durable on the backup's image. It stays so when the
    /// copy is given up.
    pub durable: HashMap<usize, EpochId>,
    /// Last epoch that was said over a link to be flushed.
    pub flushed: HashMap<usize, EpochId>,
    /// When a host last saw the arbiter's record as it is, and could have claimed.
    pub rehearsed: HashMap<usize, Duration>,
    /// Generations whose primary has said that its guest has ended.
    pub farewells: HashSet<Generation>,
    /// What strangers have listened to.
    pub recorded: Recorded,
    /// Pairs of hosts `(from, to)` whose separate path is cut.
    pub beats_cut: Vec<(usize, usize)>,
    queue: Queue,
    pub violation: Option<String>,
    /// Since when all has been well after the faults, and the last epoch acked then.
    pub well_since: Option<(Duration, Option<EpochId>)>,
    pub finished: bool,
    decisions: DefaultHasher,
}

impl World {
    /// Host 0 runs the guest; the others wait. The last one is a stranger's, which runs neither.
    pub fn new(settings: Settings) -> Self {
        let seed = settings.seed;
        let mut world = Self {
            now: Duration::ZERO,
            rng: Rng::new(seed),
            hosts: Vec::new(),
            links: Vec::new(),
            arbiter: Arbiter::new((0, 0)),
            client: Client::default(),
            shared: Image::default(),
            lock: None,
            report: Report::default(),
            snapshots: HashMap::new(),
            acked: HashMap::new(),
            durable: HashMap::new(),
            flushed: HashMap::new(),
            rehearsed: HashMap::new(),
            farewells: HashSet::new(),
            recorded: Recorded::default(),
            beats_cut: Vec::new(),
            queue: Queue::default(),
            violation: None,
            well_since: None,
            finished: false,
            decisions: DefaultHasher::new(),
            settings,
        };
        world
            .hosts
            .extend((0..=world.settings.hosts).map(|_| Host::new()));
        world.boot_guest(0, Generation(1));
        for host in 1..world.settings.hosts {
            world.start_backup(host);
        }
        for (at, fault) in world.settings.faults.clone() {
            world.at(at, Event::Fault(fault));
        }
        world
    }

    /// Runs until all has been well for a while after the last fault.
    pub fn run(mut self) -> Result<Report, String> {
        let last = self.settings.faults.iter().map(|(at, _)| *at).max();
        let calm = last.unwrap_or(ms(100));
        let mut check = calm;
        while check < calm + CALM {
            check += CHECKS;
            self.at(check, Event::Check);
        }
        while self.violation.is_none() && !self.finished && self.now < check && self.step() {}
        if self.violation.is_none() && !self.finished {
            let trouble = self.trouble();
            self.violate(trouble.unwrap_or_else(|| "no progress: epochs stand still".into()));
        }
        match self.violation {
            Some(violation) => Err(violation),
            None => {
                self.report.outputs = self.client.heard();
                self.report.repeated = self.client.repeated;
                self.report.late = self.client.late;
                self.report.digest = self.decisions.finish();
                Ok(self.report)
            }
        }
    }

    /// The next thing happens. Returns false after the last one.
    fn step(&mut self) -> bool {
        let wakes = self
            .hosts
            .iter()
            .enumerate()
            .filter(|(_, host)| !host.frozen);
        let wakes = wakes.filter_map(|(number, host)| Some((host.wake_at?, number)));
        let wake = wakes.min();
        match (self.queue.next_at(), wake) {
            (None, _) => false,
            (Some(at), Some((wake_at, host))) if wake_at < at => {
                self.now = self.now.max(wake_at);
                self.hosts[host].wake_at = None;
                self.tick(host);
                true
            }
            (Some(at), _) => {
                self.now = at;
                if let Some(event) = self.queue.pop() {
                    self.dispatch(event);
                }
                true
            }
        }
    }

    // --- events ---

    pub fn at(&mut self, at: Duration, event: Event) {
        self.queue.push(at, event);
    }

    pub fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    /// The event in a random time from `from_us` to `to_us`.
    pub fn soon(&mut self, from_us: u64, to_us: u64, event: Event) {
        let delay = self.rng.micros(from_us, to_us);
        self.after(delay, event);
    }

    pub fn process(&self, host: usize) -> Process {
        (host, self.hosts[host].starts)
    }

    pub fn count(&mut self, what: &'static str) {
        *self.report.counts.entry(what).or_default() += 1;
    }

    pub fn trace(&self, host: usize, what: impl FnOnce() -> String) {
        if self.settings.trace {
            let what = what();
            eprintln!(
                "{:>11.3} ms  host {host}  {what}",
                self.now.as_secs_f64() * 1e3
            );
        }
    }

    pub fn violate(&mut self, what: String) {
        if self.settings.trace {
            eprintln!("VIOLATION at {:?}: {what}", self.now);
        }
        self.violation.get_or_insert(what);
    }

    fn dispatch(&mut self, event: Event) {
        if let Some((host, starts)) = event.process()
            && self.hosts[host].starts != starts
        {
            return;
        }
        let host = match &event {
            Event::Deliver(_, host) | Event::Beat(host, _) => Some(*host),
            _ => event.process().map(|(host, _)| host),
        };
        if let Some(host) = host.map(|host| &mut self.hosts[host])
            && host.frozen
        {
            return host.deferred.push(event);
        }
        let Some(event) = self.hang_on(event) else {
            return;
        };
        match event {
            Event::GuestStep(who) => self.guest_step(who),
            Event::Deliver(link, host) => self.deliver(link, host),
            Event::BeatTimer(who) => self.send_beats(who),
            Event::Beat(host, beat) => self.beat(host, beat),
            Event::Connect(who) => self.connect(who.0),
            Event::Opened(who) => self.primary(who.0, PrimaryInput::Opened),
            Event::Work((host, _), session, work) => {
                if self.hosts[host].session == session {
                    self.work(host, work);
                }
            }
            Event::Ask(who, question) => self.arbiter_asked(who, question),
            Event::Answer((host, _), answer) => self.arbiter_answered(host, answer),
            Event::Repeat((host, _), output) => {
                if let Side::Primary(node) = &self.hosts[host].side {
                    let generation = node.core.generation();
                    let outputs = node.gate.repeat(&output);
                    self.outputs(host, generation, outputs);
                }
            }
            Event::Run(who) => self.run_promoted(who),
            Event::Persisted((host, _), persisting) => self.persisted(host, persisting),
            Event::Flushed((host, _), flushing) => self.flushed(host, flushing),
            Event::Destage((host, _)) => self.destage(host),
            Event::RestoreTried((host, _), ticket, works) => {
                self.restore_tried(host, ticket, works);
            }
            Event::Stranger(link, messages) => self.stranger_says(link, messages),
            Event::Replay => self.replay_beat(),
            Event::Lock((host, _), generation) => self.promote(host, generation),
            Event::Restart((host, starts)) => {
                if self.hosts[host].starts == starts {
                    self.start_backup(host);
                }
            }
            Event::Thaw((host, starts)) => {
                if self.hosts[host].starts == starts {
                    self.thaw(host);
                }
            }
            Event::Fault(fault) => self.fault(fault),
            Event::Check => self.check(),
        }
    }

    pub fn thaw(&mut self, host: usize) {
        self.trace(host, || "thaws".into());
        self.hosts[host].frozen = false;
        // The core may be woken before or after all that has arrived.
        if self.hosts[host].wake_at.is_some() && self.rng.chance(500) {
            self.hosts[host].wake_at = Some(self.now);
        }
        for event in std::mem::take(&mut self.hosts[host].deferred) {
            self.at(self.now, event);
        }
    }

    /// Counts what the core of `host` has just decided into the digest.
    pub fn decided(&mut self, host: usize, effects: &impl Debug, wakeup: Option<Duration>) {
        if self.settings.digests {
            format!("{:?} {host} {effects:?} {wakeup:?}", self.now).hash(&mut self.decisions);
        }
    }

    fn tick(&mut self, host: usize) {
        match self.hosts[host].side {
            Side::Primary(_) => self.primary(host, PrimaryInput::Tick),
            Side::Backup(_) => self.backup(host, BackupInput::Tick),
            Side::Down => {}
        }
    }

    /// Wakes the core of `host` when it wants to be, a little late as real timers are.
    pub fn schedule_wake(&mut self, host: usize) {
        let wakeup = match &self.hosts[host].side {
            Side::Primary(node) => node.core.next_wakeup(),
            Side::Backup(node) => node.core.next_wakeup(),
            Side::Down => None,
        };
        let late = self.rng.micros(0, 300);
        self.hosts[host].wake_at = wakeup.map(|at| at.max(self.now) + late);
    }

    // --- processes ---

    /// A process ends; `silently`: with its host, so that no peer is told.
    pub fn kill(&mut self, host: usize, silently: bool) {
        let due = self.now + self.latency();
        for number in 0..self.links.len() {
            let link = &mut self.links[number];
            let here = (host, self.hosts[host].starts);
            if link.primary != here && link.backup != here {
                continue;
            }
            let peer = link.peer(host).0;
            let pipe = link.outgoing(host);
            if silently {
                pipe.lose();
            } else {
                pipe.close(due);
                self.schedule_delivery(number, peer);
            }
        }
        self.check_crash(host, silently);
        self.drop_hangs(host);
        if self.lock == Some(self.process(host)) {
            self.lock = None;
        }
        let host = &mut self.hosts[host];
        host.starts += 1;
        host.side = Side::Down;
        host.link = None;
        host.session += 1;
        host.frozen = false;
        host.deferred.clear();
        host.wake_at = None;
    }

    /// A process ends and is started again as a backup, some time later.
    pub fn kill_and_restart(&mut self, host: usize, silently: bool) {
        self.kill(host, silently);
        let process = self.process(host);
        self.soon(5_000, 120_000, Event::Restart(process));
    }
}

impl Host {
    fn new() -> Self {
        Self {
            starts: 0,
            side: Side::Down,
            link: None,
            session: 0,
            frozen: false,
            disk: HostDisk::default(),
            hangs: Hangs::default(),
            heartbeats: HeartbeatFilter::new(false),
            beats_sent: 0,
            deferred: Vec::new(),
            wake_at: None,
        }
    }
}

/// What a seed makes of the world.
pub fn settings(seed: u64, trace: bool) -> Settings {
    let mut rng = Rng::new(seed ^ 0xfa_017);
    let hosts = 2 + rng.below(2) as usize;
    let plan = Plan::new(&mut rng, hosts);
    let may_repeat_late = plan.faults.iter().any(|(_, fault)| fault.closes());
    Settings {
        answers_lost_permille: 50,
        seed,
        hosts,
        policy: policy(),
        capture_failures_permille: plan.capture_failures_permille,
        persist_failures_permille: plan.persist_failures_permille,
        sync_failures_permille: plan.sync_failures_permille,
        beats_lost_permille: plan.beats_lost_permille,
        byte_ns: plan.byte_ns,
        may_repeat_late,
        strangers: plan.faults.iter().any(|(_, fault)| fault.listens()),
        faults: plan.faults,
        trace,
        digests: trace,
    }
}
