use std::time::Duration;

use super::*;

fn log() -> EventLog {
    EventLog::new("web", "host-a")
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(20)
}

fn number(heard: Option<NodeEvent>) -> u64 {
    heard.expect("an event").number
}

#[test]
fn every_subscriber_hears_each_event_once_from_its_subscription_on() {
    let log = log();
    let mut first = log.subscribe();
    log.tell(EventKind::GuestRebooted);
    let mut second = log.subscribe();
    log.tell(EventKind::GuestRestarted);
    assert_eq!(number(first.next(soon())), 1);
    assert_eq!(number(first.next(soon())), 2);
    assert_eq!(first.next(soon()), None);
    let event = second.next(soon()).unwrap();
    assert_eq!(event.what, EventKind::GuestRestarted);
    assert_eq!((&*event.vm, &*event.node), ("web", "host-a"));
    assert!(event.at_unix_ms > 1_600_000_000_000, "{event:?}");
    assert_eq!(second.next(soon()), None);
}

#[test]
fn a_slow_subscriber_loses_the_oldest_and_sees_how_many() {
    let log = log();
    let mut slow = log.subscribe();
    let mut quick = log.subscribe();
    let told = KEPT_MAX as u64 + 7;
    for told in 1..=told {
        log.tell(EventKind::GuestRebooted);
        assert_eq!(number(quick.next(soon())), told);
    }
    for expected in 8..=told {
        assert_eq!(number(slow.next(soon())), expected);
    }
    assert_eq!(slow.next(soon()), None);
    assert_eq!(quick.next(soon()), None, "somebody else's slowness is felt");
}

#[test]
fn a_subscriber_that_waits_is_woken() {
    let log = log();
    let mut subscription = log.subscribe();
    let long = Instant::now() + Duration::from_secs(30);
    let waiting = std::thread::spawn(move || subscription.next(long));
    log.tell(EventKind::Protected);
    assert_eq!(number(waiting.join().unwrap()), 1);
    assert!(Instant::now() < long, "nobody was woken");
}

#[test]
fn the_last_events_are_kept_in_order() {
    let log = log();
    for _ in 0..KEPT_MAX + 3 {
        log.tell(EventKind::GuestRebooted);
    }
    let numbers = |most| -> Vec<u64> { log.last(most).iter().map(|event| event.number).collect() };
    assert_eq!(numbers(2), [KEPT_MAX as u64 + 2, KEPT_MAX as u64 + 3]);
    assert_eq!(numbers(usize::MAX).len(), KEPT_MAX);
    assert_eq!(numbers(usize::MAX)[0], 4);
}

#[test]
fn an_event_goes_over_the_wire_and_back() {
    let log = log();
    log.tell(EventKind::Ended(Ended::Fenced {
        reason: "another host".into(),
    }));
    let events = log.last(1);
    let text = serde_json::to_string(&events).unwrap();
    assert!(text.contains("\"event\":\"ended\""), "{text}");
    let back: Vec<NodeEvent> = serde_json::from_str(&text).unwrap();
    assert_eq!(back, events);
}

#[test]
fn what_the_other_host_says_again_and_again_is_logged_once_a_second() {
    let log = log();
    let what = || "on the standby's host: the cable is out".to_owned();
    let fails = EventKind::NetworkFails { what: what() };
    let works = EventKind::NetworkWorks { what: what() };
    assert_eq!(log.line(&fails), Some(0));
    assert_eq!(log.line(&works), Some(0));
    assert_eq!(log.line(&fails), None);
    assert_eq!(log.line(&works), None);
    // Nor is it, in ever new words.
    let lines = (0..1_000).filter(|number| {
        let what = format!("on the standby's host: look {number}");
        log.line(&EventKind::NetworkFails { what }).is_some()
    });
    assert!(lines.count() < 9, "all of it is one kind");
    let what = "network net0: the cable is out".to_owned();
    assert_eq!(log.line(&EventKind::NetworkFails { what }), Some(0));
    // This host's own events are few.
    assert_eq!(log.line(&EventKind::Unprotected), Some(0));
    assert_eq!(log.line(&EventKind::Unprotected), Some(0));
}
