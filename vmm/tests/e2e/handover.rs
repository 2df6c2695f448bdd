//! A primary that is to end, or is asked to, hands its guest over to the standby.

use crate::support::{DEADLINE, Quiet, TestCluster, await_code, is_denied, says, turn};

/// The guest goes on at the standby, and its clients lose nothing; the old primary ends well.
fn is_handed_over(ask: impl Fn(&TestCluster)) {
    let _turn = turn();
    let mut cluster = TestCluster::start();
    ask(&cluster);
    let log = await_code(&mut cluster.local.primary, 0);
    assert!(
        log.contains("handing the guest over to the standby"),
        "{log}"
    );
    let last = log.lines().last().unwrap();
    assert!(
        last.contains("the arbiter has given the guest to the standby"),
        "{log}"
    );
    let status = cluster.local.await_promotion(DEADLINE).unwrap();
    assert_eq!(status.generation, 2);
    cluster.await_progress("clients of the guest that was handed over");
    cluster.assert_exact();
}

#[test]
fn a_primary_that_is_terminated_hands_its_guest_over() {
    is_handed_over(|cluster| cluster.local.primary.terminate().unwrap());
}

#[test]
fn a_primary_that_is_asked_to_hands_its_guest_over() {
    is_handed_over(|cluster| {
        says(&cluster.local.primary, "failover", &[]);
    });
}

#[test]
fn a_primary_whose_standby_is_lost_has_nobody_to_hand_its_guest_to() {
    let _turn = turn();
    let hosts = Quiet::new();
    let (mut primary, mut standby) = hosts.start_protected();
    standby.kill().unwrap();
    primary
        .await_status("alone", DEADLINE, |status| status.phase == "alone")
        .unwrap();
    is_denied(&primary, "failover", "no standby could take it over");
    // Its host is to stop all the same.
    primary.terminate().unwrap();
    let log = await_code(&mut primary, 0);
    assert!(log.contains("stopping the guest on request"), "{log}");
}
