//! What a node does in each of its roles, and where its status is read. The shell obeys the core with these.
//!
//! What must not be done here: decide what follows from what.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::sync::Arc;

use understudy_replication::Generation;
use understudy_replication::core::start::Starts;
use understudy_replication::disk::DiskSet;
use understudy_replication::output::OutputGate;
use understudy_replication::ports::Disks;
use understudy_replication::runtime::{
    DiskStatus, DisksStatus, Ended, Origin, Outcome, Primary, PrimaryBuilder, Promoted, Protection,
    ProtectionHandle, RuntimeError, Standby, StandbyHandle, StandbyRun, Status, ThreadSetup,
    Trouble,
};

use super::core::{RoleEnd, SyncState};
use super::metrics::{MetricsRoom, NodeMetrics};
use super::request::Denial;
use super::settings::ReplicationSettings;
use super::status::{RoleStatus, UnprotectedRole, UnprotectedStatus};
use super::{NodeError, Role};
use crate::devices::PowerButton;
use crate::devices::switch::PowerSwitch;
use crate::devices::virtio::blk::FailedRequests;
use crate::host::raise_priority;
use crate::machine::{Breaker, DriveConfig, Machine};

/// What the node is doing.
pub(super) enum Work {
    /// Nothing: it has not begun, or its role is over.
    None,
    Unprotected(Box<Machine>),
    Primary(Box<Protection<Machine>>),
    Standby(StandbyRun<Machine>),
    /// Taken over, and not protected yet.
    Promoted(Box<Promoted<Machine>>),
}

/// How a role came to its end.
pub(super) enum RoleOver {
    Promoted(Box<Promoted<Machine>>),
    /// The standby is to start the guest.
    IsToStart {
        known: Generation,
    },
    Ended(RoleEnd),
    Failed(NodeError),
}

/// What of a machine is reached while replication owns it.
pub(super) struct Panel {
    pub(super) gate: OutputGate,
    pub(super) can_restart: bool,
    button: Option<PowerButton>,
    power: Option<PowerSwitch>,
    pub(super) breaker: Breaker,
    failed: BTreeMap<String, FailedRequests>,
}

impl Panel {
    pub(super) fn of(machine: &Machine) -> Self {
        Self {
            gate: machine.output_gate().clone(),
            can_restart: machine.can_be_reset(),
            button: machine.power_button().cloned(),
            power: machine.power_switch().cloned(),
            breaker: machine.breaker(),
            failed: machine.failed_requests().clone(),
        }
    }

    pub(super) fn press_power_button(&self) {
        if let Some(button) = &self.button {
            button.press();
        }
    }

    /// The guest sees the errors of what the disk has failed.
    pub(super) fn answer_failed(&self, disk: &str) {
        self.failed.get(disk).inspect(|failed| failed.answer());
    }

    pub(super) fn retry_failed(&self, disk: &str) {
        self.failed.get(disk).inspect(|failed| failed.retry());
    }

    /// The guest stands still from now on, wherever it goes on.
    fn cut_power(&self) {
        if let Some(power) = &self.power {
            power.turn();
        }
    }
}

impl Work {
    /// Starts the guest over. That it failed comes as an event of the machine.
    pub(super) fn restart_guest(&mut self) {
        match self {
            Self::Unprotected(machine) => {
                if let Err(fault) = machine.reset_guest() {
                    tracing::debug!("{}", fault.with_causes());
                }
            }
            Self::Primary(protection) => protection.handle().reset_guest(),
            Self::None | Self::Standby(_) | Self::Promoted(_) => {}
        }
    }

    /// The guest has ended, or is to. An unprotected one's role is over, and [`Work::shut_down`] is due: returns
    /// whether it is. A protected one's role ends later.
    pub(super) fn end(&mut self) -> bool {
        match self {
            Self::Unprotected(_) => true,
            Self::Primary(protection) => {
                protection.handle().guest_stopped();
                false
            }
            Self::None | Self::Standby(_) | Self::Promoted(_) => false,
        }
    }

    /// Stops the machine of a role that is over. That may take long, for example while storage is slow.
    pub(super) fn shut_down(&mut self) {
        if let Self::Unprotected(machine) = self {
            machine.shut_down();
        }
    }

    /// Cuts the guest's power; returns what [`Work::end`] does.
    pub(super) fn stop_guest(&mut self, panel: &Panel) -> Result<bool, Denial> {
        let Self::Primary(protection) = self else {
            return Ok(self.end());
        };
        panel.cut_power();
        (protection.handle().stop())
            .then_some(false)
            .ok_or(Denial::Ended)
    }

    /// How a role came to its end that replication has told the end of.
    pub(super) fn finish(self) -> RoleOver {
        match self {
            Self::Standby(run) => match run.await_promotion() {
                Ok(Outcome::Promoted(promoted)) => RoleOver::Promoted(Box::new(promoted)),
                Ok(Outcome::Starts { known }) => RoleOver::IsToStart { known },
                Ok(_) => RoleOver::Ended(RoleEnd::Done),
                Err(error) => RoleOver::Failed(error.into()),
            },
            Self::Primary(protection) => match protection.wait() {
                Ok(Ended::GuestStopped) => RoleOver::Ended(RoleEnd::Done),
                Ok(Ended::Abandoned) => RoleOver::Ended(RoleEnd::Abandoned),
                Ok(Ended::HandedOver { reason }) => RoleOver::Ended(RoleEnd::HandedOver { reason }),
                Ok(Ended::LeftToBackup { reason }) => {
                    RoleOver::Ended(RoleEnd::LeftToStandby { what: reason })
                }
                Ok(Ended::Fenced { reason }) => RoleOver::Ended(RoleEnd::Fenced { reason }),
                Ok(other) => RoleOver::Ended(RoleEnd::Failed {
                    what: format!("protection ended: {other:?}"),
                }),
                Err(error) => RoleOver::Failed(error.into()),
            },
            Self::None | Self::Unprotected(_) | Self::Promoted(_) => RoleOver::Ended(RoleEnd::Done),
        }
    }

    pub(super) fn stop_standby(&self) -> Result<(), Denial> {
        match self {
            Self::Standby(run) if !run.handle().stop() => Err(Denial::Promoting),
            _ => Ok(()),
        }
    }

    pub(super) fn promote(&self) -> Result<(), Denial> {
        match self {
            Self::Standby(run) if !run.handle().promote() => Err(Denial::Busy),
            _ => Ok(()),
        }
    }

    pub(super) fn hand_over(&self, why: &str) -> Result<(), Denial> {
        match self {
            Self::Primary(protection) if !protection.handle().hand_over(why) => Err(Denial::Ended),
            _ => Ok(()),
        }
    }

    /// The machine has broken.
    pub(super) fn machine_broke(&self, what: &str) {
        if let Self::Primary(protection) = self {
            protection.handle().machine_broke(what);
        }
    }

    pub(super) fn report_health(&self, troubles: Vec<Trouble>) {
        if let Self::Standby(run) = self {
            // Not taken once the standby has ended: then nobody wants to know.
            let _ = run.handle().report_health(troubles);
        }
    }

    pub(super) fn checkpoint(&self) {
        if let Self::Primary(protection) = self {
            protection.handle().checkpoint();
        }
    }

    pub(super) fn replication_status(&self) -> Option<Status> {
        match self {
            Self::Primary(protection) => Some(protection.handle().status()),
            Self::Standby(run) => Some(run.handle().status()),
            Self::None | Self::Unprotected(_) | Self::Promoted(_) => None,
        }
    }

    pub(super) fn sync_state(&self) -> SyncState {
        self.replication_status()
            .map_or_else(SyncState::default, |status| SyncState {
                in_sync: status.protected,
                phase: status.phase,
            })
    }
}

/// Names and means, equal for all roles of a replicated guest.
pub(super) struct Replicated {
    pub(super) vm: String,
    pub(super) node: String,
    pub(super) settings: ReplicationSettings,
}

impl Replicated {
    pub(super) fn start_standby(
        &self,
        machine: Machine,
        starts: Starts,
        gives_up_disks: bool,
    ) -> Result<StandbyRun<Machine>, RuntimeError> {
        let mut builder = Standby::builder(machine)
            .vm(&self.vm)
            .node(&self.node)
            .arbiter(Arc::clone(&self.settings.arbiter))
            .policy(self.settings.policy.clone());
        if let Some(listen) = self.settings.listen.clone() {
            builder = builder.listen(listen);
        }
        // Who was to be the primary knows what to boot.
        let can_start = self.settings.can_start || starts == Starts::IfItMay;
        if can_start && self.settings.backup.is_some() {
            builder = builder.starts(starts, self.settings.backup.clone());
        }
        if gives_up_disks {
            builder = builder.gives_up_disks();
        }
        if let Some(host) = &self.settings.host {
            builder = builder.host(host);
        }
        builder = builder.driver_setup(self.driver_setup());
        if let Some(path) = self.settings.heartbeat {
            builder = builder.heartbeat(path);
        }
        builder.start()
    }

    /// That it is not allowed has been said already.
    fn driver_setup(&self) -> ThreadSetup {
        let priority = self.settings.priority;
        Arc::new(move || {
            if let Err(error) = raise_priority(priority) {
                tracing::debug!(%error, ?priority, "no priority");
            }
        })
    }

    fn named(&self, builder: PrimaryBuilder<Machine>) -> PrimaryBuilder<Machine> {
        let builder = builder
            .vm(&self.vm)
            .node(&self.node)
            .arbiter(Arc::clone(&self.settings.arbiter));
        match &self.settings.host {
            Some(host) => builder.host(host),
            None => builder,
        }
    }

    /// Runs a guest that nobody protects, if the arbiter lets it.
    pub(super) fn run_alone(
        &self,
        machine: Machine,
        start_over: bool,
    ) -> Result<Machine, RuntimeError> {
        let mut builder = self.named(Primary::attach(Origin::Fresh(machine)));
        if start_over {
            builder = builder.start_over();
        }
        Ok(builder.run_alone()?.machine)
    }

    pub(super) fn protect(
        &self,
        builder: PrimaryBuilder<Machine>,
    ) -> Result<Protection<Machine>, RuntimeError> {
        let mut builder = (self.named(builder).policy(self.settings.policy.clone()))
            .driver_setup(self.driver_setup());
        if let Some(endpoint) = self.settings.backup.clone() {
            builder = builder.backup(endpoint);
        }
        if let Some(path) = self.settings.heartbeat {
            builder = builder.heartbeat(path);
        }
        builder.protect()
    }

    pub(super) fn protect_promoted(
        &self,
        promoted: Promoted<Machine>,
    ) -> Result<Protection<Machine>, RuntimeError> {
        self.protect(Primary::attach(Origin::Promoted(promoted)))
    }
}

/// Where a node's status is read.
#[derive(Clone)]
pub(super) enum Sources {
    At(Figures, MetricsRoom),
    /// The role is over: as it was at its end. Nothing of the machine is held on to.
    Frozen(Box<(RoleStatus, NodeMetrics)>),
}

/// What a role shows of itself.
#[derive(Clone)]
pub(super) enum Figures {
    Unprotected(Arc<UnprotectedFigures>),
    Primary(ProtectionHandle),
    Standby(StandbyHandle),
}

impl Sources {
    pub(super) fn read(&self) -> (RoleStatus, NodeMetrics) {
        let (figures, room) = match self {
            Self::At(figures, room) => (figures, room),
            Self::Frozen(last) => return (**last).clone(),
        };
        let status = match figures {
            Figures::Unprotected(figures) => {
                let status = figures.read();
                return (RoleStatus::Unprotected(Box::new(status)), room.read(None));
            }
            Figures::Primary(handle) => handle.status(),
            Figures::Standby(handle) => handle.status(),
        };
        let metrics = room.read(Some(&status));
        (RoleStatus::Replicated(Box::new(status)), metrics)
    }

    pub(super) fn freeze(&self) -> Self {
        Self::Frozen(Box::new(self.read()))
    }
}

/// An unprotected guest's figures.
pub(super) struct UnprotectedFigures {
    vm: String,
    node: String,
    /// Without what changes.
    disks: DisksStatus,
    disk_set: DiskSet,
    gate: OutputGate,
}

impl UnprotectedFigures {
    pub(super) fn of(machine: &Machine, vm: &str, node: &str, drives: &[DriveConfig]) -> Self {
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
            vm: vm.into(),
            node: node.into(),
            disks,
            disk_set,
            gate: machine.output_gate().clone(),
        }
    }

    fn read(&self) -> UnprotectedStatus {
        UnprotectedStatus {
            role: UnprotectedRole::Unprotected,
            vm: self.vm.clone(),
            node: self.node.clone(),
            protected: false,
            output: self.gate.counts(),
            disks: DisksStatus {
                marked_bytes: self.disk_set.counts().marked_bytes,
                ..self.disks.clone()
            },
        }
    }
}

/// The size of a drive's image, or of the device; it is open already, so it can be had.
fn bytes_of(drive: &DriveConfig) -> u64 {
    let end = |mut file: File| file.seek(SeekFrom::End(0));
    File::open(&drive.path).and_then(end).unwrap_or(0)
}

impl Figures {
    pub(super) fn role(&self) -> Role {
        match self {
            Self::Unprotected(_) => Role::Unprotected,
            Self::Primary(_) => Role::Primary,
            Self::Standby(_) => Role::Standby,
        }
    }
}
