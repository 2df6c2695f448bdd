//! Both runtimes in one process, over a real socket, a real arbiter and a machine without KVM.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod arbiters;
mod breaks;
mod checkpointing;
mod conformance;
mod disks;
mod failing_disks;
mod fake;
mod floods;
mod handover;
mod hang;
mod health;
mod images;
mod relay;
mod restarts;
mod trials;
mod unprotect;
mod verify;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fake::{Fake, Gate};
use understudy_replication::arbiter::{
    Arbiter, ArbiterError, Claim, FileArbiter, Note, Record, Verdict,
};
use understudy_replication::core::policy::Policy;
use understudy_replication::ids::Generation;
use understudy_replication::ports::Machine;
use understudy_replication::runtime::{
    Ended, Limits, Origin, Outcome, Primary, PrimaryBuilder, Promoted, Protection, RuntimeError,
    Standby, StandbyBuilder, StandbyRun, Status, ThreadSetup,
};
use understudy_transport::Endpoint;

/// To start a guest that nobody has ever started.
const START: Claim = Claim::Start {
    known: Generation(0),
};
/// Only a failure waits that long.
const PATIENCE: Duration = Duration::from_secs(30);

fn arbiter(directory: &Path) -> Arc<dyn Arbiter> {
    Arc::new(FileArbiter::open(directory.join("arbiter")).unwrap())
}

fn endpoint(directory: &Path) -> Endpoint {
    Endpoint::Unix(directory.join("channel"))
}

/// A busy machine is no lost host.
fn patient() -> Policy {
    Policy {
        heartbeat_timeout: Duration::from_secs(2),
        ..Policy::default()
    }
}

fn standby(directory: &Path, machine: Fake) -> StandbyBuilder<Fake> {
    Standby::builder(machine)
        .policy(patient())
        .arbiter(arbiter(directory))
        .listen(endpoint(directory))
        .node("b")
}

fn primary(directory: &Path, machine: Fake) -> PrimaryBuilder<Fake> {
    Primary::attach(Origin::Fresh(machine))
        .policy(patient())
        .arbiter(arbiter(directory))
        .backup(endpoint(directory))
        .node("a")
}

fn wait_for(what: &str, mut status: impl FnMut() -> Status, wanted: impl Fn(&Status) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = status();
        if wanted(&now) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "not {what} within {PATIENCE:?}: {now:?}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Pair {
    primary: Protection<Fake>,
    standby: StandbyRun<Fake>,
    primary_gate: Arc<Gate>,
    standby_gate: Arc<Gate>,
}

fn pair(directory: &Path) -> Pair {
    let (a, b) = (Fake::new(), Fake::new());
    let (primary_gate, standby_gate) = (a.gate_handle(), b.gate_handle());
    let standby = standby(directory, b).start().unwrap();
    let primary = primary(directory, a).protect().unwrap();
    let handle = primary.handle();
    wait_for(
        "protected",
        || handle.status(),
        |status| status.protected && status.epochs >= 5,
    );
    Pair {
        primary,
        standby,
        primary_gate,
        standby_gate,
    }
}

fn promoted(standby: StandbyRun<Fake>) -> Promoted<Fake> {
    match standby.await_promotion().unwrap() {
        Outcome::Promoted(promoted) => promoted,
        _ => panic!("the standby was stopped"),
    }
}

/// 1, 2, 3 … without a hole.
fn assert_counts_up(numbers: &[u64]) {
    for pair in numbers.windows(2) {
        assert_eq!(
            pair[1],
            pair[0] + 1,
            "output lost, repeated or out of order"
        );
    }
    assert_eq!(numbers.first(), Some(&1));
}

#[test]
fn a_promoted_standby_goes_on_where_the_clients_are_and_the_old_primary_is_fenced() {
    let directory = tempfile::tempdir().unwrap();
    let pair = pair(directory.path());
    assert!(pair.standby.handle().promote());
    let mut promoted = promoted(pair.standby);
    let ended = pair.primary.wait().unwrap();
    assert!(matches!(ended, Ended::Fenced { .. }), "{ended:?}");
    assert!(pair.primary_gate.is_shut());
    promoted.machine.stop();
    promoted.machine.assert_consistent();
    // What a client sees: all that the old primary let out, then what the new one says. The output of
    // the last committed epoch may come twice, as positions tell.
    let mut seen = pair.primary_gate.out();
    let last = *seen.last().unwrap();
    let fresh = pair.standby_gate.out();
    let first_fresh = *fresh.first().unwrap();
    assert!(
        first_fresh <= last + 1,
        "numbers {last}..{first_fresh} were lost"
    );
    seen.extend(fresh.into_iter().filter(|number| *number > last));
    assert_counts_up(&seen);
}

#[test]
fn a_protected_guest_that_is_started_over_stays_protected_and_all_it_said_is_heard() {
    let directory = tempfile::tempdir().unwrap();
    let pair = pair(directory.path());
    let handle = pair.primary.handle();
    handle.reset_guest();
    // The second 1 leaves when the epoch after the reset has been acknowledged.
    let gate = Arc::clone(&pair.primary_gate);
    let runs = || gate.out().iter().filter(|number| **number == 1).count();
    wait_for(
        "started over",
        || handle.status(),
        |status| runs() == 2 && status.protected,
    );
    assert!(pair.standby.handle().promote());
    let mut promoted = promoted(pair.standby);
    pair.primary.wait().unwrap();
    promoted.machine.stop();
    // Its memory is that of the second run.
    promoted.machine.assert_consistent();
    let out = gate.out();
    let second = out.iter().rposition(|number| *number == 1).unwrap();
    assert_counts_up(&out[..second]);
    assert_counts_up(&out[second..]);
}

#[test]
fn a_primary_that_loses_its_standby_goes_on_alone_under_a_new_generation() {
    let directory = tempfile::tempdir().unwrap();
    let pair = pair(directory.path());
    assert!(pair.primary_gate.is_holding());
    pair.standby.handle().stop();
    assert!(matches!(
        pair.standby.await_promotion().unwrap(),
        Outcome::Stopped
    ));
    let handle = pair.primary.handle();
    wait_for(
        "alone",
        || handle.status(),
        // On a busy machine the standby may have counted as lost before.
        |status| status.generation >= 2 && !status.protected,
    );
    wait_for(
        "open",
        || handle.status(),
        |_| !pair.primary_gate.is_holding(),
    );
    // A new standby is found without being asked for.
    let again = standby(directory.path(), Fake::new()).start().unwrap();
    wait_for(
        "protected again",
        || handle.status(),
        |status| status.protected,
    );
    handle.guest_stopped();
    assert_eq!(pair.primary.wait().unwrap(), Ended::GuestStopped);
    assert_counts_up(&pair.primary_gate.out());
    let handle = again.handle();
    wait_for("reset", || handle.status(), |status| !status.protected);
    handle.stop();
    assert!(matches!(again.await_promotion().unwrap(), Outcome::Stopped));
}

#[test]
fn pages_of_an_epoch_that_could_not_be_captured_travel_with_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (Fake::new(), Fake::new());
    let failures = Arc::clone(&a.save_failures);
    let standby = standby(directory.path(), b).start().unwrap();
    let primary = primary(directory.path(), a).protect().unwrap();
    let handle = primary.handle();
    wait_for(
        "protected",
        || handle.status(),
        |status| status.protected && status.epochs >= 3,
    );
    failures.store(3, Ordering::Release);
    wait_for(
        "past failures",
        || handle.status(),
        |_| failures.load(Ordering::Acquire) == 0,
    );
    let epochs = handle.status().epochs;
    wait_for(
        "going on",
        || handle.status(),
        |status| status.epochs >= epochs + 2,
    );
    assert!(standby.handle().promote());
    let mut promoted = promoted(standby);
    assert!(matches!(primary.wait().unwrap(), Ended::Fenced { .. }));
    promoted.machine.stop();
    promoted.machine.assert_consistent();
}

#[test]
fn a_standby_that_differs_is_refused_by_name_and_the_guest_runs_on() {
    let directory = tempfile::tempdir().unwrap();
    let standby = standby(
        directory.path(),
        Fake::new().with("device.net1", "virtio-net"),
    );
    let standby = standby.start().unwrap();
    let a = Fake::new();
    let gate = a.gate_handle();
    let primary = primary(directory.path(), a).protect().unwrap();
    let handle = primary.handle();
    wait_for(
        "refused",
        || handle.status(),
        |status| {
            status.alarm.as_ref().is_some_and(|alarm| {
                alarm.contains("device.net1: primary has nothing, backup has virtio-net")
            })
        },
    );
    let said = gate.out().len();
    wait_for("running", || handle.status(), |_| gate.out().len() > said);
    handle.guest_stopped();
    assert_eq!(primary.wait().unwrap(), Ended::GuestStopped);
    standby.handle().stop();
    assert!(matches!(
        standby.await_promotion().unwrap(),
        Outcome::Stopped
    ));
}

#[test]
fn a_guest_is_not_started_twice() {
    let directory = tempfile::tempdir().unwrap();
    let other = arbiter(directory.path());
    other.claim(START, "somebody").unwrap();
    let machine = Fake::new();
    let stops = Arc::clone(&machine.stops);
    let Err(error) = primary(directory.path(), machine).protect() else {
        panic!("a second owner was let in");
    };
    assert_eq!(stops.load(Ordering::Acquire), 1);
    assert!(
        matches!(&error, RuntimeError::Owned { holder, .. } if holder.starts_with("somebody, which is alive"))
    );
}

#[test]
fn what_a_guest_says_last_leaves_once_nobody_can_take_over() {
    let directory = tempfile::tempdir().unwrap();
    let pair = pair(directory.path());
    let held = pair.primary_gate.said();
    pair.primary.handle().guest_stopped();
    assert_eq!(pair.primary.wait().unwrap(), Ended::GuestStopped);
    let out = pair.primary_gate.out();
    assert_counts_up(&out);
    assert!(out.last() >= held.last(), "the last output was dropped");
    let generation = arbiter(directory.path()).record().unwrap().generation;
    assert!(generation.0 >= 2, "the standby could still take over");
    pair.standby.handle().stop();
    assert!(matches!(
        pair.standby.await_promotion().unwrap(),
        Outcome::Stopped
    ));
}

#[test]
fn whoever_embeds_a_side_sets_the_thread_up_that_sends_its_heartbeats() {
    let directory = tempfile::tempdir().unwrap();
    let (told, set_up) = std::sync::mpsc::channel();
    let setup = move || {
        let thread = std::thread::current().name().map(str::to_owned);
        told.send(thread).unwrap();
    };
    let setup: ThreadSetup = Arc::new(setup);
    let named = || set_up.recv_timeout(PATIENCE).unwrap();
    let standby = standby(directory.path(), Fake::new())
        .driver_setup(Arc::clone(&setup))
        .start()
        .unwrap();
    assert_eq!(named().as_deref(), Some("driver"));
    let primary = primary(directory.path(), Fake::new())
        .driver_setup(setup)
        .protect()
        .unwrap();
    assert_eq!(named().as_deref(), Some("driver"));
    primary.handle().stop();
    primary.handle().stop();
    primary.wait().unwrap();
    assert!(standby.handle().stop());
}

#[test]
fn a_promoted_machine_is_protected_again() {
    let directory = tempfile::tempdir().unwrap();
    let pair = pair(directory.path());
    assert!(pair.standby.handle().promote());
    let promoted = promoted(pair.standby);
    assert!(matches!(pair.primary.wait().unwrap(), Ended::Fenced { .. }));
    let next = standby(directory.path(), Fake::new()).start().unwrap();
    let primary = Primary::attach(Origin::Promoted(promoted))
        .arbiter(arbiter(directory.path()))
        .backup(endpoint(directory.path()))
        .protect()
        .unwrap();
    let handle = primary.handle();
    wait_for(
        "protected again",
        || handle.status(),
        |status| status.protected,
    );
    let failover = handle.status().failover.unwrap();
    assert!(
        failover
            .repair_ms
            .is_some_and(|repair| repair >= failover.outage_ms)
    );
    assert!(next.handle().promote());
    let mut promoted = self::promoted(next);
    assert!(matches!(primary.wait().unwrap(), Ended::Fenced { .. }));
    promoted.machine.stop();
    promoted.machine.assert_consistent();
}

/// Asks the arbiter for a claim only once something is decided.
struct Hesitant {
    arbiter: Arc<dyn Arbiter>,
    decided: AtomicBool,
    /// And for the record only while it does not hang.
    hangs: AtomicBool,
}

impl Hesitant {
    fn wait_while(wait: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while wait() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Arbiter for Hesitant {
    fn claim(&self, claim: Claim, claimant: &str) -> Result<Verdict, ArbiterError> {
        Self::wait_while(|| !self.decided.load(Ordering::Acquire));
        self.arbiter.claim(claim, claimant)
    }

    fn note(&self, generation: Generation, note: Note<'_>) -> Result<(), ArbiterError> {
        self.arbiter.note(generation, note)
    }

    fn record(&self) -> Result<Record, ArbiterError> {
        Self::wait_while(|| self.hangs.load(Ordering::Acquire));
        self.arbiter.record()
    }

    fn holder_lives(&self) -> Result<bool, ArbiterError> {
        self.arbiter.holder_lives()
    }

    fn rehearse(&self) -> Result<Record, ArbiterError> {
        self.arbiter.rehearse()
    }
}

#[test]
fn pages_of_an_epoch_that_failed_half_way_are_not_in_the_first_epoch_of_the_next_session() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (Fake::new(), Fake::new());
    let (failures, gate) = (Arc::clone(&a.save_failures), a.gate_handle());
    let hesitant = Arc::new(Hesitant {
        arbiter: arbiter(directory.path()),
        decided: AtomicBool::new(false),
        hangs: AtomicBool::new(false),
    });
    let standby = standby(directory.path(), b)
        .arbiter(Arc::clone(&hesitant) as Arc<dyn Arbiter>)
        .start()
        .unwrap();
    // Epochs of some hundred pages of noise, of which all but a few are shipped during the pause.
    let primary = primary(directory.path(), a)
        .policy(Policy {
            epoch_interval: Duration::from_millis(200),
            overhead_percent: 0,
            ..Policy::default()
        })
        .limits(Limits {
            capture_pages_max: 16,
            ..Limits::default()
        })
        .protect()
        .unwrap();
    let handle = primary.handle();
    let is_protected = |status: &Status| status.protected;
    wait_for("protected", || handle.status(), is_protected);
    failures.store(1, Ordering::Release);
    wait_for("alone", || handle.status(), |status| status.generation == 2);
    // Whatever was captured then is outdated once the guest has been everywhere.
    let said = gate.out().len();
    wait_for(
        "everywhere",
        || handle.status(),
        |_| gate.out().len() > said + fake::PAGES as usize + 1000,
    );
    hesitant.decided.store(true, Ordering::Release);
    wait_for("protected anew", || handle.status(), is_protected);
    assert!(standby.handle().promote());
    let mut promoted = promoted(standby);
    assert!(matches!(primary.wait().unwrap(), Ended::Fenced { .. }));
    promoted.machine.stop();
    promoted.machine.assert_consistent();
}

#[test]
fn a_standby_takes_over_from_a_primary_whose_capture_thread_has_panicked() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (Fake::new(), Fake::new());
    let panics = Arc::clone(&a.pause_panics);
    let stops = Arc::clone(&a.stops);
    let standby = standby(directory.path(), b).start().unwrap();
    let primary = primary(directory.path(), a).protect().unwrap();
    let handle = primary.handle();
    wait_for(
        "protected",
        || handle.status(),
        |status| status.protected && status.epochs >= 3,
    );
    panics.store(true, Ordering::Release);
    let taking_over = standby.handle();
    wait_for(
        "taken over",
        || taking_over.status(),
        |status| status.phase == "promoted",
    );
    let mut promoted = promoted(standby);
    let Err(error) = primary.wait() else {
        panic!("the primary ended as if nothing had happened");
    };
    assert!(
        matches!(error, RuntimeError::Panicked("capture")),
        "{error}"
    );
    assert_eq!(
        stops.load(Ordering::Acquire),
        1,
        "the guest was not stopped"
    );
    promoted.machine.stop();
    promoted.machine.assert_consistent();
}
