//! Hosts, time and events. Everything happens in the order of (time, number of the event).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use bytes::Bytes;
use understudy_replication::core::backup::BackupInput;
use understudy_replication::core::policy::Policy;
use understudy_replication::core::primary::{PrimaryInput, PrimaryPhase};
use understudy_replication::ids::{EpochId, Generation};
use understudy_replication::output::SealedOutput;

use super::backup_host::{BackupHost, Persisting};
use super::disk::{HostDisk, Image};
use super::faults::{CALM, CALM_TAIL, Fault, Plan};
use super::guest::Output;
use super::link::Link;
use super::ms;
use super::network::Beat;
use super::outside::{Answer, Arbiter, Client, Process, Question};
use super::primary_host::{PrimaryHost, Work};
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
    /// Answers of the arbiter lost after it has made up its mind, in a thousand.
    pub answers_lost_permille: u64,
    /// Heartbeats lost on the separate path, in a thousand.
    pub beats_lost_permille: u64,
    /// One byte over the logging channel takes so long: slow links.
    pub byte_ns: u64,
    /// Whether an older side may repeat outputs after a newer one has spoken; see
    /// [`Fault::closes`].
    pub may_repeat_late: bool,
    /// Faults, in order of time.
    pub faults: Vec<(Duration, Fault)>,
    pub trace: bool,
}

/// Policy of all simulated hosts: shorter times than the defaults, for more epochs and failovers.
pub fn policy() -> Policy {
    Policy {
        epoch_interval: ms(8),
        epoch_interval_min: ms(1),
        output_quiet: Some(ms(1)),
        heartbeat_interval: ms(5),
        heartbeat_timeout: ms(40),
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

pub enum Event {
    GuestStep(Process),
    Wake(Process, u64),
    Deliver(usize, usize),
    BeatTimer(Process),
    /// A heartbeat reaches a host.
    Beat(usize, Beat),
    Connect(Process),
    /// All that was held when a side went alone has left.
    Opened(Process),
    Work(Process, u64, Work),
    Ask(Process, Question),
    Answer(Process, Answer),
    /// The output of the last committed epoch is sent once more.
    Repeat(Process, SealedOutput),
    Run(Process),
    /// The journal has taken an epoch's disk writes, or cannot.
    Persisted(Process, Persisting),
    /// A promoted side tries to get the lock of the shared disk.
    Lock(Process, Generation),
    Restart(Process),
    Thaw(Process),
    Fault(Fault),
    CalmTail,
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
    deferred: Vec<Event>,
    wake_number: u64,
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
    /// Pairs of hosts `(from, to)` whose separate path is cut.
    pub beats_cut: Vec<(usize, usize)>,
    events: BinaryHeap<Reverse<(Duration, u64)>>,
    event_store: HashMap<u64, Event>,
    event_number: u64,
    violation: Option<String>,
    epochs_before_tail: Option<EpochId>,
    decisions: DefaultHasher,
}

impl World {
    /// Host 0 runs the guest; the others wait.
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
            beats_cut: Vec::new(),
            events: BinaryHeap::new(),
            event_store: HashMap::new(),
            event_number: 0,
            violation: None,
            epochs_before_tail: None,
            decisions: DefaultHasher::new(),
            settings,
        };
        for host in 0..world.settings.hosts {
            world.hosts.push(Host {
                starts: 0,
                side: Side::Down,
                link: None,
                session: 0,
                frozen: false,
                disk: HostDisk::default(),
                deferred: Vec::new(),
                wake_number: 0,
            });
            if host == 0 {
                world.boot_guest(host);
            } else {
                world.start_backup(host);
            }
        }
        for (at, fault) in world.settings.faults.clone() {
            world.at(at, Event::Fault(fault));
        }
        world
    }

    /// Runs to the end of the calm after the last fault.
    pub fn run(mut self) -> Result<Report, String> {
        let last = self.settings.faults.iter().map(|(at, _)| *at).max();
        let end = last.unwrap_or(ms(100)) + CALM;
        self.at(end - CALM_TAIL, Event::CalmTail);
        while let Some(Reverse((at, number))) = self.events.pop() {
            if at > end || self.violation.is_some() {
                break;
            }
            self.now = at;
            if let Some(event) = self.event_store.remove(&number) {
                self.dispatch(event);
            }
        }
        if self.violation.is_none() {
            self.check_progress();
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

    // --- events ---

    pub fn at(&mut self, at: Duration, event: Event) {
        self.event_number += 1;
        let number = self.event_number;
        self.event_store.insert(number, event);
        self.events.push(Reverse((at, number)));
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

    /// The host that an event is for; `None` if that process is gone.
    fn addressee(&self, event: &Event) -> Option<usize> {
        let (host, starts) = match event {
            Event::GuestStep(who)
            | Event::Wake(who, _)
            | Event::BeatTimer(who)
            | Event::Connect(who)
            | Event::Opened(who)
            | Event::Work(who, ..)
            | Event::Answer(who, _)
            | Event::Repeat(who, _)
            | Event::Persisted(who, _)
            | Event::Lock(who, _)
            | Event::Run(who) => *who,
            Event::Deliver(_, host) | Event::Beat(host, ..) => self.process(*host),
            _ => return Some(usize::MAX),
        };
        (self.hosts[host].starts == starts).then_some(host)
    }

    fn dispatch(&mut self, event: Event) {
        let Some(host) = self.addressee(&event) else {
            return;
        };
        if self.hosts.get(host).is_some_and(|host| host.frozen) {
            return self.hosts[host].deferred.push(event);
        }
        match event {
            Event::GuestStep(who) => self.guest_step(who),
            Event::Wake(who, number) => {
                if self.hosts[who.0].wake_number == number {
                    self.tick(who.0);
                }
            }
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
            Event::CalmTail => {
                let (host, _) = self.arbiter.holder();
                self.epochs_before_tail = self.acked_by(host);
            }
        }
    }

    fn thaw(&mut self, host: usize) {
        self.trace(host, || "thaws".into());
        self.hosts[host].frozen = false;
        for event in std::mem::take(&mut self.hosts[host].deferred) {
            self.at(self.now, event);
        }
    }

    /// Counts what the core of `host` has just decided into the digest.
    pub fn decided(&mut self, host: usize, effects: &impl Debug, wakeup: Option<Duration>) {
        format!("{:?} {host} {effects:?} {wakeup:?}", self.now).hash(&mut self.decisions);
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
        self.hosts[host].wake_number += 1;
        if let Some(at) = wakeup {
            let event = Event::Wake(self.process(host), self.hosts[host].wake_number);
            let late = self.rng.micros(0, 300);
            self.at(at.max(self.now) + late, event);
        }
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
        self.check_crash(host);
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
    }

    /// A process ends and is started again as a backup, some time later.
    pub fn kill_and_restart(&mut self, host: usize, silently: bool) {
        self.kill(host, silently);
        let process = self.process(host);
        self.soon(5_000, 120_000, Event::Restart(process));
    }

    pub fn start_beats(&mut self, host: usize) {
        let process = self.process(host);
        self.soon(0, 5_000, Event::BeatTimer(process));
    }

    // --- checks ---

    pub fn outputs(&mut self, host: usize, generation: Generation, outputs: Vec<Output>) {
        let who = self.process(host);
        for output in outputs {
            let heard = self.client.hear(who, generation, output, &self.arbiter);
            if let Err(violation) = heard {
                self.violate(violation);
            }
            if self.client.late > 0 && !self.settings.may_repeat_late {
                self.violate(format!(
                    "R4: {who:?} speaks in {generation} after its successor"
                ));
            }
        }
    }

    fn acked_by(&self, host: usize) -> Option<EpochId> {
        match &self.hosts[host].side {
            Side::Primary(node) => node.core.acked(),
            _ => None,
        }
    }

    /// When faults have been over for long: somebody runs, protected, and epochs advance.
    fn check_progress(&mut self) {
        if let Some(ended) = self.has_ended() {
            return self.check_ended(ended);
        }
        let holder = self.arbiter.holder();
        let generation = self.arbiter.current;
        if self.process(holder.0) != holder || matches!(self.hosts[holder.0].side, Side::Down) {
            // The holder died. Who could have taken over must have.
            for host in 0..self.hosts.len() {
                if let Side::Backup(node) = &self.hosts[host].side
                    && node.core.generation() == generation
                    && node.core.committed_epoch().is_some()
                {
                    return self.violate(format!("host {host} could run the guest and does not"));
                }
            }
            return self.count("holder died without standby");
        }
        match &self.hosts[holder.0].side {
            Side::Primary(node) if node.running => {
                let phase = node.core.phase();
                let acked = node.core.acked();
                if phase != PrimaryPhase::Protected {
                    self.violate(format!("no progress: holder {holder:?} is {phase:?}"));
                } else if acked <= self.epochs_before_tail {
                    self.violate(format!("no progress: epochs stand still at {acked:?}"));
                }
            }
            _ => self.violate(format!(
                "no progress: holder {holder:?} does not run the guest"
            )),
        }
    }

    /// The host whose guest has powered itself off, if nobody runs it any more.
    fn has_ended(&self) -> Option<usize> {
        let with = |wanted: fn(&PrimaryHost) -> bool| {
            (0..self.hosts.len())
                .find(|host| matches!(&self.hosts[*host].side, Side::Primary(node) if wanted(node)))
        };
        with(|node| node.guest.ended).filter(|_| with(|node| node.running).is_none())
    }

    /// When faults have been over for long, so is the guest's end, and all that it said was heard.
    fn check_ended(&mut self, host: usize) {
        if let Side::Primary(node) = &self.hosts[host].side {
            let (phase, said) = (node.core.phase(), node.guest.number);
            let heard = self.client.heard();
            if phase != PrimaryPhase::Stopped {
                self.violate(format!("no end: host {host} is {phase:?}"));
            } else if heard != said {
                self.violate(format!(
                    "the guest said {said} things before its end, {heard} were heard"
                ));
            }
        }
    }

    /// Everything is whole again: links and paths work, nobody sleeps, the arbiter answers.
    pub fn heal(&mut self) {
        self.arbiter.available = true;
        self.arbiter.went_back = false;
        self.beats_cut.clear();
        self.settings.capture_failures_permille = 0;
        self.settings.persist_failures_permille = 0;
        for number in 0..self.links.len() {
            for side in [self.links[number].primary.0, self.links[number].backup.0] {
                self.links[number].incoming(side).stalled_until = Duration::ZERO;
                self.schedule_delivery(number, side);
            }
        }
        for host in 0..self.hosts.len() {
            if self.hosts[host].frozen {
                self.thaw(host);
            }
        }
    }
}

/// What a seed makes of the world.
pub fn settings(seed: u64, trace: bool) -> Settings {
    let mut rng = Rng::new(seed ^ 0xfa_017);
    let hosts = 2 + rng.below(2) as usize;
    let Plan {
        faults,
        capture_failures_permille,
        persist_failures_permille,
        beats_lost_permille,
        byte_ns,
    } = Plan::new(&mut rng, hosts);
    Settings {
        answers_lost_permille: 50,
        seed,
        hosts,
        policy: policy(),
        capture_failures_permille,
        persist_failures_permille,
        beats_lost_permille,
        byte_ns,
        may_repeat_late: faults.iter().any(|(_, fault)| fault.closes()),
        faults,
        trace,
    }
}
