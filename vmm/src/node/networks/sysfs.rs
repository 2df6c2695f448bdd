//! What the kernel shows of a tap and of the bridge that it is part of.
//!
//! What must not be done here: judge it.

use std::fs;
use std::path::Path;

/// `IFF_UP` of an interface's flags.
const UP: u64 = 1;
/// `BR_STATE_FORWARDING` of a bridge's port.
const FORWARDS: &str = "3";
/// So many interfaces may be built on each other, as the kernel has it (`MAX_NEST_DEV`).
const NESTED_MAX: usize = 8;

/// What there is of a tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tap {
    /// It is switched on and connected.
    pub(super) works: bool,
    pub(super) master: Option<Master>,
}

impl Tap {
    /// The name of the bridge, if it is one of the kernel's: such a bridge may have an address of this host.
    pub(super) fn bridge(&self) -> Option<&str> {
        let master = self.master.as_ref()?;
        master.bridge.as_ref().map(|_| master.name.as_str())
    }
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
    /// Its ports that are no taps: other guests' lead nowhere.
    pub(super) ways_out: Vec<Way>,
}

/// A port that may lead out of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) name: String,
    /// It is a network card, physical or virtual, or a VLAN, bond or team on one. What else there is, such as the end of a
    /// pair of virtual interfaces, may lead to a container of this host.
    pub(super) is_card: bool,
    /// It is connected and forwards.
    pub(super) works: bool,
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

fn ways_out(sysfs: &Path, bridge: &Path) -> Vec<Way> {
    let ports = names(&bridge.join("brif")).map(|name| (sysfs.join(&name), name));
    let ways = ports.filter(|(port, _)| !port.join("tun_flags").exists());
    let mut ways: Vec<Way> = ways
        .map(|(port, name)| {
            let is_card = is_on_card(sysfs, &port, NESTED_MAX);
            let is_connected = match is_card {
                true => has_carrier(&port),
                false => has_other_end(&port),
            };
            let works = is_connected && forwards(&port);
            Way {
                name,
                is_card,
                works,
            }
        })
        .collect();
    ways.sort_by(|one, other| one.name.cmp(&other.name));
    ways
}

fn is_on_card(sysfs: &Path, interface: &Path, depth: usize) -> bool {
    interface.join("device").exists()
        || (depth > 0
            && names(interface)
                .filter_map(|name| Some(sysfs.join(name.strip_prefix("lower_")?)))
                .any(|lower| is_on_card(sysfs, &lower, depth - 1)))
}

fn names(folder: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok())
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

/// A dummy has none, and the kernel does not know its state.
fn has_other_end(interface: &Path) -> bool {
    has_carrier(interface) && text(interface, "operstate") == "up"
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
            write(sysfs.path(), &format!("{name}/operstate"), "up");
            write(sysfs.path(), &format!("{name}/brport/state"), "3");
            if name.starts_with("tap") {
                write(sysfs.path(), &format!("{name}/tun_flags"), "0x5002");
            }
        }
        let lan = sysfs.path().join("lan");
        for folder in ["bridge", "brif/tap0", "brif/tap1", "brif/eth0"] {
            fs::create_dir_all(lan.join(folder)).unwrap();
        }
        fs::create_dir(sysfs.path().join("eth0/device")).unwrap();
        symlink("../lan", sysfs.path().join("tap0/master")).unwrap();
        sysfs
    }

    /// One more port of `lan`, which is up.
    fn add_port(sysfs: &Path, name: &str, operstate: &str) {
        fs::create_dir_all(sysfs.join(name).join("brport")).unwrap();
        fs::create_dir_all(sysfs.join("lan/brif").join(name)).unwrap();
        write(sysfs, &format!("{name}/carrier"), "1");
        write(sysfs, &format!("{name}/operstate"), operstate);
        write(sysfs, &format!("{name}/brport/state"), "3");
    }

    /// What works, by name, and whether it is a card.
    fn working(sysfs: &Path) -> Vec<(String, bool)> {
        let ways = seen(sysfs).1.ways_out.into_iter();
        ways.filter_map(|way| way.works.then_some((way.name, way.is_card)))
            .collect()
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
        assert_eq!(tap.bridge(), Some("lan"));
        let eth0 = |works| Way {
            name: "eth0".into(),
            is_card: true,
            works,
        };
        assert_eq!(bridge.ways_out, [eth0(true)]);
        assert_eq!(look(sysfs, "tap7"), None);

        write(sysfs, "tap0/brport/state", "0");
        assert!(!seen(sysfs).1.forwards);
        write(sysfs, "tap0/flags", "0x1002");
        assert!(!seen(sysfs).0.works, "switched off");
        write(sysfs, "lan/flags", "0x1002");
        assert!(!seen(sysfs).1.is_up);
        write(sysfs, "eth0/carrier", "0");
        assert_eq!(seen(sysfs).1.ways_out, [eth0(false)]);
        write(sysfs, "eth0/carrier", "1");
        write(sysfs, "eth0/brport/state", "4");
        assert_eq!(seen(sysfs).1.ways_out, [eth0(false)]);

        fs::remove_dir(sysfs.join("lan/bridge")).unwrap();
        let tap = look(sysfs, "tap0").unwrap();
        assert!(tap.master.is_some());
        assert_eq!(tap.bridge(), None, "Open vSwitch");
        fs::remove_file(sysfs.join("tap0/master")).unwrap();
        assert_eq!(look(sysfs, "tap0").unwrap().master, None);
    }

    #[test]
    fn a_pair_is_no_card_and_works_while_it_has_its_other_end_and_a_dummy_never_does() {
        let tree = tree();
        let sysfs = tree.path();
        add_port(sysfs, "veth7", "up");
        add_port(sysfs, "dummy0", "unknown");
        let (card, pair) = (("eth0".to_owned(), true), ("veth7".to_owned(), false));
        assert_eq!(working(sysfs), [card.clone(), pair]);
        write(sysfs, "veth7/operstate", "lowerlayerdown");
        assert_eq!(working(sysfs), [card]);
    }

    #[test]
    fn what_is_built_on_a_card_counts_as_one() {
        let tree = tree();
        let sysfs = tree.path();
        fs::remove_dir_all(sysfs.join("lan/brif/eth0")).unwrap();
        add_port(sysfs, "bond0.5", "up");
        fs::create_dir_all(sysfs.join("bond0")).unwrap();
        symlink("../bond0", sysfs.join("bond0.5/lower_bond0")).unwrap();
        let vlan = |is_card| [("bond0.5".to_owned(), is_card)];
        assert_eq!(working(sysfs), vlan(false), "on nothing yet");
        symlink("../eth0", sysfs.join("bond0/lower_eth0")).unwrap();
        assert_eq!(working(sysfs), vlan(true));
        // A loop, which the kernel does not allow, has an end.
        fs::remove_file(sysfs.join("bond0/lower_eth0")).unwrap();
        symlink("../bond0", sysfs.join("bond0/lower_bond0")).unwrap();
        assert_eq!(working(sysfs), vlan(false));
    }
}
