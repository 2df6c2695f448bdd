//! The command line: what can be said, and what `--help` teaches. Flags that say what a configuration file could say
//! are put into its shape here; what it means is decided elsewhere, and the help of most is that of the file's keys.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use understudy_vmm::config::{
    BootProtocol, BootSource, Checkpointing, Config, ConfigFile, CpuTemplate, DiskMode, Drive,
    Entropy, HeartbeatSection, LockMemory, MachineSection, NetworkInterface, OnPanic, OnReboot,
    OnSigterm, OnWatchdog, Priority, Replication, Serial, WatchdogSection, keys,
};

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
  vmm events --control /run/understudy.sock --follow

Logs go to standard error; UNDERSTUDY_LOG sets the level (error, warn, info, debug, trace).
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 fenced (another host owns the guest now),
4 disks differ (disk verify).";

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
    /// Run a guest, unprotected.
    ///
    /// Of the `replication` section of a configuration only names, `arbiter`, `control_socket` and the disks' settings
    /// count. With an arbiter, the guest runs only if it runs nowhere else and no standby has a copy of it.
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
    /// Show what has happened to a running vmm: the last 256 events.
    ///
    /// A line each: number, time (UTC), what. Among them: the guest is protected, or not any more; the backup is
    /// lost; a standby has taken over; the guest rebooted, crashed or panicked; a disk failed; the end, with its
    /// reason. `vmm status` shows the last few.
    Events(EventsArgs),
    /// Look after the disks of a running primary.
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Have the guest go on at the standby now.
    ///
    /// Asked of the standby, it takes over, and the old primary is fenced (exit code 3). Asked of the primary, it hands
    /// the guest over, and ends (exit code 0).
    Failover(ControlArgs),
    /// Stop a running primary or unprotected guest, or a standby, cleanly.
    ///
    /// For the guest this is as if its power were cut, unless --graceful is given. What it has said before still
    /// leaves, if the standby or the arbiter lets it; asked again, vmm does not wait for that.
    Stop(StopArgs),
    /// Press the power button of the guest that runs here: asks it to shut itself down.
    PowerButton(ControlArgs),
    /// Make an arbiter, or look at one.
    ///
    /// An arbiter is a directory that both hosts see. It decides which of them may run the guest. The first `vmm
    /// primary` or `vmm standby` makes one where there is none.
    #[command(subcommand)]
    Arbiter(ArbiterCommand),
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
    #[arg(long, value_name = "FILE", help = keys::KERNEL.help())]
    kernel: Option<PathBuf>,
    #[arg(long, value_name = "NAME", help = keys::BOOT_PROTOCOL.help())]
    boot_protocol: Option<BootProtocol>,
    #[arg(long, value_name = "FILE", help = keys::INITRD.help())]
    initrd: Option<PathBuf>,
    #[arg(long, value_name = "TEXT", help = keys::CMDLINE.help())]
    cmdline: Option<String>,
    #[arg(long, value_name = "N", help = keys::VCPUS.help())]
    vcpus: Option<u64>,
    #[arg(long, value_name = "NAME", help = keys::CPU_TEMPLATE.help())]
    cpu_template: Option<CpuTemplate>,
    #[arg(long, value_name = "MIB", help = keys::MEMORY.help())]
    memory_mib: Option<u64>,
    /// A network interface, as `tap=NAME` or `socket=PATH` (a listening socket of passt or QEMU's
    /// stream backend), with optional `,mac=MAC`, `,id=NAME`, `,offload=off`, `,on-cut=handover|report|ignore` and
    /// `,ping=ADDRESS[+ADDRESS…]`. Repeatable. A tap takes over checksums and TCP segmentation; a socket cannot, and both hosts must do alike.
    /// `on-cut` is what follows when the tap leads to nobody any more while the standby's does; `ping` names who answers
    /// this host for as long as it leads to somebody.
    #[arg(long, value_name = "SPEC")]
    net: Vec<String>,
    /// A disk, as `path=FILE` (a raw image or a block device), with optional `,id=NAME` and one of
    /// `,readonly`, `,replicated` and `,shared`. Repeatable. A protected guest's disk is `replicated` unless
    /// something else is said: each host has an image of its own and keeps a map of changed blocks beside it
    /// (`,map=FILE` puts it elsewhere, as is needed for a block device). `shared`: both hosts reach one image,
    /// on storage whose locks hold between them.
    #[arg(long, value_name = "SPEC")]
    drive: Vec<String>,
    #[arg(long, help = keys::ENTROPY.help())]
    rng: bool,
    #[arg(long, value_name = "ACTION", help = keys::ON_REBOOT.help())]
    on_reboot: Option<OnReboot>,
    #[arg(long, value_name = "ACTION", help = keys::ON_PANIC.help())]
    on_panic: Option<OnPanic>,
    /// Give the guest a watchdog (IB700; Linux: ib700wdt) and `reset` it, power it off (`poweroff`) or do nothing
    /// but tell (`none`) when it does not feed it.
    #[arg(long, value_name = "ACTION")]
    watchdog: Option<OnWatchdog>,
    #[arg(long, value_name = "WHERE", help = keys::CONSOLE.help())]
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
    /// The arbiter's directory, for a guest that is protected at other times.
    #[arg(long, value_name = "DIRECTORY")]
    arbiter: Option<PathBuf>,
    /// With an arbiter: run the guest here although a standby may have a copy of it, or other hosts newer disks. They
    /// are given up; the log says what that is.
    #[arg(long, requires = "arbiter")]
    pub(crate) start_over: bool,
}

/// A VM and its other copy.
#[derive(Debug, Args)]
pub(crate) struct ReplicatedArgs {
    #[command(flatten)]
    pub(crate) vm: VmArgs,
    #[arg(long, value_name = "NAME", help = keys::VM.help())]
    name: Option<String>,
    #[arg(long, value_name = "NAME", help = keys::NODE.help())]
    node: Option<String>,
    #[arg(long, value_name = "ENDPOINT", help = keys::BACKUP.help())]
    backup: Option<String>,
    #[arg(long, value_name = "ENDPOINT", help = keys::LISTEN.help())]
    listen: Option<String>,
    #[arg(long, value_name = "DIRECTORY", help = keys::ARBITER.help())]
    arbiter: Option<PathBuf>,
    /// Start the guest here although the other host cannot be asked, or has something newer (primary only).
    ///
    /// For when the other host is gone for good, or the arbiter was made anew. The guest boots from this host's
    /// disks. Given up is what only the other host has: a copy of the guest's memory, and what the guest has
    /// written there since it ran here. The log says what that is.
    #[arg(long)]
    pub(crate) start_over: bool,
    /// Do not believe what is known of replicated drives: the next synchronisation copies all of them, without
    /// comparing first.
    #[arg(long)]
    pub(crate) full_resync: bool,
    /// A separate path for heartbeats, as LOCAL_ADDRESS:PORT=PEER_ADDRESS:PORT (UDP).
    #[arg(long, value_name = "LOCAL=PEER")]
    heartbeat: Option<String>,
    #[arg(long, value_name = "PATH", help = keys::CONTROL.help())]
    control: Option<PathBuf>,
    #[arg(long, value_name = "FILE", help = keys::JOURNAL.help())]
    disk_journal: Option<PathBuf>,
    #[arg(long, value_name = "MS", help = keys::EPOCH.help())]
    epoch_ms: Option<u64>,
    #[arg(long, value_name = "WORD", help = keys::CHECKPOINTING.help())]
    checkpointing: Option<Checkpointing>,
    #[arg(long, value_name = "PERCENT", help = keys::OVERHEAD.help())]
    overhead_percent: Option<u64>,
    #[arg(long, value_name = "MS", help = keys::LATENCY_TARGET.help())]
    latency_target_ms: Option<u64>,
    #[arg(long, value_name = "MS", help = keys::HEARTBEAT.help())]
    heartbeat_ms: Option<u64>,
    #[arg(long, value_name = "MS", help = keys::TIMEOUT.help())]
    timeout_ms: Option<u64>,
    #[arg(long, value_name = "MS", help = keys::STORAGE_TIMEOUT.help())]
    storage_timeout_ms: Option<u64>,
    #[arg(long, value_name = "WORD", help = keys::ON_SIGTERM.help())]
    on_sigterm: Option<OnSigterm>,
    #[arg(long, value_name = "WORD", help = keys::LOCK_MEMORY.help())]
    lock_memory: Option<LockMemory>,
    #[arg(long, value_name = "WORD", help = keys::PRIORITY.help())]
    priority: Option<Priority>,
}

#[derive(Debug, Args)]
pub(crate) struct ControlArgs {
    /// The control socket of the running vmm (its --control).
    #[arg(long, value_name = "PATH")]
    pub(crate) control: PathBuf,
}

/// What can be done about disks.
#[derive(Debug, Subcommand)]
pub(crate) enum DiskCommand {
    /// Compare the images of replicated disks on both hosts, block by block, while the guest runs.
    ///
    /// Ask the primary. Both sides are compared at the same point of the stream of writes, so what the guest writes
    /// meanwhile is no difference. Exit code 0 means that they are equal, 4 that they differ: the output names how many
    /// blocks of 64 KiB, and the first of them. Which side is right, nobody can tell but you: the guest uses the
    /// primary's image. If that is the good one, --repair sends the blocks once more.
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) control: ControlArgs,
    /// How fast each host reads its images for it, in MiB a second.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub(crate) rate_mib: u64,
    /// Send the blocks that differ to the standby once more, as the primary has them.
    #[arg(long)]
    pub(crate) repair: bool,
    /// Print JSON objects, one a line: how far it is about once a second, and last the result, with `done`.
    #[arg(long)]
    pub(crate) json: bool,
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
pub(crate) struct EventsArgs {
    #[command(flatten)]
    pub(crate) control: ControlArgs,
    /// Print one JSON object a line, with `event`, `vm`, `node`, `at_unix_ms` and what belongs to the event.
    #[arg(long)]
    pub(crate) json: bool,
    /// Go on with what happens from now on, until the vmm has ended.
    #[arg(long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ArbiterCommand {
    /// Make a new arbiter, and print its identity.
    ///
    /// Do this once, before the first start, on storage that both hosts have mounted.
    Init(ArbiterArgs),
    /// Show an arbiter's record: its identity, who holds the guest, and who may have a copy.
    Show(ArbiterArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ArbiterArgs {
    /// The arbiter's directory.
    #[arg(value_name = "DIRECTORY")]
    pub(crate) path: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
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
    #[arg(long, value_name = "KIND", value_parser = disk_modes())]
    pub(crate) disk: Option<DiskMode>,
    /// Print one JSON object at the end, and nothing else on standard output.
    #[arg(long)]
    pub(crate) json: bool,
    /// Keep the logs and consoles of both hosts in this directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) keep: Option<PathBuf>,
}

fn disk_modes() -> impl TypedValueParser<Value = DiskMode> {
    PossibleValuesParser::new(DiskMode::ALL.map(DiskMode::name))
        .try_map(|name| DiskMode::named(&name).ok_or("there is no such kind"))
}

impl VmArgs {
    /// What these flags say, in the shape of a file, beside what is said of replication.
    fn said(self, replication: Replication) -> Result<ConfigFile> {
        Ok(ConfigFile {
            boot_source: BootSource {
                kernel_image_path: self.kernel,
                initrd_path: self.initrd,
                boot_args: self.cmdline,
                boot_protocol: self.boot_protocol,
            },
            machine_config: MachineSection {
                vcpu_count: self.vcpus,
                mem_size_mib: self.memory_mib,
                cpu_template: self.cpu_template.map(|template| template.name().into()),
                on_reboot: self.on_reboot,
                on_panic: self.on_panic,
            },
            drives: list(&self.drive, drive)?,
            network_interfaces: list(&self.net, network_interface)?,
            entropy: self.rng.then_some(Entropy {}),
            watchdog: self.watchdog.map(|action| WatchdogSection {
                action: Some(action),
            }),
            serial: Serial {
                output: self.console,
            },
            replication,
        })
    }
}

impl RunArgs {
    /// The configuration file, if any, overridden by flags.
    pub(crate) fn load(self) -> Result<Config> {
        let replication = Replication {
            control_socket: self.control,
            arbiter: self.arbiter,
            ..Replication::default()
        };
        load(self.vm, replication)
    }
}

impl ReplicatedArgs {
    /// As [`RunArgs::load`].
    pub(crate) fn load(self) -> Result<Config> {
        let replication = Replication {
            vm: self.name,
            node: self.node,
            backup: self.backup,
            listen: self.listen,
            arbiter: self.arbiter,
            heartbeat: self.heartbeat.as_deref().map(heartbeat).transpose()?,
            epoch_ms: self.epoch_ms,
            checkpointing: self.checkpointing,
            overhead_percent: self.overhead_percent,
            latency_target_ms: self.latency_target_ms,
            heartbeat_ms: self.heartbeat_ms,
            timeout_ms: self.timeout_ms,
            storage_timeout_ms: self.storage_timeout_ms,
            on_sigterm: self.on_sigterm,
            lock_memory: self.lock_memory,
            priority: self.priority,
            control_socket: self.control,
            disk_journal: self.disk_journal,
            ..Replication::default()
        };
        load(self.vm, replication)
    }
}

fn load(mut vm: VmArgs, replication: Replication) -> Result<Config> {
    let file = vm.config.take();
    let (config, ignored) = Config::load(file.as_deref(), vm.said(replication)?)?;
    if !ignored.is_empty() {
        tracing::warn!("{ignored}");
    }
    Ok(config)
}

/// What is said by a flag that can be repeated; `None` if it is not given.
fn list<T>(specs: &[String], read: fn(usize, &str) -> Result<T>) -> Result<Option<Vec<T>>> {
    let items = specs.iter().enumerate();
    let items = items.map(|(number, spec)| read(number, spec));
    let items: Vec<T> = items.collect::<Result<_>>()?;
    Ok((!items.is_empty()).then_some(items))
}

fn network_interface(number: usize, spec: &str) -> Result<NetworkInterface> {
    let mut interface = NetworkInterface::default();
    for part in spec.split(',') {
        let is_first = match part.split_once('=') {
            Some(("tap", name)) => interface.host_dev_name.replace(name.into()).is_none(),
            Some(("socket", path)) => interface.socket_path.replace(path.into()).is_none(),
            Some(("mac", mac)) => interface.guest_mac.replace(mac.into()).is_none(),
            Some(("id", id)) => interface.iface_id.replace(id.into()).is_none(),
            Some(("on-cut", word)) => {
                let word = word
                    .parse()
                    .map_err(|error| anyhow!("--net: {part:?}: {error}"))?;
                interface.on_cut.replace(word).is_none()
            }
            Some(("ping", targets)) => {
                let targets = targets.split('+').map(str::to_owned).collect();
                interface.ping.replace(targets).is_none()
            }
            Some(("offload", "on")) => interface.offload.replace(true).is_none(),
            Some(("offload", "off")) => interface.offload.replace(false).is_none(),
            _ => bail!(
                "--net: {part:?} is none of tap=NAME, socket=PATH, mac=MAC, id=NAME, offload=on, offload=off, \
                 on-cut=WORD, ping=ADDRESS[+ADDRESS…]"
            ),
        };
        if !is_first {
            bail!("--net: {spec:?} says twice what {part:?} says");
        }
    }
    (interface.iface_id).get_or_insert_with(|| format!("net{number}"));
    Ok(interface)
}

fn drive(number: usize, spec: &str) -> Result<Drive> {
    let mut drive = Drive {
        drive_id: Some(format!("disk{number}")),
        ..Drive::default()
    };
    for part in spec.split(',') {
        match (part.split_once('='), DiskMode::named(part)) {
            (Some(("path", file)), _) if !file.is_empty() => drive.path_on_host = Some(file.into()),
            (Some(("id", id)), _) => drive.drive_id = Some(id.into()),
            (Some(("map", file)), _) if !file.is_empty() => drive.map_path = Some(file.into()),
            (Some(("on-error", word)), _) => {
                let wrong = |error| anyhow!("--drive: on-error={word}: {error}");
                drive.on_error = Some(word.parse().map_err(wrong)?);
            }
            (None, None) if part == "readonly" => drive.is_read_only = Some(true),
            (None, Some(mode)) => drive.replication = Some(mode),
            _ => bail!(
                "--drive: {part:?} is none of path=FILE, id=NAME, readonly, replicated, shared, map=FILE, on-error=WORD"
            ),
        }
    }
    if drive.path_on_host.is_none() {
        bail!("--drive: {spec:?} has no path=FILE");
    }
    Ok(drive)
}

fn heartbeat(text: &str) -> Result<HeartbeatSection> {
    let expected =
        || format!("--heartbeat: {text:?}: expected LOCAL_ADDRESS:PORT=PEER_ADDRESS:PORT");
    let (listen, peer) = text.split_once('=').ok_or_else(|| anyhow!(expected()))?;
    Ok(HeartbeatSection {
        listen: listen.parse().with_context(expected)?,
        peer: peer.parse().with_context(expected)?,
    })
}

#[cfg(test)]
mod tests;
