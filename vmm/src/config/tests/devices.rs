//! Disks and network interfaces.

use std::path::Path;

use understudy_replication::disk::DiskMode::{Replicated, Shared};

use super::*;
use crate::config::devices::{derived_mac, drives, parse_mac};
use crate::machine::{DriveConfig, NetBackend};

fn drive(id: &str, path: &Path) -> Drive {
    Drive {
        drive_id: Some(id.into()),
        path_on_host: Some(path.into()),
        ..Drive::default()
    }
}

#[test]
fn drives_have_firecrackers_names() {
    let config = config(
        r#"{"boot-source": {"kernel_image_path": "/k"}, "drives": [
            {"drive_id": "data", "path_on_host": "/b"},
            {"drive_id": "root", "path_on_host": "/a", "is_root_device": true, "is_read_only": true}
        ]}"#,
    );
    let [root, data] = &config.machine.drives[..] else {
        panic!("two drives: {:?}", config.machine.drives);
    };
    assert_eq!((&*root.id, root.kind), ("root", DriveKind::ReadOnly));
    assert_eq!(
        (&*data.id, data.kind),
        ("data", DriveKind::Copied(Replicated))
    );
    assert_eq!(data.path, Path::new("/b"));
    assert_eq!(config.machine.cmdline, "root=/dev/vda ro");
}

#[test]
fn drives_say_how_they_are_copied() {
    let config = config(
        r#"{"drives": [{"drive_id": "a", "path_on_host": "/a"},
           {"drive_id": "b", "path_on_host": "/b", "replication": "shared"},
           {"drive_id": "c", "path_on_host": "/dev/c", "replication": "replicated", "map_path": "/c.map"},
           {"drive_id": "d", "path_on_host": "/d", "is_read_only": true}]}"#,
    );
    let kinds: Vec<DriveKind> = config
        .machine
        .drives
        .iter()
        .map(|drive| drive.kind)
        .collect();
    let copied = DriveKind::Copied;
    assert_eq!(
        kinds,
        [
            copied(Replicated),
            copied(Shared),
            copied(Replicated),
            DriveKind::ReadOnly
        ]
    );
    let map = |number: usize| &config.machine.drives[number].map_path;
    assert_eq!(map(0), Path::new("/a.understudy-map"));
    assert_eq!(map(2), Path::new("/c.map"));
}

#[test]
fn the_journal_lies_beside_the_first_map_that_is_named_or_the_first_image() {
    let journal = |text: &str| config(text).machine.disk_journal;
    for (drive, path) in [
        (r#""path_on_host": "/a""#, Some("/a.understudy-journal")),
        (
            r#""path_on_host": "/dev/c", "map_path": "/c.map""#,
            Some("/c.map.understudy-journal"),
        ),
        (r#""path_on_host": "/a", "replication": "shared""#, None),
    ] {
        let text = format!(r#"{{"drives": [{{"drive_id": "a", {drive}}}]}}"#);
        assert_eq!(journal(&text).as_deref(), path.map(Path::new), "{text}");
    }
    let said = r#"{"replication": {"disk_journal": "/j"}}"#;
    assert_eq!(journal(said).as_deref(), Some(Path::new("/j")));
}

#[test]
fn drives_that_contradict_themselves_are_named() {
    for (drive, key) in [
        (
            r#""path_on_host": "/a", "is_read_only": true, "replication": "shared""#,
            "drives.a.replication: ",
        ),
        (
            r#""path_on_host": "/a", "replication": "shared", "map_path": "/m""#,
            "drives.a.map_path: ",
        ),
        (r#""is_read_only": false"#, "drives.a.path_on_host: "),
        (
            r#""path_on_host": "/a", "is_root_device": true"#,
            "drives[].is_root_device: ",
        ),
    ] {
        let error = refused(&format!(r#"{{"drives": [{{"drive_id": "a", {drive}}}]}}"#));
        assert!(error.starts_with(key), "{error}");
    }
    let error = refused(r#"{"drives": [{"path_on_host": "/a"}]}"#);
    assert!(error.starts_with("drives.0.drive_id: "), "{error}");
}

#[test]
fn the_root_device_is_one_and_comes_first() {
    let root = |id: &str| Drive {
        is_root_device: Some(true),
        ..drive(id, Path::new("/a"))
    };
    let data = drive("data", Path::new("/b"));
    let ordered = drives(&[data.clone(), root("root")]).unwrap();
    let names: Vec<&str> = ordered.drives.iter().map(|drive| &*drive.id).collect();
    assert_eq!(names, ["root", "data"]);
    assert_eq!(ordered.root.as_deref(), Some("root=/dev/vda rw"));
    let partition = Drive {
        partuuid: Some("0eaa91a0-01".into()),
        is_read_only: Some(true),
        ..root("root")
    };
    let ordered = drives(&[partition]).unwrap();
    assert_eq!(
        ordered.root.as_deref(),
        Some("root=PARTUUID=0eaa91a0-01 ro")
    );
    assert_eq!(drives(&[data]).unwrap().root, None);
    assert!(drives(&[root("a"), root("b")]).is_err());
}

#[test]
fn what_becomes_of_writes_depends_on_how_the_guest_starts() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let shared = Drive {
        replication: Some(Shared),
        ..drive("shared", &path("shared"))
    };
    let flags = ConfigFile {
        drives: Some(vec![drive("one", &path("one")), shared]),
        ..ConfigFile::default()
    };
    let (config, _) = Config::load(None, flags).unwrap();
    let kinds = |start| {
        let drives: Vec<DriveConfig> = config.machine(start).unwrap().drives;
        drives.iter().map(|drive| drive.kind).collect::<Vec<_>>()
    };
    let copied = [Replicated, Shared].map(DriveKind::Copied);
    assert_eq!(kinds(Start::Unprotected), [DriveKind::Local; 2]);
    assert_eq!(kinds(Start::Primary), copied);
    assert_eq!(kinds(Start::Standby), copied);
    // Its image is one of a pair.
    std::fs::write(path("one.understudy-map"), "").unwrap();
    assert_eq!(kinds(Start::Unprotected), copied);
}

#[test]
fn taps_take_over_checksums_unless_told_otherwise_and_sockets_never() {
    let backend = |rest: &str| {
        let text = format!(r#"{{"network-interfaces": [{{"iface_id": "net0", {rest}}}]}}"#);
        read(&text).map(|(config, _)| config.machine.net[0].backend.clone())
    };
    for rest in [
        r#""host_dev_name": "tap0""#,
        r#""host_dev_name": "tap0", "offload": true"#,
    ] {
        assert!(matches!(backend(rest), Ok(NetBackend::Tap(name)) if name == "tap0"));
    }
    let without = backend(r#""host_dev_name": "tap0", "offload": false"#);
    assert!(matches!(without, Ok(NetBackend::PlainTap(name)) if name == "tap0"));
    let socket = backend(r#""socket_path": "/s""#);
    assert!(matches!(socket, Ok(NetBackend::Socket(_))));
    for (rest, key) in [
        (
            r#""socket_path": "/s", "offload": true"#,
            "network-interfaces.net0.offload: ",
        ),
        (
            r#""offload": true"#,
            "network-interfaces.net0.host_dev_name: ",
        ),
        (
            r#""host_dev_name": "tap0", "guest_mac": "1:2""#,
            "network-interfaces.net0.guest_mac: \"1:2\"",
        ),
    ] {
        let error = backend(rest).unwrap_err().to_string();
        assert!(error.starts_with(key), "{error}");
    }
}

#[test]
fn taps_are_watched_unless_told_otherwise_and_sockets_never() {
    let watched = |rest: &str| {
        let text = format!(r#"{{"network-interfaces": [{{"iface_id": "net0", {rest}}}]}}"#);
        let networks = read(&text).unwrap().0.networks;
        let watched = networks.first().and_then(GuestNetwork::watched);
        watched.map(|it| (it.tap, it.on_cut))
    };
    let tap = Some(("tap0".to_owned(), OnCut::Handover));
    assert_eq!(watched(r#""host_dev_name": "tap0""#), tap);
    let tap = Some(("tap0".to_owned(), OnCut::Report));
    assert_eq!(
        watched(r#""host_dev_name": "tap0", "on_cut": "report""#),
        tap
    );
    assert_eq!(
        watched(r#""host_dev_name": "tap0", "on_cut": "ignore""#),
        None
    );
    assert_eq!(watched(r#""socket_path": "/s""#), None);
}

#[test]
fn mac_addresses_are_parsed_strictly() {
    let right = Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    assert_eq!(parse_mac("52:54:00:12:34:56"), right);
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
fn only_a_taps_network_has_ping_targets() {
    let net = r#"{"network-interfaces": [{"iface_id": "n", "socket_path": "/s", "ping": ["192.0.2.1"]}]}"#;
    let error = refused(net);
    assert!(error.starts_with("network-interfaces.n.ping: "), "{error}");
}
