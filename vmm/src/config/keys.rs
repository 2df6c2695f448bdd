//! The keys of a configuration file: what each means, which values it takes, its default and its flag.
//!
//! The help of flags and `docs/configuration.md` are made of this table, unknown keys are told from known ones by it,
//! and ranges are checked against it. What must not be done here: repeat a default that another room has; ask for it.

use std::fmt;
use std::time::Duration;

use understudy_replication::core::policy::{Checkpointing, Policy};
use understudy_replication::disk::DiskLimits;

use super::on_sigterm::OnSigterm;
use super::watched::OnCut;
use crate::machine::{MachineConfig, OnError, OnPanic, OnReboot, OnWatchdog, VCPUS_MAX};
use crate::memory::{MIB_MAX, MIB_MIN};
use crate::vcpu::CpuTemplate;

/// Most ping targets of a network.
const PINGS_MAX: usize = 8;
/// Longest name: it is part of log lines, of the arbiter's record and of messages between the hosts.
const NAME_CHARS_MAX: usize = 64;

/// A key.
#[derive(Debug)]
pub struct Key {
    /// Sections and name, as `replication.epoch_ms`; `[]` follows what there may be several of.
    pub path: &'static str,
    /// The flag that sets it, too.
    pub flag: Option<&'static str>,
    /// What it may be.
    pub values: Values,
    /// What it is if nothing is said.
    pub default: Unset,
    /// What it means.
    pub meaning: &'static str,
}

/// What a key may be.
#[derive(Debug)]
pub enum Values {
    /// A whole number.
    Number {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
        /// What is counted; empty if that is clear.
        unit: &'static str,
    },
    /// One of these words.
    Words(&'static [&'static str]),
    /// `true` or `false`.
    Switch,
    /// A file's or a socket's path.
    Path,
    /// What people and logs call something: one line.
    Name,
    /// A list of addresses of hosts.
    Addresses {
        /// How many at most.
        max: usize,
    },
    /// Text of this form.
    Text(&'static str),
    /// A section, perhaps without anything in it.
    Section,
}

/// What a key is if nothing is said.
#[derive(Debug)]
pub enum Unset {
    /// It must be given.
    Required,
    /// Nothing.
    Nothing,
    /// This, in words.
    Text(&'static str),
    /// The value that this gives.
    Value(fn() -> String),
}

impl Values {
    const fn number(min: u64, max: u64, unit: &'static str) -> Self {
        Self::Number { min, max, unit }
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number { min, max, unit } => {
                write!(f, "{min} to {max}")?;
                if unit.is_empty() {
                    Ok(())
                } else {
                    write!(f, " {unit}")
                }
            }
            Self::Words(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
                f.write_str(&words.join(", "))
            }
            Self::Switch => f.write_str("true or false"),
            Self::Path => f.write_str("a path"),
            Self::Name => write!(f, "a name of 1 to {NAME_CHARS_MAX} characters"),
            Self::Addresses { max } => {
                write!(
                    f,
                    "a list of at most {max} addresses, IPv4 or IPv6, each of one host"
                )
            }
            Self::Text(form) => f.write_str(form),
            Self::Section => f.write_str("a section, {…}"),
        }
    }
}

impl Key {
    /// Its meaning with its default, for `--help`.
    #[must_use]
    pub fn help(&self) -> String {
        match &self.default {
            Unset::Required | Unset::Nothing => self.meaning.into(),
            Unset::Text(text) => format!("{} [default: {text}]", self.meaning),
            Unset::Value(value) => format!("{} [default: {}]", self.meaning, value()),
        }
    }

    /// What is wrong with a number, if it is out of the range.
    pub(super) fn refuses(&self, value: u64) -> Option<String> {
        let wrong = match &self.values {
            Values::Number { min, .. } if value < *min => "small",
            Values::Number { max, .. } if value > *max => "large",
            _ => return None,
        };
        Some(format!("{value} is too {wrong}; write {}", self.values))
    }

    /// What is wrong with a text, as far as that does not depend on what it is for.
    pub(super) fn refuses_text(&self, text: &str) -> Option<String> {
        let why = if text.is_empty() && !matches!(self.values, Values::Text("text")) {
            "it is empty".into()
        } else if let Some(bad) = text.chars().find(|c| c.is_control()) {
            format!("{text:?} has the character {bad:?} in it")
        } else if matches!(self.values, Values::Name) && text.trim() != text {
            format!("{text:?} begins or ends with a blank")
        } else if matches!(self.values, Values::Name) && text.chars().count() > NAME_CHARS_MAX {
            format!("it has {} characters", text.chars().count())
        } else {
            return None;
        };
        Some(format!("{why}; write {}", self.values))
    }
}

/// The key at `path`, in which items of lists may have names or numbers: `drives.root.map_path`, `drives[0].map_path`.
#[must_use]
pub fn find(path: &str) -> Option<&'static Key> {
    // An item of a value that is a list is part of it.
    let is_item = path.ends_with(']') && path.contains('.');
    let path = match path.rsplit_once('[') {
        Some((list, _)) if is_item => list,
        _ => path,
    };
    KEYS.into_iter().find(|key| {
        let Some((list, name)) = key.path.split_once("[].") else {
            return key.path == path;
        };
        let item = path
            .strip_prefix(list)
            .and_then(|rest| rest.strip_suffix(name));
        item.is_some_and(|item| item.ends_with('.') && item.starts_with(['.', '[']))
    })
}

fn ms(value: Duration) -> String {
    value.as_millis().to_string()
}

fn mib(bytes: u64) -> String {
    (bytes >> 20).to_string()
}

/// The word that a configuration has for a value.
fn word<T: serde::Serialize>(value: T) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().into()
}

macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident: $path:literal, $flag:expr, $values:expr, $default:expr, $meaning:literal;)+) => {
        $(
            #[doc = concat!("`", $path, "`")]
            pub static $name: Key = Key {
                path: $path,
                flag: $flag,
                values: $values,
                default: $default,
                meaning: $meaning,
            };
        )+
        /// All of them, by sections.
        pub static KEYS: [&Key; [$($path),+].len()] = [$(&$name),+];
    };
}

const PATH: Values = Values::Path;
const NAME: Values = Values::Name;
const ADDRESS: Values = Values::Text("ADDRESS:PORT");
const ENDPOINT: Values = Values::Text("HOST:PORT, tcp:HOST:PORT or unix:/PATH");
const SOME_MS: Values = Values::number(1, 10_000, "ms");

keys! {
    KERNEL: "boot-source.kernel_image_path", Some("--kernel"), PATH, Unset::Text("builtin"),
        "Linux bzImage or ELF image (vmlinux) to boot, or `builtin` for the guest inside this program";
    INITRD: "boot-source.initrd_path", Some("--initrd"), PATH, Unset::Nothing,
        "Initramfs for the kernel";
    CMDLINE: "boot-source.boot_args", Some("--cmdline"), Values::Text("text"),
        Unset::Text("for the built-in guest: workload=stream,counter,echo"),
        "The guest's command line";
    BOOT_PROTOCOL: "boot-source.boot_protocol", Some("--boot-protocol"),
        Values::Words(&["auto", "linux", "pvh"]),
        Unset::Value(|| word(MachineConfig::default().boot_protocol)),
        "How the kernel is entered: `linux` (64-bit boot protocol), `pvh` (an ELF image with a note that says \
         where), or `auto`, which is linux if the image can";
    VCPUS: "machine-config.vcpu_count", Some("--vcpus"), Values::number(1, VCPUS_MAX as u64, ""),
        Unset::Value(|| MachineConfig::default().vcpus.to_string()),
        "Number of vCPUs";
    MEMORY: "machine-config.mem_size_mib", Some("--memory-mib"), Values::number(MIB_MIN, MIB_MAX, "MiB"),
        Unset::Value(|| MachineConfig::default().memory_mib.to_string()),
        "Memory in MiB";
    CPU_TEMPLATE: "machine-config.cpu_template", Some("--cpu-template"),
        Values::Words(&["host", "x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4"]),
        Unset::Value(|| CpuTemplate::default().name().into()),
        "CPU features that a guest booted here is offered: `host` (all), or only those of a level that hosts of \
         different models have in common, so that a standby of another model can take over";
    ON_REBOOT: "machine-config.on_reboot", Some("--on-reboot"), Values::Words(&["restart", "exit"]),
        Unset::Value(|| word(OnReboot::default())),
        "When the guest wants a reboot, or crashes as a PC that resets: `restart` it in place, or `exit`";
    ON_PANIC: "machine-config.on_panic", Some("--on-panic"), Values::Words(&["report", "restart", "exit"]),
        Unset::Value(|| word(OnPanic::default())),
        "When the guest's kernel panics (and says so by pvpanic): `report` it, and leave the rest to the guest, \
         `restart` it, or `exit`";
    DRIVE_ID: "drives[].drive_id", Some("--drive"), Values::Text("1 to 20 letters, digits, `_` and `-`"), Unset::Required,
        "Name of the disk, equal on both hosts; the guest reads it as the disk's serial number";
    DRIVE_PATH: "drives[].path_on_host", Some("--drive"), PATH, Unset::Required,
        "A raw image file or a block device of this host";
    DRIVE_ROOT: "drives[].is_root_device", None, Values::Switch, Unset::Text("false"),
        "Whether a Linux guest's root file system is on it; then it is the guest's first disk, and the command line \
         says so";
    DRIVE_PARTUUID: "drives[].partuuid", None, Values::Text("a partition's UUID"), Unset::Nothing,
        "The partition with the root file system, if this is the root device";
    DRIVE_READ_ONLY: "drives[].is_read_only", Some("--drive"), Values::Switch, Unset::Text("false"),
        "Whether the guest may only read it";
    DRIVE_REPLICATION: "drives[].replication", Some("--drive"), Values::Words(&["replicated", "shared"]),
        Unset::Text("replicated, unless it is only read"),
        "What becomes of its writes while the guest is protected: each host has an image of its own (`replicated`), or \
         both reach one (`shared`)";
    DRIVE_MAP: "drives[].map_path", Some("--drive"), PATH,
        Unset::Text("the image's path with `.understudy-map` behind it"),
        "Where a replicated drive's map of changed blocks is; a block device needs one";
    DRIVE_ON_ERROR: "drives[].on_error", Some("--drive"), Values::Words(&["handover", "report", "wait"]),
        Unset::Value(|| word(OnError::default())),
        "When this host's storage fails a request: the guest goes on at the standby, which does it again (`handover`, \
         `wait`), or sees the error (`report`). Without a standby it sees the error (`handover`), or waits while the \
         request is done again every second until it succeeds (`wait`; a flush that failed it is told of all the same)";
    NET_ID: "network-interfaces[].iface_id", Some("--net"), NAME, Unset::Required,
        "Name of the interface, equal on both hosts";
    NET_TAP: "network-interfaces[].host_dev_name", Some("--net"), NAME, Unset::Nothing,
        "A tap device of this host; this or `socket_path` must be given";
    NET_SOCKET: "network-interfaces[].socket_path", Some("--net"), PATH, Unset::Nothing,
        "A listening Unix stream socket with the framing of QEMU and passt";
    NET_MAC: "network-interfaces[].guest_mac", Some("--net"), Values::Text("a unicast address such as 52:54:00:12:34:56"),
        Unset::Text("made from the names of VM and interface"),
        "MAC address, equal on both hosts";
    NET_OFFLOAD: "network-interfaces[].offload", Some("--net"), Values::Switch,
        Unset::Text("true for a tap"),
        "Whether the tap takes over checksums and TCP segmentation; a socket cannot, and both hosts must do alike";
    NET_ON_CUT: "network-interfaces[].on_cut", Some("--net"), Values::Words(&["handover", "report", "ignore"]),
        Unset::Value(|| word(OnCut::default())),
        "When a protected guest reaches nobody through this host's tap any more (the tap, its bridge or all uplinks of the \
         bridge are down) and the standby's tap is all right: the guest goes on there (`handover`), it is an alarm \
         (`report`), or nobody looks (`ignore`). A tap that is part of no bridge on the primary is not judged by that";
    NET_PING: "network-interfaces[].ping", Some("--net"), Values::Addresses { max: PINGS_MAX }, Unset::Nothing,
        "Whom this host asks once a second whether the tap's network still leads there (ICMP echo, through the bridge that the \
         tap is part of, which needs an address of this host; for a tap that is part of no kernel bridge, such as a routed one \
         or one of Open vSwitch, the way that this host's routes lead). If one of them has answered, and for three seconds none does any \
         more, the network counts as cut on this host. Give both hosts some";
    ENTROPY: "entropy", Some("--rng"), Values::Section, Unset::Nothing,
        "Give the guest a virtio entropy device";
    WATCHDOG: "watchdog", Some("--watchdog"), Values::Section, Unset::Nothing,
        "Give the guest a watchdog (ACPI, or IB700: Linux' ib700wdt)";
    WATCHDOG_ACTION: "watchdog.action", Some("--watchdog"), Values::Words(&["reset", "poweroff", "none"]),
        Unset::Value(|| word(OnWatchdog::default())),
        "When the guest does not feed it: `reset` it, power it off (`poweroff`) or do nothing but tell (`none`)";
    CONSOLE: "serial.output", Some("--console"), Values::Text("`stdout`, `none` or a path"), Unset::Text("stdout"),
        "Where the guest's console goes: `stdout`, `none`, or a file to append to; Firecracker's `serial_out_path` is \
         another name for it";
    VM: "replication.vm", Some("--name"), NAME, Unset::Text("vm"),
        "Name of the VM, equal on both hosts";
    NODE: "replication.node", Some("--node"), NAME, Unset::Text("the host name"),
        "This host's name in messages";
    BACKUP: "replication.backup", Some("--backup"), ENDPOINT, Unset::Nothing,
        "Where the (next) standby listens: HOST:PORT or unix:PATH";
    LISTEN: "replication.listen", Some("--listen"), ENDPOINT, Unset::Nothing,
        "Where this standby listens, for example 0.0.0.0:7000: ADDRESS:PORT or unix:PATH";
    ARBITER: "replication.arbiter", Some("--arbiter"), PATH, Unset::Nothing,
        "The arbiter's directory, on storage that both hosts see. It decides who may run alone";
    HEARTBEAT_LISTEN: "replication.heartbeat.listen", Some("--heartbeat"), ADDRESS, Unset::Nothing,
        "A separate path for heartbeats (UDP): this host's address";
    HEARTBEAT_PEER: "replication.heartbeat.peer", Some("--heartbeat"), ADDRESS, Unset::Nothing,
        "A separate path for heartbeats (UDP): the other host's address";
    EPOCH: "replication.epoch_ms", Some("--epoch-ms"), SOME_MS,
        Unset::Value(|| ms(Policy::default().epoch_interval)),
        "Longest epoch, in milliseconds";
    CHECKPOINTING: "replication.checkpointing", Some("--checkpointing"),
        Values::Words(&["adaptive", "remus", "stop-and-send"]), Unset::Value(|| word(Checkpointing::default())),
        "How the guest is checkpointed: `adaptive`, or, to compare with, at a fixed interval with everything sent as it is: \
         after the guest runs again (`remus`, as its paper has it) or before (`stop-and-send`)";
    OVERHEAD: "replication.overhead_percent", Some("--overhead-percent"), Values::number(0, 100, "percent"),
        Unset::Value(|| Policy::default().overhead_percent.to_string()),
        "How much of a busy guest's time pauses may take before its output has to wait for the longest epoch to end. An idle \
         guest's output leaves at once, and costs nothing. With 0 it always waits";
    LATENCY_TARGET: "replication.latency_target_ms", Some("--latency-target-ms"), Values::number(0, 10_000, "ms"),
        Unset::Value(|| ms(Policy::default().latency_target)),
        "How long shipping what the guest has changed in an epoch may take, in milliseconds, beyond what an empty one takes: a \
         guest that changes more is slowed. With 0 it is not, and its output may wait for long";
    HEARTBEAT: "replication.heartbeat_ms", Some("--heartbeat-ms"), SOME_MS,
        Unset::Value(|| ms(Policy::default().heartbeat_interval)),
        "Pause between heartbeats, in milliseconds";
    TIMEOUT: "replication.timeout_ms", Some("--timeout-ms"), Values::number(10, 600_000, "ms"),
        Unset::Value(|| ms(Policy::default().heartbeat_timeout)),
        "Silence after which the other side counts as lost, in milliseconds; at least three heartbeats. If its heartbeats on \
         their own path have always come in time, two fifths of it are enough, but not less than 70, nor less than three heartbeats";
    STORAGE_TIMEOUT: "replication.storage_timeout_ms", Some("--storage-timeout-ms"), Values::number(10, 600_000, "ms"),
        Unset::Value(|| {
            format!("{}, or four times `timeout_ms` if that is more", ms(Policy::default().storage_timeout))
        }),
        "How long storage may do nothing while the guest or an epoch waits for it, in milliseconds: after that, a primary \
         hands its guest over, and a standby is given up. Hosts whose disks take longer to make something safe need more";
    ON_SIGTERM: "replication.on_sigterm", Some("--on-sigterm"), Values::Words(&["handover", "stop"]),
        Unset::Value(|| word(OnSigterm::default())),
        "What SIGTERM, SIGINT and SIGHUP mean to a primary whose standby could take the guest over: the guest goes on \
         there (`handover`), or is stopped (`stop`). Without such a standby it is stopped";
    OOM_PROTECTION: "replication.oom_protection", None, Values::Switch, Unset::Text("true, where the host allows it"),
        "Whether a host that runs out of memory ends other processes before a protected guest's";
    LOCK_MEMORY: "replication.lock_memory", Some("--lock-memory"), Values::Words(&["off", "on-fault", "all"]),
        Unset::Text("on-fault, where the host allows it"),
        "Which memory of a protected guest's process, and of a standby's, is never swapped out: none (`off`), what was used \
         once (`on-fault`), or `all`, which is taken from the host at once";
    PRIORITY: "replication.priority", Some("--priority"), Values::Words(&["normal", "high", "realtime"]),
        Unset::Text("high, where the host allows it"),
        "When the thread runs that sends heartbeats and acknowledgements: when its turn comes (`normal`), before others \
         (`high`, nice -11), or before all that are not real-time themselves (`realtime`, SCHED_FIFO 1)";
    CONTROL: "replication.control_socket", Some("--control"), PATH, Unset::Nothing,
        "Unix socket for `vmm status`, `failover`, `stop` and `power-button`";
    JOURNAL: "replication.disk_journal", Some("--disk-journal"), PATH,
        Unset::Text("the first image's path with `.understudy-journal` behind it"),
        "Where a standby notes writes to replicated drives before they go to the images, as two files";
    // A request of the guest has up to 1 MiB, and several must fit.
    JOURNAL_MIB: "replication.disk_journal_mib", None, Values::number(8, 1 << 20, "MiB"),
        Unset::Value(|| mib(DiskLimits::default().journal_bytes_max)),
        "Most room that the journal takes";
    DISK_LOG_MIB: "replication.disk_log_mib", None, Values::number(8, 4096, "MiB"),
        Unset::Value(|| mib(DiskLimits::default().log_bytes_max)),
        "Most memory for writes that the standby has not got yet";
}
