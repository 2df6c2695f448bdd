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
    let cases: [(Hello, u64, Expected); 4] = [
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
        (hello.clone(), 1, |refusal| {
            matches!(
                refusal,
                Refusal::Stale {
                    current: Generation(2)
                }
            )
        }),
    ];
    for (hello, generation, expected) in cases {
        bench.give(Input::LinkUp);
        let effects = bench.hear_from(Generation(generation), Message::Hello(hello));
        assert!(expected(refused(&effects)), "{effects:?}");
        assert_eq!(bench.core.phase(), BackupPhase::Listening);
        assert_eq!(bench.core.generation(), Generation(2));
    }
    bench.give(Input::LinkUp);
    let effects = bench.hear_from(Generation(2), Message::Hello(hello));
    assert!(
        matches!(&effects[..], [Effect::Welcome { .. }]),
        "the last known is good"
    );
}

#[test]
fn only_an_introduction_may_come_first() {
    let mut bench = Bench::new();
    bench.give(Input::LinkUp);
    let effects = bench.hear(Message::Heartbeat);
    assert!(matches!(
        &effects[..],
        [
            Effect::Send(Message::Bye(Bye::Protocol(_))),
            Effect::CloseLink
        ]
    ));
    let mut bench = Bench::new();
    bench.give(Input::LinkUp);
    assert_eq!(bench.pass(1499 * MS, false, false), []);
    assert_eq!(bench.pass(MS, false, false), [Effect::CloseLink]);
}

#[test]
fn the_next_generation_starts_afresh_after_a_cut() {
    let mut bench = Bench::torn();
    bench.give(Input::LinkBroken {
        cause: "bad frame".into(),
    });
    assert_eq!(bench.give(Input::LinkUp), []);
    let hello = bench.hello();
    let effects = bench.hear(Message::Hello(hello.clone()));
    assert!(
        matches!(refused(&effects), Refusal::Busy(_)),
        "same generation"
    );
    bench.give(Input::LinkUp);
    let effects = bench.hear_from(Generation(4), Message::Hello(hello));
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
    bench.give(Input::LinkUp);
    let hello = bench.hello();
    bench.hear(Message::Hello(hello));
    bench.receive(1, 1);
    assert_eq!(bench.fill(), 1);
}

#[test]
fn a_strangers_link_does_not_keep_the_old_primary_alive() {
    let mut bench = Bench::standby();
    bench.give(Input::LinkBroken {
        cause: "bad frame".into(),
    });
    bench.give(Input::LinkUp);
    let effects = bench.pass(150 * MS, false, false);
    assert_eq!(effects, [Effect::CloseLink, Effect::Claim(GENERATION)]);
}
