//! The node's thread: waits for one thing, hands it to the core, does what the core says.
//!
//! What must not be done here: decide.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use understudy_replication::output::OutputGate;
use understudy_replication::ports::Disks;
use understudy_replication::runtime::{
    EventKind as ReplicationEvent, Origin, Primary, Protection, Status,
};

use super::core::{Effect, Input, NodeCore, RoleEnd, Rules};
use super::events::EventKind;
use super::inbox::{Answer, Incoming, Item};
use super::metrics::MetricsRoom;
use super::request::{Denial, Request};
use super::roles::{Figures, Panel, Replicated, RoleOver, Sources, UnprotectedFigures, Work};
use super::settings::{NodeSettings, StartAs};
use super::status::Standing;
use super::{Ended, NodeError, NodeHandle, Role};
use crate::machine::Machine;

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
                Some(Item::Replication(event)) => self.replication(event),
            }
        }
        self.error.take().map_or(Ok(()), Err)
    }

    fn now(&self) -> Duration {
        self.handle.since.elapsed()
    }

    /// Builds the machine and takes up the first role.
    fn begin(&mut self, settings: NodeSettings) -> Result<(), NodeError> {
        let machine = (settings.machine)().map_err(NodeError::Build)?;
        if settings.full_resync {
            machine.disk_set().copy_everything()?;
        }
        *self.handle.disks.lock() = Some(machine.disk_set().clone());
        let inbox = self.handle.inbox.clone();
        machine.on_event(move |event| inbox.machine_event(event.clone()));
        let panel = self.panel.insert(Panel::of(&machine));
        let can_restart = panel.can_restart;
        self.room = Some(MetricsRoom::of(&machine));
        let (vm, node) = (settings.vm, settings.node);
        let figures = match settings.start_as {
            StartAs::Unprotected { drives, claims } => {
                let figures = UnprotectedFigures::of(&machine, &vm, &node, &drives);
                // Kept: to others the arbiter's lock shows that the guest runs here.
                self.replicated = claims.map(|settings| Replicated { vm, node, settings });
                self.run_unprotected(machine)?;
                Figures::Unprotected(Arc::new(figures))
            }
            StartAs::Primary {
                replication: settings,
                start_over,
            } => {
                let replicated = Replicated { vm, node, settings };
                let mut builder = Primary::attach(Origin::Fresh(machine));
                if start_over {
                    builder = builder.start_over();
                }
                let protection = replicated.protect(builder)?;
                self.replicated = Some(replicated);
                self.incoming.listen(protection.handle().subscribe());
                self.run_primary(protection)
            }
            StartAs::Standby {
                replication: settings,
                listen,
            } => {
                let replicated = Replicated { vm, node, settings };
                let run = replicated.start_standby(machine, listen)?;
                self.replicated = Some(replicated);
                let endpoint = run.endpoint().to_string();
                let standby = run.handle();
                self.incoming.listen(standby.subscribe());
                self.work = Work::Standby(run);
                self.handle.log.tell(EventKind::Listening { endpoint });
                Figures::Standby(standby)
            }
        };
        let role = figures.role();
        self.show(figures);
        self.feed(Input::Began { role, can_restart });
        self.catch_up();
        Ok(())
    }

    fn run_unprotected(&mut self, mut machine: Machine) -> Result<(), NodeError> {
        let machine = match &self.replicated {
            Some(replicated) => replicated.run_alone(machine)?,
            None => {
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
            protected, alarm, ..
        }) = self.work.replication_status()
        else {
            return;
        };
        self.feed(Input::Replication(match protected {
            true => ReplicationEvent::Protected,
            false => ReplicationEvent::Unprotected,
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
                Effect::PressPowerButton => {
                    self.panel.iter().for_each(Panel::press_power_button);
                    Ok(())
                }
                Effect::Checkpoint => {
                    self.work.checkpoint();
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
