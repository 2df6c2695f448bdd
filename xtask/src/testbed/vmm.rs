//! `vmm` in a host: started with a configuration, asked for its status. What must not be done here: judge what
//! it does.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::guest::Guest;
use super::host::Host;
use super::network::{Network, Side};

/// The guest's MAC address, by which the network knows where it speaks.
pub(super) const GUEST_MAC: &str = "52:54:00:77:00:64";
/// Emulated hosts stall for hundreds of milliseconds when this machine is busy; with the ordinary 150 ms that
/// would be a failover each time.
pub(super) const TIMEOUT_MS: u64 = 2500;
pub(super) const HEARTBEAT_MS: u64 = 100;
pub(super) const CONTROL: &str = "/run/vmm.sock";

/// The subcommand of `vmm` by which a host begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subcommand {
    Primary,
    Standby,
}

impl Subcommand {
    fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

/// The configuration for one side. `directory` is the scenario's, as the hosts see it.
fn config(guest: &Guest, vcpus: u8, side: Side, directory: &str) -> Value {
    let at = |network: Network, side, port: u16| format!("{}:{port}", network.address(side));
    let drives: Vec<Value> = (guest.drives.iter())
        .map(|drive| {
            json!({
                "drive_id": drive.id,
                "path_on_host": drive.path_on_host(directory),
                "is_root_device": drive.is_root,
                "replication": drive.mode.replication(),
            })
        })
        .collect();
    let mut boot = json!({
        "kernel_image_path": format!("{directory}/kernel"),
        "boot_args": guest.cmdline,
    });
    if guest.initrd.is_some() {
        boot["initrd_path"] = format!("{directory}/initrd").into();
    }
    json!({
        "boot-source": boot,
        "machine-config": {
            "vcpu_count": vcpus,
            "mem_size_mib": guest.memory_mib,
        },
        "drives": drives,
        "network-interfaces": [
            { "iface_id": "net0", "host_dev_name": "tap0", "guest_mac": GUEST_MAC }
        ],
        "replication": {
            "vm": guest.name,
            "node": side.name(),
            "backup": at(Network::Channel, side.other(), 7000),
            "listen": at(Network::Channel, side, 7000),
            "arbiter": format!("{directory}/arbiter"),
            "heartbeat": {
                "listen": at(Network::Service, side, 7001),
                "peer": at(Network::Service, side.other(), 7001),
            },
            "epoch_ms": guest.epoch_ms,
            "heartbeat_ms": HEARTBEAT_MS,
            "timeout_ms": TIMEOUT_MS,
            "control_socket": CONTROL,
        },
    })
}

/// Silence after which a host counts as lost.
pub(super) fn timeout() -> Duration {
    Duration::from_millis(TIMEOUT_MS)
}

/// Starts `vmm` on a host.
pub(super) fn start(
    host: &Host,
    subcommand: Subcommand,
    guest: &Guest,
    vcpus: u8,
    directory: &str,
) -> Result<()> {
    let config = serde_json::to_string_pretty(&config(guest, vcpus, host.side, directory))?;
    host.must(&format!("cat > /run/vmm.json <<'END'\n{config}\nEND"))?;
    let subcommand = subcommand.name();
    begin(host, &format!("vmm {subcommand} --config /run/vmm.json"))
}

/// Starts a command with `vmm` that goes on: its log and its exit code are kept.
pub(super) fn begin(host: &Host, command: &str) -> Result<()> {
    host.must(&format!(
        "rm -f /run/vmm.exit\n\
         echo '--- {command}' > /dev/ttyS1\n\
         {{ setsid {command} > /dev/ttyS2 2>&3 < /dev/null\n\
         echo $? > /run/vmm.exit.new; mv /run/vmm.exit.new /run/vmm.exit; }} 3>&1 2> /dev/null \
         | cat > /dev/ttyS1 2> /dev/null &"
    ))?;
    Ok(())
}

/// Kills whatever `vmm` runs on a host.
pub(super) fn kill(host: &Host) -> Result<()> {
    host.must(
        "killall -q -9 vmm; while pidof vmm > /dev/null; do usleep 50000; done; rm -f /run/vmm.*",
    )?;
    Ok(())
}

/// Presses the power button of the guest that runs on a host.
pub(super) fn press_power_button(host: &Host) -> Result<()> {
    host.must(&format!("vmm power-button --control {CONTROL}"))?;
    Ok(())
}

/// What `vmm status --json` says, if a `vmm` answers.
pub(super) fn status(host: &Host) -> Result<Option<Value>> {
    status_at(host, CONTROL)
}

/// The same at another control socket than that of [`start`].
pub(super) fn status_at(host: &Host, control: &str) -> Result<Option<Value>> {
    let output = host.run(&format!("vmm status --control {control} --json"))?;
    if output.code != 0 {
        return Ok(None);
    }
    let status = serde_json::from_str(&output.text)
        .with_context(|| format!("vmm status printed no JSON: {}", output.text))?;
    Ok(Some(status))
}

/// The exit code of the last `vmm` that was started, if it has ended.
pub(super) fn exit_code(host: &Host) -> Result<Option<i32>> {
    let output = host.run("cat /run/vmm.exit")?;
    Ok(output.text.trim().parse().ok())
}
