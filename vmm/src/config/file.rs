//! What a configuration file may say: JSON with Firecracker's names where the meaning is the same, plus a
//! `replication` section.
//!
//! Flags are put into the same shape and laid over the file's. What the keys mean is in [`keys`]. What must not be
//! done here: fill in defaults, or judge values.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use understudy_replication::core::policy::Checkpointing;
use understudy_replication::disk::DiskMode;

use super::ConfigError;
use super::endurance::{LockMemory, Priority};
use super::keys::{self, KEYS, Key, Values};
use super::on_sigterm::OnSigterm;
use super::watched::OnCut;
use crate::boot::BootProtocol;
use crate::machine::{OnError, OnPanic, OnReboot, OnWatchdog};

/// Longest configuration file that is read.
pub(super) const FILE_BYTES_MAX: u64 = 1 << 20;

/// Keys of Firecracker's configuration files that mean nothing here.
const FIRECRACKERS: &[&str] = &[
    "balloon",
    "cpu-config",
    "drives[].cache_type",
    "drives[].io_engine",
    "drives[].rate_limiter",
    "drives[].socket",
    "entropy.rate_limiter",
    "logger",
    "machine-config.huge_pages",
    "machine-config.smt",
    "machine-config.track_dirty_pages",
    "memory-hotplug",
    "metrics",
    "mmds-config",
    "network-interfaces[].mtu",
    "network-interfaces[].rx_rate_limiter",
    "network-interfaces[].tx_rate_limiter",
    "pmem",
    "serial.rate_limiter",
    "vsock",
];

/// Firecracker's CPU templates. They cut a guest's CPU to that of one cloud instance or another.
const FIRECRACKERS_TEMPLATES: &[&str] = &["None", "C3", "T2", "T2A", "T2CL", "T2S", "V1N1"];

/// What a file says, or what flags say. Whatever is missing was not said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct ConfigFile {
    /// What to boot.
    pub boot_source: BootSource,
    /// CPUs and memory, and what follows from the guest's end.
    pub machine_config: MachineSection,
    /// Disks.
    pub drives: Option<Vec<Drive>>,
    /// Network interfaces.
    pub network_interfaces: Option<Vec<NetworkInterface>>,
    /// A virtio entropy device, if present.
    pub entropy: Option<Entropy>,
    /// A watchdog that the guest may drive, if present.
    pub watchdog: Option<WatchdogSection>,
    /// The first serial port.
    pub serial: Serial,
    /// Replication.
    pub replication: Replication,
}

/// `boot-source`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the table of keys says what they mean")]
pub struct BootSource {
    pub kernel_image_path: Option<PathBuf>,
    pub initrd_path: Option<PathBuf>,
    pub boot_args: Option<String>,
    pub boot_protocol: Option<BootProtocol>,
}

/// `machine-config`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the table of keys says what they mean")]
pub struct MachineSection {
    pub vcpu_count: Option<u64>,
    pub mem_size_mib: Option<u64>,
    pub cpu_template: Option<String>,
    pub on_reboot: Option<OnReboot>,
    pub on_panic: Option<OnPanic>,
}

/// One of `drives`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the table of keys says what they mean")]
pub struct Drive {
    pub drive_id: Option<String>,
    pub path_on_host: Option<PathBuf>,
    pub is_root_device: Option<bool>,
    pub partuuid: Option<String>,
    pub is_read_only: Option<bool>,
    pub replication: Option<DiskMode>,
    pub map_path: Option<PathBuf>,
    pub on_error: Option<OnError>,
}

/// One of `network-interfaces`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the table of keys says what they mean")]
pub struct NetworkInterface {
    pub iface_id: Option<String>,
    pub host_dev_name: Option<String>,
    pub socket_path: Option<PathBuf>,
    pub guest_mac: Option<String>,
    pub offload: Option<bool>,
    pub on_cut: Option<OnCut>,
    pub ping: Option<Vec<String>>,
}

/// `entropy`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entropy {}

/// `watchdog`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the table of keys says what they mean")]
pub struct WatchdogSection {
    pub action: Option<OnWatchdog>,
}

/// `serial`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the table of keys says what they mean")]
pub struct Serial {
    #[serde(alias = "serial_out_path")]
    pub output: Option<String>,
}

/// `replication`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the table of keys says what they mean")]
pub struct Replication {
    pub vm: Option<String>,
    pub node: Option<String>,
    pub backup: Option<String>,
    pub listen: Option<String>,
    pub arbiter: Option<PathBuf>,
    pub heartbeat: Option<HeartbeatSection>,
    pub epoch_ms: Option<u64>,
    pub checkpointing: Option<Checkpointing>,
    pub overhead_percent: Option<u64>,
    pub latency_target_ms: Option<u64>,
    pub heartbeat_ms: Option<u64>,
    pub timeout_ms: Option<u64>,
    pub storage_timeout_ms: Option<u64>,
    pub on_sigterm: Option<OnSigterm>,
    pub oom_protection: Option<bool>,
    pub lock_memory: Option<LockMemory>,
    pub priority: Option<Priority>,
    pub control_socket: Option<PathBuf>,
    pub disk_journal: Option<PathBuf>,
    pub disk_journal_mib: Option<u64>,
    pub disk_log_mib: Option<u64>,
}

/// `replication.heartbeat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the table of keys says what they mean")]
pub struct HeartbeatSection {
    pub listen: SocketAddr,
    pub peer: SocketAddr,
}

/// What a file says that means something to Firecracker, but nothing here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ignored(Vec<String>);

impl Ignored {
    /// Whether there is nothing like that.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys, with their sections.
    #[must_use]
    pub fn keys(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "keys of Firecracker's that mean nothing here are left out of account: {}",
            self.0.join(", ")
        )
    }
}

/// Lays what is said in `over` over what is said in `under`. A field that is forgotten does not compile.
macro_rules! lay_over {
    ($under:expr, $over:expr, $section:ident: $($field:ident),+) => {{
        let $section { $($field),+ } = $over;
        $(if $field.is_some() {
            $under.$field = $field;
        })+
    }};
}

impl ConfigFile {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is too large, or has a key that means nothing or a value of the wrong kind.
    pub(super) fn read(path: &Path) -> Result<(Self, Ignored), ConfigError> {
        let read = |source| ConfigError::Read {
            path: path.into(),
            source,
        };
        let bytes = std::fs::metadata(path).map_err(read)?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge {
                path: path.into(),
                bytes,
                max: FILE_BYTES_MAX,
            });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let value = serde_json::from_str(&text).map_err(|source| ConfigError::NoJson {
            path: path.into(),
            source,
        })?;
        let mut ignored = Vec::new();
        look_at_keys(&value, "", "", &mut ignored).map_err(|wrong| match wrong {
            Wrong::Key(key) => ConfigError::UnknownKey {
                path: path.into(),
                known: keys_in(key.rsplit_once('.').map_or("", |(section, _)| section)),
                key,
            },
            Wrong::Shape { key, found, wanted } => {
                let what = format!("invalid type: {found}, expected {wanted}");
                malformed(path, key, serde::de::Error::custom(what))
            }
        })?;
        let mut file = Self::parse(&text)
            .map_err(|error| malformed(path, error.path().to_string(), error.into_inner()))?;
        file.leave_out_template(&mut ignored);
        Ok((file, Ignored(ignored)))
    }

    fn parse(text: &str) -> Result<Self, serde_path_to_error::Error<serde_json::Error>> {
        serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text))
    }

    fn leave_out_template(&mut self, ignored: &mut Vec<String>) {
        let template = &mut self.machine_config.cpu_template;
        if let Some(name) = template.take_if(|name| FIRECRACKERS_TEMPLATES.contains(&name.as_str()))
            && name != "None"
        {
            ignored.push(format!("machine-config.cpu_template ({name})"));
        }
    }

    /// What `flags` say, and what the file says where they say nothing. Lists are taken whole.
    pub(super) fn overridden_by(mut self, flags: Self) -> Self {
        let Self {
            boot_source,
            machine_config,
            drives,
            network_interfaces,
            entropy,
            watchdog,
            serial,
            replication,
        } = flags;
        lay_over!(self.boot_source, boot_source, BootSource:
            kernel_image_path, initrd_path, boot_args, boot_protocol);
        lay_over!(self.machine_config, machine_config, MachineSection:
            vcpu_count, mem_size_mib, cpu_template, on_reboot, on_panic);
        lay_over!(self.serial, serial, Serial: output);
        lay_over!(self.replication, replication, Replication:
            vm, node, backup, listen, arbiter, heartbeat, epoch_ms, checkpointing, overhead_percent, latency_target_ms, heartbeat_ms,
            timeout_ms,
            storage_timeout_ms, on_sigterm, oom_protection, lock_memory, priority, control_socket, disk_journal,
            disk_journal_mib, disk_log_mib);
        self.drives = drives.or(self.drives);
        self.network_interfaces = network_interfaces.or(self.network_interfaces);
        self.entropy = entropy.or(self.entropy);
        self.watchdog = watchdog.or(self.watchdog);
        self
    }
}

/// The error for a value that is not of the kind that `key` takes; the file itself has no key.
fn malformed(path: &Path, key: String, source: serde_json::Error) -> ConfigError {
    ConfigError::Malformed {
        path: path.into(),
        expected: match keys::find(&key) {
            Some(key) => format!("write {}", key.values),
            None => keys_in(&key),
        },
        key: match key.as_str() {
            "" | "." => "all of it".into(),
            _ => key,
        },
        source,
    }
}

/// What is wrong with a file whatever its values are.
enum Wrong {
    /// A key that means nothing.
    Key(String),
    /// A section that is none, or a list that is none.
    Shape {
        key: String,
        found: &'static str,
        wanted: &'static str,
    },
}

/// Notes the keys of `value` that mean nothing here, and returns the first thing that means nothing at all. `pattern`
/// and `path` are where `value` is: as the table of keys has it, and as people read it.
fn look_at_keys(
    value: &Value,
    pattern: &str,
    path: &str,
    ignored: &mut Vec<String>,
) -> Result<(), Wrong> {
    // serde would take a list for a section, and its words for what is wrong are those of this program's types.
    let found = shape(value);
    if let Some(wanted) = wanted(pattern)
        && found != wanted
        && !(value.is_null() && may_be_null(pattern))
    {
        let key = path.to_owned();
        return Err(Wrong::Shape { key, found, wanted });
    }
    match value {
        Value::Object(section) => {
            for (name, value) in section {
                let (pattern, path) = (join(pattern, name), join(path, name));
                if FIRECRACKERS.contains(&pattern.as_str()) {
                    // What Firecracker writes of what it was not told.
                    if !value.is_null() {
                        ignored.push(path);
                    }
                } else if is_known(&pattern) {
                    look_at_keys(value, &pattern, &path, ignored)?;
                } else {
                    return Err(Wrong::Key(path));
                }
            }
        }
        Value::Array(items) => {
            let pattern = format!("{pattern}[]");
            for (number, item) in items.iter().enumerate() {
                look_at_keys(item, &pattern, &format!("{path}[{number}]"), ignored)?;
            }
        }
        _ => {}
    }
    Ok(())
}

const SECTION: &str = "a section, {…}";
const LIST: &str = "a list, […]";

/// What there must be at `pattern`, if keys lie below it.
fn wanted(pattern: &str) -> Option<&'static str> {
    let below = |end: char| {
        let is_below = |key: &str| {
            let rest = key.strip_prefix(pattern);
            rest.is_some_and(|rest| rest.starts_with(end))
        };
        KEYS.iter().any(|key| is_below(key.path))
    };
    let is_section = |key: &&&Key| key.path == pattern && matches!(key.values, Values::Section);
    if pattern.is_empty() || below('.') || KEYS.iter().any(|key| is_section(&key)) {
        Some(SECTION)
    } else {
        below('[').then_some(LIST)
    }
}

/// Whether Firecracker's word for what was not said may stand for all of `pattern`.
fn may_be_null(pattern: &str) -> bool {
    let optional = ["drives", "network-interfaces", "replication.heartbeat"];
    optional.contains(&pattern) || KEYS.iter().any(|key| key.path == pattern)
}

fn shape(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Object(_) => SECTION,
        Value::Array(_) => LIST,
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
    }
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() {
        name.into()
    } else {
        format!("{section}.{name}")
    }
}

fn is_known(pattern: &str) -> bool {
    let is_in = |key: &str| {
        let rest = key.strip_prefix(pattern);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    pattern == "serial.serial_out_path" || KEYS.iter().any(|key| is_in(key.path))
}

/// Which keys there are in `section`, or at the top if it is empty.
fn keys_in(section: &str) -> String {
    let pattern = match section.split_once('[') {
        Some((list, _)) => format!("{list}[]."),
        None if section.is_empty() => String::new(),
        None => format!("{section}."),
    };
    let mut names: Vec<String> = KEYS
        .iter()
        .filter_map(|key| key.path.strip_prefix(&pattern))
        .map(|rest| format!("`{}`", rest.split(['.', '[']).next().unwrap_or(rest)))
        .collect();
    names.dedup();
    let names = names.join(", ");
    match section {
        "" => format!("there are {names}"),
        _ => format!("{section} has {names}"),
    }
}
