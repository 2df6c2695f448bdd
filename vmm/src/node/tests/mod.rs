//! Nodes from outside; in this file, as far as they go without a machine.

mod broken;

use std::sync::mpsc::sync_channel;

use super::*;
use crate::config::OnSigterm;
use crate::machine::{OnPanic, OnReboot, OnWatchdog};

fn settings(machine: BuildMachine) -> NodeSettings {
    NodeSettings {
        vm: "web".into(),
        node: "host-a".into(),
        rules: Rules {
            on_sigterm: OnSigterm::Handover,
            on_reboot: OnReboot::Restart,
            on_panic: OnPanic::Report,
            on_watchdog: OnWatchdog::Reset,
        },
        machine,
        lacks: Vec::new(),
        networks: Vec::new(),
        start_as: StartAs::Unprotected {
            drives: Vec::new(),
            claims: None,
            start_over: false,
        },
        full_resync: false,
    }
}

fn await_end(node: &NodeHandle) -> Ended {
    let deadline = Instant::now() + Duration::from_secs(30);
    let standing = node.watch().wait_until(deadline, |now| now.ended.is_some());
    standing
        .and_then(|now| now.ended)
        .expect("nobody is told of the end")
}

#[test]
fn a_node_denies_all_while_it_starts_and_tells_by_all_ways_that_it_could_not() {
    let (release, released) = sync_channel::<()>(1);
    let node = Node::start(settings(Box::new(move |_| {
        released.recv().unwrap();
        Err("no machine, as ordered".into())
    })))
    .unwrap();
    let handle = node.handle();
    assert_eq!(handle.request(Request::Stop), Err(Denial::Starting));
    assert_eq!(handle.status().unwrap_err(), Denial::Starting);
    assert_eq!(handle.watch().now().role, Role::Starting);
    let mut subscription = handle.subscribe();
    release.send(()).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let what = "no machine, as ordered".to_owned();
    let ended = Ended::Failed { what };
    let event = subscription.next(deadline).expect("nothing happened");
    assert_eq!(event.what, EventKind::Ended(ended.clone()));
    assert_eq!(await_end(&handle), ended);
    assert_eq!(handle.request(Request::Stop), Err(Denial::Ended));
    let error = node.wait().unwrap_err();
    assert!(matches!(error, NodeError::Build(_)), "{error:?}");
    assert!(error.to_string().contains("as ordered"), "{error}");
}

#[test]
fn a_panic_of_the_nodes_thread_is_an_end_that_nobody_misses() {
    let node = Node::start(settings(Box::new(|_| panic!("as ordered")))).unwrap();
    let ended = await_end(&node.handle());
    assert!(matches!(ended, Ended::Failed { .. }), "{ended:?}");
    assert_eq!(node.handle().post(Request::Stop), Err(Denial::Ended));
    assert!(matches!(node.wait(), Err(NodeError::Panicked)));
}

#[test]
fn a_status_goes_over_the_wire_and_back() {
    let status = testing::unprotected().status().unwrap();
    let text = serde_json::to_string(&status).unwrap();
    for needed in [
        "\"role\":\"unprotected\"",
        "\"protected\":false",
        "\"uptime_s\":0",
        "\"gate\":{",
        "\"event\":\"role-began\"",
    ] {
        assert!(text.contains(needed), "no {needed} in {text}");
    }
    let back: NodeStatus = serde_json::from_str(&text).unwrap();
    assert_eq!(back, status);
}
