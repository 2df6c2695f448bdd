//! R9: both sides know within seconds whether a takeover would be granted.

use super::*;

fn told(beat: u64) -> Message {
    Message::Marked(mark(beat))
}

#[test]
fn each_mark_is_looked_for_and_the_next_claim_names_it() {
    let mut bench = Bench::standby();
    assert_eq!(bench.hear(told(2)), [Effect::Rehearse]);
    let seen = Effect::Send(Message::Seen(mark(2)));
    assert_eq!(bench.give(Input::Rehearsed(record(3, 2))), [seen]);
    assert!(bench.core.is_protecting());
    bench.hear(told(3));
    bench.give(unavailable());
    let effects = bench.give(Input::LinkClosed);
    let (known, mark) = (GENERATION, mark(3));
    assert_eq!(effects, [Effect::CloseLink, Effect::Claim { known, mark }]);
}

#[test]
fn a_record_without_the_mark_is_a_copy_of_the_arbiter() {
    let other_session = Record {
        mark: Mark {
            session: SESSION + 1,
            beat: 9,
        },
        ..record(3, 0)
    };
    for found in [record(3, 1), record(4, 2), other_session] {
        let mut bench = Bench::standby();
        bench.hear(told(2));
        let effects = bench.give_all(Input::Rehearsed(found));
        assert!(
            matches!(
                &effects[..],
                [
                    Effect::Send(Message::NoArbiter(_)),
                    Effect::Takeover(Err(why))
                ] if why.contains("not copies of it")
            ),
            "{effects:?}"
        );
        assert!(!bench.core.is_protecting());
    }
}

#[test]
fn an_arbiter_that_fails_on_either_side_is_told_and_so_is_its_return() {
    // A copy that has begun goes on, too.
    let mut bench = Bench::standby();
    for bench in [&mut Bench::syncing(), &mut bench] {
        bench.hear(told(2));
        let effects = bench.give_all(unavailable());
        assert!(
            matches!(
                &effects[..],
                [
                    Effect::Send(Message::NoArbiter(_)),
                    Effect::Takeover(Err(_))
                ]
            ),
            "{effects:?}"
        );
    }
    bench.hear(told(3));
    let effects = bench.give_all(Input::Rehearsed(record(3, 3)));
    assert!(effects.contains(&Effect::Takeover(Ok(()))), "{effects:?}");
    let why = "the file system is read-only".into();
    let message = Message::NoArbiter(why);
    let effects = bench.give_all(Input::Received {
        generation: GENERATION,
        message,
    });
    assert!(
        matches!(&effects[..], [Effect::Takeover(Err(why))] if why.contains("read-only")),
        "{effects:?}"
    );
}

#[test]
fn a_proof_that_is_too_old_proves_nothing() {
    let mut bench = Bench::standby();
    let patience = 2 * Policy::default().arbiter_check;
    bench.pass(patience - MS, true, false);
    assert!(bench.core.is_protecting());
    bench.pass(MS, true, false);
    assert!(!bench.core.is_protecting());
}

#[test]
fn marks_of_other_sessions_and_old_ones_break_the_protocol() {
    let another = Mark {
        session: SESSION + 1,
        beat: 5,
    };
    for wrong in [another, mark(1), mark(0)] {
        let mut bench = Bench::standby();
        let effects = bench.hear(Message::Marked(wrong));
        assert!(
            matches!(
                effects.first(),
                Some(Effect::Send(Message::Bye(Bye::Protocol(_))))
            ),
            "{effects:?}"
        );
    }
}
