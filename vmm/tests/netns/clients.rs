//! The hosts are well and see each other, but the guest's clients are cut off on one of them, or on both.

use understudy_vmm::control;
use understudy_vmm::local_cluster::VmmProcess;

use super::client::Stream;
use super::pair::{Pair, STREAM_BYTES_PER_S, announced_first, one_speaker};
use super::topology::{Side, Topology};
use super::{DEADLINE, alone, await_some};

/// So much is in no buffer: the guest must have sent it after the wait began.
const FURTHER_BYTES: u64 = STREAM_BYTES_PER_S / 2;

/// What a host says about the guest's networks.
fn alarms(host: &VmmProcess) -> String {
    let status = control::status(host.control());
    status.map_or_else(|error| error.to_string(), |it| it.host_alarms.join("\n"))
}

fn await_alarm(pair: &Pair, side: Side, words: &str) {
    let host = match side {
        Side::A => &pair.a,
        Side::B => &pair.b,
    };
    await_some(&format!("host {} says: {words}", side.letter()), || {
        alarms(host).contains(words).then_some(())
    });
}

fn set(pair: &Pair, side: Side, change: &str) {
    pair.topology.host(side).ip(&format!("link set {change}"));
}

/// Both sides have looked, and none of them complains.
fn await_known(pair: &Pair) {
    await_some("the standby says how its host is", || {
        let status = pair.a.status()?;
        (status.backup_troubles == Some(Vec::new())).then_some(())
    });
    assert_eq!(alarms(&pair.a) + &alarms(&pair.b), "");
}

fn goes_on_at_b(mut pair: Pair, stream: Stream, why: &str) {
    let status = pair
        .b
        .await_status("promoted", DEADLINE, |status| status.failover.is_some())
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(status.generation, 2, "{}", pair.logs());
    let exit = pair.a.await_exit(DEADLINE).unwrap();
    assert_eq!(exit.code(), Some(3), "it did not go because somebody asked");
    let said = format!("handing the guest over to the standby: network net0: {why}");
    assert!(pair.a.log().contains(&said), "{}", pair.logs());
    stream.await_more(FURTHER_BYTES);
    drop(stream);
    let spoken = pair.finish();
    let [of_a, of_b] = one_speaker(&spoken);
    assert!(of_a > 0 && of_b > 0, "{of_a} frames of a, {of_b} of b");
    announced_first(&spoken);
}

fn clients_are_lost(change: &str, why: &str) {
    let _alone = alone();
    let pair = Pair::protected();
    await_known(&pair);
    let stream = Stream::start(&pair.topology.client);
    stream.await_more(FURTHER_BYTES);
    set(&pair, Side::A, change);
    goes_on_at_b(pair, stream, why);
}

#[test]
fn a_primary_whose_uplink_is_down_hands_over() {
    clients_are_lost("uplink down", "no uplink of the bridge guests works");
}

#[test]
fn a_primary_whose_tap_left_its_bridge_hands_over() {
    clients_are_lost("tap0 nomaster", "the tap tap0 is not part of its bridge");
}

#[test]
fn a_primary_whose_bridge_is_down_hands_over() {
    clients_are_lost("guests down", "the bridge guests is down");
}

#[test]
fn with_both_cut_the_guest_stays_until_the_standby_has_its_clients_again() {
    let _alone = alone();
    let pair = Pair::protected();
    await_known(&pair);
    let stream = Stream::start(&pair.topology.client);
    stream.await_more(FURTHER_BYTES);
    set(&pair, Side::B, "uplink down");
    await_alarm(&pair, Side::B, "no uplink of the bridge guests works");
    await_alarm(
        &pair,
        Side::A,
        "on the standby's host: network net0: no uplink",
    );
    set(&pair, Side::A, "uplink down");
    await_alarm(&pair, Side::A, "the standby's does not work either");
    // What follows from that was decided in the same step.
    let a = pair.a.status().expect("the primary answers");
    assert!(a.protected && a.generation == 1, "{a:?}\n{}", pair.logs());
    assert!(!pair.a.log().contains("handing the guest over"));
    set(&pair, Side::B, "uplink up");
    goes_on_at_b(pair, stream, "no uplink of the bridge guests works");
}

/// Both hosts have addresses on their bridges, and ask `targets`.
fn asking(targets: &str) -> Pair {
    let topology = Topology::new();
    topology.client.ip("addr add fd77::1/64 dev lan nodad");
    for (side, end) in [(Side::A, "11"), (Side::B, "12")] {
        let host = topology.host(side);
        host.ip(&format!("addr add 10.77.0.{end}/24 dev guests"));
        host.ip(&format!("addr add fd77::{end}/64 dev guests nodad"));
    }
    Pair::with(topology, &format!(",ping={targets}"))
}

/// All that this host sees is well: the failure is in the clients' network.
fn a_switch_fails(target: &str) {
    let _alone = alone();
    let pair = asking(target);
    await_known(&pair);
    let stream = Stream::start(&pair.topology.client);
    stream.await_more(FURTHER_BYTES);
    // Otherwise a silence would mean nothing.
    await_some("the primary was answered", || {
        let log = pair.a.log();
        log.contains("the ping target answers").then_some(())
    });
    pair.topology.client.ip("link set port-a nomaster");
    let why = format!("no ping target answers any more ({target})");
    goes_on_at_b(pair, stream, &why);
}

#[test]
fn a_primary_whose_ping_target_is_silent_hands_over() {
    a_switch_fails("10.77.0.1");
}

#[test]
fn a_primary_whose_ping_target_is_silent_hands_over_with_ipv6_too() {
    a_switch_fails("fd77::1");
}

#[test]
fn a_ping_target_that_never_answered_is_an_alarm_and_no_more() {
    let _alone = alone();
    let pair = asking("10.77.0.99");
    let never = "network net0: no ping target has ever answered this host";
    await_alarm(&pair, Side::B, never);
    await_alarm(&pair, Side::A, never);
    let a = pair.a.status().expect("the primary answers");
    assert!(a.protected && a.generation == 1, "{a:?}");
    assert!(!pair.a.log().contains("handing the guest over"));
}

#[test]
fn a_standby_without_a_bridge_is_an_alarm_on_both_hosts_before_anything_happens() {
    let _alone = alone();
    let topology = Topology::new();
    topology.host(Side::B).ip("link set tap0 nomaster");
    let pair = Pair::on(topology);
    let lacks = "network net0: no bridge forwards for the tap tap0";
    await_alarm(&pair, Side::B, lacks);
    await_alarm(&pair, Side::A, &format!("on the standby's host: {lacks}"));
    let a = pair.a.status().expect("the primary answers");
    assert!(a.protected && a.generation == 1, "{a:?}");
    set(&pair, Side::B, "tap0 master guests");
    await_some("nobody complains any more", || {
        (alarms(&pair.a) + &alarms(&pair.b))
            .is_empty()
            .then_some(())
    });
}
