//! R4: nobody is promoted without the arbiter's grant.

use super::*;
use crate::output::{ARRIVALS_BYTES_MAX, FRAME_OVERHEAD_BYTES, NetworkFrame};

#[test]
fn a_claim_is_repeated_while_the_arbiter_is_silent_and_a_refusal_resets() {
    let mut bench = Bench::standby();
    bench.give(Input::LinkClosed);
    assert_eq!(bench.give(unavailable()), []);
    assert_eq!(bench.pass(99 * MS, false, false), []);
    assert_eq!(bench.pass(MS, false, false), [claim()]);
    assert_eq!(bench.core.phase(), BackupPhase::Claiming);
    let effects = bench.give(Input::Verdict(Verdict::Refused {
        current: Generation(4),
        holder: "a".into(),
    }));
    assert!(matches!(&effects[..], [Effect::Reset { reason }] if reason.contains('a')));
    assert_eq!(bench.core.phase(), BackupPhase::Listening);
    assert_eq!(bench.core.generation(), Generation(4));
    assert_eq!(bench.core.committed_state(), &Bytes::new());
}

#[test]
fn promotion_when_asked_for_claims_from_the_committed_epoch() {
    let mut bench = Bench::torn();
    let effects = bench.give(Input::PromotionWanted);
    // The link stays open: a primary that sees it closed claims itself.
    assert!(
        matches!(
            &effects[..],
            [
                Effect::Discarded {
                    epoch: EpochId(2),
                    ..
                },
                Effect::Claim { .. }
            ]
        ),
        "{effects:?}"
    );
    let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    let current = Generation(4);
    assert_eq!(
        effects,
        [
            Effect::Send(Message::Bye(Bye::Fenced { current })),
            Effect::CloseLink,
            Effect::Promote {
                generation: current,
                epoch: EpochId(1),
                cause: "promotion was asked for".into(),
                machine_broke: false,
                arrivals: None,
            }
        ]
    );
    assert_eq!(bench.give(Input::Runs), []);
    assert_eq!(bench.fill(), 1, "nothing of epoch 2");
}

#[test]
fn nothing_is_acknowledged_or_staged_once_promotion_was_asked_for() {
    let mut bench = Bench::standby();
    assert_eq!(bench.give(Input::PromotionWanted), [claim()]);
    for message in epoch_messages(2, 2) {
        assert_eq!(bench.hear(message), [], "an ack would release output");
    }
    assert_eq!(bench.hear(Message::Bye(Bye::GuestStopped)), []);
    bench.now += 60 * MS;
    assert_eq!(bench.give(Input::Tick), [], "no sign of life either");
    bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    assert_eq!(bench.core.committed_epoch(), Some(EpochId(1)));
    assert_eq!(bench.fill(), 1);
}

#[test]
fn a_primary_that_lives_does_not_wait_for_an_arbiter_that_is_silent_here() {
    let mut bench = Bench::standby();
    bench.give(Input::PromotionWanted);
    assert_eq!(bench.give(unavailable()), [Effect::CloseLink]);
    assert_eq!(bench.pass(100 * MS, false, false), [claim()]);
    assert_eq!(bench.core.phase(), BackupPhase::Claiming);
}

#[test]
fn a_refused_promotion_resets_and_closes_the_link() {
    let mut bench = Bench::standby();
    bench.give(Input::PromotionWanted);
    let effects = bench.give(Input::Verdict(Verdict::Refused {
        current: Generation(4),
        holder: "a".into(),
    }));
    assert!(
        matches!(&effects[..], [Effect::CloseLink, Effect::Reset { .. }]),
        "{effects:?}"
    );
}

#[test]
fn a_copy_is_not_given_up_because_an_arbiter_names_an_earlier_generation() {
    for current in [0, 2, 3] {
        let mut bench = Bench::standby();
        bench.give(Input::LinkClosed);
        let effects = bench.give(Input::Verdict(Verdict::Refused {
            current: Generation(current),
            holder: "nobody".into(),
        }));
        assert_eq!(effects, [], "{current}");
        assert_eq!(bench.core.committed_epoch(), Some(EpochId(1)));
        assert_eq!(bench.pass(100 * MS, false, false), [claim()], "asked again");
    }
}

#[test]
fn a_stop_waits_for_a_claim_that_may_have_been_granted() {
    let mut bench = Bench::standby();
    bench.give(Input::LinkClosed);
    assert_eq!(bench.give(Input::StopWanted), []);
    assert_eq!(bench.give(unavailable()), [], "it may have been granted");
    assert_eq!(bench.pass(100 * MS, false, false), [claim()]);
    let granted = Input::Verdict(Verdict::Granted(Generation(4)));
    let effects = bench.give(granted);
    assert!(
        matches!(effects[..], [Effect::Promote { .. }]),
        "nobody else may"
    );

    let mut bench = Bench::standby();
    bench.give(Input::LinkClosed);
    bench.give(Input::StopWanted);
    let effects = bench.give(Input::Verdict(Verdict::Refused {
        current: Generation(4),
        holder: "a".into(),
    }));
    assert!(
        matches!(effects[..], [Effect::Reset { .. }, Effect::Stop]),
        "{effects:?}"
    );

    let mut bench = Bench::standby();
    bench.give(Input::LinkClosed);
    bench.give(Input::StopWanted);
    assert_eq!(bench.give(Input::StopWanted), [Effect::Stop], "asked twice");
    let farewell = Effect::Send(Message::Bye(Bye::BackupStopped));
    let effects = Bench::standby().give(Input::StopWanted);
    assert_eq!(effects, [farewell, Effect::CloseLink, Effect::Stop]);
}

fn take_over(machine_broke: bool) -> Message {
    Message::TakeOver {
        why: "it is to stop".into(),
        machine_broke,
        left_through: EpochId(0),
    }
}

#[test]
fn who_takes_over_knows_whether_the_machine_had_broken() {
    for broke in [false, true] {
        let mut bench = Bench::standby();
        bench.hear(take_over(broke));
        let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
        assert!(
            matches!(
                effects.last(),
                Some(Effect::Promote { machine_broke, .. }) if *machine_broke == broke
            ),
            "{effects:?}"
        );
    }
    let mut bench = Bench::standby();
    bench.give(Input::LinkClosed);
    let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    let promoted = effects.last();
    assert!(
        matches!(
            promoted,
            Some(Effect::Promote {
                machine_broke: false,
                ..
            })
        ),
        "{effects:?}"
    );
}

fn arrivals(of: &[u8]) -> Vec<NetworkFrame> {
    let frame = |text: &u8| NetworkFrame {
        device: 0,
        bytes: Bytes::copy_from_slice(&[*text]),
    };
    of.iter().map(frame).collect()
}

#[test]
fn what_the_guest_was_given_after_its_last_epoch_follows_it() {
    let mut bench = Bench::standby();
    bench.hear(take_over(false));
    assert_eq!(bench.hear(Message::Arrived(arrivals(b"12"))), []);
    assert_eq!(bench.hear(Message::Arrived(arrivals(b"3"))), []);
    let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    assert!(
        matches!(effects.last(), Some(Effect::Promote { arrivals: Some(all), .. }) if all.clone().take() == arrivals(b"123")),
        "{effects:?}"
    );
}

#[test]
fn nothing_is_waited_for_that_a_primary_gives_up_only_once_it_knows() {
    // A shared disk, or a machine that has broken.
    for (has_shared, broke) in [(true, false), (false, true)] {
        let mut bench = Bench::standby();
        bench.core.identity.has_shared = has_shared;
        bench.hear(take_over(broke));
        let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
        assert!(
            matches!(
                effects[..],
                [
                    Effect::Send(Message::Bye(Bye::Fenced { .. })),
                    Effect::CloseLink,
                    Effect::Promote { .. }
                ]
            ),
            "{effects:?}"
        );
    }
}

#[test]
fn a_flood_of_what_follows_the_guest_is_bounded() {
    let mut bench = Bench::standby();
    bench.hear(take_over(false));
    for _ in 0..2 * ARRIVALS_BYTES_MAX / FRAME_OVERHEAD_BYTES / 1000 {
        bench.hear(Message::Arrived(arrivals(&[0; 1000])));
    }
    let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    let room = ARRIVALS_BYTES_MAX / (FRAME_OVERHEAD_BYTES + 1);
    assert!(
        matches!(effects.last(), Some(Effect::Promote { arrivals: Some(arrivals), .. }) if arrivals.clone().take().len() == room),
        "{effects:?}"
    );
}

#[test]
fn nothing_follows_a_guest_that_is_not_handed_over() {
    let mut bench = Bench::standby();
    let effects = bench.hear(Message::Arrived(arrivals(b"1")));
    assert!(
        matches!(
            &effects[..],
            [Effect::Send(Message::Bye(Bye::Protocol(_))), ..]
        ),
        "{effects:?}"
    );
}

#[test]
fn a_guest_that_is_handed_over_is_claimed_with_the_link_open() {
    let mut bench = Bench::standby();
    let effects = bench.hear(take_over(false));
    assert_eq!(effects, [claim()]);
    let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    assert!(
        matches!(&effects[..], [Effect::Promote { cause, .. }] if cause.contains("it is to stop")),
        "{effects:?}"
    );
    // More may follow the guest until it runs.
    let effects = bench.give(Input::Runs);
    assert!(
        matches!(
            &effects[..],
            [
                Effect::Send(Message::Bye(Bye::Fenced { .. })),
                Effect::CloseLink
            ]
        ),
        "{effects:?}"
    );
    assert_eq!(bench.give(Input::Runs), []);
    // Without a whole copy there is nothing to take over.
    let mut bench = Bench::syncing();
    let effects = bench.hear(take_over(false));
    assert!(
        matches!(effects.last(), Some(Effect::Reset { .. })),
        "{effects:?}"
    );
}
