//! What a node is to be.

use std::sync::Arc;

use understudy_replication::arbiter::{Arbiter, ArbiterError, FileArbiter};
use understudy_replication::core::policy::Policy;
use understudy_replication::runtime::HeartbeatPath;
use understudy_transport::Endpoint;

use super::Rules;
use crate::config::{Config, ConfigError, ReplicationConfig};
use crate::machine::{DriveConfig, Machine, Start};

/// Why a machine cannot be built.
pub type BuildError = Box<dyn std::error::Error + Send + Sync>;
/// Builds the node's machine, on the node's thread.
pub type BuildMachine = Box<dyn FnOnce() -> Result<Machine, BuildError> + Send>;

/// What a node is to be.
pub struct NodeSettings {
    /// Name of the virtual machine, equal on both hosts.
    pub vm: String,
    /// This node's name.
    pub node: String,
    /// What is to follow from what becomes of the guest.
    pub rules: Rules,
    /// Builds the machine.
    pub machine: BuildMachine,
    /// The first role.
    pub start_as: StartAs,
}

/// A node's first role, and what it needs.
pub enum StartAs {
    /// A guest without a second copy.
    Unprotected {
        /// The disks, for the status.
        drives: Vec<DriveConfig>,
    },
    /// A guest that boots here, and is protected.
    Primary {
        /// By which means.
        replication: ReplicationSettings,
        /// Start it from nothing even if a standby may have a copy of it, which is given up.
        start_over: bool,
    },
    /// A second copy.
    Standby {
        /// By which means; `backup` is for the time after a promotion.
        replication: ReplicationSettings,
        /// Where to wait for the primary.
        listen: Endpoint,
    },
}

/// The means of protection.
#[derive(Clone)]
pub struct ReplicationSettings {
    /// Who decides who may run alone.
    pub arbiter: Arc<dyn Arbiter>,
    /// When epochs end, and when a silent peer is lost.
    pub policy: Policy,
    /// A separate path for heartbeats.
    pub heartbeat: Option<HeartbeatPath>,
    /// Where the standby of a primary listens.
    pub backup: Option<Endpoint>,
}

/// Why there are no means of protection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The arbiter's file cannot be used.
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
}

impl NodeSettings {
    /// A guest without a second copy.
    ///
    /// # Errors
    /// If the configuration does not fit.
    pub fn unprotected(config: &Config) -> Result<Self, SettingsError> {
        let machine = config.machine(Start::Unprotected)?;
        let drives = machine.drives.clone();
        Self::new(config, Start::Unprotected, StartAs::Unprotected { drives })
    }

    /// A guest that boots here, and is protected. `start_over`: even if a standby may have a copy of it, which is
    /// given up.
    ///
    /// # Errors
    /// If the configuration names no arbiter or does not fit, or the arbiter's file cannot be used.
    pub fn primary(config: &Config, start_over: bool) -> Result<Self, SettingsError> {
        let start_as = StartAs::Primary {
            replication: ReplicationSettings::new(&config.replication)?,
            start_over,
        };
        Self::new(config, Start::Primary, start_as)
    }

    /// A second copy.
    ///
    /// # Errors
    /// As [`NodeSettings::primary`], or if it is not said where to listen.
    pub fn standby(config: &Config) -> Result<Self, SettingsError> {
        let start_as = StartAs::Standby {
            replication: ReplicationSettings::new(&config.replication)?,
            listen: config.replication.needed_listen()?.clone(),
        };
        Self::new(config, Start::Standby, start_as)
    }

    fn new(config: &Config, start: Start, start_as: StartAs) -> Result<Self, SettingsError> {
        let machine = config.machine(start)?;
        Ok(Self {
            vm: config.vm.clone(),
            node: config.node.clone(),
            rules: Rules {
                on_reboot: config.on_reboot,
                on_panic: machine.on_panic,
                on_watchdog: machine.watchdog.unwrap_or_default(),
            },
            machine: Box::new(move || Ok(Machine::build(machine)?)),
            start_as,
        })
    }
}

impl ReplicationSettings {
    fn new(config: &ReplicationConfig) -> Result<Self, SettingsError> {
        Ok(Self {
            arbiter: Arc::new(FileArbiter::open(config.needed_arbiter()?)?),
            policy: config.policy.clone(),
            heartbeat: config.heartbeat,
            backup: config.backup.clone(),
        })
    }
}
