//! A machine that has broken.

use super::*;

fn broke() -> MachineEvent {
    let what = "vCPU 0 cannot go on: EFAULT".to_owned();
    MachineEvent::MachineBroke { what }
}

fn inherited(second: u64) -> NodeCore {
    let mut core = in_role(Role::Standby, RULES, true);
    let event = ReplicationEvent::Promoted {
        epoch: EpochId(7),
        cause: "the primary hands the guest over".into(),
        machine_broke: true,
    };
    core.input(Duration::from_secs(second), Input::Replication(event));
    core
}

fn text(ended: Ended) -> String {
    match ended {
        Ended::GuestFailed { what } => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_guest_of_a_machine_that_broke_goes_on_at_the_standby() {
    let mut core = in_role(Role::Primary, RULES, true);
    let effects = deeds(guest(&mut core, broke()));
    assert!(
        matches!(&effects[..], [Effect::LeaveMachine(what)] if what.contains("EFAULT")),
        "{effects:?}"
    );
    // What else becomes of it means nothing any more.
    for event in [
        broke(),
        MachineEvent::GuestReset,
        MachineEvent::WatchdogFired,
    ] {
        assert_eq!(guest(&mut core, event), []);
    }
    assert_eq!(core.next_timer(), None);
    let reason = "the arbiter names b".to_owned();
    let Ended::HandedOver { trouble, .. } = over(&mut core, RoleEnd::HandedOver { reason }) else {
        panic!("it was handed over");
    };
    assert!(trouble.unwrap().contains("EFAULT"));
    // It may not be known whether the standby went on.
    let mut core = in_role(Role::Primary, RULES, true);
    guest(&mut core, broke());
    let what = "EFAULT; the guest is left to the standby".to_owned();
    let ended = over(&mut core, RoleEnd::LeftToStandby { what: what.clone() });
    assert_eq!(ended, Ended::LeftToStandby { what });
}

#[test]
fn a_machine_that_cannot_be_captured_is_broken_only_if_somebody_else_can_go_on() {
    let hangs = || {
        let what = "KVM hangs".to_owned();
        MachineEvent::CaptureHangs { what }
    };
    // A hang may end: it costs no guest that nobody else has.
    let mut core = in_role(Role::Primary, RULES, true);
    assert_eq!(deeds(guest(&mut core, hangs())), []);
    let protected = Input::Replication(ReplicationEvent::Protected);
    core.input(Duration::from_secs(1), protected);
    let what = "KVM hangs".to_owned();
    assert_eq!(guest(&mut core, hangs()), [Effect::BreakMachine(what)]);
    guest(&mut core, broke());
    assert_eq!(guest(&mut core, hangs()), [], "it is");
}

#[test]
fn a_guest_that_waits_to_be_started_over_is_not_if_its_machine_breaks() {
    let mut core = in_role(Role::Primary, RULES, true);
    guest(&mut core, MachineEvent::GuestReset);
    guest(&mut core, broke());
    assert_eq!(deeds(core.input(Duration::from_secs(9), Input::Timer)), []);
}

#[test]
fn without_a_standby_the_guest_ends_with_its_machine() {
    let mut core = in_role(Role::Unprotected, RULES, true);
    assert_eq!(deeds(guest(&mut core, broke())), [Effect::EndRole]);
    assert!(text(over(&mut core, RoleEnd::Done)).contains("EFAULT"));
    let mut core = in_role(Role::Primary, RULES, true);
    guest(&mut core, broke());
    assert_eq!(not_handed_over(&mut core), [Effect::EndRole]);
    let what = text(over(&mut core, RoleEnd::Done));
    assert!(
        what.contains("EFAULT") && what.contains("it does not answer"),
        "{what}"
    );
    // Also if its host was to stop anyhow.
    let mut core = in_role(Role::Primary, RULES, true);
    leaves(&mut core, true);
    guest(&mut core, broke());
    assert_eq!(not_handed_over(&mut core), [Effect::EndRole]);
}

#[test]
fn a_guest_whose_machine_breaks_on_both_hosts_breaks_them_itself() {
    let mut core = inherited(1);
    let soon = Duration::from_secs(20);
    let effects = deeds(core.input(soon, Input::Guest(broke())));
    assert_eq!(effects, [Effect::EndRole]);
    let what = text(over(&mut core, RoleEnd::Done));
    assert!(what.contains("19 s ago"), "{what}");
    // Much later, it is the host again.
    let mut core = inherited(1);
    let late = Duration::from_secs(2) + super::super::broken::ITS_OWN_WITHIN;
    let effects = deeds(core.input(late, Input::Guest(broke())));
    assert!(
        matches!(effects[..], [Effect::LeaveMachine(_)]),
        "{effects:?}"
    );
    // So it is if the other host was lost for another reason.
    let mut core = in_role(Role::Standby, RULES, true);
    core.input(Duration::from_secs(1), promoted());
    let effects = deeds(core.input(soon, Input::Guest(broke())));
    assert!(
        matches!(effects[..], [Effect::LeaveMachine(_)]),
        "{effects:?}"
    );
}

/// As its state says.
fn broke_before(ago: Duration) -> NodeCore {
    let mut core = in_role(Role::Standby, RULES, true);
    // It is loaded before the standby is told that it is the primary.
    guest(&mut core, MachineEvent::BrokeBefore { ago });
    core.input(Duration::from_secs(1), promoted());
    core
}

#[test]
fn that_a_machine_broke_is_known_after_takeovers_for_other_reasons() {
    let second = Duration::from_secs(1);
    let within = super::super::broken::ITS_OWN_WITHIN;
    let breaks = |core: &mut NodeCore| deeds(core.input(second * 5, Input::Guest(broke())));
    let mut core = broke_before(within - second * 5);
    assert_eq!(breaks(&mut core), [Effect::EndRole]);
    let what = text(over(&mut core, RoleEnd::Done));
    assert!(what.contains("599 s ago"), "{what}");
    for ago in [within - second * 4, Duration::MAX] {
        let effects = breaks(&mut broke_before(ago));
        assert!(
            matches!(effects[..], [Effect::LeaveMachine(_)]),
            "{effects:?}"
        );
    }
}

#[test]
fn the_state_of_a_guest_whose_machine_broke_says_so_from_then_on() {
    let mut core = in_role(Role::Standby, RULES, true);
    let ago = Duration::from_secs(3600);
    guest(&mut core, MachineEvent::BrokeBefore { ago });
    let promoted = ReplicationEvent::Promoted {
        epoch: EpochId(7),
        cause: "the primary hands the guest over".into(),
        machine_broke: true,
    };
    let effects = deeds(core.input(Duration::from_secs(1), Input::Replication(promoted)));
    assert_eq!(effects, [Effect::RememberBroken, Effect::Protect]);
    // The last one counts.
    let effects = deeds(core.input(Duration::from_secs(2), Input::Guest(broke())));
    assert_eq!(effects, [Effect::EndRole]);
}
