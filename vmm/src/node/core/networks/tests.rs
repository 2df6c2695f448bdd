use super::super::tests::{RULES, deeds, in_role, promoted};
use super::super::{Ended, Input, ReplicationEvent, RoleEnd};
use super::known::Networks;
use super::*;
use crate::config::{OnCut, WatchedNetwork};
use crate::node::networks::ping::Answers;
use crate::node::networks::{Cut, Reach};

const NOW: Duration = Duration::from_secs(9);

fn network(reach: Reach, cut: Option<bool>) -> NetworkSeen {
    NetworkSeen {
        watched: WatchedNetwork {
            id: "net0".into(),
            tap: "tap0".into(),
            on_cut: OnCut::Handover,
            ping: Vec::new(),
        },
        answers: Answers::NotAsked,
        reach,
        cut: cut.map(|lasts| Cut {
            why: "the cable is out".into(),
            lasts,
        }),
    }
}

fn whole() -> NetworkSeen {
    network(Reach::Uplink, None)
}

fn cut() -> NetworkSeen {
    network(Reach::Uplink, Some(true))
}

fn sees(core: &mut NodeCore, seen: NetworkSeen) -> Vec<Effect> {
    deeds(core.input(NOW, Input::Networks(vec![seen])))
}

/// The standby's host sees this.
fn standby_sees(core: &mut NodeCore, seen: Option<NetworkSeen>) -> Vec<Effect> {
    let troubles = seen.map(|seen| seen.troubles());
    replication(core, ReplicationEvent::BackupHealth { troubles })
}

fn replication(core: &mut NodeCore, event: ReplicationEvent) -> Vec<Effect> {
    deeds(core.input(NOW, Input::Replication(event)))
}

/// A primary whose standby is in sync and reaches the clients.
fn protected() -> NodeCore {
    let mut core = in_role(Role::Primary, RULES, true);
    assert_eq!(sees(&mut core, whole()), []);
    assert_eq!(standby_sees(&mut core, Some(whole())), []);
    assert_eq!(replication(&mut core, ReplicationEvent::Protected), []);
    core
}

fn hands_over(effects: &[Effect]) -> bool {
    matches!(effects, [Effect::HandOver(why)] if why.contains("the cable is out"))
}

/// The standby has had its networks for long enough.
fn settled(core: &mut NodeCore) -> Vec<Effect> {
    let at = core.next_timer().expect("it is waited for");
    assert!(at > NOW, "not at once");
    assert_eq!(deeds(core.input(NOW, Input::Timer)), [], "not yet");
    deeds(core.input(at, Input::Timer))
}

fn alarms(core: &NodeCore) -> Vec<String> {
    core.standing().host_alarms
}

#[test]
fn a_primary_that_lost_its_clients_hands_over_if_its_standby_has_them() {
    let mut core = protected();
    let short = network(Reach::Uplink, Some(false));
    assert_eq!(sees(&mut core, short), [], "it may be over in a moment");
    assert_eq!(alarms(&core), [""; 0]);
    assert!(hands_over(&sees(&mut core, cut())));
    let [alarm] = &alarms(&core)[..] else {
        panic!("{:?}", alarms(&core));
    };
    assert!(
        alarm.contains("net0: the cable is out") && !alarm.contains("stays"),
        "{alarm}"
    );
    // It would be handed over as soon as it is protected, too.
    let mut core = protected();
    replication(&mut core, ReplicationEvent::Unprotected);
    assert_eq!(sees(&mut core, cut()), []);
    assert!(hands_over(&replication(
        &mut core,
        ReplicationEvent::Protected
    )));
}

#[test]
fn with_both_cut_the_guest_stays_until_the_standbys_network_is_back() {
    for lasts in [false, true] {
        let mut core = protected();
        let there = network(Reach::Uplink, Some(lasts));
        assert_eq!(standby_sees(&mut core, Some(there)), []);
        assert_eq!(sees(&mut core, cut()), []);
        let alarms = alarms(&core).join("\n");
        assert!(alarms.contains("does not work either"), "{alarms}");
        let says_why = alarms.contains("on the standby's host: ");
        assert_eq!(says_why, lasts, "{alarms}");
        assert_eq!(standby_sees(&mut core, Some(whole())), []);
        assert!(hands_over(&settled(&mut core)));
    }
}

#[test]
fn a_guest_whose_own_network_is_back_has_no_reason_to_go() {
    let mut core = protected();
    standby_sees(&mut core, Some(cut()));
    sees(&mut core, cut());
    assert_eq!(sees(&mut core, whole()), []);
    assert_eq!(standby_sees(&mut core, Some(whole())), []);
    assert_eq!(alarms(&core), [""; 0]);
    assert_eq!(settled(&mut core), []);
    assert_eq!(core.next_timer(), None);
}

/// An echo gets lost, or a cable is put elsewhere.
#[test]
fn a_moments_doubt_of_the_standby_keeps_the_guest_and_alarms_nobody() {
    let doubts = |reach| network(reach, Some(false));
    let mut core = protected();
    let troubles = Some(doubts(Reach::Uplink).troubles());
    let event = ReplicationEvent::BackupHealth { troubles };
    assert_eq!(core.input(NOW, Input::Replication(event)), [], "not told");
    assert_eq!(alarms(&core), [""; 0]);
    assert_eq!(sees(&mut core, cut()), [], "but kept in mind");
    // What lasts beside it is no doubt.
    let mut core = protected();
    standby_sees(&mut core, Some(network(Reach::Tap, None)));
    let said = alarms(&core);
    assert_eq!(said.len(), 1, "{said:?}");
    standby_sees(&mut core, Some(doubts(Reach::Tap)));
    assert_eq!(alarms(&core), said);
}

/// A switch or a ping target comes back, and both hosts see so, but not in the same moment.
#[test]
fn what_cut_both_hosts_and_is_over_moves_no_guest_whichever_host_sees_so_first() {
    let after_both_cut = || {
        let mut core = protected();
        standby_sees(&mut core, Some(cut()));
        sees(&mut core, cut());
        assert_eq!(core.next_timer(), None);
        core
    };
    let mut core = after_both_cut();
    assert_eq!(standby_sees(&mut core, Some(whole())), []);
    let said = alarms(&core).join("\n");
    assert!(said.contains("only just come back"), "{said}");
    assert_eq!(sees(&mut core, whole()), []);
    assert_eq!(settled(&mut core), []);
    assert_eq!((alarms(&core), core.next_timer()), (vec![], None));
    // Nor in a new session, or if it was over at the standby before it was known to last here.
    let mut core = after_both_cut();
    standby_sees(&mut core, None);
    assert_eq!(standby_sees(&mut core, Some(whole())), []);
    standby_sees(&mut core, None);
    assert_eq!(settled(&mut core), []);
    assert_eq!(core.next_timer(), None);
    let mut core = protected();
    standby_sees(&mut core, Some(network(Reach::Uplink, Some(false))));
    standby_sees(&mut core, Some(whole()));
    assert_eq!(sees(&mut core, cut()), []);
    // It begins anew if the standby's comes and goes.
    let at = core.next_timer().unwrap();
    standby_sees(&mut core, Some(cut()));
    assert_eq!(core.next_timer(), None);
    let troubles = Some(Vec::new());
    let event = ReplicationEvent::BackupHealth { troubles };
    let effects = deeds(core.input(at, Input::Replication(event)));
    assert_eq!(effects, []);
    assert_eq!(core.next_timer(), Some(at + (at - NOW)));
}

#[test]
fn a_standby_of_which_nothing_is_known_is_handed_nothing() {
    let mut core = protected();
    assert_eq!(standby_sees(&mut core, None), [], "another session");
    assert_eq!(sees(&mut core, cut()), []);
    assert!(alarms(&core)[0].contains("no standby has said"));
    assert!(hands_over(&standby_sees(&mut core, Some(whole()))));
}

#[test]
fn a_standby_without_a_bridge_is_an_alarm_on_both_sides() {
    let bare = network(Reach::Tap, None);
    let mut standby = in_role(Role::Standby, RULES, true);
    let effects = sees(&mut standby, bare.clone());
    let [Effect::ReportHealth(troubles)] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert!(
        alarms(&standby)[0].contains("tap0"),
        "{:?}",
        alarms(&standby)
    );
    let mut core = protected();
    let troubles = Some(troubles.clone());
    replication(&mut core, ReplicationEvent::BackupHealth { troubles });
    let alarm = alarms(&core).join("\n");
    assert!(
        alarm.contains("on the standby's host: ") && alarm.contains("tap0"),
        "{alarm}"
    );
    assert_eq!(sees(&mut core, cut()), [], "it would not help");
    // What is to be routed needs no bridge there either.
    let mut core = protected();
    core.networks = Networks::default();
    sees(&mut core, bare.clone());
    standby_sees(&mut core, Some(bare));
    assert_eq!(alarms(&core), [""; 0]);
}

#[test]
fn a_standby_whose_bridge_has_no_uplink_is_no_better_than_a_primary_that_lost_it() {
    let mut core = protected();
    standby_sees(&mut core, Some(network(Reach::Bridge, None)));
    assert!(alarms(&core)[0].contains("uplink"), "{:?}", alarms(&core));
    assert_eq!(sees(&mut core, cut()), []);
    // Two that translate addresses are both all right.
    let mut core = protected();
    core.networks = Networks::default();
    sees(&mut core, network(Reach::Bridge, None));
    standby_sees(&mut core, Some(network(Reach::Bridge, None)));
    assert_eq!(alarms(&core), [""; 0]);
}

#[test]
fn what_is_only_to_be_reported_is_only_reported() {
    let mut core = protected();
    let mut seen = cut();
    seen.watched.on_cut = OnCut::Report;
    assert_eq!(sees(&mut core, seen), []);
    assert!(alarms(&core)[0].contains("the cable is out"));
}

#[test]
fn a_standby_says_what_it_lacks_at_once_and_anew_when_it_begins() {
    let mut core = in_role(Role::Standby, RULES, true);
    let short = network(Reach::Uplink, Some(false));
    let said = short.troubles();
    assert_eq!(sees(&mut core, short), [Effect::ReportHealth(said.clone())]);
    assert_eq!(alarms(&core), [""; 0]);
    let (role, can_restart) = (Role::Standby, true);
    let effects = core.input(NOW, Input::Began { role, can_restart });
    assert_eq!(deeds(effects), [Effect::ReportHealth(said)]);
    // Once it is promoted, it is a primary without a standby.
    assert_eq!(sees(&mut core, cut()).len(), 1);
    assert_eq!(deeds(core.input(NOW, promoted())), [Effect::Protect]);
    assert!(alarms(&core)[0].contains("no standby has said"));
}

#[test]
fn each_change_is_told_once() {
    let told = |core: &mut NodeCore, seen| core.input(NOW, Input::Networks(vec![seen]));
    let mut core = in_role(Role::Primary, RULES, true);
    assert_eq!(told(&mut core, whole()), []);
    assert!(matches!(
        told(&mut core, cut())[..],
        [Effect::Tell(EventKind::NetworkFails { .. })]
    ));
    assert_eq!(told(&mut core, cut()), []);
    assert!(matches!(
        told(&mut core, whole())[..],
        [Effect::Tell(EventKind::NetworkWorks { .. })]
    ));
}

/// Its clients are cut off here, and others would be there.
#[test]
fn a_guest_does_not_leave_for_a_host_that_lacks_another_of_its_networks() {
    let other = |cut: Option<bool>| {
        let mut network = network(Reach::Uplink, cut);
        network.watched.id = "net1".into();
        network
    };
    let mut core = in_role(Role::Primary, RULES, true);
    let troubles = Some(other(Some(true)).troubles());
    replication(&mut core, ReplicationEvent::BackupHealth { troubles });
    replication(&mut core, ReplicationEvent::Protected);
    let seen = vec![cut(), other(None)];
    assert_eq!(deeds(core.input(NOW, Input::Networks(seen))), []);
    let said = alarms(&core).join("\n");
    assert!(said.contains("lacks another one"), "{said}");
    // With that one cut here, too, nobody loses anything.
    let seen = vec![cut(), other(Some(true))];
    let effects = deeds(core.input(NOW, Input::Networks(seen)));
    assert!(hands_over(&effects), "{effects:?}");
}

/// Its standby's voice goes with the session.
#[test]
fn why_a_guest_was_handed_over_is_known_when_it_has_gone() {
    let mut core = protected();
    assert!(hands_over(&sees(&mut core, cut())));
    replication(&mut core, ReplicationEvent::Unprotected);
    standby_sees(&mut core, None);
    let reason = "the arbiter names b".to_owned();
    let end = RoleEnd::HandedOver { reason };
    let effects = core.input(NOW, Input::RoleOver(end));
    assert!(
        matches!(
            effects.last(),
            Some(Effect::Finish(Ended::HandedOver { trouble: Some(what), .. })) if what.contains("the cable is out")
        ),
        "{effects:?}"
    );
    // One that stayed has no reason any more.
    let mut core = protected();
    sees(&mut core, cut());
    standby_sees(&mut core, None);
    let why = "it does not answer".into();
    replication(&mut core, ReplicationEvent::NotHandedOver { why });
    assert_eq!(core.next_timer(), None);
}

/// What a standby says whose networks are these, of which it watches none.
fn said_of_unwatched(networks: Vec<GuestNetwork>) -> Option<Vec<Trouble>> {
    let mut standby = in_role(Role::Standby, RULES, true);
    standby.know_networks(networks);
    match &standby.input(NOW, Input::Networks(Vec::new()))[..] {
        [Effect::ReportHealth(troubles)] => Some(troubles.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_standby_that_does_not_watch_a_network_is_not_handed_a_guest_for_it() {
    let ignored = (Some("tap0".to_owned()), OnCut::Ignore);
    let socket = (None, OnCut::Handover);
    for (tap, on_cut) in [ignored, socket] {
        let id = "net0".to_owned();
        let ping = Vec::new();
        let networks = vec![GuestNetwork {
            id,
            tap,
            on_cut,
            ping,
        }];
        let troubles = said_of_unwatched(networks);
        let mut core = protected();
        replication(&mut core, ReplicationEvent::BackupHealth { troubles });
        assert_eq!(alarms(&core), [""; 0], "it is nothing that fails");
        assert_eq!(sees(&mut core, cut()), []);
        assert!(alarms(&core)[0].contains("nobody watches the standby's"));
        assert!(hands_over(&standby_sees(&mut core, Some(whole()))));
    }
}

#[test]
fn a_network_with_a_long_name_is_told_from_others_on_both_hosts() {
    let named = |end: &str, seen: NetworkSeen| {
        let mut seen = seen;
        seen.watched.id = format!("{}{end}", "n".repeat(63));
        seen
    };
    for there in [
        cut(),
        network(Reach::Tap, None),
        network(Reach::Bridge, None),
    ] {
        let mut core = protected();
        standby_sees(&mut core, Some(named("a", there.clone())));
        assert_eq!(sees(&mut core, named("a", cut())), []);
        let mut core = protected();
        standby_sees(&mut core, Some(named("b", there)));
        assert!(hands_over(&sees(&mut core, named("a", cut()))));
    }
    let id = named("a", whole()).watched.id;
    let networks = vec![GuestNetwork {
        id,
        tap: None,
        on_cut: OnCut::Handover,
        ping: Vec::new(),
    }];
    let troubles = said_of_unwatched(networks);
    let mut core = protected();
    replication(&mut core, ReplicationEvent::BackupHealth { troubles });
    assert_eq!(sees(&mut core, named("a", cut())), []);
}

fn answering(answers: Answers, cut: Option<bool>) -> NetworkSeen {
    let mut seen = network(Reach::Uplink, cut);
    seen.watched.ping = vec![[192, 0, 2, 1].into()];
    seen.answers = answers;
    seen
}

#[test]
fn targets_that_never_answered_are_an_alarm_on_both_hosts_and_nothing_is_judged_by_them() {
    for role in [Role::Primary, Role::Standby] {
        let mut core = in_role(role, RULES, true);
        sees(&mut core, answering(Answers::NotYet, None));
        assert_eq!(alarms(&core), [""; 0], "it is too early");
        sees(&mut core, answering(Answers::Never, None));
        let [alarm] = &alarms(&core)[..] else {
            panic!("{:?}", alarms(&core));
        };
        assert!(
            alarm.contains("net0: no ping target has ever answered") && alarm.contains("192.0.2.1"),
            "{alarm}"
        );
        sees(&mut core, answering(Answers::Some, None));
        assert_eq!(alarms(&core), [""; 0]);
    }
    let mut core = protected();
    let standby = answering(Answers::Never, None);
    assert_eq!(standby_sees(&mut core, Some(standby)), []);
    assert_eq!(sees(&mut core, answering(Answers::Never, None)), []);
    let said = alarms(&core).join("\n");
    assert!(!said.contains("on the standby's host"), "{said}");
}

#[test]
fn a_standby_whose_targets_have_not_answered_is_no_better_than_a_primary_whose_have_stopped() {
    let silent = || answering(Answers::Some, Some(true));
    for answers in [Answers::NotYet, Answers::Never] {
        let mut core = protected();
        standby_sees(&mut core, Some(answering(answers, None)));
        assert_eq!(sees(&mut core, silent()), []);
        let said = alarms(&core).join("\n");
        assert!(said.contains("does not work either"), "{said}");
        let effects = standby_sees(&mut core, Some(answering(Answers::Some, None)));
        assert_eq!(effects, []);
        assert!(hands_over(&settled(&mut core)));
    }
    // One that asks nobody is judged by its interfaces.
    let mut core = protected();
    standby_sees(&mut core, Some(whole()));
    assert!(hands_over(&sees(&mut core, silent())));
}

#[test]
fn a_standby_whose_targets_have_not_answered_yet_alarms_nobody() {
    let mut core = protected();
    sees(&mut core, answering(Answers::Some, None));
    standby_sees(&mut core, Some(answering(Answers::NotYet, None)));
    assert_eq!(alarms(&core), [""; 0], "it is too early");
    standby_sees(&mut core, Some(answering(Answers::Never, None)));
    let said = alarms(&core).join("\n");
    assert!(
        said.contains("no ping target has ever answered this host"),
        "{said}"
    );
}

/// They do not fit into what it may say.
#[test]
fn a_standby_that_lacks_more_than_it_can_name_is_handed_nothing() {
    let mut standby = in_role(Role::Standby, RULES, true);
    let others = (0..99).map(|number| {
        let mut seen = cut();
        seen.watched.id = format!("x{number}");
        seen
    });
    let effects = deeds(standby.input(NOW, Input::Networks(others.collect())));
    let [Effect::ReportHealth(said)] = &effects[..] else {
        panic!("{effects:?}");
    };
    // As replication does.
    let troubles = Some(Trouble::bounded(said.clone()));
    let mut core = protected();
    replication(&mut core, ReplicationEvent::BackupHealth { troubles });
    let [alarm] = &alarms(&core)[..] else {
        panic!("{:?}", alarms(&core));
    };
    assert!(alarm.contains("further troubles"), "{alarm}");
    assert_eq!(sees(&mut core, cut()), []);
    assert_eq!(standby_sees(&mut core, Some(whole())), []);
    assert!(hands_over(&settled(&mut core)));
}
