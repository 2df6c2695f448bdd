//! The state of the model, and what may happen next. Whatever is not forced may also never happen:
//! a message that is not delivered, a call that does not come back, a process that is not run.
//!
//! Must not be done here: letting the two hosts know anything of each other but by the link and the
//! arbiter.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::arbiter::{Answer, Arbiter, Call, Kind, Process, Stage};
use super::link::{Frame, Link, Wire, whole_session};
use super::{Bounds, Rule};
use crate::core::backup::transitions::for_model::Timer as BackupTimer;
use crate::core::backup::{BackupCore, BackupPhase};
use crate::core::primary::transitions::for_model::Timer as PrimaryTimer;
use crate::core::primary::{PrimaryCore, PrimaryPhase};

/// A generation that nobody was ever granted.
const FORGED: u64 = 99;
/// How many generations the book has room for.
const GENERATIONS: usize = 8;

/// A moment in a generation: the session, and the epoch that everything until then belongs to.
/// Without a backup, [`ALONE`] comes after all epochs.
pub(super) type Moment = (u64, u64);

pub(super) const ALONE: u64 = u64::MAX;

#[derive(Debug, Clone, Hash)]
pub(super) enum Side {
    Down,
    /// Asks the arbiter whether the guest may be started from nothing.
    Starting,
    Primary(Arc<PrimaryCore>),
    Backup(Arc<BackupCore>),
}

/// What a primary's runtime does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Work {
    Sync,
    Capture(u64),
    Ship(u64),
    WriteShared(u64),
    Open,
}

#[derive(Debug, Clone, Hash)]
pub(super) struct Node {
    pub(super) life: u8,
    pub(super) side: Side,
    pub(super) call: Option<Call>,
    pub(super) work: Option<Work>,
    /// The journal is being written, for this ticket.
    pub(super) persisting: Option<u64>,
    /// The journal is being flushed, for this ticket and through this epoch.
    pub(super) flushing: Option<(u64, Moment)>,
    /// A state is being tried, for this ticket.
    pub(super) trying: Option<u64>,
    /// Whether output leaves at once.
    pub(super) gate_open: bool,
    /// This process stood still, and has not noticed yet.
    pub(super) stalled: bool,
    /// Its arbiter's record is not the true one.
    pub(super) sees_past: bool,
    /// Its link is a stranger's.
    pub(super) stranger: bool,
    /// Its machine has broken.
    pub(super) broke: bool,
    /// Its machine could not load the state of its copy.
    pub(super) cannot_load: bool,
}

/// Who ran the guest, and what it continued from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Reign {
    pub(super) generation: u64,
    pub(super) process: Process,
    pub(super) base: Base,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Base {
    Nothing,
    /// Its own run.
    Own,
    /// A copy of this generation and moment.
    Copy(u64, Moment),
}

/// What may still happen, and how often.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct Left {
    pub(super) sessions: u8,
    pub(super) crashes: u8,
    /// Starts of a standby.
    pub(super) restarts: u8,
    /// Starts of the guest from nothing.
    pub(super) starts: u8,
    /// Processes and links that stood still and go on.
    pub(super) stalls: u8,
    /// Answers of the arbiter that are lost.
    pub(super) lost: u8,
    /// Links that break while both sides live.
    pub(super) breaks: u8,
    /// Captures, journal writes, flushes and trials that fail, and machines that break.
    pub(super) failures: u8,
    /// What a stranger says.
    pub(super) lies: u8,
    /// Times that the arbiter's record goes back for one host or both.
    pub(super) past: u8,
    /// A person dismisses the backup, hands the guest over to it, or wants it promoted or stopped.
    pub(super) orders: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Connect(usize),
    Deliver(usize),
    /// The next message comes after a long silence on the link.
    DeliverLate(usize),
    LinkGone(usize),
    LinkMalformed(usize),
    Sever,
    PrimaryTimeout(usize, PrimaryTimer),
    BackupTimeout(usize, BackupTimer),
    Stall(usize),
    WorkDone(usize),
    CaptureFails(usize),
    Persisted(usize),
    PersistFails(usize),
    Flushed(usize),
    FlushFails(usize),
    RestoreTried(usize),
    RestoreFails(usize),
    /// The machine that runs the guest breaks.
    Breaks(usize),
    /// All that is persisted is on the images.
    Destaged(usize),
    ArbiterStep(usize),
    ArbiterAnswers(usize),
    AnswerLost(usize),
    OrphanLinks,
    GoesBack {
        generation: u64,
        hosts: [bool; 2],
    },
    PutRight,
    Crash(usize),
    Restart(usize),
    Start(usize),
    Dismiss(usize),
    HandOver(usize),
    WantPromotion(usize),
    StopBackup(usize),
    EndGuest(usize),
    ForgedHello(usize, u64),
    ForgedBeat(usize),
    ForgedFrame(usize, Frame),
    /// It goes on in a session of its own.
    StrangerSays(usize, Frame),
    StrangerGoes(usize),
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) bounds: Bounds,
    pub(super) hosts: [Node; 2],
    pub(super) link: Option<Link>,
    pub(super) arbiter: Arbiter,
    pub(super) reigns: Vec<Reign>,
    /// The last that was said in each generation.
    pub(super) said: [Option<Moment>; GENERATIONS],
    /// The last epoch that a backup acknowledged.
    pub(super) acked: Moment,
    /// The last epoch whose disk writes a backup holds durably.
    pub(super) flushed: Moment,
    /// The last epoch whose flushes the guest was told of.
    pub(super) told: Moment,
    /// Number of the last session.
    pub(super) session: u64,
    pub(super) left: Left,
    pub(super) broken: Option<Rule>,
    /// The guest was ended on purpose.
    pub(super) ended: bool,
}

impl Hash for World {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Self {
            bounds: _,
            hosts,
            link,
            arbiter,
            reigns,
            said,
            acked,
            flushed,
            told,
            session,
            left,
            broken,
            ended,
        } = self;
        (hosts, link, arbiter, reigns, said).hash(state);
        (acked, flushed, told, session, left, broken, ended).hash(state);
    }
}

/// What a reader of a counterexample wants to know. The path to it tells the rest.
impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("World");
        for host in &self.hosts {
            let side = match &host.side {
                Side::Down => ("down", 0),
                Side::Starting => ("starting", 0),
                Side::Primary(core) => (core.phase().name(), core.generation().0),
                Side::Backup(core) => (core.phase().name(), core.generation().0),
            };
            debug.field("host", &(side, host.call, host.work, host.gate_open));
        }
        debug
            .field("link", &self.link)
            .field("arbiter", &self.arbiter)
            .field("reigns", &self.reigns)
            .field("said", &self.said)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

/// For the checker's reports only.
impl PartialEq for World {
    fn eq(&self, other: &Self) -> bool {
        let digest = |world: &Self| {
            let mut hasher = DefaultHasher::new();
            world.hash(&mut hasher);
            hasher.finish()
        };
        digest(self) == digest(other)
    }
}

impl Node {
    pub(super) fn new(side: Side, gate_open: bool) -> Self {
        Self {
            life: 0,
            side,
            call: None,
            work: None,
            persisting: None,
            flushing: None,
            trying: None,
            gate_open,
            stalled: false,
            sees_past: false,
            stranger: false,
            broke: false,
            cannot_load: false,
        }
    }

    pub(super) fn primary(&self) -> Option<&PrimaryCore> {
        match &self.side {
            Side::Primary(core) => Some(core),
            _ => None,
        }
    }

    pub(super) fn backup(&self) -> Option<&BackupCore> {
        match &self.side {
            Side::Backup(core) => Some(core),
            _ => None,
        }
    }
}

impl World {
    /// Node 0 has started the guest, host 1 waits for a primary.
    pub(super) fn new(kind: Kind, bounds: Bounds, left: Left) -> Self {
        let first = Process { host: 0, life: 0 };
        let mut world = Self {
            bounds,
            hosts: [Node::new(Side::Down, true), Node::new(Side::Down, false)],
            link: None,
            arbiter: Arbiter::new(kind, first),
            reigns: Vec::new(),
            said: [None; GENERATIONS],
            acked: (0, 0),
            flushed: (0, 0),
            told: (0, 0),
            session: 0,
            left,
            broken: None,
            ended: false,
        };
        world.reign(0, 1, Base::Nothing);
        world.start_standby(1);
        if bounds.apart {
            world.arbiter.copy();
            world.hosts[1].sees_past = true;
        }
        world
    }

    pub(super) fn keeps(&self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    pub(super) fn breaks(&mut self, rule: Rule) {
        self.broken.get_or_insert(rule);
    }

    pub(super) fn process(&self, host: usize) -> Process {
        let life = self.hosts[host].life;
        Process { host, life }
    }

    /// Whether this process still runs.
    pub(super) fn lives(&self, process: Process) -> bool {
        let host = &self.hosts[process.host];
        host.life == process.life && !matches!(host.side, Side::Down)
    }

    /// As `Claim::Start` asks: whether another process holds a generation, or is about to.
    pub(super) fn another_holder_lives(&self, host: usize) -> bool {
        let other = self.process(1 - host);
        let call = self.hosts[1 - host].call;
        let links = call.is_some_and(|call| matches!(call.stage, Stage::Linking(_)));
        self.lives(other) && (links || self.arbiter.holds_any(other))
    }

    // --- the book ---

    /// Somebody outside hears all that the guest has said until this moment.
    pub(super) fn say(&mut self, host: usize, generation: u64, until: Moment) {
        let me = self.process(host);
        let lacks_it = |reign: &Reign| match reign.base {
            // A process that goes alone is not another speaker.
            _ if reign.generation <= generation || reign.process == me => false,
            Base::Copy(of, base) => (of, base) < (generation, until),
            Base::Nothing | Base::Own => true,
        };
        if !self.arbiter.was_granted(generation, me) || self.reigns.iter().any(lacks_it) {
            self.breaks(Rule::OneSpeaker);
        }
        let said = &mut self.said[generation as usize];
        *said = (*said).max(Some(until));
    }

    /// A side runs the guest from now on.
    pub(super) fn reign(&mut self, host: usize, generation: u64, base: Base) {
        if let Base::Copy(of, base) = base {
            let earlier = self.said[..generation as usize].iter().enumerate();
            let lacks = |(in_generation, until): (usize, &Option<Moment>)| {
                until.is_some_and(|until| (in_generation as u64, until) > (of, base))
            };
            if earlier.into_iter().any(lacks) {
                self.breaks(Rule::NothingLost);
            }
        }
        self.reigns.push(Reign {
            generation,
            process: self.process(host),
            base,
        });
        if base != Base::Own {
            self.run_primary(host, generation);
        }
    }

    // --- what may happen ---

    pub(super) fn actions(&self, out: &mut Vec<Action>) {
        for host in 0..2 {
            self.actions_of_link(host, out);
            self.actions_of_arbiter(host, out);
            self.actions_of_process(host, out);
            if self.left.lies > 0 {
                self.lies(host, out);
            }
            if self.left.orders > 0 {
                self.orders(host, out);
            }
        }
        let is_up = self.link.as_ref().is_some_and(|link| !link.severed);
        if self.left.breaks > 0 && is_up {
            out.push(Action::Sever);
        }
        if self.arbiter.has_orphan() {
            out.push(Action::OrphanLinks);
        }
        self.actions_of_record(out);
    }

    fn actions_of_link(&self, host: usize, out: &mut Vec<Action>) {
        let it = &self.hosts[host];
        if let Some(link) = &self.link {
            let has_message = !link.ends[host].inbox.is_empty();
            if has_message {
                out.push(Action::Deliver(host));
            }
            if has_message && self.left.stalls > 0 && it.primary().is_some() {
                out.push(Action::DeliverLate(host));
            }
            if link.is_gone_for(host) {
                out.push(Action::LinkGone(host));
            }
            if link.ends[host].open && self.left.breaks > 0 && it.backup().is_some() {
                out.push(Action::LinkMalformed(host));
            }
        }
        if let (true, Some(core)) = (it.stranger, it.backup()) {
            out.push(Action::StrangerGoes(host));
            let session = whole_session(core.generation().0);
            out.extend(session.map(|frame| Action::StrangerSays(host, frame)));
        }
        let other_has_room = self.hosts[1 - host]
            .backup()
            .is_some_and(BackupCore::has_room);
        if self.left.sessions > 0
            && self.link.is_none()
            && other_has_room
            && let Some(core) = it.primary()
            && core.phase() == PrimaryPhase::Alone
            && !core.is_opening()
        {
            out.push(Action::Connect(host));
        }
    }

    fn actions_of_arbiter(&self, host: usize, out: &mut Vec<Action>) {
        let Some(call) = self.hosts[host].call else {
            return;
        };
        out.push(match call.stage {
            Stage::Answered(_) => Action::ArbiterAnswers(host),
            _ => Action::ArbiterStep(host),
        });
        if self.left.lost > 0 && call.stage != Stage::Answered(Answer::Silent) {
            out.push(Action::AnswerLost(host));
        }
    }

    fn actions_of_process(&self, host: usize, out: &mut Vec<Action>) {
        let it = &self.hosts[host];
        match &it.side {
            Side::Down => {
                if self.left.restarts > 0 {
                    out.push(Action::Restart(host));
                }
                if self.left.starts > 0 {
                    out.push(Action::Start(host));
                }
                return;
            }
            Side::Starting => {}
            Side::Primary(core) => {
                let may = |timer: &PrimaryTimer| match timer {
                    PrimaryTimer::Promise => self.bounds.promises,
                    PrimaryTimer::Ask => core
                        .next_beat()
                        .is_none_or(|beat| beat <= self.bounds.beats + self.session),
                    _ => true,
                };
                let timers = core.waits().filter(may);
                out.extend(timers.map(|timer| Action::PrimaryTimeout(host, timer)));
                if self.left.failures > 0 && !it.broke {
                    out.push(Action::Breaks(host));
                }
            }
            Side::Backup(core) => {
                let may =
                    |timer: &BackupTimer| *timer != BackupTimer::Promise || self.bounds.promises;
                let timers = core.waits().filter(may);
                out.extend(timers.map(|timer| Action::BackupTimeout(host, timer)));
            }
        }
        match it.work {
            // The last one hangs.
            Some(Work::Capture(epoch)) if epoch > self.bounds.epochs => {}
            Some(_) => out.push(Action::WorkDone(host)),
            None => {}
        }
        // It fails with its machine, but may have been over just before.
        if let Some(Work::Capture(epoch)) = it.work
            && (it.broke || (self.left.failures > 0 && epoch <= self.bounds.epochs))
        {
            out.push(Action::CaptureFails(host));
        }
        let is_copied = |core: &BackupCore| core.committed_epoch().is_some() && !core.has_disks();
        if self.bounds.disks && it.backup().is_some_and(is_copied) {
            out.push(Action::Destaged(host));
        }
        if it.trying.is_some() {
            out.push(Action::RestoreTried(host));
            if self.left.failures > 0 {
                out.push(Action::RestoreFails(host));
            }
        }
        if it.persisting.is_some() {
            out.push(Action::Persisted(host));
            if self.left.failures > 0 {
                out.push(Action::PersistFails(host));
            }
        }
        if it.flushing.is_some() {
            out.push(Action::Flushed(host));
            if self.left.failures > 0 {
                out.push(Action::FlushFails(host));
            }
        }
        if self.left.stalls > 0 && !it.stalled {
            out.push(Action::Stall(host));
        }
        if self.left.crashes > 0 {
            out.push(Action::Crash(host));
        }
    }

    fn orders(&self, host: usize, out: &mut Vec<Action>) {
        let it = &self.hosts[host];
        if let Some(core) = it.primary() {
            match core.phase() {
                PrimaryPhase::Fenced | PrimaryPhase::Stopped => {}
                phase => {
                    out.push(Action::EndGuest(host));
                    if phase == PrimaryPhase::Protected {
                        out.push(Action::Dismiss(host));
                        out.push(Action::HandOver(host));
                    }
                }
            }
        }
        if let Some(core) = it.backup() {
            out.push(Action::StopBackup(host));
            if core.phase() == BackupPhase::Standby {
                out.push(Action::WantPromotion(host));
            }
        }
    }

    fn lies(&self, host: usize, out: &mut Vec<Action>) {
        let it = &self.hosts[host];
        if it.backup().is_some_and(BackupCore::has_room) {
            let (latest, _) = self.arbiter.latest();
            out.push(Action::ForgedHello(host, latest));
            out.push(Action::ForgedHello(host, FORGED));
        }
        if let Some(core) = it.primary() {
            out.push(Action::ForgedBeat(host));
            if core.phase() == PrimaryPhase::Handshaking {
                let generation = core.generation().0;
                let wire = Wire::Stale(FORGED);
                out.push(Action::ForgedFrame(host, Frame { generation, wire }));
            }
        }
        let is_linked = self.link.as_ref().is_some_and(|link| link.ends[host].open);
        if is_linked || it.stranger {
            let generation = it.primary().map(|core| core.generation());
            let generation = generation.or(it.backup().map(|core| core.generation()));
            let later = Frame {
                generation: FORGED,
                wire: Wire::Heartbeat,
            };
            let fenced = generation.map(|generation| Frame {
                generation: generation.0,
                wire: Wire::Fenced(FORGED),
            });
            for frame in fenced.into_iter().chain([later]) {
                out.push(Action::ForgedFrame(host, frame));
            }
        }
    }

    fn actions_of_record(&self, out: &mut Vec<Action>) {
        let goes_back = self.hosts.iter().any(|host| host.sees_past);
        // A record that is restored between a claimant's look and its link is not promised.
        let is_linking = |host: &Node| {
            host.call
                .is_some_and(|call| matches!(call.stage, Stage::Linking(_)))
        };
        if goes_back && !self.bounds.apart {
            out.push(Action::PutRight);
        } else if self.left.past > 0 && !self.hosts.iter().any(is_linking) {
            let (latest, _) = self.arbiter.latest();
            for generation in 1..=latest {
                for hosts in [[true, true], [true, false], [false, true]] {
                    out.push(Action::GoesBack { generation, hosts });
                }
            }
        }
    }
}
