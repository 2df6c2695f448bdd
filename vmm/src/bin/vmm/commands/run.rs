//! `vmm run`: a guest without a second copy.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use anyhow::{Result, bail};
use understudy_replication::disk::DiskSet;
use understudy_replication::output::OutputGate;
use understudy_replication::runtime::{DiskStatus, DisksStatus};
use understudy_vmm::config::Config;
use understudy_vmm::control::{
    Command, ControlServer, GuestNotes, Handler, RunReport, Unprotected,
};
use understudy_vmm::devices::PowerButton;
use understudy_vmm::machine::{DriveConfig, Machine, Start};

use super::keeper::{End, Keeper, Rules};
use super::{signals, vm};
use crate::args::RunArgs;

/// What control requests reach.
struct Running {
    vm: String,
    node: String,
    since: Instant,
    /// Without what changes.
    disks: DisksStatus,
    disk_set: DiskSet,
    gate: OutputGate,
    button: Option<PowerButton>,
    notes: GuestNotes,
    stop: SyncSender<()>,
}

pub(crate) fn run(arguments: RunArgs) -> Result<()> {
    let config = arguments.load()?;
    let (stop, stopped) = sync_channel(1);
    signals::pass_on(stop.clone(), 1)?;
    // Before anything runs: a socket in use must not cost a guest.
    let current = Arc::new(OnceLock::new());
    let _control = serve(&config, &current)?;
    let machine_config = config.machine(Start::Unprotected)?;
    let drives = machine_config.drives.clone();
    let mut machine = Machine::build(machine_config)?;
    let events = machine.events();
    // Images that are one of a pair note what changes, and one that is no whole copy is not run.
    machine.disk_set().claim_images()?;
    let rules = Rules::new(&config, machine.can_be_reset());
    let notes = GuestNotes::default();
    machine.start()?;
    tracing::info!(cmdline = machine.cmdline(), "the guest runs, unprotected");
    // Nobody else sets it.
    current.get_or_init(|| Running::of(&machine, &config, &drives, &notes, stop));
    let end = Keeper::new(rules, &notes).await_end(&events, &stopped, || {
        // That it failed comes as an event.
        if let Err(fault) = machine.reset_guest() {
            tracing::debug!("{}", fault.with_causes());
        }
    });
    machine.shut_down();
    vm::finish_consoles(machine.output_gate());
    match end {
        End::Stopped => Ok(()),
        End::Asked => {
            tracing::info!("the guest was stopped on request");
            Ok(())
        }
        End::Failed(what) => bail!("{what}"),
    }
}

fn serve(config: &Config, current: &Arc<OnceLock<Running>>) -> Result<Option<ControlServer>> {
    let Some(path) = &config.control_socket else {
        return Ok(None);
    };
    let current = Arc::clone(current);
    let handler: Handler = Arc::new(move |command| match current.get() {
        Some(running) => running.obey(command),
        None => Err("it is just starting; try again".into()),
    });
    Ok(Some(ControlServer::start(path, handler)?))
}

impl Running {
    fn of(
        machine: &Machine,
        config: &Config,
        drives: &[DriveConfig],
        notes: &GuestNotes,
        stop: SyncSender<()>,
    ) -> Self {
        let disk_set = machine.disk_set().clone();
        let describe = |drive: &DriveConfig| DiskStatus {
            name: drive.id.clone(),
            mode: drive.kind.name().into(),
            bytes: bytes_of(drive),
        };
        let disks = DisksStatus {
            disks: drives.iter().map(describe).collect(),
            ..DisksStatus::default()
        };
        Self {
            vm: config.vm.clone(),
            node: config.node.clone(),
            since: Instant::now(),
            disks,
            disk_set,
            gate: machine.output_gate().clone(),
            button: machine.power_button().cloned(),
            notes: notes.clone(),
            stop,
        }
    }

    fn obey(&self, command: Command) -> Result<serde_json::Value, String> {
        match command {
            Command::Status => {
                serde_json::to_value(self.report()).map_err(|error| error.to_string())
            }
            Command::Stop => {
                // Full: somebody wanted that already.
                let _ = self.stop.try_send(());
                Ok(serde_json::Value::Null)
            }
            Command::PowerButton => {
                let button = self.button.as_ref();
                button.ok_or("the guest has no power button")?.press();
                Ok(serde_json::Value::Null)
            }
            Command::Failover => {
                Err("this guest runs unprotected (`vmm run`): it has no standby".into())
            }
        }
    }

    fn report(&self) -> RunReport {
        RunReport {
            role: Unprotected::Unprotected,
            vm: self.vm.clone(),
            node: self.node.clone(),
            protected: false,
            uptime_s: self.since.elapsed().as_secs(),
            output: self.gate.counts(),
            disks: DisksStatus {
                marked_bytes: self.disk_set.counts().marked_bytes,
                ..self.disks.clone()
            },
            guest: self.notes.report(),
        }
    }
}

/// The size of a drive's image, or of the device; it is open already, so it can be had.
fn bytes_of(drive: &DriveConfig) -> u64 {
    let end = |mut file: File| file.seek(SeekFrom::End(0));
    File::open(&drive.path).and_then(end).unwrap_or(0)
}
