//! The models and their bounds. The small ones are explored with every test run; `cargo xtask
//! model` explores the large ones. A model that is not exhausted fails.

use std::time::Instant;

use stateright::{Checker, Expectation, HasDiscoveries, Model as _, Property};

use super::arbiter::{Answer, Call, Kind, Stage};
use super::world::{Base, Left, Node, Side, World};
use super::{Bounds, Model};

const BOUNDS: Bounds = Bounds {
    epochs: 2,
    beats: 0,
    disks: false,
    trials: false,
    promises: false,
    apart: false,
};

/// One session, and nothing goes wrong but what needs no counting: every message, call and time-out
/// comes at any moment or never.
const ONE_SESSION: Left = Left {
    sessions: 1,
    crashes: 0,
    restarts: 0,
    starts: 0,
    stalls: 0,
    lost: 0,
    breaks: 0,
    failures: 0,
    lies: 0,
    past: 0,
    orders: 0,
};

/// A model with so many states has got out of hand.
const STATES_MAX: usize = 400_000_000;

/// What must be reachable, or the model shows nothing.
fn promotion() -> Property<Model> {
    Property::sometimes("a backup is promoted", |_, world: &World| {
        let is_copy = |base| matches!(base, Base::Copy(..));
        world.reigns.iter().any(|reign| is_copy(reign.base))
    })
}

fn going_alone() -> Property<Model> {
    Property::sometimes("a primary goes alone under a grant", |_, world: &World| {
        world.reigns.iter().any(|reign| reign.base == Base::Own)
    })
}

fn refusal_of_a_primary() -> Property<Model> {
    Property::sometimes("a primary is refused", |_, world: &World| {
        world
            .hosts
            .iter()
            .any(|host| is_refused(host) && matches!(host.side, Side::Primary(_)))
    })
}

fn refusal_of_a_copy() -> Property<Model> {
    Property::sometimes("a backup with a copy is refused", |_, world: &World| {
        let has_copy = |host: &Node| {
            host.backup()
                .is_some_and(|it| it.committed_epoch().is_some())
        };
        world
            .hosts
            .iter()
            .any(|host| is_refused(host) && has_copy(host))
    })
}

fn is_refused(host: &Node) -> bool {
    let refused = |call: Call| matches!(call.stage, Stage::Answered(Answer::Refused(_)));
    host.call.is_some_and(refused)
}

fn explore(name: &str, kind: Kind, small: (Bounds, Left), large: (Bounds, Left)) {
    let size = std::env::var("UNDERSTUDY_MODEL");
    let (bounds, left) = match size.as_deref() {
        Ok("large") => large,
        _ => small,
    };
    let mut reached = Vec::new();
    // With a copy of the arbiter, nothing is ever copied.
    if !bounds.apart {
        reached = vec![
            going_alone(),
            promotion(),
            refusal_of_a_primary(),
            refusal_of_a_copy(),
        ];
    }
    let model = Model {
        begins: World::new(kind, bounds, left),
        reached,
    };
    let began = Instant::now();
    let checker = model
        .checker()
        .threads(2)
        .finish_when(HasDiscoveries::AnyFailures)
        .target_state_count(STATES_MAX)
        .spawn_bfs()
        .join();
    let (states, unique) = (checker.state_count(), checker.unique_state_count());
    println!(
        "model {name}: {states} states, {unique} unique, depth {}, {:.1} s\n    {kind:?} {bounds:?} \
         {left:?}",
        checker.max_depth(),
        began.elapsed().as_secs_f64(),
    );
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        match (property.expectation, found) {
            (Expectation::Sometimes, None) => panic!("{name}: never: {}", property.name),
            (Expectation::Sometimes, _) | (_, None) => {}
            (_, Some(path)) => {
                let last = format!("{:?}", path.last_state());
                let actions: Vec<_> = path.into_actions();
                let steps: String = actions.iter().map(|it| format!("  {it:?}\n")).collect();
                panic!("{name}: not true: {}\n{steps}{last}", property.name);
            }
        }
    }
    assert!(states < STATES_MAX, "{name} was not exhausted");
}

#[test]
fn hosts_crash_and_start_again() {
    let small = Left {
        crashes: 2,
        restarts: 1,
        starts: 1,
        lost: 1,
        ..ONE_SESSION
    };
    let large = Left {
        restarts: 2,
        starts: 2,
        stalls: 1,
        ..small
    };
    explore("crashes", Kind::File, (BOUNDS, small), (BOUNDS, large));
}

#[test]
fn hosts_crash_and_start_again_with_a_transaction_as_arbiter() {
    let small = Left {
        crashes: 2,
        restarts: 1,
        starts: 1,
        lost: 1,
        ..ONE_SESSION
    };
    let large = Left {
        restarts: 2,
        starts: 2,
        stalls: 1,
        ..small
    };
    explore("etcd", Kind::Etcd, (BOUNDS, small), (BOUNDS, large));
}

#[test]
fn processes_and_links_stand_still() {
    let small = Left {
        stalls: 2,
        lost: 1,
        ..ONE_SESSION
    };
    let large = Left {
        stalls: 3,
        lost: 2,
        breaks: 1,
        ..small
    };
    explore("stalls", Kind::File, (BOUNDS, small), (BOUNDS, large));
}

#[test]
fn a_stranger_says_anything() {
    let small = Left {
        lies: 1,
        stalls: 1,
        ..ONE_SESSION
    };
    let large = Left {
        lies: 2,
        lost: 1,
        crashes: 1,
        ..small
    };
    explore("lies", Kind::File, (BOUNDS, small), (BOUNDS, large));
}

#[test]
fn links_break_and_captures_fail() {
    let small = Left {
        breaks: 1,
        failures: 1,
        stalls: 1,
        ..ONE_SESSION
    };
    let large = Left {
        breaks: 2,
        lies: 1,
        ..small
    };
    explore("breaks", Kind::File, (BOUNDS, small), (BOUNDS, large));
}

#[test]
fn a_state_cannot_be_loaded() {
    let bounds = Bounds {
        trials: true,
        ..BOUNDS
    };
    let small = Left {
        orders: 1,
        failures: 1,
        ..ONE_SESSION
    };
    let large = Left {
        failures: 2,
        crashes: 1,
        stalls: 1,
        ..small
    };
    explore("trials", Kind::File, (bounds, small), (bounds, large));
}

#[test]
fn a_person_gives_orders() {
    let small = Left {
        orders: 1,
        stalls: 1,
        lost: 1,
        ..ONE_SESSION
    };
    let large = Left {
        orders: 2,
        crashes: 1,
        failures: 1,
        ..small
    };
    explore("orders", Kind::File, (BOUNDS, small), (BOUNDS, large));
}

#[test]
fn one_session_follows_another() {
    let small = Left {
        sessions: 2,
        crashes: 1,
        restarts: 1,
        ..ONE_SESSION
    };
    let large = Left {
        restarts: 2,
        starts: 1,
        stalls: 1,
        ..small
    };
    let one_epoch = Bounds {
        epochs: 1,
        ..BOUNDS
    };
    explore(
        "sessions",
        Kind::File,
        (one_epoch, small),
        (one_epoch, large),
    );
}

#[test]
fn disks_are_slow_and_fail() {
    let bounds = Bounds {
        disks: true,
        ..BOUNDS
    };
    let small = Left {
        crashes: 1,
        stalls: 1,
        failures: 1,
        ..ONE_SESSION
    };
    let large = Left {
        failures: 2,
        lost: 1,
        orders: 1,
        ..small
    };
    explore("disks", Kind::File, (bounds, small), (bounds, large));
}

#[test]
fn the_record_goes_back_for_one_host_or_both() {
    let small = Left {
        past: 1,
        lost: 1,
        ..ONE_SESSION
    };
    // With a second session, a host may write its mark into the record that is wrong, and gets no answer from the right
    // one any more: see docs/SAFETY.md.
    let large = Left { past: 2, ..small };
    explore("past", Kind::File, (BOUNDS, small), (BOUNDS, large));
}

#[test]
fn marks_are_written_and_promises_made() {
    let bounds = Bounds {
        promises: true,
        beats: 1,
        epochs: 1,
        ..BOUNDS
    };
    let small = Left {
        lost: 1,
        ..ONE_SESSION
    };
    let large = Left {
        lost: 2,
        stalls: 1,
        ..small
    };
    let two_epochs = Bounds {
        epochs: 2,
        ..bounds
    };
    explore("promises", Kind::File, (bounds, small), (two_epochs, large));
}

#[test]
fn one_host_asks_a_copy_of_the_arbiter() {
    let bounds = Bounds {
        apart: true,
        promises: true,
        beats: 1,
        epochs: 1,
        ..BOUNDS
    };
    let small = Left {
        stalls: 1,
        crashes: 1,
        ..ONE_SESSION
    };
    let large = Left { lost: 1, ..small };
    let two_epochs = Bounds {
        epochs: 2,
        ..bounds
    };
    explore("apart", Kind::File, (bounds, small), (two_epochs, large));
}

#[test]
fn a_stranger_speaks_while_a_person_gives_orders() {
    let small = Left {
        orders: 1,
        lies: 1,
        ..ONE_SESSION
    };
    let large = Left {
        orders: 2,
        failures: 1,
        stalls: 1,
        ..small
    };
    explore("meddlers", Kind::File, (BOUNDS, small), (BOUNDS, large));
}

#[test]
fn all_else_fails_while_the_record_is_wrong() {
    let small = Left {
        past: 1,
        crashes: 1,
        ..ONE_SESSION
    };
    let large = Left {
        orders: 1,
        failures: 1,
        stalls: 1,
        lost: 1,
        ..small
    };
    explore("disasters", Kind::File, (BOUNDS, small), (BOUNDS, large));
}

#[test]
fn another_session_begins_while_all_else_fails() {
    let small = Left {
        sessions: 2,
        orders: 1,
        failures: 1,
        ..ONE_SESSION
    };
    let large = Left {
        crashes: 1,
        restarts: 1,
        stalls: 1,
        ..small
    };
    let one_epoch = Bounds {
        epochs: 1,
        ..BOUNDS
    };
    let kind = Kind::File;
    explore("returns", kind, (one_epoch, small), (one_epoch, large));
}
