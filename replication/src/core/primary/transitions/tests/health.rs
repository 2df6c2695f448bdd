//! What the backup says about its host is kept for as long as it is there, and leads to nothing here.

use super::*;
use crate::core::message::Trouble;

fn health() -> Message {
    Message::Health(vec![Trouble::new("net0", "the cable is out")])
}

#[test]
fn what_a_backup_says_about_its_host_is_known_until_the_session_ends() {
    let mut bench = Bench::protected();
    assert_eq!(bench.core.backup_troubles(), None, "it has not said so yet");
    assert_eq!(bench.hear(health()), [], "R10");
    let [trouble] = bench.core.backup_troubles().unwrap() else {
        panic!("one trouble");
    };
    assert_eq!(trouble.topic, "net0");
    assert_eq!(bench.hear(Message::Health(Vec::new())), []);
    assert_eq!(bench.core.backup_troubles(), Some(&[][..]));
    let cause = "as ordered".into();
    assert!(claims(&bench.give(Input::LinkDown { cause })));
    assert_eq!(bench.core.backup_troubles(), None, "there is no backup");
}

#[test]
fn who_has_no_whole_copy_says_nothing_about_its_host() {
    let mut bench = Bench::welcomed();
    let effects = bench.hear(health());
    assert!(
        matches!(
            &effects[..],
            [
                Effect::Send(Message::Bye(Bye::Protocol(_))),
                Effect::CloseLink,
                ..
            ]
        ),
        "{effects:?}"
    );
    assert_eq!(bench.core.backup_troubles(), None);
}
