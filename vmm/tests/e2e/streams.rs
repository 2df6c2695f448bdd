//! Standard output and standard error that are full or closed: an error at most, and never a panic.

use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::{Quiet, binary, turn, wait_for};

/// A file system without room.
fn full() -> Stdio {
    OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap()
        .into()
}

/// A pipe that nobody reads any more.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn output(arguments: &[&str], stdout: Stdio, stderr: Stdio) -> Output {
    let child = Command::new(binary())
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn();
    child.unwrap().wait_with_output().unwrap()
}

/// What is printed is all that the command is for: that it cannot be printed is its failure.
fn fails_to_print(arguments: &[&str]) {
    for (stdout, why) in [(full(), "No space left"), (closed(), "Broken pipe")] {
        let output = output(arguments, stdout, Stdio::piped());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
        let expected = format!("vmm: cannot write to standard output: {why}");
        assert!(errors.contains(&expected), "{arguments:?}: {errors}");
        assert!(!errors.contains("panicked"), "{arguments:?}: {errors}");
    }
}

/// Nobody hears what goes wrong; the exit code says so all the same.
fn ends_unheard(code: i32, arguments: &[&str]) {
    for stderr in [full(), closed()] {
        let output = output(arguments, Stdio::null(), stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
}

fn control(path: &Path) -> [&str; 2] {
    ["--control", path.to_str().unwrap()]
}

#[test]
fn commands_that_look_say_that_they_cannot_print() {
    let _turn = turn();
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["run", "--help"],
        &["check"],
        &["check", "--json"],
    ] {
        fails_to_print(arguments);
    }
    let hosts = Quiet::new();
    let (primary, standby) = hosts.start_protected();
    for command in [
        &["status"][..],
        &["status", "--json"],
        &["events"],
        &["events", "--json"],
    ] {
        fails_to_print(&[command, &control(primary.control())].concat());
    }
    // What these do is done before they say so.
    for (command, host) in [
        ("power-button", &primary),
        ("failover", &standby),
        ("stop", &standby),
    ] {
        let arguments = [&[command][..], &control(host.control())].concat();
        let output = output(&arguments, full(), Stdio::piped());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            errors.contains("cannot write to standard output"),
            "{command}: {errors}"
        );
        assert!(!errors.contains("panicked"), "{command}: {errors}");
        if command == "failover" {
            wait_for("promoted standby", || {
                standby.status().filter(|status| status.failover.is_some())
            });
        }
    }
}

#[test]
fn the_demo_says_that_it_cannot_print() {
    let _turn = turn();
    let small = [
        "demo",
        "--seconds",
        "2",
        "--clients",
        "1",
        "--memory-mib",
        "64",
    ];
    let output = output(&small, full(), Stdio::piped());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(
        errors.contains("cannot write to standard output"),
        "{errors}"
    );
    assert!(!errors.contains("panicked"), "{errors}");
}

#[test]
fn errors_that_nobody_takes_are_no_panics() {
    ends_unheard(2, &["fly"]);
    ends_unheard(1, &["status", "--control", "/nonexistent/control"]);
    ends_unheard(1, &["primary"]);
    ends_unheard(1, &["run", "--kernel", "/nonexistent/kernel"]);
}

/// A host whose logs lie on a full file system does not lose its guest for that.
#[test]
fn a_guest_lives_although_its_log_cannot_be_written() {
    let _turn = turn();
    let hosts = Quiet::new();
    let arbiter = hosts.path("arbiter").display().to_string();
    let guest = [
        "--console",
        "none",
        "--memory-mib",
        "64",
        "--cmdline",
        "workload=idle exit_after_ms=1",
    ];
    ends_unheard(0, &[&["run"][..], &guest].concat());
    ends_unheard(
        0,
        &[&["primary", "--arbiter", &arbiter][..], &guest].concat(),
    );
}

/// A console on a full file system is no reason to end, and `vmm status` tells of it.
#[test]
fn console_output_that_is_lost_is_told() {
    let _turn = turn();
    let hosts = Quiet::new();
    let control = hosts.path("control");
    let mut vmm = Command::new(binary())
        .args([
            "run",
            "--memory-mib",
            "64",
            "--cmdline",
            "workload=idle",
            "--control",
        ])
        .arg(&control)
        .stdout(closed())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let control = control.display().to_string();
    let text = wait_for("a loss", || {
        let output = output(
            &["status", "--control", &control],
            Stdio::piped(),
            Stdio::null(),
        );
        let text = String::from_utf8(output.stdout).unwrap();
        text.contains("bytes of the console LOST").then_some(text)
    });
    assert!(text.contains("unprotected run"), "{text}");
    output(
        &["stop", "--control", &control],
        Stdio::null(),
        Stdio::null(),
    );
    assert!(vmm.wait().unwrap().success());
}
