//! `vmm primary` and `vmm standby`.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use understudy_replication::arbiter::{Arbiter, FileArbiter};
use understudy_replication::core::primary::Policy;
use understudy_replication::runtime::{
    Ended, HeartbeatPath, Outcome, Primary, PrimaryBuilder, ProtectionHandle, Standby,
    StandbyHandle,
};
use understudy_vmm::config::{Config, ConfigError};
use understudy_vmm::control::{Command, ControlServer, Handler};
use understudy_vmm::machine::{Machine, MachineEvent};
use understudy_vmm::output::Gate;

use super::run::{End, await_end};
use super::{signals, vm};
use crate::args::ReplicatedArgs;
use crate::exit::Fenced;

/// What a control request reaches: the role may change while the socket is served.
#[derive(Clone)]
enum Role {
    Primary(ProtectionHandle),
    Standby(StandbyHandle),
}

/// `None` until the guest or the standby is at work.
type Current = Arc<Mutex<Option<Role>>>;

struct Settings {
    arbiter: Arc<dyn Arbiter>,
    policy: Policy,
    heartbeat: Option<HeartbeatPath>,
}

impl Settings {
    fn new(config: &Config) -> Result<Self> {
        let replication = &config.replication;
        let path = replication.arbiter.as_ref().ok_or_else(|| {
            required(
                "replication.arbiter (--arbiter)",
                "name a file on storage that both hosts see; it decides who may run alone",
            )
        })?;
        let heartbeat = replication.heartbeat.map(|section| HeartbeatPath {
            listen: section.listen,
            peer: section.peer,
        });
        let policy = replication.policy()?;
        Ok(Self {
            arbiter: Arc::new(FileArbiter::open(path)?),
            policy,
            heartbeat,
        })
    }
}

fn required(key: &str, why: &str) -> ConfigError {
    ConfigError::Value {
        key: key.into(),
        why: why.into(),
    }
}

pub(crate) fn primary(arguments: ReplicatedArgs) -> Result<()> {
    let start_over = arguments.start_over;
    let config = arguments.merge()?;
    let settings = Settings::new(&config)?;
    if config.replication.backup_endpoint()?.is_none() {
        tracing::warn!("no --backup is given: the guest runs unprotected");
    }
    let signalled = signals::listen()?;
    // Before anything is claimed or run: a socket in use must not cost a guest.
    let (current, _control) = serve(&config)?;
    let machine = vm::build(&config, vm::Life::Boots)?;
    let (events, gate) = (machine.events(), Arc::clone(machine.output_gate()));
    let mut builder = describe(Primary::builder(machine), &config, &settings)?;
    if start_over {
        builder = builder.start_over();
    }
    protect(builder, &current, &gate, events, signalled)
}

/// Everything about a primary that does not depend on how it came to be one.
fn describe(
    builder: PrimaryBuilder<Machine>,
    config: &Config,
    settings: &Settings,
) -> Result<PrimaryBuilder<Machine>> {
    let replication = &config.replication;
    let mut builder = builder
        .vm(replication.vm_name())
        .node(replication.node_name())
        .arbiter(Arc::clone(&settings.arbiter))
        .policy(settings.policy.clone());
    if let Some(endpoint) = replication.backup_endpoint()? {
        builder = builder.backup(endpoint);
    }
    if let Some(path) = settings.heartbeat {
        builder = builder.heartbeat(path);
    }
    Ok(builder)
}

fn protect(
    builder: PrimaryBuilder<Machine>,
    current: &Current,
    gate: &Gate,
    events: std::sync::mpsc::Receiver<MachineEvent>,
    signalled: std::sync::mpsc::Receiver<()>,
) -> Result<()> {
    let protection = builder.protect()?;
    set(current, Role::Primary(protection.handle()));
    let handle = protection.handle();
    // Ends with the process, or with the machine, whose events end then.
    let watcher = std::thread::Builder::new()
        .name("guest-end".into())
        .spawn(move || {
            let end = await_end(&events, &signalled);
            handle.guest_stopped();
            end
        })
        .context("cannot start a thread")?;
    let ended = protection.wait()?;
    // What may not leave is not in them any more.
    vm::finish_consoles(gate);
    match ended {
        Ended::Fenced { reason } => Err(Fenced(reason).into()),
        Ended::GuestStopped => match watcher.join() {
            Ok(End::Failed(what)) => bail!("{what}"),
            _ => Ok(()),
        },
    }
}

pub(crate) fn standby(arguments: ReplicatedArgs) -> Result<()> {
    let config = arguments.merge()?;
    let settings = Settings::new(&config)?;
    let listen = config.replication.listen_endpoint()?.ok_or_else(|| {
        required(
            "replication.listen (--listen)",
            "say where the primary reaches this standby, for example 0.0.0.0:7000",
        )
    })?;
    let signalled = signals::listen()?;
    let (current, _control) = serve(&config)?;
    let machine = vm::build(&config, vm::Life::GoesOn)?;
    let (events, gate) = (machine.events(), Arc::clone(machine.output_gate()));
    let mut builder = Standby::builder(machine)
        .vm(config.replication.vm_name())
        .node(config.replication.node_name())
        .arbiter(Arc::clone(&settings.arbiter))
        .policy(settings.policy.clone())
        .listen(listen);
    if let Some(path) = settings.heartbeat {
        builder = builder.heartbeat(path);
    }
    let standby = builder.start()?;
    set(&current, Role::Standby(standby.handle()));
    tracing::info!(endpoint = %standby.endpoint(), "waiting for a primary");
    let signalled = stop_on_signal(signalled, standby.handle())?;
    match standby.await_promotion()? {
        Outcome::Stopped => Ok(()),
        Outcome::Promoted(promoted) => {
            let builder = describe(Primary::promoted(promoted), &config, &settings)?;
            protect(builder, &current, &gate, events, signalled)
        }
    }
}

/// A signal stops the standby; once it is promoted, the same signals stop the guest: they are passed
/// on.
fn stop_on_signal(
    signalled: std::sync::mpsc::Receiver<()>,
    standby: StandbyHandle,
) -> Result<std::sync::mpsc::Receiver<()>> {
    let (sender, passed_on) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("signal-stop".into())
        .spawn(move || {
            if signalled.recv().is_ok() {
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
    *current.lock().unwrap_or_else(PoisonError::into_inner) = Some(role);
}

fn serve(config: &Config) -> Result<(Current, Option<ControlServer>)> {
    let current = Current::default();
    let Some(path) = &config.replication.control_socket else {
        return Ok((current, None));
    };
    let asked = Arc::clone(&current);
    let handler: Handler = Arc::new(move |command| {
        let role = asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match role {
            Some(role) => obey(&role, command),
            None => Err("it is just starting; try again".into()),
        }
    });
    Ok((current, Some(ControlServer::start(path, handler)?)))
}

fn obey(role: &Role, command: Command) -> Result<serde_json::Value, String> {
    let status = match role {
        Role::Primary(handle) => handle.status(),
        Role::Standby(handle) => handle.status(),
    };
    match (command, role) {
        (Command::Status, _) => serde_json::to_value(status).map_err(|error| error.to_string()),
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
        (Command::Stop, Role::Primary(handle)) => {
            handle.guest_stopped();
            Ok(serde_json::Value::Null)
        }
        // Promoted just now, it is about to take requests as a primary.
        (Command::Stop, Role::Standby(handle)) if !handle.stop() => {
            Err("the standby is becoming the primary; try again".into())
        }
        (Command::Stop, Role::Standby(_)) => Ok(serde_json::Value::Null),
    }
}
