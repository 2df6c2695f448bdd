//! What fails on this host, and where the guest goes on.

use super::*;
use crate::config::{GuestNetwork, OnCut};

fn replication(core: &mut NodeCore, second: u64, event: ReplicationEvent) -> Vec<Effect> {
    deeds(core.input(Duration::from_secs(second), Input::Replication(event)))
}

fn fails(core: &mut NodeCore, second: u64, topic: &str) -> Vec<Effect> {
    let mut effects = Vec::new();
    let what = format!("{topic} is broken");
    core.host_fails(Duration::from_secs(second), topic, what, &mut effects);
    deeds(effects)
}

fn hands_over(what: &str) -> [Effect; 1] {
    [Effect::HandOver(what.into())]
}

#[test]
fn a_guest_leaves_a_host_that_fails_as_soon_as_it_can() {
    let mut core = in_role(Role::Primary, RULES, true);
    assert_eq!(fails(&mut core, 1, "disk0"), [], "nobody could take it");
    assert_eq!(core.next_timer(), None);
    let effects = replication(&mut core, 2, ReplicationEvent::Protected);
    assert_eq!(effects, hands_over("disk0 is broken"));
    assert_eq!(fails(&mut core, 3, "net0"), [], "it is under way");
    let reason = String::from("the arbiter names b");
    let end = RoleEnd::HandedOver { reason };
    let Ended::HandedOver { trouble, .. } = over(&mut core, end) else {
        panic!("it was handed over");
    };
    let trouble = trouble.unwrap();
    assert!(
        trouble.contains("disk0") && trouble.contains("net0"),
        "{trouble}"
    );
}

#[test]
fn a_guest_that_could_not_leave_tries_again_later_if_it_still_must() {
    let mut core = in_role(Role::Primary, RULES, true);
    replication(&mut core, 1, ReplicationEvent::Protected);
    assert_eq!(fails(&mut core, 1, "disk0"), hands_over("disk0 is broken"));
    assert_eq!(not_handed_over(&mut core), []);
    assert_eq!(fails(&mut core, 1, "disk0"), [], "not at once");
    let at = core.next_timer().unwrap();
    assert!(at > Duration::from_secs(1), "{at:?}");
    let effects = deeds(core.input(at, Input::Timer));
    assert_eq!(effects, hands_over("disk0 is broken"));
    not_handed_over(&mut core);
    core.host_works("disk0");
    assert_eq!(core.next_timer(), None);
    assert_eq!(deeds(core.input(at * 2, Input::Timer)), []);
}

#[test]
fn a_guest_that_ends_or_leaves_anyhow_or_runs_alone_goes_nowhere_because_its_host_fails() {
    let mut core = in_role(Role::Primary, RULES, true);
    replication(&mut core, 1, ReplicationEvent::Protected);
    leaves(&mut core, true);
    assert_eq!(fails(&mut core, 2, "disk0"), []);
    let mut core = in_role(Role::Primary, RULES, true);
    replication(&mut core, 1, ReplicationEvent::Protected);
    request(&mut core, Request::Stop).unwrap();
    assert_eq!(fails(&mut core, 2, "disk0"), []);
    let mut core = in_role(Role::Unprotected, RULES, true);
    assert_eq!(fails(&mut core, 2, "disk0"), []);
    assert_eq!(core.next_timer(), None);
}

#[test]
fn a_guest_whose_network_lost_its_connection_here_goes_where_it_has_one() {
    let mut core = in_role(Role::Primary, RULES, true);
    replication(&mut core, 1, ReplicationEvent::Protected);
    let (device, what) = ("net0".to_owned(), "its link is down".to_owned());
    let lost = MachineEvent::BackendLost { device, what };
    let effects = deeds(guest(&mut core, lost));
    assert!(matches!(&effects[..], [Effect::HandOver(why)] if why.contains("net0")));
}

#[test]
fn a_lost_connection_leads_to_no_more_than_its_network_says() {
    for (on_cut, alarms) in [(OnCut::Report, 1), (OnCut::Ignore, 0)] {
        let mut core = protected();
        core.know_networks(vec![GuestNetwork {
            id: "net0".into(),
            tap: None,
            on_cut,
            ping: Vec::new(),
        }]);
        let (device, what) = ("net0".to_owned(), "its link is down".to_owned());
        let effects = guest(&mut core, MachineEvent::BackendLost { device, what });
        assert!(
            matches!(effects[..], [Effect::Tell(_)]),
            "it is told: {effects:?}"
        );
        assert_eq!(core.next_timer(), None);
        assert_eq!(core.standing().host_alarms.len(), alarms, "{on_cut:?}");
    }
}

fn holds(core: &mut NodeCore, device: &str, waits: bool) -> Vec<Effect> {
    let (device, what) = (device.to_owned(), "cannot write: no space".to_owned());
    deeds(guest(
        core,
        MachineEvent::DiskHolds {
            device,
            what,
            waits,
        },
    ))
}

fn protected() -> NodeCore {
    let mut core = in_role(Role::Primary, RULES, true);
    replication(&mut core, 1, ReplicationEvent::Protected);
    core
}

#[test]
fn a_protected_guest_sees_no_error_of_its_hosts_disk_but_goes_on_elsewhere() {
    for waits in [false, true] {
        let mut core = protected();
        let effects = holds(&mut core, "disk0", waits);
        assert!(
            matches!(&effects[..], [Effect::HandOver(why)] if why.contains("no space")),
            "{effects:?}"
        );
        assert_eq!(holds(&mut core, "disk1", waits), [], "it is under way");
        let reason = String::from("the arbiter names b");
        let Ended::HandedOver { trouble, .. } = over(&mut core, RoleEnd::HandedOver { reason })
        else {
            panic!("it was handed over");
        };
        assert!(trouble.unwrap().contains("disk0 fails"));
    }
    // So does one that leaves anyhow.
    let mut core = protected();
    leaves(&mut core, true);
    assert_eq!(holds(&mut core, "disk0", false), []);
}

#[test]
fn a_guest_that_stays_sees_the_error() {
    let answered = [Effect::AnswerFailed("disk0".into())];
    // Nobody could take it.
    for role in [Role::Unprotected, Role::Primary] {
        let mut core = in_role(role, RULES, true);
        assert_eq!(holds(&mut core, "disk0", false), answered);
        assert_eq!(core.next_timer(), None);
    }
    // It could not be handed over; the next time comes later.
    let mut core = protected();
    holds(&mut core, "disk0", false);
    assert_eq!(not_handed_over(&mut core), answered);
    assert_eq!(holds(&mut core, "disk0", false), []);
    let at = core.next_timer().unwrap();
    let effects = deeds(core.input(at, Input::Timer));
    assert!(matches!(&effects[..], [Effect::HandOver(_)]), "{effects:?}");
    assert_eq!(not_handed_over(&mut core), answered);
    // Its standby is lost while it holds something.
    holds(&mut core, "disk0", false);
    let effects = replication(&mut core, 1, ReplicationEvent::Unprotected);
    assert_eq!(effects, answered);
}

#[test]
fn a_guest_may_wait_until_its_disk_works_and_a_person_is_told_once() {
    let mut core = in_role(Role::Unprotected, RULES, true);
    let mut told = 0;
    for _ in 0..3 {
        let (device, what) = ("disk0".to_owned(), format!("cannot write at byte {told}"));
        let event = MachineEvent::DiskHolds {
            device,
            what,
            waits: true,
        };
        let effects = guest(&mut core, event);
        told += effects.len();
        assert_eq!(deeds(effects), []);
        let at = core.next_timer().unwrap();
        assert_eq!(
            deeds(core.input(at, Input::Timer)),
            [Effect::RetryFailed("disk0".into())]
        );
    }
    assert_eq!(told, 1);
    assert!(core.standing().alarm.unwrap().contains("at byte 0"));
    // It fails nothing more.
    let at = core.next_timer().unwrap();
    let effects = core.input(at, Input::Timer);
    assert!(matches!(
        effects[..],
        [Effect::Tell(EventKind::DiskAnswers { .. })]
    ));
    assert_eq!(core.standing().alarm, None);
    assert_eq!(core.next_timer(), None);
}

/// Two hosts with the same trouble must not keep each other busy.
#[test]
fn a_guest_that_has_just_come_stays_for_a_while() {
    let mut core = in_role(Role::Standby, RULES, true);
    core.input(Duration::ZERO, promoted());
    replication(&mut core, 1, ReplicationEvent::Protected);
    assert_eq!(
        holds(&mut core, "disk0", false),
        [Effect::AnswerFailed("disk0".into())]
    );
    assert_eq!(fails(&mut core, 2, "net0"), []);
    let at = core.next_timer().unwrap();
    assert!(at >= Duration::from_secs(30), "{at:?}");
    let effects = deeds(core.input(at, Input::Timer));
    assert_eq!(effects, hands_over("net0 is broken"));
}

#[test]
fn a_guest_leaves_storage_that_stalls_unless_it_moves_before_somebody_can_take_it() {
    let stalls = || MachineEvent::DiskStalls {
        device: "disk0".into(),
        what: "nothing for 1 s".into(),
    };
    let moves = || MachineEvent::DiskMoves {
        device: "disk0".into(),
    };
    let mut core = protected();
    let effects = deeds(guest(&mut core, stalls()));
    assert!(matches!(&effects[..], [Effect::HandOver(why)] if why.contains("disk0 hangs")));
    let mut core = in_role(Role::Primary, RULES, true);
    assert_eq!(
        guest(&mut core, stalls()),
        [],
        "nothing is told of so little"
    );
    guest(&mut core, moves());
    assert_eq!(replication(&mut core, 2, ReplicationEvent::Protected), []);
    let mut core = protected();
    guest(&mut core, stalls());
    let effects = replication(&mut core, 2, ReplicationEvent::Unprotected);
    assert_eq!(effects, [], "that is under way");
}

fn alarms(core: &NodeCore) -> String {
    core.standing().host_alarms.join("\n")
}

#[test]
fn a_handover_that_was_wanted_and_could_not_be_done_is_an_alarm_until_its_reason_is_gone() {
    let mut core = in_role(Role::Primary, RULES, true);
    assert_eq!(core.standing().not_handed_over, None);
    fails(&mut core, 1, "disk0");
    let waits = core.standing().not_handed_over.unwrap();
    assert_eq!(waits.wanted, "disk0 is broken");
    assert!(waits.why.contains("no standby"), "{waits}");
    assert!(alarms(&core).contains(&waits.to_string()));
    replication(&mut core, 2, ReplicationEvent::Protected);
    assert_eq!(core.standing().not_handed_over, None, "it is under way");
    not_handed_over(&mut core);
    let stays = core.standing().not_handed_over.unwrap();
    assert_eq!(
        (&*stays.wanted, &*stays.why),
        ("disk0 is broken", "it does not answer")
    );
    assert!(alarms(&core).contains(&stays.to_string()));
    // While it is tried again, and while something else fails.
    fails(&mut core, 3, "net0");
    core.host_works("disk0");
    core.host_works("disk0");
    assert_eq!(core.standing().not_handed_over, Some(stays));
    core.host_works("net0");
    assert_eq!(core.standing().not_handed_over, None);
    assert_eq!(alarms(&core), "");
}

#[test]
fn a_handover_that_somebody_wanted_in_vain_is_an_alarm_until_it_is_possible_anew() {
    let mut core = protected();
    request(&mut core, Request::Failover).unwrap();
    not_handed_over(&mut core);
    let stays = core.standing().not_handed_over.unwrap();
    assert!(stays.wanted.contains("somebody"), "{stays}");
    replication(&mut core, 2, ReplicationEvent::Unprotected);
    assert!(core.standing().not_handed_over.is_some());
    replication(&mut core, 3, ReplicationEvent::Protected);
    assert_eq!(core.standing().not_handed_over, None);
}

/// The guest has seen the error, and nothing more waits for another host.
#[test]
fn that_a_disk_failed_in_front_of_the_guest_because_nobody_took_it_stays_an_alarm() {
    let mut core = protected();
    holds(&mut core, "disk0", false);
    let answered = [Effect::AnswerFailed("disk0".into())];
    assert_eq!(not_handed_over(&mut core), answered);
    let stays = core.standing().not_handed_over.unwrap();
    assert!(stays.wanted.contains("disk0 fails"), "{stays}");
    replication(&mut core, 2, ReplicationEvent::Unprotected);
    replication(&mut core, 3, ReplicationEvent::Protected);
    assert_eq!(core.standing().not_handed_over, None);
}

/// Storage was full, nobody took the guest, and there is room again.
#[test]
fn a_disk_that_the_guest_waited_for_and_that_works_again_leaves_no_alarm() {
    let at = Duration::from_secs;
    let mut core = protected();
    holds(&mut core, "disk0", true);
    fails(&mut core, 1, "net0");
    not_handed_over(&mut core);
    let stays = core.standing().not_handed_over.unwrap();
    assert!(stays.wanted.contains("disk0 fails"), "{stays}");
    core.host_works("net0");
    let retry = [Effect::RetryFailed("disk0".into())];
    assert_eq!(deeds(core.input(at(2), Input::Timer)), retry);
    // What fails while it is tried elsewhere has not been done here.
    holds(&mut core, "disk0", true);
    assert_eq!(deeds(core.input(at(3), Input::Timer)).len(), 1);
    assert_eq!(core.input(at(9), Input::Timer), [], "it is under way");
    not_handed_over(&mut core);
    assert_eq!(deeds(core.input(at(10), Input::Timer)), retry);
    assert!(
        core.standing().not_handed_over.is_some(),
        "nobody knows yet"
    );
    let due = core.next_timer().unwrap();
    assert!(matches!(
        core.input(due, Input::Timer)[..],
        [Effect::Tell(EventKind::DiskAnswers { .. })]
    ));
    assert_eq!(core.standing().not_handed_over, None);
    assert_eq!(
        (alarms(&core), core.standing().alarm),
        (String::new(), None)
    );
}

#[test]
fn a_lost_connection_is_an_alarm_until_there_is_a_machine_that_is_connected_anew() {
    let mut core = in_role(Role::Standby, RULES, true);
    for what in ["its link is down", "its socket was closed"] {
        let (device, what) = ("net0".to_owned(), what.to_owned());
        guest(&mut core, MachineEvent::BackendLost { device, what });
    }
    let said = alarms(&core);
    assert!(
        said.contains("socket was closed") && !said.contains("link is down"),
        "{said}"
    );
    let (role, can_restart) = (Role::Primary, true);
    core.input(Duration::ZERO, Input::Began { role, can_restart });
    assert_eq!(alarms(&core), "");
    let effects = replication(&mut core, 9, ReplicationEvent::Protected);
    assert_eq!(effects, [], "nothing fails here");
}
