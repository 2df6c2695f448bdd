//! What fails on this host is said to the primary, once in each session and whenever it changes.

use super::*;
use crate::core::message::Trouble;

fn trouble() -> Vec<Trouble> {
    vec![Trouble::new("net0", "the cable is out")]
}

fn said(troubles: &[Trouble]) -> Effect {
    Effect::Send(Message::Health(troubles.to_vec()))
}

#[test]
fn a_standby_says_how_its_host_is_when_it_knows_and_when_it_changes() {
    let mut bench = Bench::standby();
    assert_eq!(bench.pass(20 * MS, true, true), [], "nobody has looked");
    assert_eq!(bench.give(Input::Health(Vec::new())), [said(&[])]);
    assert_eq!(bench.give(Input::Health(Vec::new())), [], "it is known");
    assert_eq!(bench.give(Input::Health(trouble())), [said(&trouble())]);
    assert_eq!(bench.give(Input::PromotionWanted), [claim()]);
    let changed = bench.give(Input::Health(Vec::new()));
    assert_eq!(changed, [], "it is about to be the primary");
}

#[test]
fn what_was_found_before_is_said_once_there_is_a_whole_copy() {
    let mut bench = Bench::syncing();
    assert_eq!(bench.give(Input::Health(trouble())), []);
    for message in epoch_messages(1, 1) {
        bench.hear(message);
    }
    let committed = Effect::Committed(EpochId(1));
    assert_eq!(bench.give(Input::Tick), [committed, said(&trouble())]);
}

#[test]
fn each_session_is_told_anew() {
    let mut bench = Bench::standby();
    assert_eq!(bench.give(Input::Health(trouble())), [said(&trouble())]);
    // The next session begins after a break of the link; this side keeps its copy until then.
    bench.core.told.session += 1;
    assert_eq!(bench.give(Input::Tick), [said(&trouble())]);
}
