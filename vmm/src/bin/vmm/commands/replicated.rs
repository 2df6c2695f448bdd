//! `vmm primary` and `vmm standby`.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, bail};
use understudy_replication::arbiter::{Arbiter, FileArbiter};
use understudy_replication::output::OutputGate;
use understudy_replication::runtime::{
    Ended, Origin, Outcome, Primary, PrimaryBuilder, ProtectionHandle, Standby, StandbyHandle,
};
use understudy_vmm::config::Config;
use understudy_vmm::control::{Command, ControlServer, GuestNotes, Handler, Report};
use understudy_vmm::devices::PowerButton;
use understudy_vmm::devices::switch::PowerSwitch;
use understudy_vmm::machine::{Machine, MachineEvent, Start};

use super::keeper::{End, Keeper, Rules};
use super::{signals, vm};
use crate::args::ReplicatedArgs;
use crate::exit::Fenced;

/// Signals that are heard as wishes to end: politely, and at once.
const WISHES: usize = 2;

/// What a control request reaches: the role may change while the socket is served.
#[derive(Clone)]
enum Role {
    Primary(ProtectionHandle),
    Standby(StandbyHandle),
}

/// What the control socket is served from.
#[derive(Clone, Default)]
struct Current {
    /// `None` until the guest or the standby is at work.
    role: Arc<Mutex<Option<Role>>>,
    notes: GuestNotes,
    button: Arc<OnceLock<PowerButton>>,
    power: Arc<OnceLock<PowerSwitch>>,
}

impl Current {
    /// Stops the guest that runs here, as if its power were cut: it stands still, wherever it goes on. Asked again,
    /// waits for nothing. Returns whether there was one to stop.
    fn stop(&self, handle: &ProtectionHandle) -> bool {
        tracing::info!("stopping the guest on request");
        if let Some(power) = self.power.get() {
            power.turn();
        }
        handle.stop()
    }
}

/// What is needed to keep a guest.
struct Guest {
    events: Receiver<MachineEvent>,
    gate: OutputGate,
    rules: Rules,
}

impl Guest {
    /// Before replication gets the machine.
    fn of(machine: &Machine, config: &Config, current: &Current) -> Self {
        if let Some(button) = machine.power_button() {
            // The only machine of this process.
            current.button.get_or_init(|| button.clone());
        }
        if let Some(power) = machine.power_switch() {
            current.power.get_or_init(|| power.clone());
        }
        Self {
            events: machine.events(),
            gate: machine.output_gate().clone(),
            rules: Rules::new(config, machine.can_be_reset()),
        }
    }
}

fn open_arbiter(config: &Config) -> Result<Arc<dyn Arbiter>> {
    let path = config.replication.needed_arbiter()?;
    Ok(Arc::new(FileArbiter::open(path)?))
}

pub(crate) fn primary(arguments: ReplicatedArgs) -> Result<()> {
    let start_over = arguments.start_over;
    let config = arguments.load()?;
    let arbiter = open_arbiter(&config)?;
    if config.replication.backup.is_none() {
        tracing::warn!("no --backup is given: the guest runs unprotected");
    }
    let signalled = signals::listen(WISHES)?;
    // Before anything is claimed or run: a socket in use must not cost a guest.
    let (current, _control) = serve(&config)?;
    let machine = Machine::build(config.machine(Start::Primary)?)?;
    let guest = Guest::of(&machine, &config, &current);
    let mut builder = describe(Primary::attach(Origin::Fresh(machine)), &config, arbiter);
    if start_over {
        builder = builder.start_over();
    }
    protect(builder, &current, guest, signalled)
}

/// Everything about a primary that does not depend on how it came to be one.
fn describe(
    builder: PrimaryBuilder<Machine>,
    config: &Config,
    arbiter: Arc<dyn Arbiter>,
) -> PrimaryBuilder<Machine> {
    let replication = &config.replication;
    let mut builder = builder
        .vm(config.vm.clone())
        .node(config.node.clone())
        .arbiter(arbiter)
        .policy(replication.policy.clone());
    if let Some(endpoint) = &replication.backup {
        builder = builder.backup(endpoint.clone());
    }
    if let Some(path) = replication.heartbeat {
        builder = builder.heartbeat(path);
    }
    builder
}

fn protect(
    builder: PrimaryBuilder<Machine>,
    current: &Current,
    guest: Guest,
    signalled: Receiver<()>,
) -> Result<()> {
    let protection = builder.protect()?;
    set(current, Role::Primary(protection.handle()));
    let handle = protection.handle();
    let Guest {
        events,
        gate,
        rules,
    } = guest;
    let current = current.clone();
    let (sender, end) = std::sync::mpsc::sync_channel(1);
    // Ends with the process.
    std::thread::Builder::new()
        .name("guest-end".into())
        .spawn(move || {
            let keeper = Keeper::new(rules, &current.notes);
            let end = keeper.await_end(&events, &signalled, || handle.reset_guest());
            if end == End::Asked {
                current.stop(&handle);
            } else {
                handle.guest_stopped();
            }
            // A channel of one for one.
            let _ = sender.try_send(end);
            // What the guest said last may have to wait for the arbiter; who does not want that says so.
            while signalled.recv().is_ok() {
                current.stop(&handle);
            }
        })
        .context("cannot start a thread")?;
    let ended = protection.wait()?;
    // What may not leave is not in them any more.
    vm::finish_consoles(&gate);
    match ended {
        Ended::Abandoned => bail!(
            "ended at once, as was asked for: what the guest had said and was still held is lost"
        ),
        Ended::Fenced { reason } => Err(Fenced(reason).into()),
        // Stopped from elsewhere, it comes with the end of the machine's events.
        Ended::GuestStopped => match end.recv() {
            Ok(End::Failed(what)) => bail!("{what}"),
            _ => Ok(()),
        },
    }
}

pub(crate) fn standby(arguments: ReplicatedArgs) -> Result<()> {
    let config = arguments.load()?;
    let arbiter = open_arbiter(&config)?;
    let listen = config.replication.needed_listen()?.clone();
    let signalled = signals::listen(WISHES)?;
    let (current, _control) = serve(&config)?;
    let machine = Machine::build(config.machine(Start::Standby)?)?;
    let guest = Guest::of(&machine, &config, &current);
    let mut builder = Standby::builder(machine)
        .vm(config.vm.clone())
        .node(config.node.clone())
        .arbiter(Arc::clone(&arbiter))
        .policy(config.replication.policy.clone())
        .listen(listen);
    if let Some(path) = config.replication.heartbeat {
        builder = builder.heartbeat(path);
    }
    let standby = builder.start()?;
    set(&current, Role::Standby(standby.handle()));
    tracing::info!(endpoint = %standby.endpoint(), "waiting for a primary");
    let signalled = stop_on_signal(signalled, standby.handle())?;
    match standby.await_promotion()? {
        Outcome::Stopped => Ok(()),
        Outcome::Promoted(promoted) => {
            let builder = describe(
                Primary::attach(Origin::Promoted(promoted)),
                &config,
                arbiter,
            );
            protect(builder, &current, guest, signalled)
        }
    }
}

/// A signal stops the standby; once it is promoted, the same signals stop the guest: they are passed
/// on.
fn stop_on_signal(signalled: Receiver<()>, standby: StandbyHandle) -> Result<Receiver<()>> {
    let (sender, passed_on) = std::sync::mpsc::sync_channel(WISHES);
    std::thread::Builder::new()
        .name("signal-stop".into())
        .spawn(move || {
            while signalled.recv().is_ok() {
                // If it is promoted already, the signal is for the guest.
                standby.stop();
                // Nobody takes it before the promotion.
                let _ = sender.try_send(());
            }
        })
        .context("cannot start a thread")?;
    Ok(passed_on)
}

fn set(current: &Current, role: Role) {
    *current.role.lock().unwrap_or_else(PoisonError::into_inner) = Some(role);
}

fn serve(config: &Config) -> Result<(Current, Option<ControlServer>)> {
    let current = Current::default();
    let Some(path) = &config.control_socket else {
        return Ok((current, None));
    };
    let asked = current.clone();
    let handler: Handler = Arc::new(move |command| {
        let role = asked.role.lock();
        let role = role.unwrap_or_else(PoisonError::into_inner).clone();
        match role {
            Some(role) => obey(&role, &asked, command),
            None => Err("it is just starting; try again".into()),
        }
    });
    Ok((current, Some(ControlServer::start(path, handler)?)))
}

fn obey(role: &Role, current: &Current, command: Command) -> Result<serde_json::Value, String> {
    let status = match role {
        Role::Primary(handle) => handle.status(),
        Role::Standby(handle) => handle.status(),
    };
    match (command, role) {
        (Command::Status, _) => {
            let guest = current.notes.report();
            serde_json::to_value(Report { status, guest }).map_err(|error| error.to_string())
        }
        (Command::Failover, Role::Standby(handle)) => {
            if !status.protected {
                return Err(format!(
                    "this standby is not in sync ({}): there is nothing to promote",
                    status.phase
                ));
            }
            if handle.promote() {
                Ok(serde_json::Value::Null)
            } else {
                Err("the standby does not take requests just now; try again".into())
            }
        }
        (Command::Failover, Role::Primary(_)) => {
            Err("this is the primary; ask the standby's control socket".into())
        }
        (Command::PowerButton, Role::Primary(_)) => {
            if let Some(button) = current.button.get() {
                button.press();
            }
            Ok(serde_json::Value::Null)
        }
        (Command::PowerButton, Role::Standby(_)) => {
            Err("the guest does not run here; ask the primary's control socket".into())
        }
        (Command::Stop, Role::Primary(handle)) if !current.stop(handle) => {
            Err("the guest has ended, and this vmm is about to".into())
        }
        (Command::Stop, Role::Primary(_)) => Ok(serde_json::Value::Null),
        // Promoted just now, it is about to take requests as a primary.
        (Command::Stop, Role::Standby(handle)) if !handle.stop() => {
            Err("the standby is becoming the primary; try again".into())
        }
        (Command::Stop, Role::Standby(_)) => Ok(serde_json::Value::Null),
    }
}
