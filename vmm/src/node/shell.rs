//! The node's thread: waits for one thing, hands it to the core, does what the core says.
//!
//! What must not be done here: decide.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use understudy_replication::output::OutputGate;
use understudy_replication::runtime::{Origin, Primary, Protection};

use super::core::{Effect, Input, NodeCore, RoleEnd, Rules};
use super::events::EventKind;
use super::inbox::{Answer, Item, RoleOver};
use super::metrics::MetricsRoom;
use super::request::{Denial, Request};
use super::roles::{
    Figures, Panel, Replicated, Sources, UnprotectedFigures, Work, tell_end_of_protection,
    tell_end_of_standby,
};
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
    core: NodeCore,
    work: Work,
    panel: Option<Panel>,
    room: Option<MetricsRoom>,
    replicated: Option<Replicated>,
    ended: Option<Ended>,
    /// Why the node failed, if it did.
    error: Option<NodeError>,
}

impl Shell {
    pub(super) fn new(handle: NodeHandle, rules: Rules) -> Self {
        Self {
            handle,
            core: NodeCore::new(rules),
            work: Work::None,
            panel: None,
            room: None,
            replicated: None,
            ended: None,
            error: None,
        }
    }

    /// The thread's body: all of the node's life.
    pub(super) fn run(mut self, settings: NodeSettings) -> Result<(), NodeError> {
        if let Err(error) = self.begin(settings) {
            self.role_over(RoleOver::Failed(error));
        }
        while self.ended.is_none() {
            let due = self.core.next_timer();
            if due.is_some_and(|at| at <= self.now()) {
                self.feed(Input::Timer);
                continue;
            }
            match self.handle.inbox.next(due.map(|at| self.handle.since + at)) {
                None => {}
                Some(Item::Request(request, answer)) => self.request(request, answer),
                Some(Item::Machine(event)) => self.feed(Input::Guest(event)),
                Some(Item::RoleOver(over)) => self.role_over(over),
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
        let inbox = self.handle.inbox.clone();
        machine.on_event(move |event| inbox.machine_event(event.clone()));
        let panel = self.panel.insert(Panel::of(&machine));
        let can_restart = panel.can_restart;
        self.room = Some(MetricsRoom::of(&machine));
        let (vm, node) = (settings.vm, settings.node);
        let figures = match settings.start_as {
            StartAs::Unprotected { drives } => {
                let figures = UnprotectedFigures::of(&machine, &vm, &node, &drives);
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
                self.run_primary(protection)?
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
                self.work = Work::Standby(standby.clone());
                tell_end_of_standby(run, self.handle.inbox.clone())?;
                self.handle.log.tell(EventKind::Listening { endpoint });
                Figures::Standby(standby)
            }
        };
        let role = figures.role();
        self.show(figures);
        self.feed(Input::Began { role, can_restart });
        Ok(())
    }

    fn run_unprotected(&mut self, mut machine: Machine) -> Result<(), NodeError> {
        // Images that are one of a pair note what changes, and one that is no whole copy is not run.
        machine.disk_set().claim_images()?;
        machine.start()?;
        tracing::debug!(cmdline = machine.cmdline(), "the guest's command line");
        self.work = Work::Unprotected(Box::new(machine));
        Ok(())
    }

    fn run_primary(&mut self, protection: Protection<Machine>) -> Result<Figures, NodeError> {
        let handle = protection.handle();
        self.work = Work::Primary(handle.clone());
        tell_end_of_protection(protection, self.handle.inbox.clone())?;
        Ok(Figures::Primary(handle))
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

    fn role_over(&mut self, over: RoleOver) {
        let end = match over {
            RoleOver::Promoted(promoted) => {
                self.work = Work::Promoted(promoted);
                return self.feed(Input::Promoted);
            }
            RoleOver::Ended(end) => end,
            RoleOver::Failed(error) => {
                let what = with_causes(&error);
                self.error = Some(error);
                RoleEnd::Failed { what }
            }
        };
        // The machine goes before anybody is told that it has: its images are free then.
        let sources = self.handle.sources.lock().as_ref().map(Sources::freeze);
        *self.handle.sources.lock() = sources;
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
            role: self.core.role(),
            guest: self.core.guest().clone(),
            ended: self.ended.clone(),
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
                    self.work.end(&self.handle.inbox);
                    Ok(())
                }
                Effect::StopGuest => match &self.panel {
                    Some(panel) => self.work.stop_guest(panel, &self.handle.inbox),
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
                    self.handle.inbox.close();
                    Ok(())
                }
            };
            done = done.and(performed);
        }
        done
    }

    /// Protects the guest that was taken over.
    fn protect(&mut self) {
        let Work::Promoted(promoted) = std::mem::replace(&mut self.work, Work::None) else {
            return;
        };
        let Some(replicated) = &self.replicated else {
            return;
        };
        let protection = replicated.protect_promoted(*promoted);
        match protection
            .map_err(NodeError::from)
            .and_then(|protection| self.run_primary(protection))
        {
            Ok(figures) => self.show(figures),
            Err(error) => self.handle.inbox.role_over(RoleOver::Failed(error)),
        }
    }
}

impl Drop for Shell {
    /// Also after a panic, nobody waits for this thread for ever.
    fn drop(&mut self) {
        self.handle.inbox.close();
        if self.ended.is_none() {
            let what = "the node thread panicked".into();
            self.handle.watch.set(Standing {
                role: Role::Ended,
                guest: self.core.guest().clone(),
                ended: Some(Ended::Failed { what }),
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
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
