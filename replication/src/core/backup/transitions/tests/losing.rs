//! When a primary counts as lost, and when it does not.

use super::*;

#[test]
fn losing_the_primary_before_epoch_1_never_claims() {
    assert_resets(&Bench::syncing().give(Input::LinkClosed));
    let broken = Input::LinkBroken {
        cause: "bad frame".into(),
    };
    let effects = Bench::syncing().give(broken);
    assert_resets(&effects[1..]);
    let mut bench = Bench::syncing();
    assert_resets(&bench.pass(150 * MS, false, false));
    assert_eq!(bench.pass(1000 * MS, false, false), []);
    let mut bench = Bench::syncing();
    assert_eq!(bench.give(Input::PromotionWanted), []);
    // Epoch 1 torn.
    bench.hear(epoch_messages(1, 1).remove(0));
    let effects = bench.give(Input::LinkClosed);
    assert!(
        matches!(
            &effects[..],
            [
                Effect::CloseLink,
                Effect::Discarded {
                    epoch: EpochId(1),
                    ..
                },
                Effect::Reset { .. }
            ]
        ),
        "{effects:?}"
    );
}

#[test]
fn a_closed_link_is_acted_on_at_once_and_the_torn_epoch_named() {
    let mut bench = Bench::torn();
    assert_discards_and_claims(&bench.give(Input::LinkClosed));
    assert_eq!(bench.core.phase(), BackupPhase::Claiming);
    let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    assert_eq!(
        effects,
        [Effect::Promote {
            generation: Generation(4),
            epoch: EpochId(1),
            cause: "the primary closed the link".into(),
            machine_broke: false,
            arrivals: None,
        }]
    );
    assert_eq!(bench.fill(), 1, "nothing of epoch 2");
    assert_eq!(bench.core.generation(), Generation(4));
    assert_eq!(bench.give(link_up()), [Effect::CloseLink]);
}

#[test]
fn silence_on_every_path_claims_and_one_living_path_does_not() {
    let mut bench = Bench::torn();
    assert_eq!(bench.pass(400 * MS, true, false), []);
    assert_eq!(bench.pass(149 * MS, false, false), []);
    assert_discards_and_claims(&bench.pass(MS, false, false));
}

#[test]
fn a_primary_whose_heartbeats_came_in_time_counts_as_lost_earlier() {
    let shortest = Policy::default().shortest_timeout();
    let mut bench = Bench::torn();
    assert_eq!(bench.pass(400 * MS, false, true), []);
    assert_eq!(bench.core.silence_timeout(), shortest);
    assert_eq!(bench.pass(shortest - MS, false, false), []);
    assert_discards_and_claims(&bench.pass(MS, false, false));
    let longer = bench.core.silence_timeout();
    assert_eq!(longer, 2 * shortest, "the next time, if the primary lives");
}

#[test]
fn a_primary_that_stood_still_for_a_while_has_longer_and_time_that_this_side_slept_is_not_its() {
    let mut bench = Bench::torn();
    assert_eq!(bench.pass(400 * MS, false, true), []);
    bench.now += 60 * MS;
    bench.pass(MS, false, true);
    let shortest = Policy::default().shortest_timeout();
    assert_eq!(bench.core.silence_timeout(), shortest, "it was this side");
    bench.pass(60 * MS, false, false);
    bench.pass(MS, false, true);
    assert_eq!(bench.core.silence_timeout(), 122 * MS);
    assert_eq!(bench.pass(121 * MS, false, false), []);
    assert_discards_and_claims(&bench.pass(MS, false, false));
}

#[test]
fn a_broken_link_claims_only_after_silence_on_every_path() {
    let mut bench = Bench::torn();
    let effects = bench.give(Input::LinkBroken {
        cause: "bad frame".into(),
    });
    assert!(
        matches!(
            &effects[..],
            [
                Effect::Send(Message::Bye(Bye::Protocol(_))),
                Effect::CloseLink,
                Effect::Discarded { epoch: EpochId(2), why }
            ] if why == "bad frame"
        ),
        "{effects:?}"
    );
    assert_eq!(bench.pass(400 * MS, false, true), [], "the primary lives");
    let effects = bench.pass(150 * MS, false, false);
    assert_eq!(effects, [claim()]);
    let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    assert!(matches!(&effects[..], [Effect::Promote { cause, .. }] if cause.contains("bad frame")));
}

#[test]
fn a_stall_does_not_count_as_the_primarys_silence() {
    let mut bench = Bench::standby();
    bench.now += 1000 * MS;
    assert_eq!(bench.give(Input::Tick), [Effect::Send(Message::Heartbeat)]);
    let effects = bench.pass(150 * MS, false, false);
    assert_eq!(effects, [Effect::CloseLink, claim()]);
}

#[test]
fn heartbeats_of_other_generations_are_no_sign_of_life() {
    for generation in [2, 4] {
        let mut bench = Bench::standby();
        let mut effects = Vec::new();
        for _ in 0..150 {
            bench.now += MS;
            effects.extend(bench.give(Input::HeartbeatHeard {
                session: SESSION,
                generation: Generation(generation),
            }));
        }
        assert!(effects.contains(&claim()), "{generation}");
    }
}

#[test]
fn older_and_later_generations_within_a_session() {
    let mut bench = Bench::standby();
    let effects = bench.hear_from(Generation(2), epoch_messages(2, 2).remove(0));
    let current = GENERATION;
    assert_eq!(
        effects,
        [Effect::Send(Message::Bye(Bye::Fenced { current }))]
    );
    let effects = bench.hear_from(Generation(4), Message::Heartbeat);
    assert!(effects.contains(&Effect::CloseLink));
}

#[test]
fn a_guest_that_stopped_leaves_nothing_to_take_over() {
    let mut bench = Bench::standby();
    assert_resets(&bench.hear(Message::Bye(Bye::GuestStopped)));
    assert_eq!(bench.give(Input::LinkClosed), []);
    assert_eq!(bench.pass(1000 * MS, false, false), []);
}

#[test]
fn a_primary_that_says_it_is_fenced_costs_the_copy_only_if_the_arbiter_agrees() {
    let fenced = || {
        Message::Bye(Bye::Fenced {
            current: Generation(7),
        })
    };
    let mut bench = Bench::standby();
    assert_eq!(bench.hear(fenced()), [Effect::CloseLink, claim()]);
    assert_eq!(bench.core.generation(), GENERATION, "that is hearsay");
    let refused = Verdict::Refused {
        current: Generation(7),
        holder: "c".into(),
    };
    assert!(matches!(
        bench.give(Input::Verdict(refused))[..],
        [Effect::Reset { .. }]
    ));
    let mut bench = Bench::standby();
    bench.hear(fenced());
    let granted = Input::Verdict(Verdict::Granted(Generation(4)));
    assert!(matches!(bench.give(granted)[..], [Effect::Promote { .. }]));
}

#[test]
fn heartbeats_of_other_sessions_are_no_sign_of_life() {
    let mut bench = Bench::standby();
    let mut effects = Vec::new();
    for _ in 0..150 {
        bench.now += MS;
        effects.extend(bench.give(Input::HeartbeatHeard {
            session: SESSION + 1,
            generation: GENERATION,
        }));
    }
    assert!(effects.contains(&claim()));
}

#[test]
fn heartbeats_are_sent_once_welcomed() {
    let mut bench = Bench::syncing();
    let interval = Policy::default().heartbeat_interval;
    bench.now += interval;
    assert_eq!(bench.give(Input::Tick), [Effect::Send(Message::Heartbeat)]);
    assert_eq!(bench.give(Input::Tick), []);
    assert_eq!(bench.core.next_wakeup(), Some(bench.now + interval));
}

#[test]
fn deadlines_are_met_by_wakeups_alone() {
    let mut stranger = Bench::new();
    stranger.give(link_up());
    let mut cut = Bench::standby();
    cut.give(Input::LinkBroken {
        cause: "bad frame".into(),
    });
    let mut claiming = Bench::standby();
    claiming.give(Input::LinkClosed);
    claiming.give(unavailable());
    // The longest heartbeats that a time-out allows.
    let mut slow = Bench::standby();
    slow.core.policy.heartbeat_interval = slow.core.policy.heartbeat_timeout / 3;
    for (mut bench, time, expected) in [
        (slow, 150, claim()),
        (stranger, 1500, Effect::CloseLink),
        (Bench::standby(), 150, claim()),
        (cut, 150, claim()),
        (claiming, 100, claim()),
    ] {
        let end = bench.now + time * MS;
        let mut effects = Vec::new();
        while bench.now < end {
            bench.now = bench.core.next_wakeup().expect("a deadline runs");
            effects.extend(bench.give(Input::Tick));
        }
        assert_eq!((bench.now, effects.last()), (end, Some(&expected)));
    }
}
