//! From a configuration to a machine's description.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use understudy_replication::output::{ConsoleSink, OutputGate};
use understudy_vmm::config::{Config, ConfigError, Drive, DriveReplication, NetworkInterface};
use understudy_vmm::machine::{
    DriveConfig, DriveKind, Kernel, Machine, MachineConfig, MachineFault, NetBackend, NetConfig,
};
use understudy_vmm::output::{ConsoleFile, NoConsole, Terminal};
use understudy_workload::options::Options;

const BUILTIN: &str = "builtin";
const BUILTIN_CMDLINE: &str = "workload=stream,counter,echo ip=10.77.0.2/24 gateway=10.77.0.1";

/// How a guest comes to run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It boots, and nobody has a second copy.
    Alone,
    /// It boots, and is protected.
    Boots,
    /// It goes on where it was on another host.
    GoesOn,
}

/// Longest wait for a console that takes no more, when all else is over.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(5);
/// A wait that is not worth a word.
const CONSOLE_SOON: Duration = Duration::from_millis(100);

/// Builds the machine; an image that cannot be booted is named.
pub(crate) fn build(config: &Config, life: Life) -> Result<Machine> {
    let kernel = config.boot_source.kernel_image_path.as_deref();
    match (Machine::build(machine_config(config, life)?), kernel) {
        (Err(fault @ MachineFault::Boot(_)), Some(path)) => {
            Err(fault).with_context(|| format!("--kernel {}", path.display()))
        }
        (built, _) => Ok(built?),
    }
}

/// What the machine is to be like on this host.
pub(crate) fn machine_config(config: &Config, life: Life) -> Result<MachineConfig> {
    let path = config
        .boot_source
        .kernel_image_path
        .as_deref()
        .unwrap_or(Path::new(BUILTIN));
    let builtin = path == Path::new(BUILTIN);
    let kernel = match (&config.boot_source.kernel_image_path, life) {
        // Only the primary's default is known to be the guest's: a reboot must not boot another one.
        (None, Life::GoesOn) => None,
        _ if builtin => Some(Kernel::Bytes(understudy_guest_images::BUILTIN.to_vec())),
        _ => Some(Kernel::Path(path.into())),
    };
    let cmdline = match (&config.boot_source.boot_args, builtin) {
        (Some(cmdline), true) => {
            // The built-in guest would say so too, but on its console and after booting.
            Options::parse(cmdline)
                .map_err(|error| value("boot-source.boot_args", error.to_string()))?;
            cmdline.clone()
        }
        (Some(cmdline), false) => cmdline.clone(),
        (None, true) => BUILTIN_CMDLINE.into(),
        (None, false) => String::new(),
    };
    let initrd = config.boot_source.initrd_path.clone();
    if builtin && initrd.is_some() {
        let why = "the built-in guest takes no initramfs; give a kernel_image_path (--kernel) too";
        return Err(value("boot-source.initrd_path", why).into());
    }
    let root = root_words(&config.drives)?;
    let replication = &config.replication;
    let cmdline = match root {
        Some(_) if builtin => {
            let why = "the built-in guest has no root file system; leave it out";
            return Err(value("drives.is_root_device", why).into());
        }
        Some(root) => format!("{cmdline} {root}").trim_start().to_owned(),
        None => cmdline,
    };
    let vm = replication.vm_name();
    Ok(MachineConfig {
        vcpus: config.machine_config.vcpu_count.unwrap_or(1),
        cpu_template: config.machine_config.cpu_template.unwrap_or_default(),
        memory_mib: config.machine_config.mem_size_mib.unwrap_or(256),
        kernel,
        boot_protocol: config.boot_source.boot_protocol.unwrap_or_default(),
        initrd,
        cmdline,
        net: config
            .network_interfaces
            .iter()
            .map(|interface| net_config(&vm, interface))
            .collect::<Result<_, _>>()?,
        drives: drives(config, life)?,
        disk_journal: Some(journal_path(config)),
        disk_limits: replication.disk_limits()?,
        rng: config.entropy.is_some(),
        watchdog: config.watchdog.map(|watchdog| watchdog.action),
        on_panic: config.machine_config.on_panic.unwrap_or_default(),
        console: Some(console(
            config.serial.output.as_deref().unwrap_or("stdout"),
            life,
        )?),
        ..MachineConfig::default()
    })
}

/// Lets the consoles take what the guest said last, before the process ends under their threads.
pub(crate) fn finish_consoles(gate: &OutputGate) {
    if gate.flush_consoles(CONSOLE_SOON) {
        return;
    }
    tracing::info!("waiting for the guest's console to take its last output");
    if !gate.flush_consoles(CONSOLE_PATIENCE) {
        tracing::warn!("the guest's console takes no more: its last output is lost");
    }
}

/// The disks in the guest's order: the one with the root file system first.
fn in_order(drives: &[Drive]) -> Vec<&Drive> {
    let (root, others): (Vec<&Drive>, Vec<&Drive>) =
        drives.iter().partition(|drive| drive.is_root_device);
    root.into_iter().chain(others).collect()
}

/// What the command line says of the disk with the root file system.
fn root_words(drives: &[Drive]) -> Result<Option<&'static str>, ConfigError> {
    let mut roots = drives.iter().filter(|drive| drive.is_root_device);
    let root = roots.next();
    if roots.next().is_some() {
        let why = "only one drive can be the root device";
        return Err(value("drives.is_root_device", why));
    }
    Ok(root.map(|root| match root.is_read_only {
        true => "root=/dev/vda ro",
        false => "root=/dev/vda rw",
    }))
}

fn drives(config: &Config, life: Life) -> Result<Vec<DriveConfig>, ConfigError> {
    let drives = in_order(&config.drives);
    // A guest that runs alone has no copies; but images that are one of a pair stay that: what changes is
    // noted, and is all that has to be copied when the guest is protected again.
    let is_kept = life != Life::Alone || drives.iter().any(|drive| has_map(drive));
    let kind = |drive: &Drive| {
        Ok(match drive.replication {
            _ if drive.is_read_only => DriveKind::ReadOnly,
            _ if !is_kept => DriveKind::Local,
            Some(DriveReplication::Shared) => DriveKind::Shared {
                at_once: life != Life::GoesOn,
            },
            _ => DriveKind::Replicated {
                map_path: map_path(drive)?,
            },
        })
    };
    drives
        .into_iter()
        .map(|drive| {
            Ok(DriveConfig {
                id: drive.drive_id.clone(),
                path: drive.path_on_host.clone(),
                kind: kind(drive)?,
            })
        })
        .collect()
}

fn has_map(drive: &Drive) -> bool {
    drive.is_replicated() && drive.map_path().exists()
}

/// Where a replicated drive's map is. Beside a device file it would not survive a reboot.
fn map_path(drive: &Drive) -> Result<PathBuf, ConfigError> {
    let image = std::fs::metadata(&drive.path_on_host);
    let is_device = image.is_ok_and(|image| image.file_type().is_block_device());
    if is_device && drive.map_path.is_none() {
        let why = "a replicated block device needs a place for its map of changed blocks, on a file system of \
                   this host: --drive path=…,map=FILE";
        return Err(value(&format!("drives.{}.map_path", drive.drive_id), why));
    }
    Ok(drive.map_path())
}

/// Where a standby notes writes: beside the first map if nothing else is said.
fn journal_path(config: &Config) -> PathBuf {
    let replicated = |drive: &&Drive| drive.is_replicated();
    let first = in_order(&config.drives).into_iter().find(replicated);
    let beside = || first.map(Drive::journal_path).unwrap_or_default();
    let given = config.replication.disk_journal.clone();
    given.unwrap_or_else(beside)
}

fn console(output: &str, life: Life) -> Result<Box<dyn ConsoleSink>> {
    let file = |path: &str| match life {
        Life::Alone | Life::Boots => ConsoleFile::create(Path::new(path)),
        Life::GoesOn => ConsoleFile::join(Path::new(path)),
    };
    Ok(match output {
        "stdout" => Box::new(Terminal::default()),
        "none" => Box::new(NoConsole),
        path => Box::new(
            file(path).with_context(|| format!("cannot append the guest's console to {path}"))?,
        ),
    })
}

fn net_config(vm: &str, interface: &NetworkInterface) -> Result<NetConfig, ConfigError> {
    let key = |what: &str| format!("network-interfaces.{}.{what}", interface.iface_id);
    let offload = interface.offload.unwrap_or(interface.socket_path.is_none());
    let backend = match (&interface.host_dev_name, &interface.socket_path) {
        (None, Some(_)) if offload => {
            let why = "a socket (socket_path) cannot take over checksums and segmentation; only a tap can";
            return Err(value(&key("offload"), why));
        }
        (Some(tap), None) if offload => NetBackend::Tap(tap.clone()),
        (Some(tap), None) => NetBackend::PlainTap(tap.clone()),
        (None, Some(path)) => NetBackend::Socket(path.clone()),
        _ => {
            let why = "give either a tap (host_dev_name) or a socket (socket_path)";
            return Err(value(&key("host_dev_name"), why));
        }
    };
    let mac = match &interface.guest_mac {
        Some(text) => parse_mac(text).ok_or_else(|| {
            let why = format!("{text:?} is not a unicast MAC address such as 52:54:00:12:34:56");
            value(&key("guest_mac"), why)
        })?,
        None => derived_mac(vm, &interface.iface_id),
    };
    Ok(NetConfig {
        id: interface.iface_id.clone(),
        mac,
        backend,
    })
}

fn value(key: &str, why: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        key: key.into(),
        why: why.into(),
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text
        .split(':')
        .map(|part| {
            (part.len() == 2)
                .then(|| u8::from_str_radix(part, 16).ok())
                .flatten()
        })
        .collect::<Option<_>>()?;
    let mac: [u8; 6] = bytes.try_into().ok()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// The same on both hosts, as it is made of names that are: FNV-1a over both, locally administered.
fn derived_mac(vm: &str, interface: &str) -> [u8; 6] {
    let hash = vm
        .bytes()
        .chain([0])
        .chain(interface.bytes())
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3_u64)
        });
    let [a, b, c, d, ..] = hash.to_le_bytes();
    [0x52, 0x54, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_are_parsed_strictly() {
        assert_eq!(
            parse_mac("52:54:00:12:34:56"),
            Some([0x52, 0x54, 0, 0x12, 0x34, 0x56])
        );
        for wrong in [
            "",
            "52:54:00:12:34",
            "53:54:00:12:34:56",
            "00:00:00:00:00:00",
            "5:4:0:1:3:5",
        ] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn derived_addresses_depend_on_both_names() {
        assert_eq!(derived_mac("web", "net0"), derived_mac("web", "net0"));
        assert_ne!(derived_mac("web", "net0"), derived_mac("web", "net1"));
        assert_ne!(derived_mac("web", "net0"), derived_mac("webn", "et0"));
    }

    #[test]
    fn taps_take_over_checksums_unless_told_otherwise_and_sockets_never() {
        let backend = |host_dev_name: Option<&str>, socket_path: Option<&str>, offload| {
            let interface = NetworkInterface {
                iface_id: "net0".into(),
                host_dev_name: host_dev_name.map(Into::into),
                offload,
                socket_path: socket_path.map(Into::into),
                guest_mac: None,
            };
            net_config("vm", &interface).map(|config| config.backend)
        };
        let tap = Some("tap0");
        for offload in [None, Some(true)] {
            let with = backend(tap, None, offload);
            assert!(matches!(with, Ok(NetBackend::Tap(name)) if name == "tap0"));
        }
        let without = backend(tap, None, Some(false));
        assert!(matches!(without, Ok(NetBackend::PlainTap(name)) if name == "tap0"));
        let socket = backend(None, Some("/s"), None);
        assert!(matches!(socket, Ok(NetBackend::Socket(_))));
        let error = backend(None, Some("/s"), Some(true))
            .err()
            .expect("refused");
        assert!(error.to_string().contains("net0.offload"), "{error}");
    }

    #[test]
    fn a_standby_reboots_only_what_it_was_told_is_the_guest() {
        let mut config = Config::default();
        let kernel = |config: &Config, life| machine_config(config, life).unwrap().kernel;
        assert!(kernel(&config, Life::Boots).is_some());
        assert!(kernel(&config, Life::GoesOn).is_none());
        config.boot_source.kernel_image_path = Some(BUILTIN.into());
        assert!(kernel(&config, Life::GoesOn).is_some());
    }

    #[test]
    fn an_initramfs_needs_a_kernel() {
        let mut config = Config::default();
        config.boot_source.initrd_path = Some("/boot/initrd".into());
        let error = machine_config(&config, Life::Boots)
            .err()
            .expect("nobody takes the initramfs")
            .to_string();
        assert!(error.contains("boot-source.initrd_path"), "{error}");
        config.boot_source.kernel_image_path = Some("/boot/vmlinuz".into());
        let machine = machine_config(&config, Life::Boots).unwrap();
        assert_eq!(machine.initrd.as_deref(), Some(Path::new("/boot/initrd")));
    }

    fn drive(id: &str, path: &Path) -> Drive {
        Drive {
            drive_id: id.into(),
            path_on_host: path.into(),
            is_root_device: false,
            is_read_only: false,
            replication: None,
            map_path: None,
        }
    }

    #[test]
    fn the_root_device_comes_first_and_is_named_to_linux() {
        let drive = |id: &str, is_root_device| Drive {
            is_root_device,
            is_read_only: true,
            ..drive(id, Path::new("/a"))
        };
        let mut config = Config {
            drives: vec![drive("data", false), drive("root", true)],
            ..Config::default()
        };
        let in_order = drives(&config, Life::Alone).unwrap();
        assert_eq!(in_order[0].id, "root");
        assert_eq!(in_order[1].id, "data");
        assert_eq!(
            root_words(&config.drives).unwrap(),
            Some("root=/dev/vda ro")
        );
        assert_eq!(root_words(&config.drives[..1]).unwrap(), None);
        assert!(root_words(&[drive("a", true), drive("b", true)]).is_err());
        let error = machine_config(&config, Life::Boots)
            .err()
            .expect("no root there");
        assert!(error.to_string().contains("built-in"), "{error}");
        config.drives.clear();
        assert!(machine_config(&config, Life::Boots).is_ok());
    }

    #[test]
    fn what_becomes_of_writes_depends_on_how_the_guest_lives() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let shared = Drive {
            replication: Some(DriveReplication::Shared),
            ..drive("shared", &path("shared"))
        };
        let config = Config {
            drives: vec![drive("own", &path("own")), shared],
            ..Config::default()
        };
        let kinds = |life| {
            let drives = drives(&config, life).unwrap();
            drives
                .into_iter()
                .map(|drive| drive.kind)
                .collect::<Vec<_>>()
        };
        let replicated = || DriveKind::Replicated {
            map_path: path("own.understudy-map"),
        };
        let shared = |at_once| DriveKind::Shared { at_once };
        assert_eq!(kinds(Life::Alone), [DriveKind::Local, DriveKind::Local]);
        assert_eq!(kinds(Life::Boots), [replicated(), shared(true)]);
        assert_eq!(kinds(Life::GoesOn), [replicated(), shared(false)]);
        // Its image is one of a pair.
        std::fs::write(path("own.understudy-map"), "").unwrap();
        assert_eq!(kinds(Life::Alone), [replicated(), shared(true)]);
        assert_eq!(journal_path(&config), path("own.understudy-journal"));
    }

    #[test]
    fn wrong_guest_options_are_found_before_booting() {
        let mut config = Config::default();
        config.boot_source.boot_args = Some("workload=stream wrkload=idle".into());
        let error = machine_config(&config, Life::Boots)
            .err()
            .expect("an unknown option")
            .to_string();
        assert!(error.contains("boot-source.boot_args"), "{error}");
    }
}
