//! Files and flags to a validated configuration, key by key.

mod contradictions;
mod devices;
mod firecracker;
mod table;

use std::path::Path;

use super::*;
use crate::machine::{OnPanic, OnWatchdog, Start};

/// What a file with this text comes to.
fn read(text: &str) -> Result<(Config, Ignored), ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.json");
    std::fs::write(&path, text).unwrap();
    Config::load(Some(&path), ConfigFile::default())
}

fn config(text: &str) -> Config {
    let (config, ignored) = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    assert!(ignored.is_empty(), "{ignored}");
    config
}

fn refused(text: &str) -> String {
    match read(text) {
        Ok(_) => panic!("{text} is taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn firecracker_names_and_the_replication_section_are_read() {
    let config = config(
        r#"{
            "boot-source": {"kernel_image_path": "/boot/guest", "initrd_path": "/boot/initrd",
                            "boot_args": "workload=idle"},
            "machine-config": {"vcpu_count": 2, "mem_size_mib": 512},
            "drives": [],
            "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0"}],
            "entropy": {},
            "replication": {"vm": "web", "backup": "tcp:10.0.0.2:7000", "epoch_ms": 10}
        }"#,
    );
    assert_eq!(config.machine.vcpus, 2);
    assert_eq!(config.machine.memory_mib, 512);
    assert!(matches!(&config.machine.kernel, Some(Kernel::Path(path)) if path == "/boot/guest"));
    assert_eq!(
        config.machine.initrd.as_deref(),
        Some(Path::new("/boot/initrd"))
    );
    assert!(config.machine.rng);
    let policy = config.replication.policy;
    assert_eq!(policy.epoch_interval, Duration::from_millis(10));
    assert!(config.replication.backup.is_some());
    assert_eq!(config.vm, "web");
}

#[test]
fn what_is_not_said_is_what_the_rooms_have() {
    let config = config("{}");
    let machine = MachineConfig::default();
    assert_eq!(config.machine.vcpus, machine.vcpus);
    assert_eq!(config.machine.memory_mib, machine.memory_mib);
    assert_eq!(config.machine.disk_limits, DiskLimits::default());
    assert_eq!(config.replication.policy, Policy::default());
    assert!(config.machine.cmdline.starts_with("workload="));
    assert!(!config.node.is_empty());
    assert!(!config.machine.rng);
}

#[test]
fn unknown_keys_are_named_with_those_there_are() {
    for (text, key, known) in [
        (
            r#"{"machine-config": {"vcpus": 2}}"#,
            "`machine-config.vcpus`",
            "`vcpu_count`",
        ),
        (r#"{"replicatoin": {}}"#, "`replicatoin`", "`replication`"),
        (
            r#"{"replication": {"epochms": 2}}"#,
            "`replication.epochms`",
            "`epoch_ms`",
        ),
        (
            r#"{"drives": [{"drive_id": "a", "rate": 1}]}"#,
            "`drives[0].rate`",
            "`path_on_host`",
        ),
        (
            r#"{"replication": {"heartbeat": {"lsten": 1}}}"#,
            "heartbeat.lsten",
            "`peer`",
        ),
    ] {
        let error = refused(text);
        for part in [key, known, "vm.json"] {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn what_follows_from_what_is_read_or_explained() {
    let text = r#"{"machine-config": {"on_reboot": "exit", "on_panic": "restart"}, "watchdog": {"action": "poweroff"}}"#;
    let all = config(text);
    assert_eq!(all.on_reboot, OnReboot::Exit);
    assert_eq!(all.machine.on_panic, OnPanic::Restart);
    assert_eq!(all.machine.watchdog, Some(OnWatchdog::Poweroff));
    let default = config(r#"{"watchdog": {}}"#);
    assert_eq!(default.machine.watchdog, Some(OnWatchdog::Reset));
    assert_eq!(config("{}").machine.watchdog, None);
}

#[test]
fn storage_has_more_time_where_silence_has() {
    let timeout = |section: &str| {
        let drives = r#"[{"drive_id": "a", "path_on_host": "/a"}]"#;
        let text = format!(r#"{{"replication": {section}, "drives": {drives}}}"#);
        let config = config(&text);
        let machine = config.machine(Start::Primary).unwrap();
        let timeout = config.replication.policy.storage_timeout;
        assert_eq!(machine.drives[0].stalls_after, timeout);
        timeout.as_millis()
    };
    assert_eq!(timeout("{}"), 600);
    assert_eq!(timeout(r#"{"timeout_ms": 1000}"#), 4000);
    let both = r#"{"timeout_ms": 1000, "storage_timeout_ms": 700}"#;
    assert_eq!(timeout(both), 700);
}

#[test]
fn time_outs_leave_room_for_lost_packets() {
    let error = refused(r#"{"replication": {"timeout_ms": 20}}"#);
    for part in [
        "replication.timeout_ms: 20 ms",
        "three heartbeats",
        "at least 30",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_standby_reboots_only_what_it_was_told_is_the_guest() {
    let kernel = |text: &str, start| config(text).machine(start).unwrap().kernel;
    assert!(kernel("{}", Start::Primary).is_some());
    assert!(kernel("{}", Start::Unprotected).is_some());
    assert!(kernel("{}", Start::Standby).is_none());
    let told = r#"{"boot-source": {"kernel_image_path": "builtin"}}"#;
    assert!(kernel(told, Start::Standby).is_some());
}

#[test]
fn devices_are_on_the_command_line_only_of_what_reads_no_acpi() {
    let discovery = |text: &str| config(text).machine.discovery;
    assert_eq!(discovery("{}"), Discovery::CommandLine);
    let with = |kernel: &str, args: &str| {
        discovery(&format!(
            r#"{{"boot-source": {{"kernel_image_path": "{kernel}", "boot_args": "{args}"}}}}"#
        ))
    };
    let linux = env!("CARGO_MANIFEST_DIR").to_owned() + "/Cargo.toml";
    assert_eq!(with("builtin", "workload=echo"), Discovery::CommandLine);
    assert_eq!(with(&linux, "console=ttyS0 noacpi=off"), Discovery::Acpi);
    assert_eq!(with(&linux, "acpi=off quiet"), Discovery::CommandLine);
}

#[test]
fn an_initramfs_needs_a_kernel() {
    let error = refused(r#"{"boot-source": {"initrd_path": "/boot/initrd"}}"#);
    assert!(error.contains("boot-source.initrd_path"), "{error}");
}

#[test]
fn wrong_guest_options_are_found_before_booting() {
    let error = refused(r#"{"boot-source": {"boot_args": "workload=stream wrkload=idle"}}"#);
    assert!(error.contains("boot-source.boot_args"), "{error}");
}

#[test]
fn a_file_that_cannot_be_had_is_named() {
    let load = |path: &Path| Config::load(Some(path), ConfigFile::default());
    let error = load(Path::new("/nonexistent/vm.json")).unwrap_err();
    assert!(
        error.to_string().contains("/nonexistent/vm.json"),
        "{error}"
    );
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("large.json");
    std::fs::write(&path, vec![b' '; file::FILE_BYTES_MAX as usize + 1]).unwrap();
    let error = load(&path).unwrap_err().to_string();
    assert!(
        error.contains("large.json") && error.contains("at most"),
        "{error}"
    );
    let error = refused("{\n\"drives\": [}");
    assert!(
        error.contains("no JSON") && error.contains("line 2"),
        "{error}"
    );
}
