//! What `vmm` says before it runs anything: help, wrong usage, settings and images that are no good.

use std::path::Path;

use crate::support::vmm;

/// `vmm` must fail with `code` and one message that has all of `texts` in it.
fn fails(code: i32, arguments: &[&str], texts: &[&str]) {
    let output = vmm(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    for text in texts {
        assert!(
            errors.contains(text),
            "{arguments:?}: no {text:?} in {errors}"
        );
    }
    assert!(!errors.contains("panicked"), "{arguments:?}: {errors}");
    if code == 1 {
        let messages = errors.lines().filter(|line| line.starts_with("vmm: "));
        assert_eq!(messages.count(), 1, "{arguments:?}: {errors}");
    }
}

fn help(arguments: &[&str]) -> String {
    let output = vmm(arguments);
    assert!(output.status.success(), "{arguments:?}");
    // Words only: where lines are wrapped does not matter.
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn help_lists_every_command_and_shows_the_first_steps() {
    let text = help(&["--help"]);
    for needed in [
        "run Run a guest, unprotected",
        "primary Run a guest and protect it",
        "standby Keep a second copy",
        "status Show how",
        "failover Have the guest go on at the standby now",
        "stop Stop a running",
        "check Say what this host can",
        "demo Show a failover",
        "vmm standby --net tap=tap0 --listen",
        "vmm primary --net tap=tap0 --backup",
        "--drive path=web.disk on both hosts",
        "3 fenced",
        "UNDERSTUDY_LOG",
    ] {
        assert!(text.contains(needed), "no {needed:?} in {text}");
    }
}

#[test]
fn the_help_of_each_command_says_what_a_newcomer_needs() {
    for (command, needed) in [
        (
            "run",
            &["--kernel", "[default: builtin]", "--memory-mib", "tap=NAME"][..],
        ),
        (
            "primary",
            &[
                "The guest starts at once",
                "leaves only after the standby has the state",
                "storage that both hosts see",
                "HOST:PORT or unix:PATH",
                "each host has an image of its own",
                "both hosts reach one image",
                "--disk-journal",
            ],
        ),
        (
            "standby",
            &[
                "take over when its host dies",
                "same VM settings",
                "the guest can reboot there",
                "ADDRESS:PORT",
            ],
        ),
        ("status", &["--json", "--watch", "control socket"]),
        ("failover", &["the old primary is fenced", "--control"]),
        (
            "stop",
            &[
                "cleanly",
                "--control",
                "as if its power were cut",
                "--graceful",
            ],
        ),
        ("run", &["`vmm status`, `stop` and `power-button`"]),
        (
            "run",
            &[
                "restart` it in place",
                "says so by pvpanic",
                "when it does not feed it",
            ],
        ),
        (
            "power-button",
            &["asks it to shut itself down", "--control"],
        ),
        (
            "events",
            &[
                "what has happened",
                "--follow",
                "--json",
                "the backup is lost",
            ],
        ),
        ("check", &["what to do about it", "--json"]),
        (
            "demo",
            &["check every byte", "SIGKILL", "SIGSTOP", "--keep", "--disk"],
        ),
    ] {
        let text = help(&[command, "--help"]);
        for needed in needed {
            assert!(text.contains(needed), "{command}: no {needed:?} in {text}");
        }
    }
}

#[test]
fn wrong_usage_is_exit_code_2_and_shows_the_way() {
    fails(2, &[], &["Usage"]);
    fails(2, &["fly"], &["unrecognized subcommand 'fly'", "--help"]);
    fails(
        2,
        &["run", "--bogus"],
        &["unexpected argument '--bogus'", "Usage"],
    );
    fails(2, &["run", "--vcpus", "many"], &["'many'", "--vcpus"]);
    fails(2, &["status"], &["--control <PATH>"]);
    fails(2, &["demo", "--clients", "0"], &["1..=32"]);
}

#[test]
fn missing_and_malformed_settings_are_named_with_what_to_write() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let arbiter = path("arbiter");
    fails(1, &["primary"], &["--arbiter", "both hosts see"]);
    fails(
        1,
        &["standby", "--arbiter", &arbiter],
        &["--listen", "0.0.0.0:7000"],
    );
    fails(
        1,
        &["primary", "--arbiter", &arbiter, "--backup", "nowhere"],
        &["'nowhere'", "port is missing", "write HOST:PORT"],
    );
    fails(
        1,
        &["primary", "--arbiter", &arbiter, "--heartbeat", "7001"],
        &["--heartbeat", "LOCAL_ADDRESS:PORT=PEER_ADDRESS:PORT"],
    );
    fails(
        1,
        &["primary", "--arbiter", &arbiter, "--timeout-ms", "20"],
        &["timeout_ms", "three heartbeats"],
    );
    fails(
        1,
        &["primary", "--arbiter", "/nonexistent/arbiter"],
        &["/nonexistent/arbiter", "No such file"],
    );
    fails(1, &["run", "--net", "tap"], &["--net", "tap=NAME"]);
    fails(
        1,
        &["run", "--cmdline", "workload=strem"],
        &["boot-source.boot_args", "strem"],
    );
    fails(
        1,
        &["run", "--console", &directory.path().display().to_string()],
        &["console"],
    );
    fails(
        1,
        &["run", "--config", &path("none.json")],
        &["none.json", "No such file"],
    );
    std::fs::write(path("vm.json"), r#"{"machine-config": {"vcpus": 1}}"#).unwrap();
    fails(
        1,
        &["run", "--config", &path("vm.json")],
        &["vm.json", "`machine-config.vcpus`", "`vcpu_count`"],
    );
    fails(
        1,
        &["status", "--control", &path("none")],
        &["control socket", "none", "No such file"],
    );
}

#[test]
fn settings_that_make_no_sense_are_not_taken_in_silence() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let arbiter = path("arbiter");
    for (text, needed) in [
        (
            "[]",
            "all of it: invalid type: a list, […], expected a section",
        ),
        (
            r#"{"replication": {"vm": "a\nb"}}"#,
            "replication.vm: \"a\\nb\" has the character '\\n'",
        ),
        (
            r#"{"replication": {"node": ""}}"#,
            "replication.node: it is empty",
        ),
        (
            r#"{"replication": {"overhead_percent": 101}}"#,
            "replication.overhead_percent: 101 is too large; write 0 to 100",
        ),
    ] {
        std::fs::write(path("vm.json"), text).unwrap();
        fails(1, &["run", "--config", &path("vm.json")], &[needed]);
    }
    let same = ["--listen", "10.0.0.1:7000", "--backup", "10.0.0.1:7000"];
    fails(
        1,
        &[&["standby", "--arbiter", &arbiter][..], &same].concat(),
        &["replication.backup", "this host itself listens", "--backup"],
    );
    fails(
        1,
        &["primary", "--name", " "],
        &[
            "replication.vm: \" \" begins or ends with a blank",
            "--name",
        ],
    );
    fails(
        1,
        &["run", "--net", "tap=a,tap=b"],
        &["--net", "says twice"],
    );
    fails(
        1,
        &["standby", "--start-over"],
        &["--start-over is for a primary"],
    );
}

#[test]
fn images_that_cannot_be_booted_are_named_with_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let builtin = understudy_guest_images::BUILTIN;
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let run = |path: &Path, texts: &[&str]| {
        let path = path.display().to_string();
        let mut all = vec![path.as_str()];
        all.extend(texts);
        fails(1, &["run", "--console", "none", "--kernel", &path], &all);
    };
    run(
        &write("header", &builtin[..40]),
        &["truncated", "the ELF header"],
    );
    run(
        &write("half", &builtin[..builtin.len() / 2]),
        &["truncated", "ends at byte"],
    );
    run(
        &write("text", b"#!/bin/sh\n"),
        &["neither a bzImage nor an ELF file", "the text \"#!/bin/s\""],
    );
    run(
        &write("empty", b""),
        &["neither a bzImage nor an ELF file", "it is empty"],
    );
    run(Path::new("/bin/ls"), &["no kernel", "dynamic linker"]);
    let mut other = builtin.to_vec();
    other[18] = 183;
    run(&write("arm", &other), &["machine 183", "64-bit x86"]);
    run(&directory.path().join("none"), &["No such file"]);
    run(directory.path(), &["Is a directory"]);
    // Too large for the guest.
    let image = write("guest", builtin).display().to_string();
    fails(
        1,
        &["run", "--memory-mib", "2", "--kernel", &image],
        &[&image, "does not fit", "more memory"],
    );
}

#[test]
fn memory_and_vcpus_that_cannot_be_had_are_named_with_the_limits() {
    let memory = |mib: &str, texts: &[&str]| fails(1, &["run", "--memory-mib", mib], texts);
    for mib in ["0", "1", "1073741824", "18446744073709551615"] {
        memory(mib, &[mib, "2 to 1048576 MiB"]);
    }
    memory(
        "1048576",
        &["1048576 MiB", "available", "give the guest less"],
    );
    for count in ["0", "255", "65536"] {
        let needed = [count, "vcpu_count", "1 to 16", "--vcpus"];
        fails(1, &["run", "--vcpus", count], &needed);
    }
}

#[test]
fn drives_that_cannot_be_are_explained() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk");
    std::fs::write(&image, [0; 1000]).unwrap();
    let drive = format!("path={}", image.display());
    fails(
        1,
        &["run", "--drive", &drive],
        &["disk0", "1000 bytes", "512"],
    );
    let missing = ["run", "--drive", "path=/nonexistent/disk,id=data"];
    fails(1, &missing, &["data", "/nonexistent/disk", "truncate"]);
    let contradictory = format!("{drive},readonly,shared");
    for command in ["run", "primary", "standby"] {
        let needed = ["drives.disk0.replication", "same image"];
        fails(1, &[command, "--drive", &contradictory], &needed);
    }
}
