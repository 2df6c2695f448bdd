//! Nobody dies, but ways between the hosts are cut. Whatever is cut, the guest has one speaker, one
//! side serves its client, and the other says why it does not.

use std::time::Duration;

use super::client::Stream;
use super::pair::{Pair, STREAM_BYTES_PER_S, TIMEOUT_MS, announced_first, one_speaker};
use super::topology::{Side, Way};
use super::{DEADLINE, alone, await_some};

/// Exit code of a primary that was fenced.
const FENCED: i32 = 3;
/// So much is in no buffer: the guest must have sent it after the wait began.
const FURTHER_BYTES: u64 = STREAM_BYTES_PER_S / 2;

const A_TO_B: &[Side] = &[Side::A];
const B_TO_A: &[Side] = &[Side::B];
const BOTH: &[Side] = &Side::BOTH;
const CHANNEL: &[Way] = &[Way::Channel];
const BEAT: &[Way] = &[Way::Beat];
const ALL: &[Way] = &[Way::Channel, Way::Beat];

/// Who may go on. Where both may, they race for the arbiter's grant, and who wins is chance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Survivor {
    /// The standby hears the primary's heartbeats and leaves the decision to it.
    Primary,
    Either,
}

#[test]
fn cut_channel_to_the_standby() {
    cut(CHANNEL, A_TO_B, Survivor::Primary);
}

/// The standby sees the primary close the link, and claims as soon as the primary does.
#[test]
fn cut_channel_to_the_primary() {
    cut(CHANNEL, B_TO_A, Survivor::Either);
}

#[test]
fn cut_channel() {
    cut(CHANNEL, BOTH, Survivor::Primary);
}

#[test]
fn cut_everything_to_the_standby() {
    cut(ALL, A_TO_B, Survivor::Either);
}

#[test]
fn cut_everything_to_the_primary() {
    cut(ALL, B_TO_A, Survivor::Either);
}

#[test]
fn cut_everything() {
    cut(ALL, BOTH, Survivor::Either);
}

#[test]
fn cut_heartbeats_change_nothing() {
    let _alone = alone();
    let mut pair = Pair::protected();
    let stream = Stream::start(&pair.topology.client);
    stream.await_more(FURTHER_BYTES);
    // The guest paces the stream: this takes it longer than the timeout.
    let bytes = 3 * STREAM_BYTES_PER_S * TIMEOUT_MS / 2000;
    for from in [A_TO_B, B_TO_A, BOTH] {
        set(&pair, BEAT, from, true);
        stream.await_more(bytes);
        still_protected(&mut pair);
        set(&pair, BEAT, from, false);
    }
    still_protected(&mut pair);
    drop(stream);
    let [of_a, of_b] = one_speaker(&pair.finish());
    assert!(of_a > 0);
    assert_eq!(of_b, 0, "the standby is silent");
}

fn still_protected(pair: &mut Pair) {
    let b = pair.b.status().expect("the standby answers");
    let a = pair.a.status().expect("the primary answers");
    assert!(a.protected && a.generation == 1, "{a:?}\n{}", pair.logs());
    assert!(
        b.protected && b.failover.is_none(),
        "{b:?}\n{}",
        pair.logs()
    );
}

fn set(pair: &Pair, ways: &[Way], from: &[Side], cut: bool) {
    for way in ways {
        for side in from {
            if cut {
                pair.topology.cut(*way, *side);
            } else {
                pair.topology.heal(*way, *side);
            }
        }
    }
}

fn cut(ways: &[Way], from: &[Side], may_survive: Survivor) {
    let _alone = alone();
    let mut pair = Pair::protected();
    let stream = Stream::start(&pair.topology.client);
    stream.await_more(FURTHER_BYTES);
    assert_eq!(pair.a.status().map(|status| status.generation), Some(1));

    set(&pair, ways, from, true);
    let survivor = await_some("a side goes on in generation 2", || decided(&pair));
    if may_survive == Survivor::Primary {
        assert_eq!(survivor, Side::A, "{}", pair.logs());
    }
    match survivor {
        Side::A => await_reset(&mut pair),
        Side::B => await_fenced(&mut pair),
    }
    stream.await_more(FURTHER_BYTES);
    set(&pair, ways, from, false);
    stream.await_more(FURTHER_BYTES);
    match survivor {
        Side::A => protect_again_and_prove_it(&mut pair, &stream),
        Side::B => assert_eq!(pair.topology.guest_port(), Some(Side::B)),
    }
    drop(stream);

    let spoken = pair.finish();
    let [of_a, of_b] = one_speaker(&spoken);
    assert!(of_a > 0 && of_b > 0, "{of_a} frames of a, {of_b} of b");
    announced_first(&spoken);
}

/// Who runs the guest in the next generation.
fn decided(pair: &Pair) -> Option<Side> {
    let promoted = pair.b.status().is_some_and(|b| b.failover.is_some());
    let alone = pair
        .a
        .status()
        .is_some_and(|a| a.generation == 2 && !a.protected && a.phase != "claiming");
    assert!(!(promoted && alone), "both go on\n{}", pair.logs());
    match (promoted, alone) {
        (true, _) => Some(Side::B),
        (_, true) => Some(Side::A),
        _ => None,
    }
}

/// The primary went on alone: the standby has asked as well, was refused, and gave its copy up.
fn await_reset(pair: &mut Pair) {
    let said = "the copy is given up: the arbiter names a";
    await_some("the standby gives its copy up", || {
        one_speaker(&pair.sniffer.so_far());
        pair.b.log().contains(said).then_some(())
    });
    let b = pair.b.status().expect("the standby lives");
    assert!(!b.protected && b.failover.is_none(), "{b:?}");
    assert_eq!(pair.sniffer.count(Side::B), 0, "the standby is silent");
    assert!(pair.a.log().contains("the guest goes on unprotected"));
}

/// The standby took over: the primary stops, says why, and ends with the exit code for it.
fn await_fenced(pair: &mut Pair) {
    let exit = await_some("the old primary ends", || {
        one_speaker(&pair.sniffer.so_far());
        pair.a.await_exit(Duration::ZERO).ok()
    });
    assert_eq!(exit.code(), Some(FENCED), "{}", pair.logs());
    let said = "fenced: generation 2 is in force, this side holds generation 1";
    assert!(pair.a.log().contains(said), "{}", pair.logs());
}

/// The ways are healed: the primary finds its standby again, by itself. The standby has been silent
/// all the time, and its copy is good for one more failover.
fn protect_again_and_prove_it(pair: &mut Pair, stream: &Stream) {
    pair.a
        .await_status("protected again", DEADLINE, |status| status.protected)
        .unwrap_or_else(|error| panic!("{error}"));
    stream.await_more(FURTHER_BYTES);
    assert_eq!(pair.sniffer.count(Side::B), 0, "the standby is silent");
    pair.a.kill().unwrap();
    let status = pair
        .b
        .await_status("promoted", DEADLINE, |status| status.failover.is_some())
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(status.generation, 3, "{}", pair.logs());
    stream.await_more(FURTHER_BYTES);
}
