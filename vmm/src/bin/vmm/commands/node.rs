//! `vmm run`, `vmm primary` and `vmm standby`: a node, its control socket, and signals.

use anyhow::{Result, bail};
use understudy_vmm::config::Config;
use understudy_vmm::control::ControlSocket;
use understudy_vmm::host::{self, Lack};
use understudy_vmm::node::{Ended, Node, NodeSettings};

use super::signals::Signals;
use crate::args::{ReplicatedArgs, RunArgs};
use crate::exit::Fenced;

/// How many signals are heard as requests to stop; one more ends the process. An unprotected guest has nothing to
/// wait for but its console, a protected one may be told to give up what it holds.
const STOPS_UNPROTECTED: usize = 1;
const STOPS_REPLICATED: usize = 2;

pub(crate) fn run(arguments: RunArgs) -> Result<()> {
    let start_over = arguments.start_over;
    let config = arguments.load()?;
    let settings = NodeSettings::unprotected(&config, start_over)?;
    keep(&config, settings, STOPS_UNPROTECTED)
}

pub(crate) fn primary(arguments: ReplicatedArgs) -> Result<()> {
    let (start_over, full_resync) = (arguments.start_over, arguments.full_resync);
    let config = arguments.load()?;
    let mut settings = NodeSettings::primary(&config, start_over)?;
    settings.full_resync = full_resync;
    settings.lacks = endure(&config);
    if config.replication.backup.is_none() {
        tracing::warn!("no --backup is given: the guest runs unprotected");
    }
    keep(&config, settings, STOPS_REPLICATED)
}

pub(crate) fn standby(arguments: ReplicatedArgs) -> Result<()> {
    if arguments.start_over {
        bail!("--start-over is for a primary: a standby starts no guest");
    }
    let full_resync = arguments.full_resync;
    let config = arguments.load()?;
    let mut settings = NodeSettings::standby(&config)?;
    settings.full_resync = full_resync;
    settings.lacks = endure(&config);
    keep(&config, settings, STOPS_REPLICATED)
}

/// Takes what the host gives for a protected guest's process; returns what was asked for and is not given.
fn endure(config: &Config) -> Vec<String> {
    let lacks = host::endure(config.replication.endurance).into_iter();
    host::keep_memory();
    let (asked, others): (Vec<Lack>, Vec<Lack>) = lacks.partition(|lack| lack.asked);
    for lack in others {
        tracing::info!("{}", lack.what);
    }
    let asked = asked.into_iter().map(|lack| lack.what);
    asked.inspect(|what| tracing::warn!("{what}")).collect()
}

/// Keeps a node until it has ended.
fn keep(config: &Config, settings: NodeSettings, stops: usize) -> Result<()> {
    let signals = Signals::listen()?;
    // Before anything is claimed or run: a socket in use must not cost a guest.
    let control = config.control_socket.as_deref();
    let control = control.map(ControlSocket::bind).transpose()?;
    let node = Node::start(settings)?;
    let _control = control
        .map(|socket| socket.serve(node.handle()))
        .transpose()?;
    signals.stop(node.handle(), stops)?;
    match node.wait()? {
        Ended::Stopped => {
            tracing::info!("{}", Ended::Stopped);
            Ok(())
        }
        Ended::Guest => Ok(()),
        ended @ Ended::HandedOver { trouble: None, .. } => {
            tracing::info!("{ended}");
            Ok(())
        }
        ended @ Ended::HandedOver { .. } => Err(Fenced(ended.to_string()).into()),
        ended @ Ended::LeftToStandby { .. } => Err(Fenced(ended.to_string()).into()),
        Ended::Fenced { reason } => Err(Fenced(reason).into()),
        failed => bail!("{failed}"),
    }
}
