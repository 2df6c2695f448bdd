//! What comes at a wrong moment, twice, or about something else: it settles nothing, and hides no loss.

use super::*;
use crate::core::message::Bye;

fn breaks_the_protocol(effects: &[Effect]) -> bool {
    let bye = effects.first();
    matches!(bye, Some(Effect::Send(Message::Bye(Bye::Protocol(_)))))
        && effects.contains(&Effect::CloseLink)
}

#[test]
fn only_an_acknowledgement_says_that_the_backup_has_an_epoch() {
    // The runtime drops acknowledgements that it finds on a link that has failed, and nothing else.
    let (epoch, durable) = (EpochId(1), EpochId(0));
    let received = |message| Input::Received {
        generation: GENERATION,
        message,
    };
    assert!(received(Message::Ack { epoch, durable }).is_ack());
    assert!(!received(Message::Heartbeat).is_ack());
    assert!(!Input::Tick.is_ack());
}

#[test]
fn an_epoch_that_was_shipped_twice_or_is_another_one_ends_the_session() {
    for reports in [&[2, 2][..], &[3], &[1]] {
        let mut bench = Bench::protected();
        bench.give(Input::CheckpointWanted);
        bench.give(Input::Captured {
            epoch: EpochId(2),
            pause: Pause::default(),
        });
        let mut effects = Vec::new();
        for epoch in reports {
            assert_eq!(effects, []);
            let epoch = EpochId(*epoch);
            effects = bench.give(Input::Shipped { epoch, bytes: 0 });
        }
        assert!(claims(&effects), "{reports:?}: {effects:?}");
    }
}

#[test]
fn each_session_is_introduced_by_its_own_number() {
    let mut bench = Bench::new();
    assert_eq!(bench.core.session(), 0);
    let session = SESSION + 1;
    let introduction = Message::Hello(Hello { session, ..hello() });
    assert_eq!(
        bench.give(Input::LinkUp { session }),
        [Effect::Send(introduction)]
    );
    assert_eq!(bench.core.session(), session);
}

#[test]
fn a_backup_that_is_not_welcomed_or_twice_breaks_the_protocol() {
    let mut bench = Bench::new();
    bench.give(link_up());
    assert!(breaks_the_protocol(&bench.hear(Message::Heartbeat)));

    let mut bench = Bench::new();
    bench.give(link_up());
    bench.hear(Message::Welcome(welcome_of_b()));
    assert_eq!(bench.hear(Message::Heartbeat), []);
    let again = bench.hear(Message::Welcome(welcome_of_b()));
    assert!(breaks_the_protocol(&again), "{again:?}");
}

#[test]
fn a_stall_of_this_side_is_no_silence_of_the_other_one_on_either_path() {
    // Only the separate path has given signs of life for a while.
    let mut bench = Bench::protected();
    let timeout = bench.core.policy.heartbeat_timeout;
    bench.pass(3 * timeout, false, true);
    assert_eq!(bench.core.phase(), PrimaryPhase::Protected);
    bench.now += 1000 * timeout;
    bench.give(Input::Tick);
    assert_eq!(bench.core.phase(), PrimaryPhase::Protected);
    // Nor of one that has not answered the introduction yet.
    let mut bench = Bench::new();
    bench.give(link_up());
    bench.now += 1000 * timeout;
    bench.give(Input::Tick);
    assert_eq!(bench.core.phase(), PrimaryPhase::Handshaking);
}

#[test]
fn who_is_refused_its_own_generation_has_lost_it() {
    // The record names another holder of it.
    let mut bench = Bench::protected();
    bench.now += 100 * MS;
    assert!(bench.give(Input::Tick).contains(&doubt()));
    let effects = bench.give(Input::Verdict(Verdict::Refused {
        current: GENERATION,
        holder: "b".into(),
    }));
    assert!(matches!(effects.last(), Some(Effect::Fenced { .. })));
}

#[test]
fn an_arbiter_that_confirms_another_generation_confirms_nothing() {
    for other in [2, 4] {
        let mut bench = Bench::protected();
        bench.now += 100 * MS;
        bench.give(Input::Tick);
        let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(other))));
        let fenced = matches!(effects.last(), Some(Effect::Fenced { reason, .. }) if reason.contains("cannot be"));
        assert!(fenced, "{other}: {effects:?}");
    }
}

#[test]
fn who_goes_on_about_a_later_generation_does_not_put_off_the_end_of_a_doubt() {
    let mut bench = Bench::protected();
    let timeout = bench.core.policy.heartbeat_timeout;
    bench.pass(2 * timeout, true, true);
    let later = |bench: &mut Bench| {
        bench.give(Input::HeartbeatHeard {
            session: SESSION,
            generation: Generation(9),
        })
    };
    let effects = later(&mut bench);
    assert!(effects.contains(&doubt()), "{effects:?}");
    // The arbiter takes its time.
    bench.pass(2 * timeout, true, true);
    assert!(!later(&mut bench).contains(&doubt()));
    bench.give(confirmed());
    assert!(!bench.core.is_in_doubt());
}
