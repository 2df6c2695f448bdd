//! Whom a backup lets in, and what becomes of what it has.

use super::*;

fn refused(effects: &[Effect]) -> &Refusal {
    match effects {
        [Effect::Send(Message::Refuse(refusal)), Effect::CloseLink] => refusal,
        other => panic!("no refusal: {other:?}"),
    }
}

#[test]
fn the_introduction_must_fit() {
    let mut bench = Bench::new();
    let hello = bench.hello();
    let mut fingerprint = Fingerprint::new();
    fingerprint.set("cpu", 1);
    let layout = TestMemory::new(5).layout().clone();
    type Expected = fn(&Refusal) -> bool;
    let cases: [(Hello, u64, Expected); 5] = [
        (
            Hello {
                vm: "vm1".into(),
                ..hello.clone()
            },
            3,
            |refusal| matches!(refusal, Refusal::OtherVm { vm } if vm == "vm0"),
        ),
        (
            Hello {
                fingerprint,
                ..hello.clone()
            },
            3,
            |refusal| matches!(refusal, Refusal::Differs(d) if d[0].key() == "cpu"),
        ),
        (
            Hello {
                layout,
                ..hello.clone()
            },
            3,
            |refusal| matches!(refusal, Refusal::Differs(d) if d[0].key() == "memory"),
        ),
        (
            Hello {
                arbiter: ArbiterId("another".into()),
                ..hello.clone()
            },
            3,
            |refusal| matches!(refusal, Refusal::OtherArbiter { arbiter, .. } if *arbiter == self::arbiter()),
        ),
        (hello, 1, |refusal| {
            matches!(
                refusal,
                Refusal::Stale {
                    current: Generation(2)
                }
            )
        }),
    ];
    for (hello, generation, expected) in cases {
        bench.give(link_up());
        let effects = bench.hear_from(Generation(generation), Message::Hello(hello));
        assert!(expected(refused(&effects)), "{effects:?}");
        assert_eq!(bench.core.phase(), BackupPhase::Listening);
        assert_eq!(bench.core.generation(), Generation(2));
    }
    let effects = bench.introduce(Generation(2));
    assert!(
        matches!(&effects[..], [Effect::Welcome { .. }]),
        "the last known is good"
    );
}

#[test]
fn only_an_introduction_may_come_first() {
    let mut bench = Bench::new();
    bench.give(link_up());
    let effects = bench.hear(Message::Heartbeat);
    assert!(matches!(
        &effects[..],
        [
            Effect::Send(Message::Bye(Bye::Protocol(_))),
            Effect::CloseLink
        ]
    ));
    let mut bench = Bench::new();
    bench.give(link_up());
    assert_eq!(bench.pass(1499 * MS, false, false), []);
    assert_eq!(bench.pass(MS, false, false), [Effect::CloseLink]);
}

#[test]
fn the_next_generation_starts_afresh_after_a_cut() {
    let mut bench = Bench::torn();
    bench.give(Input::LinkBroken {
        cause: "bad frame".into(),
    });
    assert_eq!(bench.give(link_up()), []);
    let hello = bench.hello();
    let effects = bench.hear(Message::Hello(hello.clone()));
    assert!(
        matches!(refused(&effects), Refusal::Busy(_)),
        "same generation"
    );
    let effects = bench.introduce(Generation(4));
    assert!(
        matches!(&effects[..], [Effect::Reset { .. }, Effect::Welcome { .. }]),
        "{effects:?}"
    );
    assert_eq!(bench.core.committed_epoch(), None);
    assert_eq!(bench.core.phase(), BackupPhase::Syncing);
}

#[test]
fn a_session_of_the_same_generation_starts_afresh_too() {
    let mut bench = Bench::syncing();
    bench.hear(epoch_messages(1, 5).remove(0));
    bench.give(Input::LinkClosed);
    bench.introduce(GENERATION);
    bench.prove();
    bench.receive(1, 1);
    assert_eq!(bench.fill(), 1);
}

#[test]
fn a_strangers_link_does_not_keep_the_old_primary_alive() {
    let mut bench = Bench::standby();
    bench.give(Input::LinkBroken {
        cause: "bad frame".into(),
    });
    bench.give(link_up());
    let effects = bench.pass(150 * MS, false, false);
    assert_eq!(effects, [Effect::CloseLink, claim()]);
}

/// What is said of an introduction whose arbiter's answer is this.
fn answered(bench: &mut Bench, generation: u64, answer: Input) -> Vec<Effect> {
    bench.give(link_up());
    let hello = bench.hello();
    let asked = bench.hear_from(Generation(generation), Message::Hello(hello));
    assert_eq!(asked, [Effect::Rehearse], "R10: nothing before the answer");
    bench.give(answer)
}

#[test]
fn a_primary_is_welcome_only_in_the_generation_that_the_arbiter_names() {
    let mut bench = Bench::new();
    for forged in [4, u64::MAX] {
        let effects = answered(&mut bench, forged, Input::Rehearsed(record(3, 0)));
        assert!(
            matches!(refused(&effects), Refusal::OtherArbiter { current, .. } if *current == GENERATION),
            "{effects:?}"
        );
        assert_eq!(
            bench.core.generation(),
            Generation(2),
            "no number is taken over"
        );
    }
    let effects = answered(&mut bench, 3, Input::Rehearsed(record(4, 0)));
    assert!(matches!(refused(&effects), Refusal::Stale { current } if current.0 == 4));
    for no_answer in [unavailable(), Input::Rehearsed(record(1, 0))] {
        let effects = answered(&mut bench, 3, no_answer);
        assert!(
            matches!(refused(&effects), Refusal::NoArbiter(_)),
            "{effects:?}"
        );
    }
    assert!(matches!(
        bench.introduce(GENERATION)[..],
        [Effect::Welcome { .. }]
    ));
}

#[test]
fn a_forged_introduction_does_not_cost_the_copy() {
    let mut bench = Bench::standby();
    bench.give(Input::LinkBroken {
        cause: "bad frame".into(),
    });
    let effects = answered(&mut bench, u64::MAX, Input::Rehearsed(record(3, 0)));
    refused(&effects);
    assert_eq!(bench.core.committed_epoch(), Some(EpochId(1)));
    assert_eq!(bench.core.generation(), GENERATION);
}

#[test]
fn an_answer_from_before_the_introduction_says_nothing_about_it() {
    let mut bench = Bench::new();
    bench.give(link_up());
    let hello = bench.hello();
    bench.hear(Message::Hello(hello));
    bench.give(Input::LinkClosed);
    bench.give(link_up());
    let hello = bench.hello();
    assert_eq!(
        bench.hear(Message::Hello(hello)),
        [],
        "one question at a time"
    );
    // Of the time before this primary was granted its generation.
    assert_eq!(
        bench.give(Input::Rehearsed(record(2, 0))),
        [Effect::Rehearse]
    );
    let effects = bench.give(Input::Rehearsed(record(3, 0)));
    assert!(matches!(effects[..], [Effect::Welcome { .. }]));
}

#[test]
fn nothing_is_taken_from_a_primary_before_its_mark_was_found() {
    let plan = Message::SyncDisks(Vec::new());
    let of_epoch = epoch_messages(1, 5);
    let pages = Message::SyncPages(batch(100, 5));
    for message in [plan, pages].into_iter().chain(of_epoch) {
        let mut bench = Bench::new();
        bench.introduce(GENERATION);
        // Announced, but not found yet.
        bench.hear(Message::Marked(mark(1)));
        let effects = bench.hear(message);
        assert!(
            matches!(
                &effects[..],
                [
                    Effect::Send(Message::Bye(Bye::Protocol(why))),
                    Effect::CloseLink,
                    Effect::Reset { .. }
                ] if why.contains("first mark")
            ),
            "{effects:?}"
        );
        assert_eq!(bench.fill(), 0);
        assert_eq!(bench.core.phase(), BackupPhase::Listening);
    }
}

/// That a stranger's time is up, or its mark is not there.
#[track_caller]
fn assert_is_sent_away(effects: &[Effect], why: &str) {
    assert!(
        matches!(
            effects,
            [
                Effect::Send(Message::Refuse(Refusal::NoArbiter(told))),
                Effect::CloseLink,
                Effect::Reset { .. }
            ] if told.contains(why)
        ),
        "{effects:?}"
    );
}

#[test]
fn who_cannot_write_to_the_record_is_sent_away() {
    let welcomed = || {
        let mut bench = Bench::new();
        bench.introduce(GENERATION);
        bench
    };
    // It never says that it has written anything, although it says a lot.
    let mut bench = welcomed();
    let time = 2 * Policy::default().arbiter_check;
    assert_eq!(bench.pass(time - MS, true, true), []);
    assert_is_sent_away(&bench.pass(MS, true, true), "not written a mark in time");
    // It does, but this side's arbiter does not answer. That it goes on writing gains no time.
    let mut bench = welcomed();
    assert_eq!(bench.hear(Message::Marked(mark(1))), [Effect::Rehearse]);
    assert_eq!(bench.pass(time / 2, true, true), []);
    assert_eq!(bench.hear(Message::Marked(mark(2))), []);
    assert_eq!(bench.pass(time / 2 - MS, true, true), []);
    assert_is_sent_away(&bench.pass(MS, true, true), "has not answered in time");
    // It says so, and has not.
    let mut bench = welcomed();
    bench.hear(Message::Marked(mark(1)));
    let effects = bench.give(Input::Rehearsed(record(3, 0)));
    assert_is_sent_away(&effects, "not copies of it");
    // Nobody can tell.
    let mut bench = welcomed();
    bench.hear(Message::Marked(mark(1)));
    assert_is_sent_away(&bench.give(unavailable()), "no answer");
    assert_eq!(bench.core.phase(), BackupPhase::Listening);
    bench.introduce(GENERATION);
}

#[test]
fn a_recorded_session_cannot_be_played_again() {
    // The same introduction, but this side's part of the number is another one now.
    let mut bench = Bench::new();
    bench.give(Input::LinkUp { session: 1 });
    let hello = bench.hello();
    bench.hear(Message::Hello(hello));
    let effects = bench.give(Input::Rehearsed(record(3, 1)));
    assert!(
        matches!(&effects[..], [Effect::Welcome { session: 1 }]),
        "{effects:?}"
    );
    assert_ne!(bench.core.session(), SESSION);
    let effects = bench.hear(Message::Marked(mark(1)));
    assert!(
        matches!(
            effects.first(),
            Some(Effect::Send(Message::Bye(Bye::Protocol(_))))
        ),
        "{effects:?}"
    );
}
