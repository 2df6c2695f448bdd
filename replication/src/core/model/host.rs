//! A node of the model: what a runtime does around its core, in as few words as possible.
//!
//! Must not be done here: helping a core with what it should do itself.

use std::sync::Arc;
use std::time::Duration;

use super::Rule;
use super::arbiter::{Answer, Ask, Call, Stage};
use super::link::{Frame, Link, STRANGERS_SESSION, Wire, hello};
use super::world::{Action, Base, Node, Side, Work, World};
use crate::arbiter::{ArbiterId, Record, Verdict};
use crate::core::backup::{BackupCore, BackupIdentity, BackupInput};
use crate::core::message::Message;
use crate::core::policy::Policy;
use crate::core::primary::{Pause, PrimaryCore, PrimaryInput};
use crate::core::start::Starts;
use crate::core::testing::NOW;
use crate::ids::{EpochId, Generation};

pub(super) fn policy() -> Policy {
    Policy {
        overhead_percent: 0,
        latency_target: Duration::ZERO,
        sync_rounds_max: 1,
        ..Policy::default()
    }
}

impl World {
    pub(super) fn act(&mut self, action: Action) {
        self.spend(action);
        match action {
            Action::Connect(host) => self.connect(host),
            Action::Deliver(host) => self.deliver(host),
            Action::DeliverLate(host) => {
                if let Side::Primary(core) = &mut self.hosts[host].side {
                    Arc::make_mut(core).hush();
                }
                self.deliver(host);
            }
            Action::LinkGone(host) => self.link_gone(host),
            Action::LinkMalformed(host) => {
                let cause = String::new();
                self.backup(host, BackupInput::LinkBroken { cause });
            }
            Action::Sever => self.sever(),
            Action::PrimaryTimeout(host, timer) => {
                if let Side::Primary(core) = &mut self.hosts[host].side {
                    Arc::make_mut(core).let_expire(timer);
                }
                self.primary(host, PrimaryInput::Tick);
            }
            Action::BackupTimeout(host, timer) => {
                if let Side::Backup(core) = &mut self.hosts[host].side {
                    Arc::make_mut(core).let_expire(timer);
                }
                self.backup(host, BackupInput::Tick);
            }
            Action::Stall(host) => self.hosts[host].stalled = true,
            Action::WorkDone(host) => self.work_done(host),
            Action::CaptureFails(host) => self.capture_fails(host),
            Action::Persisted(host) => self.persisted(host, Ok(())),
            Action::Destaged(host) => self.destaged(host),
            Action::PersistFails(host) => self.persisted(host, Err(String::new())),
            Action::Flushed(host) => self.journal_flushed(host, Ok(())),
            Action::FlushFails(host) => self.journal_flushed(host, Err(String::new())),
            Action::RestoreTried(host) => self.restore_tried(host, Ok(())),
            Action::RestoreFails(host) => self.restore_tried(host, Err(String::new())),
            Action::Breaks(host) => self.machine_breaks(host),
            Action::ArbiterStep(host) => self.arbiter_step(host),
            Action::ArbiterAnswers(host) => self.arbiter_answers(host),
            Action::AnswerLost(host) => {
                if let Some(call) = &mut self.hosts[host].call {
                    call.stage = Stage::Answered(Answer::Silent);
                }
            }
            Action::OrphanLinks => self.arbiter.link_orphan(),
            Action::GoesBack { generation, hosts } => {
                if self.arbiter.set_back(generation) {
                    for (host, sees) in self.hosts.iter_mut().zip(hosts) {
                        host.sees_past = sees;
                    }
                }
            }
            Action::PutRight => {
                self.arbiter.put_right();
                self.hosts
                    .iter_mut()
                    .for_each(|host| host.sees_past = false);
            }
            Action::Crash(host) => self.crash(host),
            Action::Restart(host) => self.start_standby(host),
            Action::Start(host) => self.start_guest(host),
            Action::Dismiss(_)
            | Action::HandOver(_)
            | Action::WantPromotion(_)
            | Action::StopBackup(_)
            | Action::EndGuest(_) => self.order(action),
            Action::ForgedHello(host, generation) => self.forged_hello(host, generation),
            Action::ForgedBeat(host) => self.forged_beat(host),
            Action::ForgedFrame(host, frame) | Action::StrangerSays(host, frame) => {
                self.receive(host, frame);
            }
            Action::StrangerGoes(host) => {
                self.hosts[host].stranger = false;
                self.backup(host, BackupInput::LinkClosed);
            }
        }
    }

    fn destaged(&mut self, host: usize) {
        let epoch = self.hosts[host]
            .backup()
            .and_then(BackupCore::committed_epoch);
        let epoch = epoch.unwrap_or_default();
        self.backup(host, BackupInput::DisksDurable { epoch });
    }

    /// What a person wants.
    fn order(&mut self, action: Action) {
        match action {
            Action::Dismiss(host) => {
                let cause = String::new();
                self.primary(host, PrimaryInput::BackupDismissed { cause });
            }
            Action::HandOver(host) => {
                let why = String::new();
                self.primary(host, PrimaryInput::HandOver { why });
            }
            Action::WantPromotion(host) => self.backup(host, BackupInput::PromotionWanted),
            Action::StopBackup(host) => self.backup(host, BackupInput::StopWanted),
            Action::EndGuest(host) => self.end_guest(host),
            _ => {}
        }
    }

    fn sever(&mut self) {
        if let Some(link) = &mut self.link {
            link.severed = true;
        }
    }

    fn machine_breaks(&mut self, host: usize) {
        self.hosts[host].broke = true;
        let why = String::new();
        self.primary(host, PrimaryInput::MachineBroke { why });
    }

    pub(super) fn end_guest(&mut self, host: usize) {
        self.ended = true;
        self.primary(host, PrimaryInput::GuestStopped);
    }

    fn spend(&mut self, action: Action) {
        let left = &mut self.left;
        let purse = match action {
            Action::Connect(_) => &mut left.sessions,
            Action::DeliverLate(_) | Action::Stall(_) => &mut left.stalls,
            Action::LinkMalformed(_) | Action::Sever => &mut left.breaks,
            Action::CaptureFails(_)
            | Action::PersistFails(_)
            | Action::FlushFails(_)
            | Action::RestoreFails(_)
            | Action::Breaks(_) => &mut left.failures,
            Action::AnswerLost(_) => &mut left.lost,
            Action::GoesBack { .. } => &mut left.past,
            Action::Crash(_) => &mut left.crashes,
            Action::Restart(_) => &mut left.restarts,
            Action::Start(_) => &mut left.starts,
            Action::Dismiss(_)
            | Action::HandOver(_)
            | Action::WantPromotion(_)
            | Action::StopBackup(_)
            | Action::EndGuest(_) => &mut left.orders,
            Action::ForgedHello(..) | Action::ForgedBeat(_) | Action::ForgedFrame(..) => {
                &mut left.lies
            }
            _ => return,
        };
        *purse = purse.saturating_sub(1);
    }

    // --- processes ---

    pub(super) fn run_primary(&mut self, host: usize, generation: u64) {
        let generation = Generation(generation);
        let core = PrimaryCore::new(policy(), hello(0), generation, NOW);
        let mut core = core.with_shared_disks(self.bounds.disks);
        core.forget_time(self.bounds.promises);
        self.hosts[host].side = Side::Primary(Arc::new(core));
        self.hosts[host].gate_open = true;
        self.let_out(host);
    }

    pub(super) fn start_standby(&mut self, host: usize) {
        let it = &mut self.hosts[host];
        it.life += 1;
        let known = Generation(self.arbiter.generation(it.sees_past));
        let Message::Hello(hello) = Message::Hello(hello(0)) else {
            return;
        };
        let identity = BackupIdentity {
            vm: hello.vm,
            node: hello.node,
            fingerprint: hello.fingerprint,
            layout: hello.layout,
            disks: if self.bounds.disks {
                vec![512]
            } else {
                Vec::new()
            },
            arbiter: hello.arbiter,
            host: None,
            starts: Starts::Never,
            has_replicated: self.bounds.disks,
            has_shared: false,
        };
        let mut core = BackupCore::new(policy(), identity, known, NOW);
        core.forget_time(self.bounds.promises);
        self.hosts[host].side = Side::Backup(Arc::new(core));
    }

    fn start_guest(&mut self, host: usize) {
        let it = &mut self.hosts[host];
        it.life += 1;
        it.side = Side::Starting;
        self.asks(host, Ask::Start);
    }

    fn crash(&mut self, host: usize) {
        let dead = self.process(host);
        if let Some(call) = self.hosts[host].call
            && let Stage::Linking(generation) = call.stage
            && !self.hosts[host].sees_past
        {
            self.arbiter.leave_orphan(dead, generation);
        }
        self.go_down(host);
    }

    pub(super) fn go_down(&mut self, host: usize) {
        let before = &self.hosts[host];
        let (life, sees_past) = (before.life, before.sees_past);
        self.hosts[host] = Node {
            life,
            sees_past,
            ..Node::new(Side::Down, false)
        };
        self.close(host);
    }

    // --- the link ---

    fn connect(&mut self, host: usize) {
        self.session += 1;
        self.link = Some(Link::new());
        let session = self.session;
        self.primary(host, PrimaryInput::LinkUp { session });
        self.backup(1 - host, BackupInput::LinkUp { session: 0 });
    }

    pub(super) fn close(&mut self, host: usize) {
        if let Some(link) = &mut self.link
            && link.close(host)
        {
            self.link = None;
        }
    }

    pub(super) fn send(&mut self, host: usize, message: &Message) {
        let generation = match &self.hosts[host].side {
            Side::Primary(core) => core.generation().0,
            Side::Backup(core) => core.generation().0,
            _ => return,
        };
        let wire = Wire::of(message);
        // A sign of life changes only when time-outs expire, and they may at any moment.
        if wire == Wire::Heartbeat || self.hosts[host].stranger {
            return;
        }
        self.send_wire(host, generation, wire);
    }

    pub(super) fn send_wire(&mut self, host: usize, generation: u64, wire: Wire) {
        if let Some(link) = &mut self.link {
            link.send(host, Frame { generation, wire });
        }
    }

    pub(super) fn deliver(&mut self, host: usize) {
        let inbox = self.link.as_mut().map(|link| &mut link.ends[host].inbox);
        if let Some(frame) = inbox.and_then(|inbox| inbox.pop_front()) {
            self.receive(host, frame);
        }
    }

    fn receive(&mut self, host: usize, frame: Frame) {
        let (session, disks) = (self.session, self.bounds.disks);
        let generation = Generation(frame.generation);
        for message in frame.wire.messages(frame.generation, session, disks) {
            match &self.hosts[host].side {
                Side::Primary(_) => self.primary(
                    host,
                    PrimaryInput::Received {
                        generation,
                        message,
                    },
                ),
                Side::Backup(_) => self.backup(
                    host,
                    BackupInput::Received {
                        generation,
                        message,
                    },
                ),
                _ => {}
            }
        }
    }

    pub(super) fn link_gone(&mut self, host: usize) {
        self.close(host);
        match &self.hosts[host].side {
            Side::Primary(_) => {
                self.forget_work(host);
                let cause = String::new();
                self.primary(host, PrimaryInput::LinkDown { cause });
            }
            Side::Backup(_) => self.backup(host, BackupInput::LinkClosed),
            _ => {}
        }
    }

    pub(super) fn forget_work(&mut self, host: usize) {
        let work = &mut self.hosts[host].work;
        *work = work.filter(|work| *work == Work::Open);
    }

    fn forged_hello(&mut self, host: usize, generation: u64) {
        self.hosts[host].stranger = true;
        self.backup(host, BackupInput::LinkUp { session: 0 });
        let message = Message::Hello(hello(STRANGERS_SESSION));
        let generation = Generation(generation);
        self.backup(
            host,
            BackupInput::Received {
                generation,
                message,
            },
        );
    }

    fn forged_beat(&mut self, host: usize) {
        let Some(core) = self.hosts[host].primary() else {
            return;
        };
        let session = core.session();
        for session in [STRANGERS_SESSION, session] {
            let generation = Generation(u64::MAX);
            self.primary(
                host,
                PrimaryInput::HeartbeatHeard {
                    session,
                    generation,
                },
            );
        }
    }

    // --- work ---

    pub(super) fn work_done(&mut self, host: usize) {
        let Some(work) = self.hosts[host].work.take() else {
            return;
        };
        match work {
            Work::Sync => self.primary(
                host,
                PrimaryInput::SyncRoundShipped {
                    pages_left: 0,
                    disk_bytes_left: 0,
                    left_takes: Duration::ZERO,
                },
            ),
            Work::Capture(epoch) => {
                let it = &mut self.hosts[host];
                it.gate_open = false;
                it.work = Some(Work::Ship(epoch));
                if let Some(core) = it.primary() {
                    let generation = core.generation().0;
                    self.send_wire(host, generation, Wire::Head(epoch));
                    self.send_wire(host, generation, Wire::End(epoch));
                }
                let epoch = EpochId(epoch);
                self.primary(
                    host,
                    PrimaryInput::Captured {
                        epoch,
                        pause: Pause::default(),
                    },
                );
            }
            Work::Ship(epoch) => {
                let epoch = EpochId(epoch);
                self.primary(host, PrimaryInput::Shipped { epoch, bytes: 0 });
            }
            Work::WriteShared(epoch) => {
                let epoch = EpochId(epoch);
                self.primary(host, PrimaryInput::DisksWritten { epoch });
            }
            Work::Open => self.primary(host, PrimaryInput::Opened),
        }
    }

    fn capture_fails(&mut self, host: usize) {
        if let Some(Work::Capture(epoch)) = self.hosts[host].work.take() {
            self.hosts[host].gate_open = false;
            let (epoch, error) = (EpochId(epoch), String::new());
            self.primary(host, PrimaryInput::CaptureFailed { epoch, error });
        }
    }

    pub(super) fn persisted(&mut self, host: usize, outcome: Result<(), String>) {
        if let Some(ticket) = self.hosts[host].persisting.take() {
            self.backup(host, BackupInput::Persisted { ticket, outcome });
        }
    }

    pub(super) fn journal_flushed(&mut self, host: usize, outcome: Result<(), String>) {
        if let Some((ticket, until)) = self.hosts[host].flushing.take() {
            if outcome.is_ok() {
                self.flushed = self.flushed.max(until);
            }
            self.backup(host, BackupInput::Flushed { ticket, outcome });
        }
    }

    pub(super) fn restore_tried(&mut self, host: usize, outcome: Result<(), String>) {
        if let Some(ticket) = self.hosts[host].trying.take() {
            self.hosts[host].cannot_load = outcome.is_err();
            self.backup(host, BackupInput::RestoreTried { ticket, outcome });
        }
    }

    // --- the arbiter ---

    /// One step of a call of this host.
    pub(super) fn arbiter_step(&mut self, host: usize) {
        let (who, past) = (self.process(host), self.hosts[host].sees_past);
        let lives = self.another_holder_lives(host);
        if let Some(mut call) = self.hosts[host].call {
            let starts = matches!(call.ask, Ask::Start);
            let was_linking = matches!(call.stage, Stage::Linking(_));
            self.arbiter.step(who, past, lives, &mut call);
            self.hosts[host].call = Some(call);
            if starts && was_linking && matches!(call.stage, Stage::Answered(_)) {
                self.check_start(host);
            }
        }
        if let Some(rule) = self.arbiter.broken {
            self.breaks(rule);
        }
    }

    /// A start from nothing gives no copy up that could have taken over.
    fn check_start(&mut self, host: usize) {
        let (latest, _) = self.arbiter.latest();
        let other = self.hosts[1 - host].backup();
        let is_whole = |core: &BackupCore| core.committed_epoch().is_some();
        if other.is_some_and(|core| is_whole(core) && core.generation().0 + 1 == latest) {
            self.breaks(Rule::NothingLost);
        }
    }

    pub(super) fn asks(&mut self, host: usize, ask: Ask) {
        let stage = Stage::Asked;
        self.hosts[host].call = Some(Call { ask, stage });
    }

    pub(super) fn arbiter_answers(&mut self, host: usize) {
        let Some(Call {
            stage: Stage::Answered(answer),
            ..
        }) = self.hosts[host].call.take()
        else {
            return;
        };
        let verdict = match answer {
            Answer::Granted(granted) => Some(Verdict::Granted(Generation(granted))),
            Answer::Refused(current) => Some(Verdict::Refused {
                current: Generation(current),
                holder: String::new(),
            }),
            Answer::Record { .. } | Answer::Silent => None,
        };
        let why = String::new();
        match (&self.hosts[host].side, answer, verdict) {
            (Side::Starting, Answer::Granted(granted), _) => {
                self.reign(host, granted, Base::Nothing);
            }
            (Side::Starting, ..) => self.go_down(host),
            (Side::Primary(_), _, Some(verdict)) => {
                self.primary(host, PrimaryInput::Verdict(verdict));
            }
            (Side::Primary(_), ..) => {
                self.primary(host, PrimaryInput::ArbiterUnavailable { why });
            }
            (Side::Backup(_), _, Some(verdict)) => {
                self.backup(host, BackupInput::Verdict(verdict));
            }
            (Side::Backup(_), Answer::Record { generation, mark }, _) => {
                let record = Record {
                    arbiter: ArbiterId::default(),
                    generation: Generation(generation),
                    mark,
                    ..Record::default()
                };
                self.backup(host, BackupInput::Rehearsed(record));
            }
            (Side::Backup(_), ..) => self.backup(host, BackupInput::ArbiterUnavailable { why }),
            (Side::Down, ..) => {}
        }
    }
}
