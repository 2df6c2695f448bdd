use super::*;

fn read(text: &str) -> Result<Config, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.json");
    std::fs::write(&path, text).unwrap();
    Config::read(&path)
}

#[test]
fn firecracker_names_and_the_replication_section_are_read() {
    let config = read(
        r#"{
            "boot-source": {"kernel_image_path": "/boot/guest", "initrd_path": "/boot/initrd",
                            "boot_args": "workload=idle"},
            "machine-config": {"vcpu_count": 2, "mem_size_mib": 512},
            "drives": [],
            "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0"}],
            "entropy": {},
            "replication": {"vm": "web", "backup": "tcp:10.0.0.2:7000", "epoch_ms": 10}
        }"#,
    )
    .unwrap();
    assert_eq!(config.machine_config.vcpu_count, Some(2));
    assert_eq!(
        config.boot_source.initrd_path.as_deref(),
        Some(Path::new("/boot/initrd"))
    );
    assert_eq!(
        config.network_interfaces[0].host_dev_name.as_deref(),
        Some("tap0")
    );
    assert_eq!(
        config.replication.policy().unwrap().epoch_interval,
        Duration::from_millis(10)
    );
    assert!(config.replication.backup_endpoint().unwrap().is_some());
}

#[test]
fn unknown_keys_are_named() {
    for text in [
        r#"{"machine-config": {"vcpus": 2}}"#,
        r#"{"replicatoin": {}}"#,
        r#"{"replication": {"epochms": 2}}"#,
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains("unknown field"), "{error}");
    }
}

#[test]
fn drives_have_firecrackers_names() {
    let config = read(
        r#"{"drives": [
            {"drive_id": "root", "path_on_host": "/a", "is_root_device": true, "is_read_only": true},
            {"drive_id": "data", "path_on_host": "/b"}
        ]}"#,
    )
    .unwrap();
    let [root, data] = &config.drives[..] else {
        panic!("two drives: {:?}", config.drives);
    };
    assert!(root.is_root_device && root.is_read_only);
    assert!(!data.is_root_device && !data.is_read_only);
    assert_eq!(data.path_on_host, Path::new("/b"));
    let error = read(r#"{"drives": [{"drive_id": "a", "path_on_host": "/a", "rate": 1}]}"#);
    assert!(error.unwrap_err().to_string().contains("unknown field"));
}

#[test]
fn what_follows_from_what_is_read_or_explained() {
    let config = read(
        r#"{"machine-config": {"on_reboot": "exit", "on_panic": "restart"}, "watchdog": {"action": "poweroff"}}"#,
    )
    .unwrap();
    assert_eq!(config.machine_config.on_reboot, Some(OnReboot::Exit));
    assert_eq!(config.machine_config.on_panic, Some(OnPanic::Restart));
    assert_eq!(config.watchdog.unwrap().action, OnWatchdog::Poweroff);
    let config = read(r#"{"watchdog": {}}"#).unwrap();
    assert_eq!(config.watchdog.unwrap().action, OnWatchdog::Reset);
    for (text, words) in [
        (
            r#"{"machine-config": {"on_reboot": "halt"}}"#,
            "`restart` or `exit`",
        ),
        (
            r#"{"machine-config": {"on_panic": "halt"}}"#,
            "`report`, `restart`, `exit`",
        ),
        (
            r#"{"watchdog": {"action": "halt"}}"#,
            "`reset`, `poweroff`, `none`",
        ),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn drives_say_how_they_are_copied() {
    let drives = |drives: &str| read(&format!(r#"{{"drives": [{drives}]}}"#)).unwrap();
    let config = drives(
        r#"{"drive_id": "a", "path_on_host": "/a"},
           {"drive_id": "b", "path_on_host": "/b", "replication": "shared"},
           {"drive_id": "c", "path_on_host": "/dev/c", "replication": "replicated", "map_path": "/c.map"},
           {"drive_id": "d", "path_on_host": "/d", "is_read_only": true}"#,
    );
    config.check_drives().unwrap();
    let replicated: Vec<bool> = config.drives.iter().map(Drive::is_replicated).collect();
    assert_eq!(replicated, [true, false, true, false]);
    let [a, _, c, _] = &config.drives[..] else {
        panic!("four drives");
    };
    assert_eq!(a.map_path(), Path::new("/a.understudy-map"));
    assert_eq!(a.journal_path(), Path::new("/a.understudy-journal"));
    assert_eq!(c.map_path(), Path::new("/c.map"));
    assert_eq!(c.journal_path(), Path::new("/c.map.understudy-journal"));
    for (drive, key) in [
        (
            r#"{"drive_id": "a", "path_on_host": "/a", "is_read_only": true, "replication": "shared"}"#,
            "drives.a.replication:",
        ),
        (
            r#"{"drive_id": "a", "path_on_host": "/a", "replication": "shared", "map_path": "/m"}"#,
            "drives.a.map_path:",
        ),
    ] {
        let text = drives(drive).check_drives().unwrap_err().to_string();
        assert!(text.starts_with(key), "{text}");
    }
    let wrong =
        read(r#"{"drives": [{"drive_id": "a", "path_on_host": "/a", "replication": "both"}]}"#);
    assert!(wrong.unwrap_err().to_string().contains("`shared`"));
}

#[test]
fn values_out_of_range_name_key_and_range() {
    let config = read(r#"{"replication": {"epoch_ms": 0}}"#).unwrap();
    let error = config.replication.policy().unwrap_err().to_string();
    assert_eq!(error, "replication.epoch_ms: 0 is not in 1..=10000 ms");
    let config = read(r#"{"replication": {"disk_journal_mib": 64, "disk_log_mib": 4}}"#).unwrap();
    let error = config.check_drives().unwrap_err().to_string();
    assert_eq!(error, "replication.disk_log_mib: 4 is not in 8..=4096 MiB");
    let config = read(r#"{"replication": {"timeout_ms": 30}}"#).unwrap();
    let error = config.replication.policy().unwrap_err().to_string();
    assert!(error.contains("three heartbeats"), "{error}");
}

#[test]
fn a_missing_file_is_named() {
    let error = Config::read(Path::new("/nonexistent/vm.json"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("/nonexistent/vm.json"), "{error}");
}
