//! Hosts that lack something: no KVM, no permission, addresses and sockets in use, storage that cannot
//! be written. What must be hidden is hidden in a mount namespace of the one process.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::{Quiet, binary, turn, vmm, vmm_says};

/// Runs `vmm` after `prepare` in a mount namespace of its own.
fn vmm_after(prepare: &str, arguments: &[&str]) -> Output {
    let script = format!("{prepare} && exec \"$0\" \"$@\"");
    Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .arg(binary())
        .args(arguments)
        .output()
        .unwrap()
}

fn assert_fails(output: &Output, texts: &[&str]) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    for text in texts {
        assert!(errors.contains(text), "no {text:?} in {errors}");
    }
    assert!(!errors.contains("panicked"), "{errors}");
    let messages = errors.lines().filter(|line| line.starts_with("vmm: "));
    assert_eq!(messages.count(), 1, "{errors}");
}

/// Leaves nothing of /dev but what any program needs.
const NO_KVM: &str = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3";

#[test]
fn a_host_without_kvm_is_told_what_to_do() {
    let advice = ["/dev/kvm does not exist", "modprobe kvm", "firmware"];
    assert_fails(&vmm_after(NO_KVM, &["run"]), &advice);
    let output = vmm_after(NO_KVM, &["check"]);
    assert_fails(&output, &["cannot run guests"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("NO  /dev/kvm"), "{text}");
    assert!(text.contains("modprobe kvm"), "{text}");
    let output = vmm_after(NO_KVM, &["check", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["fit"], false);
    assert_fails(&vmm_after(NO_KVM, &["demo"]), &["/dev/kvm does not exist"]);
}

#[test]
fn a_user_who_may_not_open_kvm_is_told_what_to_do() {
    let refused = |owner: &str, group: &str, mode: &str, texts: &[&str]| {
        let node = format!(
            "{NO_KVM} && mknod -m {mode} /dev/kvm c 10 232 && chown {owner}:{group} /dev/kvm && chmod 755 /dev"
        );
        let nobody = "exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\" run";
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", &format!("{node} && {nobody}")])
            .arg(binary())
            .output()
            .unwrap();
        assert_fails(
            &output,
            &[&["no permission to open /dev/kvm"][..], texts].concat(),
        );
        String::from_utf8(output.stderr).unwrap()
    };
    refused(
        "0",
        "disk",
        "660",
        &["usermod -aG disk $USER", "log in again"],
    );
    // Where the group may not open it either, to be in the group does not help.
    for (group, mode) in [("disk", "600"), ("root", "660")] {
        let errors = refused("0", group, mode, &["chmod 660 /dev/kvm", "udev"]);
        assert!(!errors.contains("usermod"), "{errors}");
    }
}

#[test]
fn a_usable_host_is_said_to_be_one() {
    let _turn = turn();
    let text = vmm_says(&["check"]);
    assert!(text.contains(" yes  "), "{text}");
    assert!(text.contains("can run and protect guests"), "{text}");
    let json: Value = serde_json::from_str(&vmm_says(&["check", "--json"])).unwrap();
    assert_eq!(json["fit"], true);
    let findings = json["findings"].as_array().unwrap();
    assert!(findings.len() > 5, "{json}");
    for finding in findings {
        let text = |key: &str| finding[key].as_str().unwrap().to_owned();
        assert!(!text("name").is_empty() && !text("meaning").is_empty());
        assert_eq!(
            finding["have"] == false,
            !text("advice").is_empty(),
            "{finding}: advice where something is missing, and only there"
        );
    }
}

#[test]
fn addresses_and_sockets_in_use_are_named() {
    let _turn = turn();
    let hosts = Quiet::new();
    let arbiter = hosts.path("arbiter").display().to_string();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let usual = [
        "--arbiter",
        &arbiter,
        "--console",
        "none",
        "--memory-mib",
        "64",
    ];
    let with = |side: &'static str, further: &[&str]| {
        let mut arguments = vec![side];
        arguments.extend(usual);
        arguments.extend(further);
        vmm(&arguments)
    };
    assert_fails(
        &with("standby", &["--listen", &address]),
        &[&address, "another process is listening"],
    );
    let beats = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = beats.local_addr().unwrap().to_string();
    let heartbeat = format!("{address}=127.0.0.1:9");
    let texts = [&*address, "heartbeats", "in use"];
    assert_fails(&with("primary", &["--heartbeat", &heartbeat]), &texts);
    let standby = ["--listen", "127.0.0.1:0", "--heartbeat", &heartbeat];
    assert_fails(&with("standby", &standby), &texts);

    let control = hosts.path("control").display().to_string();
    let _served = UnixListener::bind(&control).unwrap();
    let texts = [&*control, "in use by a running vmm", "--control"];
    assert_fails(&with("primary", &["--control", &control]), &texts);
    let first = hosts.path("arbiter").join("1");
    assert!(!first.exists(), "the guest was claimed");
    let standby = ["--listen", "127.0.0.1:0", "--control", &control];
    assert_fails(&with("standby", &standby), &texts);
}

#[test]
fn an_arbiter_on_read_only_storage_is_refused_at_the_start() {
    let hosts = Quiet::new();
    let directory = hosts.directory.path().display().to_string();
    let arbiter = hosts.path("arbiter").display().to_string();
    let prepare = format!(
        "mount --bind '{directory}' '{directory}' && mount -o remount,bind,ro '{directory}'"
    );
    for side in [["standby", "--listen"], ["primary", "--backup"]] {
        let arguments = [side[0], side[1], "127.0.0.1:9", "--arbiter", &arbiter];
        let output = vmm_after(&prepare, &arguments);
        assert_fails(&output, &[&arbiter, "Read-only file system"]);
    }
}

#[test]
fn a_guest_that_runs_is_not_started_twice() {
    let _turn = turn();
    let hosts = Quiet::new();
    let mut primary = hosts.start_primary("primary", &[]);
    primary
        .await_status("running", crate::support::DEADLINE, |_| true)
        .unwrap();
    let arbiter = hosts.path("arbiter").display().to_string();
    let output = vmm(&["primary", "--arbiter", &arbiter, "--console", "none"]);
    assert_fails(
        &output,
        &[
            "belongs to primary",
            "which is alive",
            "stop it first",
            "standby",
        ],
    );
}
