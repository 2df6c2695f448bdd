//! Disks and network interfaces, from what a file says to what a machine takes.
//!
//! What must not be done here: open any of them.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use understudy_replication::disk::DiskMode;

use super::keys::{self, Key, Values};
use super::{ConfigError, Drive, GuestNetwork, NetworkInterface};
use crate::devices::virtio::blk::ID_BYTES_MAX;
use crate::machine::{DriveConfig, DriveKind, NetBackend, NetConfig, beside};

/// Disks in the guest's order, and what follows from them.
pub(super) struct Drives {
    /// The one with the root file system first.
    pub(super) drives: Vec<DriveConfig>,
    /// Where a standby notes writes if nothing else is said: beside the first replicated disk's map or image.
    pub(super) journal: Option<PathBuf>,
    /// What the command line says of the root file system.
    pub(super) root: Option<String>,
}

pub(super) fn drives(all: &[Drive]) -> Result<Drives, ConfigError> {
    let is_root = |drive: &&Drive| drive.is_root_device.unwrap_or_default();
    let (roots, others): (Vec<&Drive>, Vec<&Drive>) = all.iter().partition(is_root);
    if roots.len() > 1 {
        let why = "several drives are root devices; only one can be";
        return Err(ConfigError::value(&keys::DRIVE_ROOT, why));
    }
    let root = roots.first().map(|drive| root_words(drive));
    let (mut drives, mut journal) = (Vec::new(), None);
    for drive in roots.into_iter().chain(others) {
        let config = drive_config(drive, drives.len())?;
        if config.is_replicated() && journal.is_none() {
            let map = drive.map_path.as_deref();
            journal = Some(beside(map.unwrap_or(&config.path), "journal"));
        }
        drives.push(config);
    }
    Ok(Drives {
        drives,
        journal,
        root,
    })
}

fn root_words(drive: &Drive) -> String {
    let root = match &drive.partuuid {
        Some(uuid) => format!("PARTUUID={uuid}"),
        None => "/dev/vda".into(),
    };
    let access = match drive.is_read_only {
        Some(true) => "ro",
        _ => "rw",
    };
    format!("root={root} {access}")
}

fn drive_config(drive: &Drive, number: usize) -> Result<DriveConfig, ConfigError> {
    let item = drive.drive_id.clone().unwrap_or_else(|| number.to_string());
    let wrong = |key: &Key, why: &str| Err(ConfigError::of_item(key, &item, why));
    let Some(id) = &drive.drive_id else {
        return wrong(&keys::DRIVE_ID, "it is missing; give the drive a name");
    };
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if id.len() > ID_BYTES_MAX || !id.bytes().all(fits) {
        let why = format!(
            "{id:?} is no name for a drive; write {}",
            keys::DRIVE_ID.values
        );
        return wrong(&keys::DRIVE_ID, &why);
    }
    if let Some(uuid) = &drive.partuuid {
        // It becomes a word of the kernel's command line.
        let fits = |byte: u8| byte.is_ascii_hexdigit() || byte == b'-';
        if !uuid.bytes().all(fits) {
            let why = format!(
                "{uuid:?} is not {}, such as 0eaa91a0-01",
                keys::DRIVE_PARTUUID.values
            );
            return wrong(&keys::DRIVE_PARTUUID, &why);
        }
        if !drive.is_root_device.unwrap_or_default() {
            let why = "only the root device has one: leave it out, or set is_root_device";
            return wrong(&keys::DRIVE_PARTUUID, why);
        }
    }
    let Some(path) = drive
        .path_on_host
        .as_ref()
        .filter(|path| path.as_os_str() != "")
    else {
        return wrong(
            &keys::DRIVE_PATH,
            "it is missing; name a raw image file or a block device",
        );
    };
    let kind = match (drive.is_read_only.unwrap_or_default(), drive.replication) {
        (true, Some(_)) => {
            let why = "what the guest only reads is not copied: leave it out, and give both hosts the same image";
            return wrong(&keys::DRIVE_REPLICATION, why);
        }
        (true, None) => DriveKind::ReadOnly,
        (false, mode) => DriveKind::Copied(mode.unwrap_or(DiskMode::Replicated)),
    };
    let mut config = DriveConfig::new(id, path, kind);
    config.on_error = drive.on_error.unwrap_or_default();
    if let Some(map) = &drive.map_path {
        if !config.is_replicated() {
            let why = "only a replicated drive has a map: leave it out";
            return wrong(&keys::DRIVE_MAP, why);
        }
        config.map_path.clone_from(map);
    }
    Ok(config)
}

/// A map beside a device file would not survive a reboot.
pub(super) fn check_map(drive: &DriveConfig) -> Result<(), ConfigError> {
    let image = std::fs::metadata(&drive.path);
    let is_device = image.is_ok_and(|image| image.file_type().is_block_device());
    if is_device && drive.map_path == beside(&drive.path, "map") {
        let why = "a replicated block device needs a place for its map of changed blocks; name a file on a file \
                   system of this host";
        return Err(ConfigError::of_item(&keys::DRIVE_MAP, &drive.id, why));
    }
    Ok(())
}

pub(super) fn networks(vm: &str, all: &[NetworkInterface]) -> Result<Vec<NetConfig>, ConfigError> {
    let configs = all.iter().enumerate();
    let config = |(number, interface)| net_config(vm, number, interface);
    configs.map(config).collect()
}

pub(super) fn guest_networks(interfaces: &[NetworkInterface]) -> Vec<GuestNetwork> {
    let networks = interfaces.iter().filter_map(|interface| {
        Some(GuestNetwork {
            id: interface.iface_id.clone()?,
            tap: interface.host_dev_name.clone(),
            on_cut: interface.on_cut.unwrap_or_default(),
            // What is none has been refused.
            ping: (interface.ping.iter().flatten())
                .filter_map(|text| parse_target(text))
                .collect(),
        })
    });
    networks.collect()
}

fn net_config(
    vm: &str,
    number: usize,
    interface: &NetworkInterface,
) -> Result<NetConfig, ConfigError> {
    let name = interface.iface_id.clone();
    let item = name.unwrap_or_else(|| number.to_string());
    let wrong = |key: &Key, why: &str| Err(ConfigError::of_item(key, &item, why));
    let Some(id) = &interface.iface_id else {
        return wrong(&keys::NET_ID, "it is missing; give the interface a name");
    };
    let offload = interface.offload.unwrap_or(interface.socket_path.is_none());
    let backend = match (&interface.host_dev_name, &interface.socket_path) {
        (None, Some(_)) if offload => {
            let why = "a socket (socket_path) cannot take over checksums and segmentation; only a tap can";
            return wrong(&keys::NET_OFFLOAD, why);
        }
        (Some(tap), None) if offload => NetBackend::Tap(tap.clone()),
        (Some(tap), None) => NetBackend::PlainTap(tap.clone()),
        (None, Some(path)) => NetBackend::Socket(path.clone()),
        _ => {
            let why = "give either a tap (host_dev_name) or a socket (socket_path)";
            return wrong(&keys::NET_TAP, why);
        }
    };
    check_ping(interface).map_err(|why| ConfigError::of_item(&keys::NET_PING, &item, &*why))?;
    let mac = match &interface.guest_mac {
        Some(text) => match parse_mac(text) {
            Some(mac) => mac,
            None => {
                let why = format!("{text:?} is not {}", keys::NET_MAC.values);
                return wrong(&keys::NET_MAC, &why);
            }
        },
        None => derived_mac(vm, id),
    };
    Ok(NetConfig {
        id: id.clone(),
        mac,
        backend,
    })
}

fn check_ping(interface: &NetworkInterface) -> Result<(), String> {
    let Some(targets) = &interface.ping else {
        return Ok(());
    };
    let form = &keys::NET_PING.values;
    if interface.host_dev_name.is_none() {
        return Err("only a tap's network is watched (host_dev_name): leave it out".into());
    }
    if matches!(form, Values::Addresses { max } if targets.len() > *max) {
        return Err(format!("there are {}; write {form}", targets.len()));
    }
    match targets.iter().find(|text| parse_target(text).is_none()) {
        Some(wrong) => Err(format!("{wrong:?} is none; write {form}")),
        None => Ok(()),
    }
}

/// The address of one host.
fn parse_target(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    let is_many = address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST);
    (!is_many && !address.is_unspecified()).then_some(address)
}

pub(super) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let byte = |part: &str| {
        let digits = (part.len() == 2).then_some(part)?;
        u8::from_str_radix(digits, 16).ok()
    };
    let bytes: Vec<u8> = text.split(':').map(byte).collect::<Option<_>>()?;
    let mac: [u8; 6] = bytes.try_into().ok()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// The same on both hosts, as it is made of names that are: FNV-1a over both, locally administered.
pub(super) fn derived_mac(vm: &str, interface: &str) -> [u8; 6] {
    let hash = digest(vm.bytes().chain([0]).chain(interface.bytes()));
    let [a, b, c, d, ..] = hash.to_le_bytes();
    [0x52, 0x54, a, b, c, d]
}

/// Of a name, equal on all hosts (FNV-1a).
pub(crate) fn digest(name: impl Iterator<Item = u8>) -> u64 {
    name.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
