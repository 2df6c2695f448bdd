//! What the kernel shows of a tap and of the bridge that it is part of.
//!
//! What must not be done here: judge it.

use std::fs;
use std::path::Path;

/// `IFF_UP` of an interface's flags.
const UP: u64 = 1;
/// `BR_STATE_FORWARDING` of a bridge's port.
const FORWARDS: &str = "3";

/// What there is of a tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tap {
    /// It is switched on and connected.
    pub(super) works: bool,
    pub(super) master: Option<Master>,
}

/// What a tap is part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Master {
    pub(super) name: String,
    /// `None`: something else than a bridge of the kernel's, such as Open vSwitch.
    pub(super) bridge: Option<Bridge>,
}

/// A bridge, seen from a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bridge {
    pub(super) is_up: bool,
    /// It takes frames from the tap and gives it some.
    pub(super) forwards: bool,
    /// Its ports that are no taps, and whether each of them is connected and forwards.
    pub(super) ways_out: Vec<(String, bool)>,
}

/// Looks at the tap `name` below `sysfs`; `None` if there is no such interface.
pub(super) fn look(sysfs: &Path, name: &str) -> Option<Tap> {
    let tap = sysfs.join(name);
    tap.exists().then(|| Tap {
        works: is_up(&tap) && has_carrier(&tap),
        master: master(sysfs, &tap),
    })
}

fn master(sysfs: &Path, tap: &Path) -> Option<Master> {
    let target = fs::read_link(tap.join("master")).ok()?;
    let name = target.file_name()?.to_str()?.to_owned();
    let master = sysfs.join(&name);
    let bridge = master.join("bridge").exists().then(|| Bridge {
        is_up: is_up(&master),
        forwards: forwards(tap),
        ways_out: ways_out(sysfs, &master),
    });
    Some(Master { name, bridge })
}

/// Other guests' taps lead nowhere.
fn ways_out(sysfs: &Path, bridge: &Path) -> Vec<(String, bool)> {
    let ports = fs::read_dir(bridge.join("brif")).into_iter().flatten();
    let names = ports.filter_map(|port| port.ok()?.file_name().into_string().ok());
    let mut ways: Vec<(String, bool)> = names
        .map(|name| (sysfs.join(&name), name))
        .filter(|(port, _)| !port.join("tun_flags").exists())
        .map(|(port, name)| (name, has_carrier(&port) && forwards(&port)))
        .collect();
    ways.sort();
    ways
}

fn is_up(interface: &Path) -> bool {
    let flags = text(interface, "flags");
    let flags = flags.strip_prefix("0x").unwrap_or_default();
    u64::from_str_radix(flags, 16).is_ok_and(|flags| flags & UP != 0)
}

/// One that is switched off has none, and the kernel says so by an error.
fn has_carrier(interface: &Path) -> bool {
    text(interface, "carrier") == "1"
}

fn forwards(port: &Path) -> bool {
    text(port, "brport/state") == FORWARDS
}

fn text(interface: &Path, file: &str) -> String {
    let text = fs::read_to_string(interface.join(file)).unwrap_or_default();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// As the kernel has it: `tap0` and another guest's `tap1` in the bridge `lan`, which has the uplink `eth0`.
    fn tree() -> tempfile::TempDir {
        let sysfs = tempfile::tempdir().unwrap();
        for (name, flags) in [
            ("tap0", "0x1003"),
            ("tap1", "0x1003"),
            ("eth0", "0x1003"),
            ("lan", "0x1003"),
        ] {
            let interface = sysfs.path().join(name);
            fs::create_dir_all(interface.join("brport")).unwrap();
            write(sysfs.path(), &format!("{name}/flags"), flags);
            write(sysfs.path(), &format!("{name}/carrier"), "1");
            write(sysfs.path(), &format!("{name}/brport/state"), "3");
            if name.starts_with("tap") {
                write(sysfs.path(), &format!("{name}/tun_flags"), "0x5002");
            }
        }
        let lan = sysfs.path().join("lan");
        for folder in ["bridge", "brif/tap0", "brif/tap1", "brif/eth0"] {
            fs::create_dir_all(lan.join(folder)).unwrap();
        }
        symlink("../lan", sysfs.path().join("tap0/master")).unwrap();
        sysfs
    }

    fn write(sysfs: &Path, file: &str, text: &str) {
        fs::write(sysfs.join(file), format!("{text}\n")).unwrap();
    }

    fn seen(sysfs: &Path) -> (Tap, Bridge) {
        let tap = look(sysfs, "tap0").unwrap();
        let bridge = tap.master.clone().unwrap().bridge.unwrap();
        (tap, bridge)
    }

    #[test]
    fn what_the_kernel_shows_is_read() {
        let tree = tree();
        let sysfs = tree.path();
        let (tap, bridge) = seen(sysfs);
        assert!(tap.works && bridge.is_up && bridge.forwards);
        assert_eq!(tap.master.unwrap().name, "lan");
        assert_eq!(bridge.ways_out, [("eth0".to_owned(), true)]);
        assert_eq!(look(sysfs, "tap7"), None);

        write(sysfs, "tap0/brport/state", "0");
        assert!(!seen(sysfs).1.forwards);
        write(sysfs, "tap0/flags", "0x1002");
        assert!(!seen(sysfs).0.works, "switched off");
        write(sysfs, "lan/flags", "0x1002");
        assert!(!seen(sysfs).1.is_up);
        write(sysfs, "eth0/carrier", "0");
        assert_eq!(seen(sysfs).1.ways_out, [("eth0".to_owned(), false)]);
        write(sysfs, "eth0/carrier", "1");
        write(sysfs, "eth0/brport/state", "4");
        assert_eq!(seen(sysfs).1.ways_out, [("eth0".to_owned(), false)]);

        fs::remove_dir(sysfs.join("lan/bridge")).unwrap();
        let master = look(sysfs, "tap0").unwrap().master.unwrap();
        assert_eq!(master.bridge, None, "Open vSwitch");
        fs::remove_file(sysfs.join("tap0/master")).unwrap();
        assert_eq!(look(sysfs, "tap0").unwrap().master, None);
    }
}
