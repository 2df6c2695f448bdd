//! What holds for settings whatever they are for: texts are not empty or of several lines, and no two settings
//! contradict each other.
//!
//! What must not be done here: open anything, or judge what one section can judge alone.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::keys::{self, Key};
use super::{Config, ConfigError, ConfigFile, Drive, HeartbeatSection, NetworkInterface};
use crate::machine::{Console, DriveKind, Kernel};

/// Looks at every text of a configuration.
pub(super) fn check_texts(file: &ConfigFile) -> Result<(), ConfigError> {
    let (boot, replication) = (&file.boot_source, &file.replication);
    for (key, text) in [
        (&keys::KERNEL, path(&boot.kernel_image_path)),
        (&keys::INITRD, path(&boot.initrd_path)),
        (&keys::CMDLINE, text(&boot.boot_args)),
        (&keys::CPU_TEMPLATE, text(&file.machine_config.cpu_template)),
        (&keys::CONSOLE, text(&file.serial.output)),
        (&keys::VM, text(&replication.vm)),
        (&keys::NODE, text(&replication.node)),
        (&keys::BACKUP, text(&replication.backup)),
        (&keys::LISTEN, text(&replication.listen)),
        (&keys::ARBITER, path(&replication.arbiter)),
        (&keys::CONTROL, path(&replication.control_socket)),
        (&keys::JOURNAL, path(&replication.disk_journal)),
    ] {
        if let Some(why) = text.and_then(|text| key.refuses_text(&text)) {
            return Err(ConfigError::value(key, why));
        }
    }
    for (number, drive) in file.drives.iter().flatten().enumerate() {
        check_items(number, drive.drive_id.as_deref(), drive_texts(drive))?;
    }
    for (number, interface) in file.network_interfaces.iter().flatten().enumerate() {
        check_items(number, interface.iface_id.as_deref(), net_texts(interface))?;
    }
    Ok(())
}

fn path(path: &Option<PathBuf>) -> Option<Cow<'_, str>> {
    path.as_deref().map(Path::to_string_lossy)
}

fn text(text: &Option<String>) -> Option<Cow<'_, str>> {
    text.as_deref().map(Cow::Borrowed)
}

type Texts<'a, const N: usize> = [(&'static Key, Option<Cow<'a, str>>); N];

fn drive_texts(drive: &Drive) -> Texts<'_, 4> {
    [
        (&keys::DRIVE_ID, text(&drive.drive_id)),
        (&keys::DRIVE_PATH, path(&drive.path_on_host)),
        (&keys::DRIVE_PARTUUID, text(&drive.partuuid)),
        (&keys::DRIVE_MAP, path(&drive.map_path)),
    ]
}

fn net_texts(interface: &NetworkInterface) -> Texts<'_, 4> {
    [
        (&keys::NET_ID, text(&interface.iface_id)),
        (&keys::NET_TAP, text(&interface.host_dev_name)),
        (&keys::NET_SOCKET, path(&interface.socket_path)),
        (&keys::NET_MAC, text(&interface.guest_mac)),
    ]
}

/// The item is called by its number: its name may be what is wrong.
fn check_items<const N: usize>(
    number: usize,
    name: Option<&str>,
    texts: Texts<'_, N>,
) -> Result<(), ConfigError> {
    for (key, text) in texts {
        if let Some(why) = text.and_then(|text| key.refuses_text(&text)) {
            let is_plain = |name: &&str| keys::NET_ID.refuses_text(name).is_none();
            let item = name.filter(is_plain).map(str::to_owned);
            let item = item.unwrap_or_else(|| number.to_string());
            return Err(ConfigError::of_item(key, &item, why));
        }
    }
    Ok(())
}

/// Names by which people and the other host tell devices apart.
pub(super) fn check_distinct<'a>(
    key: &Key,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), ConfigError> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            let why = "two have this name; give each one of its own";
            return Err(ConfigError::of_item(key, name, why));
        }
    }
    Ok(())
}

/// Heartbeats go somewhere, and not back to where they come from.
pub(super) fn check_heartbeat(section: HeartbeatSection) -> Result<(), ConfigError> {
    let HeartbeatSection { listen, peer } = section;
    let why = if peer.port() == 0 || peer.ip().is_unspecified() {
        format!(
            "{peer} is no address that anything can be sent to; name the other host's address and port"
        )
    } else if peer == listen {
        format!("{peer} is this host's own address; name the other host's")
    } else if peer.is_ipv4() != listen.is_ipv4() {
        format!("{peer} cannot be reached from {listen}: one is IPv4, the other IPv6")
    } else {
        return Ok(());
    };
    Err(ConfigError::value(&keys::HEARTBEAT_PEER, why))
}

/// A file that a setting names.
struct Named<'a> {
    key: &'static Key,
    item: Option<&'a str>,
    path: &'a Path,
    /// Whether the guest or this program writes it.
    is_written: bool,
}

impl<'a> Named<'a> {
    fn plain(key: &'static Key, path: &'a Path, is_written: bool) -> Self {
        Self {
            key,
            item: None,
            path,
            is_written,
        }
    }
}

/// No file that is written has a second purpose: a journal in an image's place would destroy the image.
pub(super) fn check_files(config: &Config) -> Result<(), ConfigError> {
    let named = files(config);
    for (number, file) in named.iter().enumerate() {
        let clash = named[..number]
            .iter()
            .find(|other| other.path == file.path && (other.is_written || file.is_written));
        let Some(other) = clash else { continue };
        let item = other.item.map(|item| format!(".{item}"));
        let other = other.key.path.replace("[]", &item.unwrap_or_default());
        let why = format!(
            "{} is named by {other} too; name another file",
            file.path.display()
        );
        return Err(match file.item {
            Some(item) => ConfigError::of_item(file.key, item, why),
            None => ConfigError::value(file.key, why),
        });
    }
    Ok(())
}

fn files(config: &Config) -> Vec<Named<'_>> {
    let (machine, replication) = (&config.machine, &config.replication);
    let kernel = match &machine.kernel {
        Some(Kernel::Path(path)) => Some(path),
        _ => None,
    };
    let console = match &machine.console {
        Console::File(path) => Some(path),
        _ => None,
    };
    let plain = [
        (&keys::KERNEL, kernel, false),
        (&keys::INITRD, machine.initrd.as_ref(), false),
        (&keys::CONSOLE, console, true),
        (&keys::ARBITER, replication.arbiter.as_ref(), true),
        (&keys::CONTROL, config.control_socket.as_ref(), true),
    ];
    let mut named: Vec<Named<'_>> = plain
        .into_iter()
        .filter_map(|(key, path, is_written)| Some(Named::plain(key, path?, is_written)))
        .collect();
    for drive in &machine.drives {
        let item = Some(&*drive.id);
        let is_written = drive.kind != DriveKind::ReadOnly;
        named.push(Named {
            item,
            ..Named::plain(&keys::DRIVE_PATH, &drive.path, is_written)
        });
        if drive.is_replicated() {
            named.push(Named {
                item,
                ..Named::plain(&keys::DRIVE_MAP, &drive.map_path, true)
            });
        }
    }
    let journal = machine.disk_journal.as_deref();
    named.extend(journal.map(|path| Named::plain(&keys::JOURNAL, path, true)));
    named
}
