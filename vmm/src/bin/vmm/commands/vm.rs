//! From a configuration to a machine's description.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use understudy_vmm::config::{Config, ConfigError, Drive, NetworkInterface};
use understudy_vmm::machine::{
    DriveConfig, Kernel, Machine, MachineConfig, MachineFault, NetBackend, NetConfig,
};
use understudy_vmm::output::{ConsoleSink, DiscardSink, FileSink, Gate, StdoutSink};
use understudy_workload::options::Options;

const BUILTIN: &str = "builtin";
const BUILTIN_CMDLINE: &str = "workload=stream,counter,echo ip=10.77.0.2/24 gateway=10.77.0.1";

/// How a guest comes to run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It boots.
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
    let (drives, root) = drives(&config.drives)?;
    let cmdline = match root {
        Some(_) if builtin => {
            let why = "the built-in guest has no root file system; leave it out";
            return Err(value("drives.is_root_device", why).into());
        }
        Some(root) => format!("{cmdline} {root}").trim_start().to_owned(),
        None => cmdline,
    };
    let vm = config.replication.vm_name();
    Ok(MachineConfig {
        vcpus: config.machine_config.vcpu_count.unwrap_or(1),
        memory_mib: config.machine_config.mem_size_mib.unwrap_or(256),
        kernel,
        initrd,
        cmdline,
        net: config
            .network_interfaces
            .iter()
            .map(|interface| net_config(&vm, interface))
            .collect::<Result<_, _>>()?,
        drives,
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
pub(crate) fn finish_consoles(gate: &Gate) {
    if gate.flush_consoles(CONSOLE_SOON) {
        return;
    }
    tracing::info!("waiting for the guest's console to take its last output");
    if !gate.flush_consoles(CONSOLE_PATIENCE) {
        tracing::warn!("the guest's console takes no more: its last output is lost");
    }
}

/// The disks in the guest's order, and what the command line says of the one with the root file system.
fn drives(drives: &[Drive]) -> Result<(Vec<DriveConfig>, Option<&'static str>), ConfigError> {
    let (root, others): (Vec<&Drive>, Vec<&Drive>) =
        drives.iter().partition(|drive| drive.is_root_device);
    if root.len() > 1 {
        let why = "only one drive can be the root device";
        return Err(value("drives.is_root_device", why));
    }
    let words = root.first().map(|root| match root.is_read_only {
        true => "root=/dev/vda ro",
        false => "root=/dev/vda rw",
    });
    let in_order = root.iter().chain(&others).map(|drive| DriveConfig {
        id: drive.drive_id.clone(),
        path: drive.path_on_host.clone(),
        read_only: drive.is_read_only,
    });
    Ok((in_order.collect(), words))
}

fn console(output: &str, life: Life) -> Result<Box<dyn ConsoleSink>> {
    let file = |path: &str| match life {
        Life::Boots => FileSink::create(Path::new(path)),
        Life::GoesOn => FileSink::join(Path::new(path)),
    };
    Ok(match output {
        "stdout" => Box::new(StdoutSink::default()),
        "none" => Box::new(DiscardSink),
        path => Box::new(
            file(path).with_context(|| format!("cannot append the guest's console to {path}"))?,
        ),
    })
}

fn net_config(vm: &str, interface: &NetworkInterface) -> Result<NetConfig, ConfigError> {
    let key = |what: &str| format!("network-interfaces.{}.{what}", interface.iface_id);
    let backend = match (&interface.host_dev_name, &interface.socket_path) {
        (Some(tap), None) => NetBackend::Tap(tap.clone()),
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

    #[test]
    fn the_root_device_comes_first_and_is_named_to_linux() {
        let drive = |id: &str, is_root_device| Drive {
            drive_id: id.into(),
            path_on_host: "/a".into(),
            is_root_device,
            is_read_only: true,
        };
        let given = [drive("data", false), drive("root", true)];
        let (in_order, words) = drives(&given).unwrap();
        assert_eq!(in_order[0].id, "root");
        assert_eq!(in_order[1].id, "data");
        assert_eq!(words, Some("root=/dev/vda ro"));
        assert_eq!(drives(&given[..1]).unwrap().1, None);
        assert!(drives(&[drive("a", true), drive("b", true)]).is_err());
        let config = Config {
            drives: given.into(),
            ..Config::default()
        };
        let error = machine_config(&config, Life::Boots)
            .err()
            .expect("no root there");
        assert!(error.to_string().contains("built-in"), "{error}");
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
