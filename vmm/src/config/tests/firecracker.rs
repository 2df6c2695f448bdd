//! Firecracker's own configuration files are taken as they are.

use super::*;
use crate::machine::Console;
use crate::vcpu::CpuTemplate;

const FILE: &str = r#"{
  "boot-source": {
    "kernel_image_path": "/srv/vmlinux",
    "boot_args": "console=ttyS0 reboot=k panic=1",
    "initrd_path": null
  },
  "drives": [
    {
      "drive_id": "rootfs", "path_on_host": "/srv/rootfs.ext4", "is_root_device": true, "is_read_only": false,
      "partuuid": null, "cache_type": "Writeback", "io_engine": "Sync", "socket": null,
      "rate_limiter": { "bandwidth": { "size": 1000000, "one_time_burst": null, "refill_time": 100 }, "ops": null }
    },
    {
      "drive_id": "data", "path_on_host": "/srv/data.img", "is_root_device": false, "is_read_only": true,
      "rate_limiter": null
    }
  ],
  "machine-config": {
    "vcpu_count": 2, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": true, "huge_pages": "None",
    "cpu_template": "T2"
  },
  "cpu-config": { "kvm_capabilities": ["!121"], "cpuid_modifiers": [], "msr_modifiers": [] },
  "balloon": { "amount_mib": 64, "deflate_on_oom": true, "stats_polling_interval_s": 5 },
  "network-interfaces": [
    {
      "iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "06:00:ac:10:00:02", "mtu": 1400,
      "rx_rate_limiter": { "ops": { "size": 100, "refill_time": 10 } }, "tx_rate_limiter": null
    }
  ],
  "vsock": { "guest_cid": 3, "uds_path": "/run/v.sock" },
  "logger": { "log_path": "/run/log", "level": "Info", "show_level": true, "show_log_origin": false },
  "metrics": { "metrics_path": "/run/metrics" },
  "mmds-config": { "version": "V2", "network_interfaces": ["eth0"], "ipv4_address": "169.254.169.254" },
  "entropy": { "rate_limiter": { "bandwidth": { "size": 1000, "refill_time": 100 } } },
  "pmem": [{ "id": "p", "path_on_host": "/srv/p", "root_device": false }],
  "memory-hotplug": null,
  "serial": { "serial_out_path": "/srv/console", "rate_limiter": { "size": 10, "refill_time": 1 } }
}"#;

#[test]
fn a_whole_file_is_taken_and_what_means_nothing_here_is_named_once() {
    let (config, ignored) = read(FILE).unwrap();
    let machine = config.machine;
    assert_eq!((machine.vcpus, machine.memory_mib), (2, 1024));
    assert_eq!(machine.cpu_template, CpuTemplate::Host);
    assert_eq!(
        machine.cmdline,
        "console=ttyS0 reboot=k panic=1 root=/dev/vda rw"
    );
    let names: Vec<&str> = machine.drives.iter().map(|drive| &*drive.id).collect();
    assert_eq!(names, ["rootfs", "data"]);
    assert_eq!(machine.net[0].mac, [6, 0, 0xac, 0x10, 0, 2]);
    assert!(machine.rng);
    assert!(matches!(&machine.console, Console::File(path) if path == "/srv/console"));
    let mut keys = ignored.keys().to_vec();
    keys.sort();
    assert_eq!(
        keys,
        [
            "balloon",
            "cpu-config",
            "drives[0].cache_type",
            "drives[0].io_engine",
            "drives[0].rate_limiter",
            "entropy.rate_limiter",
            "logger",
            "machine-config.cpu_template (T2)",
            "machine-config.huge_pages",
            "machine-config.smt",
            "machine-config.track_dirty_pages",
            "metrics",
            "mmds-config",
            "network-interfaces[0].mtu",
            "network-interfaces[0].rx_rate_limiter",
            "pmem",
            "serial.rate_limiter",
            "vsock",
        ]
    );
    let warning = ignored.to_string();
    assert!(warning.contains("balloon, cpu-config, "), "{warning}");
}

#[test]
fn no_template_is_no_reason_to_warn() {
    config(r#"{"machine-config": {"cpu_template": "None"}}"#);
}

/// A disk that is reached by vhost-user alone cannot be had: then a warning would not do.
#[test]
fn a_drive_without_an_image_is_refused() {
    let error =
        refused(r#"{"drives": [{"drive_id": "v", "socket": "/run/v", "path_on_host": null}]}"#);
    assert!(error.starts_with("drives.v.path_on_host: "), "{error}");
}
