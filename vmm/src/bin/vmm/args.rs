//! The command line: what can be said, and what `--help` teaches. Flags are merged with the
//! configuration file here, low level, into one [`Config`]; what it means is decided elsewhere.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use understudy_vmm::boot::BootProtocol;
use understudy_vmm::config::{
    Config, ConfigError, Drive, DriveReplication, Entropy, HeartbeatSection, NetworkInterface,
    WatchdogSection,
};
use understudy_vmm::machine::{OnPanic, OnReboot, OnWatchdog};
use understudy_vmm::vcpu::CpuTemplate;

const AFTER_HELP: &str = "\
Try it (needs only /dev/kvm):
  vmm demo

Protect a guest on two hosts that both see /shared:
  host-b$ vmm standby --net tap=tap0 --listen 0.0.0.0:7000 --arbiter /shared/web.arbiter
  host-a$ vmm primary --net tap=tap0 --backup host-b:7000 --arbiter /shared/web.arbiter

With a disk, of which each host has an image of the same size:
  truncate -s 20G web.disk, and --drive path=web.disk on both hosts

Look at it:
  vmm status --control /run/understudy.sock

Logs go to standard error; UNDERSTUDY_LOG sets the level (error, warn, info, debug, trace).
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 fenced (another host owns the guest now).";

/// Runs virtual machines that survive the loss of their host.
#[derive(Debug, Parser)]
#[command(name = "vmm", version, after_help = AFTER_HELP, max_term_width = 100)]
pub(crate) struct Cli {
    /// Log messages as JSON, one object a line.
    #[arg(long, global = true)]
    pub(crate) log_json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a guest, unprotected. Of the `replication` section of a configuration only names, `control_socket`
    /// and the disks' settings count.
    Run(RunArgs),
    /// Run a guest and protect it by a standby on another host.
    ///
    /// The guest starts at once. As soon as the standby can be reached all of memory is copied to it
    /// while the guest runs; from then on its state follows epoch by epoch, and the guest's output
    /// leaves only after the standby has the state behind it. If the standby is lost the guest goes
    /// on unprotected (with the arbiter's consent) and looks for a standby again.
    Primary(ReplicatedArgs),
    /// Keep a second copy of a guest and take over when its host dies.
    ///
    /// Needs the same VM settings (memory, vCPUs, devices) as the primary; what differs is named when
    /// the primary connects. After a takeover it acts as a primary, protected by --backup if given. So that
    /// the guest can reboot there, give it the primary's --kernel (also if that is `builtin`), --initrd and
    /// --cmdline, too.
    Standby(ReplicatedArgs),
    /// Show how a running vmm is doing: a primary, a standby, or an unprotected guest.
    Status(StatusArgs),
    /// Promote a standby now. The old primary is fenced.
    Failover(ControlArgs),
    /// Stop a running primary or unprotected guest, or a standby, cleanly.
    ///
    /// For the guest this is as if its power were cut, unless --graceful is given. What it has said before still
    /// leaves, if the standby or the arbiter lets it; asked again, vmm does not wait for that.
    Stop(StopArgs),
    /// Press the power button of the guest that runs here: asks it to shut itself down.
    PowerButton(ControlArgs),
    /// Say what this host can and cannot do, and what to do about it.
    Check(CheckArgs),
    /// Show a failover: protect a guest, kill its primary, check every byte its clients get.
    Demo(DemoArgs),
}

/// What the virtual machine is made of.
#[derive(Debug, Args)]
pub(crate) struct VmArgs {
    /// JSON file with Firecracker's field names plus a `replication` section; flags override it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Linux bzImage or ELF image (vmlinux) to boot, or `builtin` for the guest inside this program
    /// [default: builtin].
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// How the kernel is entered: `linux` (64-bit boot protocol), `pvh` (an ELF image with a note that says
    /// where), or `auto`, which is linux if the image can [default: auto].
    #[arg(long, value_name = "NAME")]
    boot_protocol: Option<BootProtocol>,
    /// Initramfs for the kernel.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The guest's command line [default for the built-in guest: workload=stream,counter,echo].
    #[arg(long, value_name = "TEXT")]
    cmdline: Option<String>,
    /// Number of vCPUs [default: 1].
    #[arg(long, value_name = "N")]
    vcpus: Option<u8>,
    /// CPU features that a guest booted here is offered: host (all), or only those of x86-64, x86-64-v2,
    /// x86-64-v3 or x86-64-v4, so that a standby of another model can take over [default: host].
    #[arg(long, value_name = "NAME")]
    cpu_template: Option<CpuTemplate>,
    /// Memory in MiB [default: 256].
    #[arg(long, value_name = "MIB")]
    memory_mib: Option<u64>,
    /// A network interface, as `tap=NAME` or `socket=PATH` (a listening socket of passt or QEMU's
    /// stream backend), with optional `,mac=MAC`, `,id=NAME` and `,offload=off`. Repeatable. A tap takes
    /// over checksums and TCP segmentation; a socket cannot, and both hosts must do alike.
    #[arg(long, value_name = "SPEC")]
    net: Vec<String>,
    /// A disk, as `path=FILE` (a raw image or a block device), with optional `,id=NAME` and one of
    /// `,readonly`, `,replicated` and `,shared`. Repeatable. A protected guest's disk is `replicated` unless
    /// something else is said: each host has an image of its own and keeps a map of changed blocks beside it
    /// (`,map=FILE` puts it elsewhere, as is needed for a block device). `shared`: both hosts reach one image,
    /// on storage whose locks hold between them.
    #[arg(long, value_name = "SPEC")]
    drive: Vec<String>,
    /// Give the guest a virtio entropy device.
    #[arg(long)]
    rng: bool,
    /// When the guest wants a reboot: `restart` it in place, or `exit` [default: restart].
    #[arg(long, value_name = "ACTION")]
    on_reboot: Option<OnReboot>,
    /// When the guest's kernel panics (and says so by pvpanic): `report` it, and leave the rest to the guest,
    /// `restart` it, or `exit` [default: report].
    #[arg(long, value_name = "ACTION")]
    on_panic: Option<OnPanic>,
    /// Give the guest a watchdog (IB700; Linux: ib700wdt) and `reset` it, power it off (`poweroff`) or do nothing
    /// but tell (`none`) when it does not feed it.
    #[arg(long, value_name = "ACTION")]
    watchdog: Option<OnWatchdog>,
    /// Where the guest's console goes: `stdout`, `none`, or a file to append to [default: stdout].
    #[arg(long, value_name = "WHERE")]
    console: Option<String>,
}

/// A VM without a second copy.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    vm: VmArgs,
    /// Unix socket for `vmm status`, `stop` and `power-button`.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

/// A VM and its other copy.
#[derive(Debug, Args)]
pub(crate) struct ReplicatedArgs {
    #[command(flatten)]
    pub(crate) vm: VmArgs,
    /// Name of the VM, equal on both hosts [default: vm].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// This host's name in messages [default: the host name].
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Where the (next) standby listens: HOST:PORT or unix:PATH.
    #[arg(long, value_name = "ENDPOINT")]
    backup: Option<String>,
    /// Where this standby listens: ADDRESS:PORT or unix:PATH.
    #[arg(long, value_name = "ENDPOINT")]
    listen: Option<String>,
    /// The arbiter's file, on storage that both hosts see. It decides who may run alone.
    #[arg(long, value_name = "FILE")]
    arbiter: Option<PathBuf>,
    /// Start the guest from nothing even if a standby may have a copy of it (primary only).
    #[arg(long)]
    pub(crate) start_over: bool,
    /// A separate path for heartbeats, as LOCAL_ADDRESS:PORT=PEER_ADDRESS:PORT (UDP).
    #[arg(long, value_name = "LOCAL=PEER")]
    heartbeat: Option<String>,
    /// Unix socket for `vmm status`, `failover`, `stop` and `power-button`.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Where a standby notes writes to replicated disks before they go to the images, as two files
    /// [default: the first image's path with `.understudy-journal` behind it].
    #[arg(long, value_name = "FILE")]
    disk_journal: Option<PathBuf>,
    /// Longest epoch, in milliseconds [default: 25].
    #[arg(long, value_name = "MS")]
    epoch_ms: Option<u64>,
    /// Shortest epoch when output waits, in milliseconds [default: 2].
    #[arg(long, value_name = "MS")]
    epoch_min_ms: Option<u64>,
    /// Pause between heartbeats, in milliseconds [default: 20].
    #[arg(long, value_name = "MS")]
    heartbeat_ms: Option<u64>,
    /// Silence after which the other side counts as lost, in milliseconds [default: 150].
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct ControlArgs {
    /// The control socket of the running vmm (its --control).
    #[arg(long, value_name = "PATH")]
    pub(crate) control: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    pub(crate) control: ControlArgs,
    /// Press the guest's power button, and wait until it has shut itself down.
    #[arg(long)]
    pub(crate) graceful: bool,
    /// With --graceful: how long to wait for that, in seconds.
    #[arg(long, value_name = "S", default_value_t = 90, requires = "graceful")]
    pub(crate) patience_s: u64,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) control: ControlArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// Print again every second until interrupted.
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What happens to the primary in the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// SIGKILL: as if its host lost power; the logging channel closes at once.
    Kill,
    /// SIGSTOP, and SIGCONT after the promotion: silence, then an old primary that wakes up.
    Freeze,
}

/// A disk in the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DemoDisk {
    /// Each side has an image of its own.
    Replicated,
    /// Both sides reach one image.
    Shared,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Clients that stream; a quarter as many (at least one) count with INCR.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=32))]
    pub(crate) clients: u16,
    /// How long the clients stream; the fault comes half-way.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(2..=3600))]
    pub(crate) seconds: u64,
    /// Memory of the guest in MiB.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(64..=16_384))]
    pub(crate) memory_mib: u64,
    /// What happens to the primary.
    #[arg(long, value_enum, default_value_t = Fault::Kill)]
    pub(crate) fault: Fault,
    /// Give the guest a disk, which it writes and reads back all the time; the image is checked at the end.
    #[arg(long, value_enum, value_name = "KIND")]
    pub(crate) disk: Option<DemoDisk>,
    /// Print one JSON object at the end, and nothing else on standard output.
    #[arg(long)]
    pub(crate) json: bool,
    /// Keep the logs and consoles of both hosts in this directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
}

/// Takes `flag` if it was given.
fn over<T>(to: &mut Option<T>, flag: Option<T>) {
    if flag.is_some() {
        *to = flag;
    }
}

impl VmArgs {
    /// The configuration file, if any, overridden by flags.
    pub(crate) fn merge(self) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            None => Config::default(),
        };
        over(&mut config.boot_source.kernel_image_path, self.kernel);
        over(&mut config.boot_source.initrd_path, self.initrd);
        over(&mut config.boot_source.boot_args, self.cmdline);
        over(&mut config.boot_source.boot_protocol, self.boot_protocol);
        over(&mut config.machine_config.vcpu_count, self.vcpus);
        over(&mut config.machine_config.mem_size_mib, self.memory_mib);
        over(&mut config.machine_config.cpu_template, self.cpu_template);
        over(&mut config.serial.output, self.console);
        over(&mut config.machine_config.on_reboot, self.on_reboot);
        over(&mut config.machine_config.on_panic, self.on_panic);
        if let Some(action) = self.watchdog {
            config.watchdog = Some(WatchdogSection { action });
        }
        if self.rng {
            config.entropy = Some(Entropy {});
        }
        if !self.net.is_empty() {
            config.network_interfaces = self
                .net
                .iter()
                .enumerate()
                .map(|(number, spec)| network_interface(number, spec))
                .collect::<Result<_, _>>()?;
        }
        if !self.drive.is_empty() {
            let drives = self.drive.iter().enumerate();
            config.drives = drives
                .map(|(number, spec)| drive(number, spec))
                .collect::<Result<_, _>>()?;
        }
        config.check_drives()?;
        Ok(config)
    }
}

impl RunArgs {
    /// As [`VmArgs::merge`].
    pub(crate) fn merge(self) -> Result<Config, ConfigError> {
        let mut config = self.vm.merge()?;
        over(&mut config.replication.control_socket, self.control);
        Ok(config)
    }
}

impl ReplicatedArgs {
    /// As [`VmArgs::merge`].
    pub(crate) fn merge(self) -> Result<Config, ConfigError> {
        let mut config = self.vm.merge()?;
        let replication = &mut config.replication;
        over(&mut replication.vm, self.name);
        over(&mut replication.node, self.node);
        over(&mut replication.backup, self.backup);
        over(&mut replication.listen, self.listen);
        over(&mut replication.arbiter, self.arbiter);
        over(&mut replication.control_socket, self.control);
        over(&mut replication.disk_journal, self.disk_journal);
        over(&mut replication.epoch_ms, self.epoch_ms);
        over(&mut replication.epoch_min_ms, self.epoch_min_ms);
        over(&mut replication.heartbeat_ms, self.heartbeat_ms);
        over(&mut replication.timeout_ms, self.timeout_ms);
        if let Some(text) = &self.heartbeat {
            replication.heartbeat = Some(heartbeat(text)?);
        }
        Ok(config)
    }
}

fn wrong(key: &str, why: impl std::fmt::Display) -> ConfigError {
    ConfigError::Value {
        key: key.into(),
        why: why.to_string(),
    }
}

fn network_interface(number: usize, spec: &str) -> Result<NetworkInterface, ConfigError> {
    let mut interface = NetworkInterface {
        iface_id: format!("net{number}"),
        host_dev_name: None,
        offload: None,
        socket_path: None,
        guest_mac: None,
    };
    for part in spec.split(',') {
        match part.split_once('=') {
            Some(("tap", name)) => interface.host_dev_name = Some(name.into()),
            Some(("socket", path)) => interface.socket_path = Some(path.into()),
            Some(("mac", mac)) => interface.guest_mac = Some(mac.into()),
            Some(("id", id)) => interface.iface_id = id.into(),
            Some(("offload", "on")) => interface.offload = Some(true),
            Some(("offload", "off")) => interface.offload = Some(false),
            _ => {
                let why = format!(
                    "{part:?} is none of tap=NAME, socket=PATH, mac=MAC, id=NAME, offload=on, offload=off"
                );
                return Err(wrong("--net", why));
            }
        }
    }
    Ok(interface)
}

fn drive(number: usize, spec: &str) -> Result<Drive, ConfigError> {
    let mut path = None;
    let mut drive = Drive {
        drive_id: format!("disk{number}"),
        path_on_host: PathBuf::new(),
        is_root_device: false,
        is_read_only: false,
        replication: None,
        map_path: None,
    };
    for part in spec.split(',') {
        match part.split_once('=') {
            Some(("path", file)) if !file.is_empty() => path = Some(PathBuf::from(file)),
            Some(("id", id)) => drive.drive_id = id.into(),
            Some(("map", file)) if !file.is_empty() => drive.map_path = Some(file.into()),
            None if part == "readonly" => drive.is_read_only = true,
            None if part == "replicated" => drive.replication = Some(DriveReplication::Replicated),
            None if part == "shared" => drive.replication = Some(DriveReplication::Shared),
            _ => {
                let why = format!(
                    "{part:?} is none of path=FILE, id=NAME, readonly, replicated, shared, map=FILE"
                );
                return Err(wrong("--drive", why));
            }
        }
    }
    drive.path_on_host =
        path.ok_or_else(|| wrong("--drive", format!("{spec:?} has no path=FILE")))?;
    Ok(drive)
}

fn heartbeat(text: &str) -> Result<HeartbeatSection, ConfigError> {
    let expected = "expected LOCAL_ADDRESS:PORT=PEER_ADDRESS:PORT";
    let (listen, peer) = text
        .split_once('=')
        .ok_or_else(|| wrong("--heartbeat", format!("{text:?}: {expected}")))?;
    let address = |text: &str| {
        text.parse()
            .map_err(|error| wrong("--heartbeat", format!("{text:?}: {error}; {expected}")))
    };
    Ok(HeartbeatSection {
        listen: address(listen)?,
        peer: address(peer)?,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    fn merged(arguments: &[&str]) -> Result<Config, ConfigError> {
        let all = ["vmm", "primary"].iter().chain(arguments);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Primary(arguments) => arguments.merge(),
            other => panic!("parsed {other:?}"),
        }
    }

    #[test]
    fn flags_override_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm.json");
        let text = r#"{"machine-config": {"vcpu_count": 2, "mem_size_mib": 64},
                       "replication": {"epoch_ms": 50}}"#;
        std::fs::write(&path, text).unwrap();
        let config = merged(&["--config", path.to_str().unwrap(), "--memory-mib", "128"]).unwrap();
        assert_eq!(config.machine_config.vcpu_count, Some(2));
        assert_eq!(config.machine_config.mem_size_mib, Some(128));
        assert_eq!(config.replication.epoch_ms, Some(50));
    }

    #[test]
    fn what_follows_from_what_is_parsed_or_explained() {
        let config = merged(&[
            "--on-reboot",
            "exit",
            "--on-panic",
            "restart",
            "--watchdog",
            "none",
        ])
        .unwrap();
        assert_eq!(config.machine_config.on_reboot, Some(OnReboot::Exit));
        assert_eq!(config.machine_config.on_panic, Some(OnPanic::Restart));
        assert_eq!(config.watchdog.unwrap().action, OnWatchdog::None);
        assert!(merged(&[]).unwrap().watchdog.is_none());
        for (flag, words) in [
            ("--on-reboot", "restart, exit"),
            ("--on-panic", "report, restart, exit"),
            ("--watchdog", "reset, poweroff, none"),
        ] {
            let error = Cli::try_parse_from(["vmm", "run", flag, "halt"]).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn interfaces_and_heartbeats_are_parsed_or_explained() {
        let config = merged(&[
            "--net",
            "tap=tap0,mac=52:54:00:00:00:01,offload=off",
            "--heartbeat",
            "10.0.0.1:7001=10.0.0.2:7001",
        ])
        .unwrap();
        assert_eq!(
            config.network_interfaces[0].host_dev_name.as_deref(),
            Some("tap0")
        );
        assert_eq!(config.network_interfaces[0].offload, Some(false));
        assert_eq!(config.replication.heartbeat.unwrap().peer.port(), 7001);
        let error = merged(&["--net", "tapp=tap0"]).unwrap_err().to_string();
        assert!(error.contains("tap=NAME"), "{error}");
        let error = merged(&["--heartbeat", "7001"]).unwrap_err().to_string();
        assert!(error.contains("LOCAL_ADDRESS"), "{error}");
    }

    #[test]
    fn drives_are_parsed_or_explained() {
        let config = merged(&[
            "--drive",
            "path=/a,readonly",
            "--drive",
            "id=data,path=/b=c",
            "--drive",
            "path=/d,shared",
            "--drive",
            "path=/dev/e,replicated,map=/e",
        ])
        .unwrap();
        let [first, second, third, fourth] = &config.drives[..] else {
            panic!("four drives: {:?}", config.drives);
        };
        assert_eq!((&*first.drive_id, first.is_read_only), ("disk0", true));
        assert_eq!((&*second.drive_id, second.is_read_only), ("data", false));
        assert_eq!(second.path_on_host, std::path::Path::new("/b=c"));
        assert_eq!(second.replication, None);
        assert_eq!(third.replication, Some(DriveReplication::Shared));
        assert_eq!(fourth.replication, Some(DriveReplication::Replicated));
        assert_eq!(fourth.map_path(), std::path::Path::new("/e"));
        for spec in ["readonly", "/a", "path=", "path=/a,ro", "path=/a,map="] {
            let error = merged(&["--drive", spec]).unwrap_err().to_string();
            assert!(error.contains("path=FILE"), "{error}");
        }
        let error = merged(&["--drive", "path=/a,readonly,shared"]).unwrap_err();
        assert!(error.to_string().contains("disk0.replication"), "{error}");
    }
}
