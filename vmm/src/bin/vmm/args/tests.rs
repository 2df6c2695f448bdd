//! The command line, parsed and loaded as `vmm` does it.

use clap::CommandFactory;
use understudy_vmm::config::OnCut;
use understudy_vmm::machine::{DriveKind, NetBackend, OnError};

use super::*;

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

fn loaded(arguments: &[&str]) -> Result<Config> {
    let all = ["vmm", "primary"].iter().chain(arguments);
    match Cli::try_parse_from(all).unwrap().command {
        Command::Primary(arguments) => arguments.load(),
        other => panic!("parsed {other:?}"),
    }
}

#[test]
fn flags_override_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("vm.json");
    let text = r#"{"machine-config": {"vcpu_count": 2, "mem_size_mib": 64},
                   "replication": {"epoch_ms": 50}}"#;
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    let config = loaded(&["--config", path, "--memory-mib", "128", "--vcpus", "3"]).unwrap();
    assert_eq!(config.machine.vcpus, 3);
    assert_eq!(config.machine.memory_mib, 128);
    let epoch = config.replication.policy.epoch_interval;
    assert_eq!(epoch.as_millis(), 50);
}

#[test]
fn what_follows_from_what_is_parsed_or_explained() {
    let config = loaded(&[
        "--on-reboot",
        "exit",
        "--on-panic",
        "restart",
        "--watchdog",
        "none",
    ])
    .unwrap();
    assert_eq!(config.on_reboot, OnReboot::Exit);
    assert_eq!(config.machine.on_panic, OnPanic::Restart);
    assert_eq!(config.machine.watchdog, Some(OnWatchdog::None));
    assert!(loaded(&[]).unwrap().machine.watchdog.is_none());
    for (flag, words) in [
        ("--on-reboot", "restart, exit"),
        ("--on-panic", "report, restart, exit"),
        ("--watchdog", "reset, poweroff, none"),
    ] {
        let error = Cli::try_parse_from(["vmm", "run", flag, "halt"]).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn interfaces_and_heartbeats_are_parsed_or_explained() {
    let config = loaded(&[
        "--net",
        "tap=tap0,mac=52:54:00:00:00:01,offload=off",
        "--heartbeat",
        "10.0.0.1:7001=10.0.0.2:7001",
    ])
    .unwrap();
    let interface = &config.machine.net[0];
    assert!(matches!(&interface.backend, NetBackend::PlainTap(name) if name == "tap0"));
    assert_eq!(interface.mac[5], 1);
    assert_eq!(config.replication.heartbeat.unwrap().peer.port(), 7001);
    let config = loaded(&["--net", "tap=tap0,on-cut=report"]).unwrap();
    assert_eq!(config.networks[0].on_cut, OnCut::Report);
    let config = loaded(&["--net", "tap=tap0,ping=192.0.2.1+2001:db8::1"]).unwrap();
    let targets: Vec<String> = (config.networks[0].ping.iter())
        .map(|target| target.to_string())
        .collect();
    assert_eq!(targets, ["192.0.2.1", "2001:db8::1"]);
    let error = loaded(&["--net", "tap=a,ping=gateway"]).unwrap_err();
    assert!(error.to_string().contains("IPv4 or IPv6"), "{error}");
    let error = loaded(&["--net", "tap=a,on-cut=stop"]).unwrap_err();
    assert!(error.to_string().contains("handover, report"), "{error}");
    let error = loaded(&["--net", "tapp=tap0"]).unwrap_err().to_string();
    assert!(error.contains("tap=NAME"), "{error}");
    for twice in [
        "tap=a,tap=b",
        "tap=a,offload=on,offload=off",
        "tap=a,id=a,id=b",
        "tap=a,on-cut=report,on-cut=ignore",
        "tap=a,ping=192.0.2.1,ping=192.0.2.2",
    ] {
        let error = loaded(&["--net", twice]).unwrap_err().to_string();
        assert!(error.contains("says twice"), "{error}");
    }
    let error = loaded(&["--heartbeat", "7001"]).unwrap_err().to_string();
    assert!(error.contains("LOCAL_ADDRESS"), "{error}");
}

#[test]
fn drives_are_parsed_or_explained() {
    let config = loaded(&[
        "--drive",
        "path=/a,readonly",
        "--drive",
        "id=data,path=/b=c",
        "--drive",
        "path=/d,shared,on-error=wait",
        "--drive",
        "path=/dev/e,replicated,map=/e",
    ])
    .unwrap();
    let [first, second, third, fourth] = &config.machine.drives[..] else {
        panic!("four drives: {:?}", config.machine.drives);
    };
    let replicated = DriveKind::Copied(DiskMode::Replicated);
    assert_eq!((&*first.id, first.kind), ("disk0", DriveKind::ReadOnly));
    assert_eq!((&*second.id, second.kind), ("data", replicated));
    assert_eq!(second.path, std::path::Path::new("/b=c"));
    assert_eq!(third.kind, DriveKind::Copied(DiskMode::Shared));
    let on_error = [first, third].map(|drive| drive.on_error);
    assert_eq!(on_error, [OnError::Handover, OnError::Wait]);
    assert_eq!(fourth.kind, replicated);
    assert_eq!(fourth.map_path, std::path::Path::new("/e"));
    for spec in ["readonly", "/a", "path=", "path=/a,ro", "path=/a,map="] {
        let error = loaded(&["--drive", spec]).unwrap_err().to_string();
        assert!(error.contains("path=FILE"), "{error}");
    }
    let error = loaded(&["--drive", "path=/a,on-error=stop"]).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("handover, report, wait"), "{error}");
    let error = loaded(&["--drive", "path=/a,readonly,shared"]).unwrap_err();
    assert!(error.to_string().contains("disk0.replication"), "{error}");
}

/// The table of keys names flags that there are, and the help of a flag is what it says.
#[test]
fn every_flag_of_the_table_of_keys_is_there() {
    let command = Cli::command();
    let primary = command.find_subcommand("primary").unwrap();
    for key in keys::KEYS {
        let Some(flag) = key.flag else { continue };
        let name = flag.strip_prefix("--").unwrap();
        let mut all = primary.get_arguments();
        assert!(
            all.any(|argument| argument.get_long() == Some(name)),
            "{}: there is no {flag}",
            key.path
        );
    }
}
