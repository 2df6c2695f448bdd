//! `vmm run` with a control socket: its status, and the ways to end it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;

use serde_json::Value;
use understudy_vmm::control::VERSION;
use understudy_vmm::local_cluster::VmmProcess;

use crate::support::{self, DEADLINE, Quiet, binary, turn, wait_for};

fn start(hosts: &Quiet, further: &[&str]) -> VmmProcess {
    let mut arguments = vec!["run", "--memory-mib", "64", "--console", "none"];
    arguments.extend(further);
    let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    VmmProcess::start(&binary(), "alone", hosts.directory.path(), &arguments).unwrap()
}

/// Runs `vmm COMMAND` against `host`; returns exit code and all it said.
fn ask(host: &VmmProcess, command: &str, further: &[&str]) -> (Option<i32>, String) {
    let output = support::ask(host, command, further);
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

fn await_up(host: &VmmProcess) -> String {
    wait_for("a status of the guest", || {
        let (code, text) = ask(host, "status", &[]);
        (code == Some(0)).then_some(text)
    })
}

#[test]
fn the_status_tells_of_an_unprotected_run_its_disks_and_restarts() {
    let _turn = turn();
    let hosts = Quiet::new();
    let image = |name: &str| {
        let path = hosts.path(name);
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        format!("path={},id={name}", path.display())
    };
    let (first, second) = (image("first"), image("second") + ",readonly");
    let cmdline = "workload=idle reboot_after_ms=1";
    let further = ["--drive", &first, "--drive", &second, "--cmdline", cmdline];
    let mut host = start(&hosts, &further);
    let text = await_up(&host);
    assert!(text.starts_with("vm on "), "{text}");
    assert!(text.contains(": unprotected run\n"), "{text}");
    assert!(
        text.contains("local, 1.0 MiB, one image, no second copy"),
        "{text}"
    );
    assert!(text.contains("readonly, 1.0 MiB, never written"), "{text}");
    // It waits after a few reboots in a row, which is a thing to know.
    let text = wait_for("an alarm", || {
        let text = await_up(&host);
        text.contains("it has to wait").then_some(text)
    });
    assert!(text.contains("\n  restarts  "), "{text}");
    let json = support::says(&host, "status", &["--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["role"], "unprotected");
    assert_eq!(json["protected"], false);
    assert_eq!(json["disks"]["disks"][1]["mode"], "readonly");
    assert!(json["guest"]["restarts"].as_u64().unwrap() >= 3, "{json}");
    let (code, text) = ask(&host, "failover", &[]);
    assert_eq!(code, Some(1));
    assert!(text.contains("has no standby"), "{text}");
    let (code, text) = ask(&host, "stop", &[]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(host.await_exit(DEADLINE).unwrap().code(), Some(0));
    assert!(!host.control().exists(), "the socket is left behind");
}

#[test]
fn a_guest_that_does_not_hear_its_power_button_runs_on() {
    let _turn = turn();
    let hosts = Quiet::new();
    let mut host = start(&hosts, &["--cmdline", "workload=idle"]);
    await_up(&host);
    let (code, text) = ask(&host, "power-button", &[]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = ask(&host, "stop", &["--graceful", "--patience-s", "0"]);
    assert_eq!(code, Some(1), "{text}");
    for needed in ["within 0 s, and runs on", "button", "ends it at once"] {
        assert!(text.contains(needed), "{text}");
    }
    await_up(&host);
    ask(&host, "stop", &[]);
    assert_eq!(host.await_exit(DEADLINE).unwrap().code(), Some(0));
}

#[test]
fn a_graceful_stop_waits_for_the_end_of_the_guest() {
    let _turn = turn();
    let hosts = Quiet::new();
    let mut host = start(&hosts, &["--cmdline", "workload=idle exit_after_ms=1500"]);
    await_up(&host);
    let (code, text) = ask(&host, "stop", &["--graceful"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("the guest has ended"), "{text}");
    assert_eq!(host.await_exit(DEADLINE).unwrap().code(), Some(0));
}

/// A guest that powers itself off the moment its button is pressed: then nobody is there to ask any more.
#[test]
fn a_graceful_stop_of_a_guest_that_ends_at_once_is_no_failure() {
    let hosts = Quiet::new();
    let control = hosts.path("control");
    let listener = UnixListener::bind(&control).unwrap();
    let path = control.clone();
    let vmm = std::thread::spawn(move || {
        let mut waiting = Vec::new();
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut question = String::new();
            stream.read_line(&mut question).unwrap();
            if question.contains("power-button") {
                std::fs::remove_file(&path).unwrap();
                let answer = format!("{{\"version\":{VERSION},\"ok\":null}}\n");
                return stream.get_mut().write_all(answer.as_bytes()).unwrap();
            }
            waiting.push(stream);
        }
    });
    let control = control.display().to_string();
    let output = support::vmm(&["stop", "--graceful", "--control", &control]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("the guest has ended"), "{text}");
    vmm.join().unwrap();
}
