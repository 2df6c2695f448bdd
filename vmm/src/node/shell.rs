//! The node's thread: waits for one thing, hands it to the core, does what the core says.
//!
//! What must not be done here: decide.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use understudy_replication::core::start::Starts;
use understudy_replication::output::OutputGate;
use understudy_replication::ports::Disks;
use understudy_replication::runtime::{
    EventKind as ReplicationEvent, Origin, Primary, Protection, RuntimeError, Status,
};

use super::core::{Effect, Input, NextRole, NodeCore, RoleEnd, Rules};
use super::events::EventKind;
use super::inbox::{Answer, Incoming, Item};
use super::metrics::MetricsRoom;
use super::networks;
use super::request::{Denial, Request};
use super::roles::{Figures, Panel, Replicated, RoleOver, Sources, UnprotectedFigures, Work};
use super::settings::{BuildMachine, NodeSettings, StartAs};
use super::status::Standing;
use super::{Ended, NodeError, NodeHandle, Role};
use crate::config::{GuestNetwork, WatchedNetwork};
use crate::machine::{Machine, Start};

/// Longest wait for a console that takes no more, when all else is over.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(5);
/// A wait that is not worth a word.
const CONSOLE_SOON: Duration = Duration::from_millis(100);

pub(super) struct Shell {
    handle: NodeHandle,
    incoming: Incoming,
    core: NodeCore,
    work: Work,
    panel: Option<Panel>,
    room: Option<MetricsRoom>,
    replicated: Option<Replicated>,
    build: Option<BuildMachine>,
    /// What is known of the disks is not to be believed, and no machine has been told so yet.
    forget_disks: bool,
    /// The guest's networks, until they are watched.
    networks: Option<Vec<WatchedNetwork>>,
    /// The role is over, and nobody has been told yet.
    over: Option<RoleOver>,
    ended: Option<Ended>,
    /// Why the node failed, if it did.
    error: Option<NodeError>,
}

impl Shell {
    pub(super) fn new(handle: NodeHandle, incoming: Incoming, rules: Rules) -> Self {
        Self {
            handle,
            incoming,
            core: NodeCore::new(rules),
            work: Work::None,
            panel: None,
            room: None,
            replicated: None,
            build: None,
            forget_disks: false,
            networks: None,
            over: None,
            ended: None,
            error: None,
        }
    }

    /// The thread's body: all of the node's life.
    pub(super) fn run(mut self, settings: NodeSettings) -> Result<(), NodeError> {
        if let Err(error) = self.begin(settings) {
            self.over = Some(RoleOver::Failed(error));
        }
        while self.ended.is_none() {
            if let Some(over) = self.over.take() {
                self.role_over(over);
                continue;
            }
            let due = self.core.next_timer();
            if due.is_some_and(|at| at <= self.now()) {
                self.feed(Input::Timer);
                continue;
            }
            match self.incoming.next(due.map(|at| self.handle.since + at)) {
                None => {}
                Some(Item::Request(request, answer)) => self.request(request, answer),
                Some(Item::Machine(event)) => self.feed(Input::Guest(event)),
                Some(Item::Networks(seen)) => self.feed(Input::Networks(seen)),
                Some(Item::Replication(event)) => self.replication(event),
            }
        }
        self.error.take().map_or(Ok(()), Err)
    }

    fn now(&self) -> Duration {
        self.handle.since.elapsed()
    }

    /// Takes up the first role.
    fn begin(&mut self, settings: NodeSettings) -> Result<(), NodeError> {
        let (vm, node) = (settings.vm, settings.node);
        self.build = Some(settings.machine);
        self.forget_disks = settings.full_resync;
        let networks = settings.networks;
        let watched = networks.iter().filter_map(GuestNetwork::watched).collect();
        self.core.know_networks(networks);
        self.core.lacks = settings.lacks;
        let (next, settings) = match settings.start_as {
            StartAs::Unprotected {
                drives,
                claims,
                start_over,
            } => {
                let machine = self.machine(Start::Unprotected)?;
                let figures = UnprotectedFigures::of(&machine, &vm, &node, &drives);
                // Kept: to others the arbiter's lock shows that the guest runs here.
                self.replicated = claims.map(|settings| Replicated { vm, node, settings });
                self.run_unprotected(machine, start_over)?;
                self.began(Figures::Unprotected(Arc::new(figures)));
                return Ok(());
            }
            StartAs::Primary {
                replication,
                start_over: true,
            } => (NextRole::PrimaryOver, replication),
            StartAs::Primary { replication, .. } => (NextRole::Primary, replication),
            StartAs::Standby { replication } => (NextRole::Standby, replication),
        };
        self.replicated = Some(Replicated { vm, node, settings });
        self.networks = Some(watched);
        self.take_up(next);
        Ok(())
    }

    /// A new machine for the next role.
    fn machine(&mut self, start: Start) -> Result<Machine, NodeError> {
        self.forget_machine();
        let build = self.build.as_ref().expect("it is set at the beginning");
        let machine = build(start).map_err(NodeError::Build)?;
        if std::mem::take(&mut self.forget_disks) {
            machine.disk_set().copy_everything()?;
        }
        *self.handle.disks.lock() = Some(machine.disk_set().clone());
        let inbox = self.handle.inbox.clone();
        machine.on_event(move |event| inbox.machine_event(event.clone()));
        self.panel = Some(Panel::of(&machine));
        self.room = Some(MetricsRoom::of(&machine));
        Ok(machine)
    }

    /// Nothing is left of the last role's machine: its images and taps are free then.
    fn forget_machine(&mut self) {
        *self.handle.sources.lock() = None;
        *self.handle.disks.lock() = None;
        (self.panel, self.room) = (None, None);
    }

    fn take_up(&mut self, next: NextRole) {
        let taken_up = match next {
            NextRole::Standby | NextRole::StandbyThatMayStart => self.start_standby(next),
            NextRole::Primary | NextRole::PrimaryOver | NextRole::PrimaryRestarting(_) => {
                self.start_primary(next)
            }
        };
        match taken_up {
            Ok(figures) => {
                self.began(figures);
                self.watch_networks();
            }
            Err(error) => self.not_taken_up(next, error),
        }
    }

    fn began(&mut self, figures: Figures) {
        let role = figures.role();
        let can_restart = self.panel.as_ref().is_some_and(|panel| panel.can_restart);
        self.show(figures);
        self.feed(Input::Began { role, can_restart });
        self.catch_up();
    }

    /// Not before the first machine has connected itself to its taps.
    fn watch_networks(&mut self) {
        let Some(networks) = self.networks.take() else {
            return;
        };
        match networks::watch_all(networks) {
            Ok(seen) => self.incoming.watch(seen),
            Err(error) => tracing::warn!(%error, "nobody watches the guest's networks"),
        }
    }

    fn not_taken_up(&mut self, next: NextRole, error: NodeError) {
        let what = with_causes(&error);
        match (next, &error) {
            (
                NextRole::Primary,
                NodeError::Replication(
                    RuntimeError::NotAsked { .. }
                    | RuntimeError::Follows { .. }
                    | RuntimeError::OlderDisks { .. },
                ),
            ) if self.replicated().settings.can_wait() => {
                self.feed(Input::StartWaits { why: what });
            }
            (NextRole::PrimaryRestarting(_) | NextRole::StandbyThatMayStart, _) => {
                self.feed(Input::NotTakenUp { what });
            }
            _ => self.over = Some(RoleOver::Failed(error)),
        }
    }

    fn start_primary(&mut self, next: NextRole) -> Result<Figures, NodeError> {
        let machine = self.machine(Start::Primary)?;
        let mut builder = Primary::attach(Origin::Fresh(machine));
        match next {
            NextRole::PrimaryOver => builder = builder.start_over(),
            NextRole::PrimaryRestarting(known) => builder = builder.restart(known),
            NextRole::Primary | NextRole::Standby | NextRole::StandbyThatMayStart => {}
        }
        let protection = self.replicated().protect(builder)?;
        self.incoming.listen(protection.handle().subscribe());
        Ok(self.run_primary(protection))
    }

    fn replicated(&self) -> &Replicated {
        let replicated = self.replicated.as_ref();
        replicated.expect("it is set before such a role is taken up")
    }

    fn start_standby(&mut self, next: NextRole) -> Result<Figures, NodeError> {
        let gives_up_disks = self.forget_disks;
        let machine = self.machine(Start::Standby)?;
        let starts = match next {
            NextRole::StandbyThatMayStart => Starts::IfItMay,
            _ => Starts::IfItRanHere,
        };
        let run = (self.replicated()).start_standby(machine, starts, gives_up_disks)?;
        let endpoint = run.endpoint().to_string();
        let standby = run.handle();
        self.incoming.listen(standby.subscribe());
        self.work = Work::Standby(run);
        self.handle.log.tell(EventKind::Listening { endpoint });
        Ok(Figures::Standby(standby))
    }

    fn run_unprotected(&mut self, mut machine: Machine, start_over: bool) -> Result<(), NodeError> {
        let machine = match &self.replicated {
            Some(replicated) => replicated.run_alone(machine, start_over)?,
            None => {
                // What is wrong with the images themselves is said first.
                machine.disk_set().check_whole()?;
                if let Some((disk, known)) = machine.disk_set().histories().into_iter().next() {
                    let known = known.arbiter.0;
                    return Err(NodeError::ArbiterNotNamed { disk, known });
                }
                // Images that are one of a pair note what changes, and one that is no whole copy is not run.
                machine.disk_set().claim_images()?;
                machine.start()?;
                machine
            }
        };
        tracing::debug!(cmdline = machine.cmdline(), "the guest's command line");
        self.work = Work::Unprotected(Box::new(machine));
        Ok(())
    }

    fn run_primary(&mut self, protection: Protection<Machine>) -> Figures {
        let handle = protection.handle();
        self.work = Work::Primary(Box::new(protection));
        Figures::Primary(handle)
    }

    /// From now on the status is read there.
    fn show(&self, figures: Figures) {
        let sources = self.room.clone().map(|room| Sources::At(figures, room));
        *self.handle.sources.lock() = sources;
    }

    fn request(&mut self, request: Request, answer: Option<Answer>) {
        let sync = self.work.sync_state();
        let decided = self.core.request(request, &sync);
        let done = decided.and_then(|effects| self.obey(effects));
        // The node may have ended by that.
        self.publish();
        if let Err(denial) = &done {
            if *denial == Denial::Promoting && answer.is_some() {
                // Whoever asked for a standby's end may not want that of a guest.
                self.feed(Input::StopMissed);
            }
            tracing::debug!(?request, "denied: {denial}");
        }
        if let Some(answer) = answer {
            // Who asked may have gone.
            let _ = answer.try_send(done);
        }
    }

    fn replication(&mut self, event: ReplicationEvent) {
        match &event {
            // The role's threads are about to end.
            ReplicationEvent::Promoted { .. } | ReplicationEvent::Ended => {
                let over = std::mem::replace(&mut self.work, Work::None).finish();
                self.role_over(over);
            }
            ReplicationEvent::Missed(_) => self.catch_up(),
            _ => {}
        }
        self.feed(Input::Replication(event));
    }

    /// Hears what replication told while nobody listened.
    fn catch_up(&mut self) {
        let Some(Status {
            protected,
            alarm,
            backup_troubles: troubles,
            ..
        }) = self.work.replication_status()
        else {
            return;
        };
        self.feed(Input::Replication(match protected {
            true => ReplicationEvent::Protected,
            false => ReplicationEvent::Unprotected,
        }));
        self.feed(Input::Replication(ReplicationEvent::BackupHealth {
            troubles,
        }));
        if let Some(alarm) = alarm {
            self.feed(Input::Replication(ReplicationEvent::Alarm(alarm)));
        }
    }

    fn role_over(&mut self, over: RoleOver) {
        let end = match over {
            RoleOver::Promoted(promoted) => {
                self.work = Work::Promoted(promoted);
                return;
            }
            RoleOver::IsToStart { known } => {
                self.forget_machine();
                return self.feed(Input::IsToStart { known });
            }
            RoleOver::Ended(end) => end,
            RoleOver::Failed(error) => {
                let what = with_causes(&error);
                self.error = Some(error);
                RoleEnd::Failed { what }
            }
        };
        // Whoever asked for this has been answered already: it may take long.
        self.work.shut_down();
        // The machine goes before anybody is told that it has: its images are free then.
        let sources = self.handle.sources.lock().as_ref().map(Sources::freeze);
        *self.handle.sources.lock() = sources;
        *self.handle.disks.lock() = None;
        self.room = None;
        self.work = Work::None;
        if let Some(panel) = self.panel.take() {
            // What may not leave is not in them any more.
            finish_consoles(&panel.gate);
        }
        self.feed(Input::RoleOver(end));
    }

    fn feed(&mut self, input: Input) {
        let effects = self.core.input(self.now(), input);
        // Only requests are answered.
        let _ = self.obey(effects);
        self.publish();
    }

    fn publish(&self) {
        self.handle.watch.set(Standing {
            ended: self.ended.clone(),
            ..self.core.standing()
        });
    }

    /// Does what the core says; returns why something of it could not be done.
    fn obey(&mut self, effects: Vec<Effect>) -> Result<(), Denial> {
        let mut effects = VecDeque::from(effects);
        let mut done = Ok(());
        while let Some(effect) = effects.pop_front() {
            let performed = match effect {
                Effect::Tell(what) => {
                    self.handle.log.tell(what);
                    Ok(())
                }
                Effect::RestartGuest => {
                    self.work.restart_guest();
                    Ok(())
                }
                Effect::EndRole => {
                    let is_over = self.work.end();
                    self.end_if(is_over);
                    Ok(())
                }
                Effect::StopGuest => match &self.panel {
                    Some(panel) => {
                        let stopped = self.work.stop_guest(panel);
                        stopped.map(|is_over| self.end_if(is_over))
                    }
                    None => Err(Denial::Ended),
                },
                Effect::StopStandby => self.work.stop_standby(),
                Effect::Promote => self.work.promote(),
                Effect::HandOver(why) => self.work.hand_over(&why),
                Effect::AnswerFailed(disk) => self.at_panel(|panel| panel.answer_failed(&disk)),
                Effect::RetryFailed(disk) => self.at_panel(|panel| panel.retry_failed(&disk)),
                Effect::BreakMachine(what) => {
                    self.at_panel(|panel| panel.breaker.break_machine(what))
                }
                Effect::RememberBroken => self.at_panel(|panel| panel.breaker.another_broke()),
                Effect::LeaveMachine(what) => {
                    self.work.machine_broke(&what);
                    Ok(())
                }
                Effect::ReportHealth(troubles) => {
                    self.work.report_health(troubles);
                    Ok(())
                }
                Effect::PressPowerButton => self.at_panel(Panel::press_power_button),
                Effect::Checkpoint => {
                    self.work.checkpoint();
                    Ok(())
                }
                Effect::TakeUp(next) => {
                    self.take_up(next);
                    Ok(())
                }
                Effect::Protect => {
                    self.protect();
                    Ok(())
                }
                Effect::Finish(ended) => {
                    self.ended = Some(ended);
                    self.incoming.close();
                    Ok(())
                }
            };
            done = done.and(performed);
        }
        done
    }

    /// Without a machine, there is nothing to be done.
    fn at_panel(&self, act: impl FnOnce(&Panel)) -> Result<(), Denial> {
        if let Some(panel) = &self.panel {
            act(panel);
        }
        Ok(())
    }

    fn end_if(&mut self, is_over: bool) {
        if is_over {
            self.over = Some(RoleOver::Ended(RoleEnd::Done));
        }
    }

    /// Protects the guest that was taken over.
    fn protect(&mut self) {
        let Work::Promoted(promoted) = std::mem::replace(&mut self.work, Work::None) else {
            return;
        };
        let Some(replicated) = &self.replicated else {
            return;
        };
        match replicated.protect_promoted(*promoted) {
            Ok(protection) => {
                let figures = self.run_primary(protection);
                self.show(figures);
            }
            Err(error) => self.over = Some(RoleOver::Failed(error.into())),
        }
    }
}

impl Drop for Shell {
    /// Also after a panic, nobody waits for this thread for ever.
    fn drop(&mut self) {
        self.incoming.close();
        if self.ended.is_none() {
            let what = "the node thread panicked".into();
            self.handle.watch.set(Standing {
                role: Role::Ended,
                protected: false,
                ended: Some(Ended::Failed { what }),
                ..self.core.standing()
            });
        }
    }
}

/// Lets the consoles take what the guest said last, before the process ends under their threads.
fn finish_consoles(gate: &OutputGate) {
    if gate.flush_consoles(CONSOLE_SOON) {
        return;
    }
    tracing::info!("waiting for the guest's console to take its last output");
    if !gate.flush_consoles(CONSOLE_PATIENCE) {
        tracing::warn!("the guest's console takes no more: its last output is lost");
    }
}

/// An error in one line, with its causes.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
