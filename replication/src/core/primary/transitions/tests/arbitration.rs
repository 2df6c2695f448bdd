//! R4: claims, confirmations, and who is fenced.

use super::*;

#[test]
fn a_stalled_primary_releases_nothing_before_its_generation_is_confirmed() {
    let mut bench = Bench::capturing();
    bench.ship(1);
    bench.now += 76 * MS;
    let effects = bench.ack(1);
    assert!(
        effects.contains(&Effect::Confirm(GENERATION)),
        "{effects:?}"
    );
    assert!(!effects.contains(&Effect::Release(EpochId(1))));
    assert!(bench.core.is_in_doubt());
    assert_eq!(
        bench.give(Input::Verdict(Verdict::Granted(GENERATION))),
        [Effect::Release(EpochId(1)), Effect::Capture(EpochId(2))]
    );
    assert!(!bench.core.is_in_doubt());
}

#[test]
fn a_confirmation_older_than_the_last_stall_is_worth_nothing() {
    let mut bench = Bench::protected();
    bench.give(Input::CheckpointWanted);
    bench.ship(2);
    bench.now += 100 * MS;
    bench.give(Input::Tick);
    bench.now += 100 * MS;
    let effects = bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert!(
        effects.contains(&Effect::Confirm(GENERATION)),
        "asked again: {effects:?}"
    );
    // The ack may be as old as the stall: this answer is too old for it, too.
    let effects = bench.ack(2);
    assert!(!effects.contains(&Effect::Release(EpochId(2))));
    let effects = bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert_eq!(effects, [Effect::Confirm(GENERATION)]);
    let effects = bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert_eq!(effects[0], Effect::Release(EpochId(2)));
}

#[test]
fn a_confirmation_is_asked_for_again_while_the_arbiter_is_silent() {
    let mut bench = Bench::protected();
    bench.give(Input::CheckpointWanted);
    bench.now += 100 * MS;
    assert!(
        bench
            .give(Input::Tick)
            .contains(&Effect::Confirm(GENERATION))
    );
    assert_eq!(bench.hear(Message::Heartbeat), []);
    assert_eq!(bench.give(Input::ArbiterUnavailable), []);
    assert_eq!(bench.pass(99 * MS, true, false), []);
    assert_eq!(bench.pass(MS, true, false), [Effect::Confirm(GENERATION)]);
    let effects = bench.give(Input::Verdict(Verdict::Refused {
        current: Generation(4),
        holder: "b".into(),
    }));
    assert!(matches!(effects.last(), Some(Effect::Fenced { reason }) if reason.contains("b")));
}

#[test]
fn a_claim_waits_for_the_answer_to_an_open_confirmation() {
    let mut bench = Bench::protected();
    bench.now += 100 * MS;
    assert!(
        bench
            .give(Input::Tick)
            .contains(&Effect::Confirm(GENERATION))
    );
    let effects = bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    assert_eq!(effects, [Effect::CloseLink]);
    let effects = bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert_eq!(effects, [Effect::Claim(GENERATION)]);
}

#[test]
fn a_claim_is_repeated_while_the_arbiter_is_silent_and_a_refusal_fences() {
    let mut bench = Bench::protected();
    bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    assert_eq!(bench.give(Input::ArbiterUnavailable), []);
    assert!(bench.core.next_wakeup().is_some());
    assert_eq!(
        bench.pass(100 * MS, false, false),
        [Effect::Claim(GENERATION)]
    );
    let effects = bench.give(Input::Verdict(Verdict::Refused {
        current: Generation(4),
        holder: "b".into(),
    }));
    assert!(matches!(&effects[..], [Effect::Fenced { .. }]));
    assert_eq!(bench.core.phase(), PrimaryPhase::Fenced);
    assert_eq!(bench.core.next_wakeup(), None);
    assert_eq!(bench.give(Input::LinkUp), [Effect::CloseLink]);
    assert_eq!(bench.pass(1000 * MS, true, true), []);
}

#[test]
fn a_later_generation_heard_of_while_claiming_may_be_our_own() {
    let mut bench = Bench::protected();
    bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    let generation = Generation(4);
    assert_eq!(bench.give(Input::HeartbeatHeard { generation }), []);
    let effects = bench.give(Input::Verdict(Verdict::Granted(generation)));
    assert!(matches!(&effects[..], [Effect::GoAlone { .. }]));
}

#[test]
fn no_epoch_ends_in_doubt() {
    let mut bench = Bench::capturing();
    bench.ship(1);
    bench.now += 76 * MS;
    assert!(bench.ack(1).contains(&Effect::Confirm(GENERATION)));
    assert_eq!(bench.pass(50 * MS, true, true), []);
    assert_eq!(
        bench.give(Input::Verdict(Verdict::Granted(GENERATION))),
        [Effect::Release(EpochId(1)), Effect::Capture(EpochId(2))]
    );
}

#[test]
fn an_ack_after_long_silence_on_the_link_waits_for_confirmation() {
    let mut bench = Bench::capturing();
    bench.ship(1);
    assert_eq!(bench.pass(76 * MS, false, true), []);
    assert_eq!(bench.ack(1), [Effect::Confirm(GENERATION)]);
    assert!(bench.core.is_in_doubt());
}

#[test]
fn a_stall_right_before_does_not_shorten_the_links_silence() {
    let mut bench = Bench::capturing();
    bench.ship(1);
    bench.now += 100 * MS;
    bench.give(Input::Tick);
    bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert!(!bench.core.is_in_doubt());
    assert_eq!(bench.pass(10 * MS, false, true), []);
    assert_eq!(bench.ack(1), [Effect::Confirm(GENERATION)]);
}

#[test]
fn a_grant_that_is_no_later_generation_fences() {
    let mut bench = Bench::protected();
    bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    let effects = bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert!(matches!(&effects[..], [Effect::Fenced { .. }]));
}

#[test]
fn a_verdict_nobody_asked_for_changes_nothing() {
    let mut bench = Bench::protected();
    let verdict = Verdict::Granted(Generation(9));
    assert_eq!(bench.give(Input::Verdict(verdict)), []);
    assert_eq!(bench.core.generation(), GENERATION);
}

#[test]
fn a_later_generation_fences_wherever_it_is_seen() {
    let later = Generation(4);
    let seen = [
        Input::Received {
            generation: later,
            message: Message::Heartbeat,
        },
        Input::HeartbeatHeard { generation: later },
        Input::Received {
            generation: GENERATION,
            message: Message::Bye(Bye::Fenced { current: later }),
        },
    ];
    for input in seen {
        let mut bench = Bench::protected();
        let effects = bench.give(input);
        assert!(
            matches!(
                &effects[..],
                [
                    Effect::Send(Message::Bye(Bye::Fenced { .. })),
                    Effect::CloseLink,
                    Effect::Fenced { .. }
                ]
            ),
            "{effects:?}"
        );
    }
    let mut bench = Bench::new();
    bench.give(Input::LinkUp);
    let effects = bench.hear(Message::Refuse(Refusal::Stale { current: later }));
    assert!(matches!(effects.last(), Some(Effect::Fenced { .. })));
}

#[test]
fn an_older_generation_is_told_so_and_ignored() {
    let mut bench = Bench::capturing();
    bench.ship(1);
    let effects = bench.give(Input::Received {
        generation: Generation(2),
        message: Message::Ack {
            epoch: EpochId(1),
            durable: EpochId(0),
        },
    });
    let bye = Bye::Fenced {
        current: GENERATION,
    };
    assert_eq!(effects, [Effect::Send(Message::Bye(bye))]);
    assert_eq!(bench.core.in_flight(), Some(EpochId(1)));
    assert_eq!(
        bench.give(Input::HeartbeatHeard {
            generation: Generation(2)
        }),
        []
    );
}
