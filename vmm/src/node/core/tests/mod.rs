mod broken;

use understudy_replication::EpochId;

use super::*;

mod trouble;

pub(in crate::node::core) const RULES: Rules = Rules {
    on_reboot: OnReboot::Restart,
    on_panic: OnPanic::Report,
    on_watchdog: OnWatchdog::Reset,
    on_sigterm: OnSigterm::Handover,
};

pub(in crate::node::core) fn in_role(role: Role, rules: Rules, can_restart: bool) -> NodeCore {
    let mut core = NodeCore::new(rules);
    core.input(Duration::ZERO, Input::Began { role, can_restart });
    assert_eq!(core.role, role);
    core
}

pub(in crate::node::core) fn promoted() -> Input {
    Input::Replication(ReplicationEvent::Promoted {
        epoch: EpochId(7),
        cause: "as ordered".into(),
        machine_broke: false,
    })
}

fn guest(core: &mut NodeCore, event: MachineEvent) -> Vec<Effect> {
    core.input(Duration::from_secs(1), Input::Guest(event))
}

fn over(core: &mut NodeCore, end: RoleEnd) -> Ended {
    let effects = core.input(Duration::from_secs(2), Input::RoleOver(end));
    match effects.last() {
        Some(Effect::Finish(ended)) => ended.clone(),
        other => panic!("it goes on: {other:?}"),
    }
}

/// Without what is only told.
pub(in crate::node::core) fn deeds(effects: Vec<Effect>) -> Vec<Effect> {
    let is_deed = |effect: &Effect| !matches!(effect, Effect::Tell(_));
    effects.into_iter().filter(is_deed).collect()
}

fn request(core: &mut NodeCore, request: Request) -> Result<Vec<Effect>, Denial> {
    let sync = SyncState {
        in_sync: true,
        phase: "standby".into(),
    };
    core.request(request, &sync).map(deeds)
}

/// Lets `event` happen to a guest under `rules`, and the timer run out; says how the guest ended, if it did, and how
/// often it was started over.
fn kept(rules: Rules, can_restart: bool, event: MachineEvent) -> (Option<Ended>, u64, GuestStatus) {
    let mut core = in_role(Role::Unprotected, rules, can_restart);
    let effects = guest(&mut core, event);
    let ends = effects.contains(&Effect::EndRole);
    core.input(Duration::from_secs(200), Input::Timer);
    let status = core.guest.clone();
    let ended = ends.then(|| over(&mut core, RoleEnd::Done));
    (ended, status.restarts, status)
}

fn failed(ended: &Option<Ended>) -> bool {
    matches!(ended, Some(Ended::GuestFailed { .. }))
}

#[test]
fn a_reset_starts_over_or_ends() {
    let (ended, restarts, status) = kept(RULES, true, MachineEvent::GuestReset);
    assert_eq!((ended, restarts, status.alarm), (None, 1, None));
    let on_reboot = OnReboot::Exit;
    let exit = Rules { on_reboot, ..RULES };
    for (rules, can_restart) in [(exit, true), (RULES, false)] {
        let (ended, restarts, _) = kept(rules, can_restart, MachineEvent::GuestReset);
        assert_eq!((ended, restarts), (Some(Ended::Guest), 0));
        let what = "triple fault".to_owned();
        let crash = MachineEvent::GuestCrashed { what };
        let (ended, restarts, status) = kept(rules, can_restart, crash);
        assert!(failed(&ended) && restarts == 0, "{ended:?}");
        assert!(status.alarm.unwrap().contains("triple fault"));
    }
}

#[test]
fn a_watchdog_does_what_it_is_told() {
    for (on_watchdog, fails, restarts) in [
        (OnWatchdog::Reset, false, 1),
        (OnWatchdog::Poweroff, true, 0),
        (OnWatchdog::None, false, 0),
    ] {
        let rules = Rules {
            on_watchdog,
            ..RULES
        };
        let (ended, times, status) = kept(rules, true, MachineEvent::WatchdogFired);
        assert_eq!(
            (failed(&ended), times),
            (fails, restarts),
            "{on_watchdog:?}"
        );
        assert!(status.alarm.unwrap().contains("watchdog"));
    }
}

#[test]
fn a_panic_is_told_and_does_what_it_is_told() {
    let panic = |crash_kernel| MachineEvent::GuestPanicked { crash_kernel };
    for (on_panic, fails, restarts) in [
        (OnPanic::Report, false, 0),
        (OnPanic::Restart, false, 1),
        (OnPanic::Exit, true, 0),
    ] {
        let rules = Rules { on_panic, ..RULES };
        let (ended, times, status) = kept(rules, true, panic(false));
        assert_eq!((failed(&ended), times), (fails, restarts), "{on_panic:?}");
        assert!(status.alarm.unwrap().contains("panicked"));
        let (ended, times, status) = kept(rules, true, panic(true));
        assert_eq!((ended, times), (None, 0), "{on_panic:?}");
        assert!(status.alarm.unwrap().contains("crash kernel"));
    }
}

#[test]
fn a_failed_reset_is_the_end() {
    let what = "as ordered".to_owned();
    let (ended, _, _) = kept(RULES, true, MachineEvent::ResetFailed { what });
    let Some(Ended::GuestFailed { what }) = ended else {
        panic!("{ended:?}");
    };
    assert!(what.contains("as ordered"), "{what}");
}

#[test]
fn a_guest_in_a_loop_waits_for_its_timer_and_a_person_hears_of_it() {
    let mut core = in_role(Role::Primary, RULES, true);
    let mut now = Duration::ZERO;
    for _ in 0..3 {
        core.input(now, Input::Guest(MachineEvent::GuestReset));
        assert_eq!(core.next_timer(), Some(now), "at once");
        assert_eq!(deeds(core.input(now, Input::Timer)), [Effect::RestartGuest]);
        now += Duration::from_secs(1);
    }
    core.input(now, Input::Guest(MachineEvent::GuestReset));
    let due = core.next_timer().unwrap();
    assert_eq!(due, now + Duration::from_secs(1));
    assert_eq!(core.input(now, Input::Timer), [], "too early");
    let alarm = core.guest.alarm.clone().unwrap();
    assert!(alarm.contains("4 times in a row"), "{alarm}");
    assert!(alarm.contains("it has to wait 1 s"), "{alarm}");
    assert_eq!(deeds(core.input(due, Input::Timer)), [Effect::RestartGuest]);
    assert_eq!(core.guest.restarts, 4);
    // Once it has run for a while, that is the past.
    assert!(core.guest.alarm.is_some(), "it has only just been started");
    let steady = core.next_timer().unwrap();
    assert_eq!(steady, due + pace::STEADY);
    core.input(steady, Input::Timer);
    assert_eq!((core.guest.alarm.clone(), core.next_timer()), (None, None));
}

#[test]
fn a_stop_cancels_a_restart_and_what_the_guest_does_afterwards_leads_to_nothing() {
    let mut core = in_role(Role::Primary, RULES, true);
    guest(&mut core, MachineEvent::GuestReset);
    assert_eq!(
        request(&mut core, Request::Stop),
        Ok(vec![Effect::StopGuest])
    );
    assert_eq!(core.next_timer(), None);
    assert_eq!(guest(&mut core, MachineEvent::GuestPoweredOff), []);
    assert_eq!(over(&mut core, RoleEnd::Done), Ended::Stopped);
}

#[test]
fn a_primary_that_is_stopped_again_is_told_so_again() {
    let mut core = in_role(Role::Primary, RULES, true);
    for _ in 0..2 {
        assert_eq!(
            request(&mut core, Request::Stop),
            Ok(vec![Effect::StopGuest])
        );
    }
    assert_eq!(over(&mut core, RoleEnd::Abandoned), Ended::Abandoned);
    assert_eq!(request(&mut core, Request::Stop), Err(Denial::Ended));
}

#[test]
fn an_unprotected_guest_is_stopped_once() {
    let mut core = in_role(Role::Unprotected, RULES, true);
    assert_eq!(
        request(&mut core, Request::Stop),
        Ok(vec![Effect::StopGuest])
    );
    assert_eq!(request(&mut core, Request::Stop), Ok(vec![]));
}

#[test]
fn the_reason_of_a_guests_end_outlives_its_role() {
    let mut core = in_role(Role::Primary, RULES, true);
    let what = "triple fault".to_owned();
    let crashed = MachineEvent::GuestShutdown { what };
    assert_eq!(deeds(guest(&mut core, crashed)), [Effect::EndRole]);
    // Somebody who does not want to wait does not change why.
    request(&mut core, Request::Stop).unwrap();
    let what = "the guest crashed: triple fault".to_owned();
    let ended = over(&mut core, RoleEnd::Done);
    assert_eq!(ended, Ended::GuestFailed { what });
}

#[test]
fn a_promoted_standby_is_a_primary_and_what_its_guest_did_first_counts() {
    let mut core = in_role(Role::Standby, RULES, true);
    assert_eq!(guest(&mut core, MachineEvent::GuestReset), []);
    let disk = MachineEvent::DiskFailed {
        device: "disk0".into(),
        what: "EIO".into(),
    };
    assert!(matches!(
        guest(&mut core, disk)[..],
        [Effect::Tell(EventKind::DiskFailed { .. })]
    ));
    let effects = core.input(Duration::from_secs(3), promoted());
    assert_eq!(core.role, Role::Primary);
    assert_eq!(deeds(effects), [Effect::Protect]);
    assert_eq!(core.next_timer(), Some(Duration::from_secs(3)));
}

#[test]
fn a_standby_that_was_told_to_stop_ends_also_if_it_is_promoted_first() {
    let mut core = in_role(Role::Standby, RULES, true);
    assert_eq!(
        request(&mut core, Request::Stop),
        Ok(vec![Effect::StopStandby])
    );
    let effects = core.input(Duration::from_secs(1), promoted());
    assert_eq!(deeds(effects), [Effect::Protect, Effect::StopGuest]);
    assert_eq!(over(&mut core, RoleEnd::Done), Ended::Stopped);

    // But not if whoever asked was told that it is too late.
    let mut core = in_role(Role::Standby, RULES, true);
    request(&mut core, Request::Stop).unwrap();
    core.input(Duration::ZERO, Input::StopMissed);
    let effects = core.input(Duration::from_secs(1), promoted());
    assert_eq!(deeds(effects), [Effect::Protect]);
}

#[test]
fn what_cannot_be_done_in_a_role_is_denied() {
    use Request::{Checkpoint, Failover, PowerButton, Stop};
    let denied = |role, what| {
        let mut core = match role {
            Role::Starting => NodeCore::new(RULES),
            role => in_role(role, RULES, true),
        };
        request(&mut core, what).err()
    };
    for what in [Checkpoint, Failover, PowerButton, Stop] {
        assert_eq!(denied(Role::Starting, what), Some(Denial::Starting));
    }
    for what in [Failover, Checkpoint] {
        assert_eq!(denied(Role::Unprotected, what), Some(Denial::Unprotected));
    }
    for what in [PowerButton, Checkpoint] {
        assert_eq!(denied(Role::Standby, what), Some(Denial::GuestElsewhere));
    }
    for (role, what) in [
        (Role::Unprotected, PowerButton),
        (Role::Primary, PowerButton),
        (Role::Primary, Checkpoint),
        (Role::Primary, Failover),
        (Role::Standby, Failover),
    ] {
        assert_eq!(denied(role, what), None, "{role:?} {what:?}");
    }
    let mut core = in_role(Role::Standby, RULES, true);
    let phase = "syncing".to_owned();
    let sync = SyncState {
        in_sync: false,
        phase: phase.clone(),
    };
    let denial = core.request(Failover, &sync);
    assert_eq!(denial, Err(Denial::NotInSync { phase }));
}

#[test]
fn each_end_of_a_role_is_the_nodes_end_and_comes_once() {
    let (reason, what) = ("web on b".to_owned(), "no arbiter".to_owned());
    for (end, expected) in [
        (RoleEnd::Done, Ended::Stopped),
        (RoleEnd::Abandoned, Ended::Abandoned),
        (
            RoleEnd::Fenced {
                reason: reason.clone(),
            },
            Ended::Fenced { reason },
        ),
        (
            RoleEnd::Failed { what: what.clone() },
            Ended::Failed { what },
        ),
    ] {
        for role in [Role::Primary, Role::Standby] {
            let mut core = in_role(role, RULES, true);
            assert_eq!(over(&mut core, end.clone()), expected);
            assert_eq!(core.role, Role::Ended);
            assert_eq!(
                core.input(Duration::ZERO, Input::RoleOver(RoleEnd::Done)),
                []
            );
        }
    }
    let mut starting = NodeCore::new(RULES);
    let what = "no KVM".to_owned();
    let ended = over(&mut starting, RoleEnd::Failed { what: what.clone() });
    assert_eq!(ended, Ended::Failed { what });
}

/// What is told when replication says `event`, which leads to no deed.
fn told(core: &mut NodeCore, event: ReplicationEvent) -> Vec<EventKind> {
    let effects = core.input(Duration::from_secs(1), Input::Replication(event));
    let told = effects.into_iter().map(|effect| match effect {
        Effect::Tell(what) => what,
        deed => panic!("a deed: {deed:?}"),
    });
    told.collect()
}

#[test]
fn each_change_of_the_protection_is_told_once_and_part_of_the_standing() {
    use ReplicationEvent::{Alarm, GoingAlone, Protected, Unprotected};
    let mut core = in_role(Role::Primary, RULES, true);
    assert!(!core.standing().protected);
    assert_eq!(
        told(&mut core, Unprotected),
        [],
        "it never was anything else"
    );
    let what = "no standby".to_owned();
    let alarm = EventKind::Alarm { what: what.clone() };
    assert_eq!(told(&mut core, Alarm(what.clone())), [alarm]);
    assert_eq!(told(&mut core, Alarm(what.clone())), [], "it stays so");
    assert_eq!(core.standing().alarm.as_ref(), Some(&what));

    assert_eq!(told(&mut core, Protected), [EventKind::Protected]);
    assert_eq!(told(&mut core, Protected), []);
    let standing = core.standing();
    assert_eq!(
        (standing.protected, standing.alarm),
        (true, None),
        "made good"
    );

    assert_eq!(told(&mut core, Unprotected), [EventKind::Unprotected]);
    let cause = "the link is closed".to_owned();
    let lost = EventKind::BackupLost {
        cause: cause.clone(),
    };
    assert_eq!(told(&mut core, GoingAlone { cause }), [lost]);
    let standing = core.standing();
    assert!(!standing.protected);
    assert!(standing.alarm.unwrap().contains("the link is closed"));
    assert_eq!(told(&mut core, Protected), [EventKind::Protected]);
    over(&mut core, RoleEnd::Done);
    assert!(!core.standing().protected, "protected in the grave");
}

#[test]
fn what_a_promotion_waited_for_is_no_alarm_any_more_once_it_is_done() {
    let mut core = in_role(Role::Standby, RULES, true);
    let what = "the promotion waits: the shared image is locked".to_owned();
    told(&mut core, ReplicationEvent::Alarm(what.clone()));
    assert_eq!(core.standing().alarm, Some(what));
    core.input(Duration::from_secs(2), promoted());
    assert_eq!(core.role, Role::Primary);
    assert_eq!(core.standing().alarm, None);
}

#[test]
fn how_a_side_ended_is_told_by_its_role_and_not_by_replication_as_well() {
    let reason = "web on b".to_owned();
    let mut core = in_role(Role::Primary, RULES, true);
    let fenced = ReplicationEvent::Fenced {
        reason: reason.clone(),
    };
    assert_eq!(told(&mut core, fenced), []);
    assert_eq!(told(&mut core, ReplicationEvent::Ended), []);
    over(&mut core, RoleEnd::Fenced { reason });
    let Input::Replication(promoted) = promoted() else {
        unreachable!()
    };
    assert_eq!(told(&mut core, promoted), [], "it is over");
}

#[test]
fn who_may_not_start_the_guest_waits_as_a_standby_until_it_may() {
    let mut core = NodeCore::new(RULES);
    let why = "b may have a copy".to_owned();
    let waits = Input::StartWaits { why: why.clone() };
    let effects = core.input(Duration::ZERO, waits);
    let next = NextRole::StandbyThatMayStart;
    assert_eq!(deeds(effects), [Effect::TakeUp(next)]);
    let alarm = core.standing().alarm.expect("an alarm");
    assert!(alarm.contains(&why), "{alarm}");
    let (role, can_restart) = (Role::Standby, true);
    core.input(Duration::ZERO, Input::Began { role, can_restart });
    assert_eq!(core.standing().alarm, Some(alarm), "it waits");
    let known = understudy_replication::Generation(3);
    let effects = core.input(Duration::ZERO, Input::IsToStart { known });
    let next = NextRole::PrimaryRestarting(known);
    assert_eq!(deeds(effects), [Effect::TakeUp(next)]);
    assert_eq!(core.role, Role::Starting);
    let role = Role::Primary;
    core.input(Duration::ZERO, Input::Began { role, can_restart });
    assert_eq!(core.standing().alarm, None);
}

#[test]
fn a_role_that_cannot_be_taken_up_is_tried_again_and_can_be_stopped() {
    for end in [Request::Stop, Request::Leave] {
        is_tried_again_until(end);
    }
}

fn is_tried_again_until(end: Request) {
    let mut core = in_role(Role::Standby, RULES, true);
    let known = understudy_replication::Generation(3);
    core.input(Duration::ZERO, Input::IsToStart { known });
    let at = Duration::from_secs(1);
    let what = "the tap is in use".to_owned();
    let failed = Input::NotTakenUp { what: what.clone() };
    let effects = core.input(at, failed.clone());
    assert_eq!(deeds(effects), []);
    let why = core.standing().alarm.expect("an alarm");
    assert!(why.contains(&what), "{why}");
    let due = core.next_timer().expect("it is tried again");
    assert_eq!(core.input(at, Input::Timer), [], "not yet");
    let again = [Effect::TakeUp(NextRole::StandbyThatMayStart)];
    assert_eq!(core.input(due, Input::Timer), again);
    assert_eq!(core.input(due, failed), [], "that is known");
    let denied = request(&mut core, Request::Failover);
    assert_eq!(denied, Err(Denial::Waiting { why }));
    let effects = request(&mut core, end).unwrap();
    assert_eq!(effects, [Effect::Finish(Ended::Stopped)]);
    assert_eq!(core.next_timer(), None);
}

#[test]
fn a_standby_that_was_told_to_stop_starts_no_guest() {
    let mut core = in_role(Role::Standby, RULES, true);
    request(&mut core, Request::Stop).unwrap();
    let known = understudy_replication::Generation(3);
    let effects = core.input(Duration::ZERO, Input::IsToStart { known });
    assert_eq!(deeds(effects), [Effect::Finish(Ended::Stopped)]);
}

fn leaves(core: &mut NodeCore, in_sync: bool) -> Vec<Effect> {
    let phase = String::new();
    let sync = SyncState { in_sync, phase };
    let effects = core.request(Request::Leave, &sync).unwrap();
    deeds(effects)
}

fn not_handed_over(core: &mut NodeCore) -> Vec<Effect> {
    let why = "it does not answer".into();
    let event = ReplicationEvent::NotHandedOver { why };
    deeds(core.input(Duration::from_secs(1), Input::Replication(event)))
}

#[test]
fn a_primary_that_leaves_hands_its_guest_over_if_a_standby_can_take_it() {
    let mut core = in_role(Role::Primary, RULES, true);
    assert!(matches!(leaves(&mut core, true)[..], [Effect::HandOver(_)]));
    assert_eq!(leaves(&mut core, true), [], "it is under way");
    let reason = String::from("the arbiter names b");
    let ended = over(
        &mut core,
        RoleEnd::HandedOver {
            reason: reason.clone(),
        },
    );
    let trouble = None;
    assert_eq!(ended, Ended::HandedOver { reason, trouble });
    // Without a standby that could take it, or if that is not wanted, it is stopped.
    let mut core = in_role(Role::Primary, RULES, true);
    assert_eq!(leaves(&mut core, false), [Effect::StopGuest]);
    assert_eq!(leaves(&mut core, true), [Effect::StopGuest], "it is ending");
    let on_sigterm = OnSigterm::Stop;
    let rules = Rules {
        on_sigterm,
        ..RULES
    };
    let mut core = in_role(Role::Primary, rules, true);
    assert_eq!(leaves(&mut core, true), [Effect::StopGuest]);
    let mut core = in_role(Role::Standby, RULES, true);
    assert_eq!(leaves(&mut core, true), [Effect::StopStandby]);
}

#[test]
fn a_guest_that_cannot_be_handed_over_is_stopped_if_its_host_is_to_stop() {
    let mut core = in_role(Role::Primary, RULES, true);
    leaves(&mut core, true);
    assert_eq!(not_handed_over(&mut core), [Effect::StopGuest]);
    // If somebody only wanted it elsewhere, it goes on.
    let mut core = in_role(Role::Primary, RULES, true);
    let effects = request(&mut core, Request::Failover).unwrap();
    assert!(matches!(effects[..], [Effect::HandOver(_)]));
    assert_eq!(not_handed_over(&mut core), []);
    assert_eq!(core.role, Role::Primary);
}
