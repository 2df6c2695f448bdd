//! Whether the machine can load what it is sent.

use super::*;

/// All but epoch 1, which is whole and waits for its trial; and the trial's ticket.
fn in_trial() -> (Bench, u64) {
    let mut bench = Bench::syncing();
    let ticket = first_trial(&mut bench);
    (bench, ticket)
}

fn first_trial(bench: &mut Bench) -> u64 {
    let mut effects = Vec::new();
    for message in epoch_messages(1, 1) {
        let generation = GENERATION;
        effects.extend(bench.give_raw(Input::Received {
            generation,
            message,
        }));
    }
    let [Effect::TryRestore { ticket, state }] = &effects[..] else {
        panic!("no trial before the acknowledgement: {effects:?}");
    };
    assert_eq!(*state, STATE);
    *ticket
}

fn tried(ticket: u64, outcome: Result<(), &str>) -> Input {
    let outcome = outcome.map_err(str::to_owned);
    Input::RestoreTried { ticket, outcome }
}

fn says_that_it_is_unable(effects: &[Effect], why: &str) -> bool {
    matches!(
        effects,
        [Effect::Send(Message::Bye(Bye::Unable(said))), .., Effect::Reset { reason }]
            if said.contains(why) && reason.contains(why)
    )
}

#[test]
fn the_first_epoch_is_acknowledged_and_committed_once_its_state_could_be_loaded() {
    let (mut bench, ticket) = in_trial();
    // Signs of life go on meanwhile.
    let effects = bench.pass(100 * MS, true, true);
    assert_eq!(effects, []);
    assert_eq!(bench.core.phase(), BackupPhase::Syncing);
    assert_eq!(bench.give(tried(ticket + 1, Ok(()))), [], "of another one");
    assert_eq!(bench.give(tried(ticket, Ok(()))), [ack(1, 0)]);
    assert_eq!(bench.give(Input::Tick), [Effect::Committed(EpochId(1))]);
    assert_eq!(bench.core.phase(), BackupPhase::Standby);
    assert_eq!(bench.give(tried(ticket, Err("late"))), [], "it is over");
}

#[test]
fn a_guest_whose_state_cannot_be_loaded_is_not_protected_and_its_primary_is_told_why() {
    let (mut bench, ticket) = in_trial();
    let effects = bench.give(tried(ticket, Err("MSR 0x1")));
    assert!(says_that_it_is_unable(&effects, "MSR 0x1"), "{effects:?}");
    assert_eq!(bench.core.phase(), BackupPhase::Listening);
    // The link is closed; nobody claims anything.
    assert_eq!(bench.pass(1000 * MS, false, false), []);
    // Another session has another trial, and what is said late of the first is not taken for it.
    assert_eq!(bench.introduce(GENERATION), [welcomed()]);
    bench.prove();
    assert_ne!(first_trial(&mut bench), ticket);
    assert_eq!(bench.give(tried(ticket, Ok(()))), []);
}

#[test]
fn a_trial_that_hangs_ends_like_one_that_fails() {
    let (mut bench, ticket) = in_trial();
    let policy = Policy::default();
    let patience = policy.arbiter_check + 10 * policy.heartbeat_timeout;
    let effects = bench.pass(patience, true, true);
    assert!(
        says_that_it_is_unable(&effects, "does not come to an end"),
        "{effects:?}"
    );
    assert_eq!(bench.give(tried(ticket, Ok(()))), [], "too late");
    // But a process that stood still has not waited.
    let (mut bench, ticket) = in_trial();
    bench.now += patience;
    assert_eq!(bench.pass(MS, true, true), []);
    assert_eq!(bench.give(tried(ticket, Ok(()))), [ack(1, 0)]);
}

/// Lets epochs come until one is tried.
fn next_trial(bench: &mut Bench) -> u64 {
    for epoch in 2..60 {
        bench.pass(400 * MS, true, true);
        for message in epoch_messages(epoch, 1) {
            bench.hear(message);
        }
        for effect in bench.give_raw(Input::Tick) {
            if let Effect::TryRestore { ticket, .. } = effect {
                return ticket;
            }
        }
    }
    panic!("no other state was tried");
}

#[test]
fn a_committed_state_is_tried_now_and_then() {
    let mut bench = Bench::standby();
    let ticket = next_trial(&mut bench);
    // No epoch waits for it.
    assert_eq!(bench.give(tried(ticket, Ok(()))), []);
}

fn is_doubtful(effect: &Effect) -> bool {
    matches!(effect, Effect::Doubtful { why } if why.contains("MSR 0x1"))
}

/// How long a primary may be silent whose standby perhaps could not go on.
fn long_silence() -> Duration {
    let policy = Policy::default();
    policy.arbiter_check + 10 * policy.heartbeat_timeout
}

#[test]
fn a_copy_that_cannot_be_loaded_is_kept_but_a_primary_that_may_live_comes_first() {
    let hand_over = || Message::TakeOver {
        why: "it is to stop".into(),
        machine_broke: false,
        left_through: EpochId(0),
    };
    let ways: [fn(&mut Bench, Message); 3] = [
        |_, _| {},
        |bench, hand_over| assert_eq!(bench.hear(hand_over), []),
        |bench, _| assert_eq!(bench.give(Input::PromotionWanted), []),
    ];
    for (way, late) in ways.iter().flat_map(|way| [(way, false), (way, true)]) {
        let mut bench = Bench::standby();
        let ticket = next_trial(&mut bench);
        let committed = bench.core.committed_epoch();
        way(&mut bench, hand_over());
        // One that hangs while it is a mere standby has the same effect before it fails.
        let is_claiming = bench.core.phase() == BackupPhase::Claiming;
        if late && is_claiming {
            bench.pass(long_silence() + MS, true, true);
        }
        let effects = bench.give(tried(ticket, Err("MSR 0x1")));
        let [
            Effect::Send(Message::Bye(Bye::Unable(why))),
            Effect::CloseLink,
            doubtful,
        ] = &effects[..]
        else {
            panic!("{effects:?}");
        };
        assert!(why.contains("MSR 0x1") && is_doubtful(doubtful), "{why}");
        assert_eq!(bench.core.phase(), BackupPhase::Standby);
        assert_eq!(bench.core.committed_epoch(), committed);
        // It has the time to ask the arbiter. Only if it is gone, this side does.
        assert_eq!(bench.pass(long_silence() - MS, false, false), []);
        assert_eq!(bench.pass(MS, false, false), [claim()]);
    }
}

/// It is another copy, and perhaps of another guest.
#[test]
fn a_new_session_is_not_in_doubt_for_what_an_earlier_one_could_not_load() {
    let mut bench = Bench::standby();
    let ticket = next_trial(&mut bench);
    bench.give(tried(ticket, Err("MSR 0x1")));
    bench.introduce(Generation(4));
    assert_eq!(bench.core.phase(), BackupPhase::Syncing);
    let timeout = Policy::default().heartbeat_timeout;
    bench.pass(timeout + MS, false, false);
    assert_eq!(bench.core.phase(), BackupPhase::Listening);
}

#[test]
fn a_copy_that_cannot_be_loaded_is_claimed_for_when_the_primary_is_gone() {
    let mut bench = Bench::standby();
    let ticket = next_trial(&mut bench);
    let committed = bench.core.committed_epoch();
    bench.give(Input::LinkClosed);
    let effects = bench.give(tried(ticket, Err("MSR 0x1")));
    assert!(
        matches!(&effects[..], [it] if is_doubtful(it)),
        "{effects:?}"
    );
    assert_eq!(bench.core.committed_epoch(), committed);
    let effects = bench.pass(long_silence(), false, false);
    assert_eq!(effects, [claim()]);
    // At once, if there is nobody else who could go on.
    let mut bench = Bench::standby();
    let ticket = next_trial(&mut bench);
    bench.hear(Message::TakeOver {
        why: "its machine broke".into(),
        machine_broke: true,
        left_through: EpochId(0),
    });
    let effects = bench.give(tried(ticket, Err("MSR 0x1")));
    assert!(is_doubtful(&effects[0]), "{effects:?}");
    assert_eq!(effects[1..], [claim()]);
}

fn is_claim(effect: &Effect) -> bool {
    matches!(effect, Effect::Claim { .. })
}

/// It has the machine that would take over.
#[test]
fn a_claim_waits_for_a_trial_and_says_so_if_that_takes_long() {
    let policy = Policy::default();
    let patience = policy.arbiter_check + 10 * policy.heartbeat_timeout;
    let ways = [
        Input::LinkClosed,
        Input::PromotionWanted,
        Input::Received {
            generation: GENERATION,
            message: Message::TakeOver {
                why: "it is to stop".into(),
                machine_broke: false,
                left_through: EpochId(0),
            },
        },
    ];
    for way in ways {
        let mut bench = Bench::standby();
        let ticket = next_trial(&mut bench);
        let effects = bench.give(way);
        assert!(!effects.iter().any(is_claim), "{effects:?}");
        let effects = bench.pass(patience, false, false);
        assert!(!effects.iter().any(is_claim), "{effects:?}");
        assert!(
            matches!(&effects[..], [Effect::ClaimWaits { why }] if why.contains("trial")),
            "{effects:?}"
        );
        assert_eq!(bench.pass(patience, false, false), [], "said once");
        assert_eq!(bench.give(tried(ticket, Ok(()))), [claim()]);
    }
    // It has taken long before.
    let mut bench = Bench::standby();
    let ticket = next_trial(&mut bench);
    bench.give(Input::LinkBroken { cause: "so".into() });
    bench.pass(patience + MS, false, true);
    let effects = bench.pass(policy.heartbeat_timeout + MS, false, false);
    assert!(
        matches!(effects[..], [Effect::ClaimWaits { .. }]),
        "{effects:?}"
    );
    assert_eq!(bench.give(tried(ticket, Ok(()))), [claim()]);
}

#[test]
fn a_claim_that_waits_is_withdrawn_if_the_guest_ends() {
    let the_end = || Message::Bye(Bye::GuestStopped);
    let mut bench = Bench::standby();
    let ticket = next_trial(&mut bench);
    assert_eq!(bench.give(Input::PromotionWanted), []);
    let effects = bench.hear(the_end());
    assert!(
        matches!(&effects[..], [Effect::CloseLink, Effect::Reset { reason }] if reason == "the guest stopped"),
        "{effects:?}"
    );
    assert_eq!(bench.give(tried(ticket, Ok(()))), []);
    assert_eq!(bench.core.phase(), BackupPhase::Listening);
    // What was asked for may have been granted: the answer decides.
    let mut bench = Bench::standby();
    assert_eq!(bench.give(Input::PromotionWanted), [claim()]);
    assert_eq!(bench.hear(the_end()), []);
    assert_eq!(bench.core.phase(), BackupPhase::Claiming);
}

#[test]
fn a_side_that_waits_for_a_trial_can_be_stopped() {
    let mut bench = Bench::standby();
    next_trial(&mut bench);
    bench.give(Input::LinkClosed);
    let effects = bench.give(Input::StopWanted);
    assert_eq!(effects, [Effect::Stop]);
}

#[test]
fn no_other_copy_begins_while_a_trial_of_an_earlier_one_hangs() {
    let (mut bench, ticket) = in_trial();
    let policy = Policy::default();
    let patience = policy.arbiter_check + 10 * policy.heartbeat_timeout;
    bench.pass(patience, true, true);
    assert_eq!(bench.core.phase(), BackupPhase::Listening);
    bench.give(link_up());
    let hello = Message::Hello(bench.hello());
    let effects = bench.hear(hello);
    assert!(
        matches!(
            &effects[..],
            [
                Effect::Send(Message::Refuse(Refusal::Busy(_))),
                Effect::CloseLink
            ]
        ),
        "{effects:?}"
    );
    bench.give(tried(ticket, Ok(())));
    assert_eq!(bench.introduce(GENERATION), [welcomed()]);
}

#[test]
fn nothing_is_tried_while_the_guest_may_be_granted() {
    let mut bench = Bench::standby();
    bench.pass(11_000 * MS, true, true);
    let effects = bench.give_raw(Input::PromotionWanted);
    assert_eq!(effects, [claim()]);
}

/// What is persisted and what is tried go on side by side.
#[test]
fn an_epoch_that_is_persisted_first_still_waits_for_its_trial() {
    let mut bench = Bench::syncing();
    let flush = EpochDisks {
        flush: true,
        ..EpochDisks::default()
    };
    let mut effects = Vec::new();
    for message in epoch_with(1, 1, 1, flush) {
        let generation = GENERATION;
        effects.extend(bench.give_raw(Input::Received {
            generation,
            message,
        }));
    }
    let (Some(Effect::TryRestore { ticket: trial, .. }), Some(Effect::Persist { ticket, .. })) =
        (effects.first(), effects.get(1))
    else {
        panic!("{effects:?}");
    };
    let persisted = Input::Persisted {
        ticket: *ticket,
        outcome: Ok(()),
    };
    assert_eq!(bench.give(persisted.clone()), []);
    // Nor does the flush begin before.
    let effects = bench.give(tried(*trial, Ok(())));
    assert!(
        matches!(&effects[..], [acked, Effect::FlushJournal { .. }] if *acked == ack(1, 0)),
        "{effects:?}"
    );
}

/// It is the last copy, perhaps.
#[test]
fn a_trial_that_is_slow_costs_no_copy_once_the_primary_may_be_gone() {
    let (mut bench, ticket) = in_trial();
    bench.give(tried(ticket, Ok(())));
    bench.give(Input::Tick);
    let ticket = next_trial(&mut bench);
    let committed = bench.core.committed_epoch();
    assert!(committed.is_some());
    bench.give(Input::LinkBroken { cause: "so".into() });
    let policy = Policy::default();
    let patience = policy.arbiter_check + 10 * policy.heartbeat_timeout;
    assert_eq!(bench.pass(2 * patience, false, true), []);
    assert_eq!(bench.give(tried(ticket, Ok(()))), []);
    assert_eq!(bench.core.committed_epoch(), committed);
    let effects = bench.pass(policy.heartbeat_timeout + MS, false, false);
    let claims = |effect: &Effect| matches!(effect, Effect::Claim { .. });
    assert!(effects.iter().any(claims), "{effects:?}");
}
