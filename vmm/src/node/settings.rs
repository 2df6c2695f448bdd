//! What a node is to be.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use understudy_replication::arbiter::{Arbiter, ArbiterError, FileArbiter};
use understudy_replication::core::policy::Policy;
use understudy_replication::disk;
use understudy_replication::runtime::HeartbeatPath;
use understudy_transport::Endpoint;

use super::Rules;
use super::identity::{self, IdentityError};
use crate::config::{Config, ConfigError, GuestNetwork, Priority};
use crate::machine::{DriveConfig, Machine, Start, beside};

/// Why a machine cannot be built.
pub type BuildError = Box<dyn std::error::Error + Send + Sync>;
/// Builds the node's machine for the way in which the guest comes to run here, on the node's thread: once for each role
/// that is taken up.
pub type BuildMachine = Box<dyn Fn(Start) -> Result<Machine, BuildError> + Send>;

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
    /// What was asked of this host and cannot be had.
    pub lacks: Vec<String>,
    /// The guest's networks. Those that can be are watched while it is protected.
    pub networks: Vec<GuestNetwork>,
    /// The first role.
    pub start_as: StartAs,
    /// What is known of the disks and the other host's is not believed: the next synchronisation copies
    /// everything.
    pub full_resync: bool,
}

/// A node's first role, and what it needs.
pub enum StartAs {
    /// A guest without a second copy.
    Unprotected {
        /// The disks, for the status.
        drives: Vec<DriveConfig>,
        /// Who decides who may run alone, if there may be other hosts with this guest.
        claims: Option<ReplicationSettings>,
        /// Start it from nothing even if a standby may have a copy of it, which is given up.
        start_over: bool,
    },
    /// A guest that boots here, and is protected.
    Primary {
        /// By which means; with `listen`, it waits as a standby while it may not start the guest.
        replication: ReplicationSettings,
        /// Start it from nothing even if a standby may have a copy of it, which is given up.
        start_over: bool,
    },
    /// A second copy.
    Standby {
        /// By which means, `listen` among them; `backup` is for the time after a promotion.
        replication: ReplicationSettings,
    },
}

/// The means of protection.
#[derive(Clone)]
pub struct ReplicationSettings {
    /// Who decides who may run alone.
    pub arbiter: Arc<dyn Arbiter>,
    /// What tells this host from others with its name, if it has disks that it must be told apart for.
    pub host: Option<String>,
    /// When epochs end, and when a silent peer is lost.
    pub policy: Policy,
    /// A separate path for heartbeats.
    pub heartbeat: Option<HeartbeatPath>,
    /// Where the standby of a primary listens.
    pub backup: Option<Endpoint>,
    /// When the thread runs that sends heartbeats.
    pub priority: Priority,
    /// Where this host listens as a standby.
    pub listen: Option<Endpoint>,
    /// It may start the guest from its disks although it was started as a standby: it knows the kernel.
    pub can_start: bool,
}

/// Why there are no means of protection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The arbiter cannot be used.
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
    /// It cannot be told which host this is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A disk's map knows of an arbiter, and there is none.
    #[error(
        "there is no arbiter at {path}, yet the disk {disk} belongs to a guest that an arbiter decides about ({known}): \
         is that storage mounted?"
    )]
    NoArbiter {
        /// Where it should be.
        path: PathBuf,
        /// The disk.
        disk: String,
        /// The arbiter's identity.
        known: String,
    },
    /// A disk's map cannot be read.
    #[error("cannot read the map {path}")]
    Map {
        /// The map.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl NodeSettings {
    /// A guest without a second copy. If an arbiter is named, it is asked whether the guest may run here: it may run
    /// elsewhere, or have a copy there. `start_over`: such a copy is given up.
    ///
    /// # Errors
    /// If the configuration does not fit, or the arbiter cannot be used.
    pub fn unprotected(config: &Config, start_over: bool) -> Result<Self, SettingsError> {
        let machine = config.machine(Start::Unprotected)?;
        let has_arbiter = config.replication.arbiter.is_some();
        let start_as = StartAs::Unprotected {
            drives: machine.drives,
            claims: has_arbiter
                .then(|| ReplicationSettings::new(config, Start::Unprotected))
                .transpose()?,
            start_over,
        };
        Self::new(config, Start::Unprotected, start_as)
    }

    /// A guest that boots here, and is protected. `start_over`: even if a standby may have a copy of it, which is
    /// given up.
    ///
    /// # Errors
    /// If the configuration names no arbiter or does not fit, or the arbiter cannot be used.
    pub fn primary(config: &Config, start_over: bool) -> Result<Self, SettingsError> {
        let start_as = StartAs::Primary {
            replication: ReplicationSettings::new(config, Start::Primary)?,
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
            replication: ReplicationSettings::new(config, Start::Standby)?,
        };
        config.replication.needed_listen()?;
        Self::new(config, Start::Standby, start_as)
    }

    fn new(config: &Config, start: Start, start_as: StartAs) -> Result<Self, SettingsError> {
        let machine = config.machine(start)?;
        let built = config.clone();
        Ok(Self {
            vm: config.vm.clone(),
            node: config.node.clone(),
            rules: Rules {
                on_reboot: config.on_reboot,
                on_panic: machine.on_panic,
                on_watchdog: machine.watchdog.unwrap_or_default(),
                on_sigterm: config.replication.on_sigterm,
            },
            lacks: Vec::new(),
            networks: config.networks.clone(),
            machine: Box::new(move |start| Ok(Machine::build(built.machine(start)?)?)),
            start_as,
            full_resync: false,
        })
    }
}

impl ReplicationSettings {
    /// Whether a side that may not start the guest now can wait as a standby until it may.
    pub(super) fn can_wait(&self) -> bool {
        self.listen.is_some() && self.backup.is_some()
    }

    fn new(config: &Config, start: Start) -> Result<Self, SettingsError> {
        let mut drives = config.machine.drives.iter();
        let host = drives.find(|drive| drive.is_replicated());
        let host = host.map(
            |drive| match identity::of_host(&beside(&drive.map_path, "host")) {
                // Its copy may be the only one: that counts for more than who ran the guest last.
                Err(error) if start == Start::Standby => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(
                        cause,
                        "{error}; if it takes over, it must not be stopped before that is mended"
                    );
                    Ok(identity::unkept())
                }
                host => host,
            },
        );
        let can_start = config.machine.kernel.is_some();
        let drives = &config.machine.drives;
        let config = &config.replication;
        let arbiter = config.needed_arbiter()?;
        if !FileArbiter::exists(arbiter)? {
            expect_no_history(arbiter, drives)?;
        }
        Ok(Self {
            arbiter: Arc::new(FileArbiter::open(arbiter)?),
            host: host.transpose()?,
            policy: config.policy.clone(),
            heartbeat: config.heartbeat,
            backup: config.backup.clone(),
            priority: config.endurance.priority.unwrap_or_default(),
            listen: config.listen.clone(),
            can_start,
        })
    }
}

/// No arbiter is made where a disk's map knows of one.
fn expect_no_history(arbiter: &Path, drives: &[DriveConfig]) -> Result<(), SettingsError> {
    for drive in drives.iter().filter(|drive| drive.is_replicated()) {
        let history = disk::history(&drive.map_path).map_err(|source| SettingsError::Map {
            path: drive.map_path.clone(),
            source,
        })?;
        if let Some(history) = history {
            return Err(SettingsError::NoArbiter {
                path: arbiter.into(),
                disk: drive.id.clone(),
                known: history.arbiter.0,
            });
        }
    }
    Ok(())
}
