//! What both sides make of an arbiter that is away, another one, or a copy, and of lies about
//! generations (R9, R10).

use std::path::{Path, PathBuf};

use understudy_replication::core::message::{Hello, Message, Refusal};
use understudy_replication::runtime::HeartbeatPath;
use understudy_transport::{Frame, connect};

use super::*;

/// Both sides look at the arbiter often.
fn watchful() -> Policy {
    Policy {
        arbiter_check: Duration::from_millis(100),
        ..Policy::default()
    }
}

fn opened(path: &Path) -> Arc<dyn Arbiter> {
    Arc::new(FileArbiter::open(path).unwrap())
}

/// A primary and a standby, each with an arbiter in this directory, not protected yet.
fn two(directory: &Path, of_standby: &Path) -> (Protection<Fake>, StandbyRun<Fake>) {
    let primary = primary(directory, Fake::new())
        .policy(watchful())
        .protect()
        .unwrap();
    let standby = standby(directory, Fake::new())
        .policy(watchful())
        .arbiter(opened(of_standby))
        .start()
        .unwrap();
    (primary, standby)
}

/// The arbiter's directory with everything in it, as a backup or a synchronisation would make it.
fn copied(arbiter: &Path) -> PathBuf {
    let copy = arbiter.with_extension("copy");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(arbiter).unwrap() {
        let name = entry.unwrap().file_name();
        std::fs::copy(arbiter.join(&name), copy.join(&name)).unwrap();
    }
    copy
}

fn has_alarm(status: &Status, text: &str) -> bool {
    status.alarm.as_ref().is_some_and(|it| it.contains(text))
}

#[test]
fn two_arbiters_protect_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("other");
    let (primary, standby) = two(directory.path(), &other);
    let handle = primary.handle();
    wait_for(
        "refused",
        || handle.status(),
        |status| has_alarm(status, "another arbiter"),
    );
    assert!(!handle.status().protected);
    assert!(standby.handle().stop());
    assert!(handle.stop());
    primary.wait().unwrap();
}

#[test]
fn a_copy_of_the_arbiter_protects_nothing_and_grants_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let arbiter = directory.path().join("arbiter");
    let primary = primary(directory.path(), Fake::new())
        .policy(watchful())
        .protect()
        .unwrap();
    // The same identity and the same generation.
    let copy = copied(&arbiter);
    let standby = standby(directory.path(), Fake::new())
        .policy(watchful())
        .arbiter(opened(&copy))
        .start()
        .unwrap();
    let (of_a, of_b) = (primary.handle(), standby.handle());
    for handle in [&|| of_a.status(), &|| of_b.status()] as [&dyn Fn() -> Status; 2] {
        wait_for("an alarm", handle, |status| {
            assert!(!status.protected, "{status:?}");
            has_alarm(status, "not copies of it")
        });
    }
    let status = of_a.status();
    assert_eq!((status.sync_bytes, status.epochs), (0, 0), "copied");
    of_b.stop();
    of_a.stop();
    primary.wait().unwrap();
}

#[test]
fn who_gets_to_see_a_copy_of_the_arbiter_is_granted_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let arbiter = directory.path().join("arbiter");
    let seen_by_b = directory.path().join("seen-by-b");
    drop(opened(&arbiter));
    std::os::unix::fs::symlink(&arbiter, &seen_by_b).unwrap();
    let primary = primary(directory.path(), Fake::new())
        .policy(watchful())
        .protect()
        .unwrap();
    let b = Fake::new();
    let gate = b.gate_handle();
    let standby = standby(directory.path(), b)
        .policy(watchful())
        .arbiter(opened(&seen_by_b))
        .start()
        .unwrap();
    let (of_a, of_b) = (primary.handle(), standby.handle());
    wait_for("protected", || of_a.status(), |status| status.protected);
    // From now on, the standby sees a copy.
    let copy = copied(&arbiter);
    std::fs::remove_file(&seen_by_b).unwrap();
    std::os::unix::fs::symlink(&copy, &seen_by_b).unwrap();
    for handle in [&|| of_a.status(), &|| of_b.status()] as [&dyn Fn() -> Status; 2] {
        wait_for("an alarm", handle, |status| {
            !status.protected && has_alarm(status, "not copies of it")
        });
    }
    // Each side would be granted the guest by its own arbiter.
    assert!(of_b.promote());
    wait_for("alone", || of_a.status(), |status| status.generation == 2);
    wait_for(
        "asked",
        || of_b.status(),
        |status| status.arbiter_failures > 2,
    );
    assert_eq!(of_b.status().phase, "claiming", "the copy is kept");
    assert!(gate.out().is_empty(), "the standby spoke");
    of_b.stop();
    of_a.stop();
    primary.wait().unwrap();
}

#[test]
fn an_arbiter_that_is_away_is_an_alarm_on_both_sides_until_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let arbiter = directory.path().join("arbiter");
    let (primary, standby) = two(directory.path(), &arbiter);
    let (of_a, of_b) = (primary.handle(), standby.handle());
    let both = [&|| of_a.status(), &|| of_b.status()] as [&dyn Fn() -> Status; 2];
    for handle in both {
        wait_for("protected", handle, |status| status.protected);
    }
    std::fs::rename(&arbiter, directory.path().join("away")).unwrap();
    for handle in both {
        wait_for("an alarm", handle, |status| {
            !status.protected && has_alarm(status, "vanished")
        });
    }
    let epochs = of_a.status().epochs;
    wait_for(
        "epochs",
        || of_a.status(),
        |status| status.epochs > epochs + 5,
    );
    std::fs::rename(directory.path().join("away"), &arbiter).unwrap();
    for handle in both {
        wait_for("protected", handle, |status| {
            status.protected && status.alarm.is_none()
        });
    }
    assert!(of_b.promote());
    let mut promoted = promoted(standby);
    assert!(matches!(primary.wait().unwrap(), Ended::Fenced { .. }));
    promoted.machine.stop();
}

#[test]
fn a_forged_introduction_is_refused_and_costs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let b = Fake::new();
    let (fingerprint, layout) = (b.fingerprint(), b.memory().layout().clone());
    let standby = standby(directory.path(), b).start().unwrap();
    let hello = Message::Hello(Hello {
        vm: "vm".into(),
        node: "stranger".into(),
        fingerprint,
        layout,
        arbiter: arbiter(directory.path()).record().unwrap().arbiter,
        session: 1,
    });
    let (kind, epoch, body) = hello.encode();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let answer = runtime.block_on(async {
        let link = connect(standby.endpoint(), Default::default())
            .await
            .unwrap();
        let (mut reader, mut writer) = link.split();
        let frame = Frame {
            kind,
            generation: u64::MAX,
            epoch,
            body,
        };
        writer.send(&frame).await.unwrap();
        reader.recv().await.unwrap()
    });
    let answer = Message::decode(answer.kind, answer.epoch, answer.body).unwrap();
    assert!(
        matches!(answer, Message::Refuse(Refusal::OtherArbiter { .. })),
        "{answer:?}"
    );
    let primary = primary(directory.path(), Fake::new()).protect().unwrap();
    let handle = primary.handle();
    wait_for("protected", || handle.status(), |status| status.protected);
    assert!(standby.handle().promote());
    let mut promoted = promoted(standby);
    primary.wait().unwrap();
    promoted.machine.stop();
}

/// Two addresses that were free a moment ago.
fn free_addresses() -> [std::net::SocketAddr; 2] {
    let sockets = [(); 2].map(|()| std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    sockets.map(|socket| socket.local_addr().unwrap())
}

#[test]
fn a_guest_that_is_heard_elsewhere_is_not_started_by_an_arbiter_that_knows_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let [of_a, of_b] = free_addresses();
    let path = |listen, peer| HeartbeatPath { listen, peer };
    let running = primary(directory.path(), Fake::new())
        .heartbeat(path(of_a, of_b))
        .protect()
        .unwrap();
    // As if the storage were not mounted on the other host.
    let unmounted = opened(&directory.path().join("unmounted"));
    let refused = primary(directory.path(), Fake::new())
        .arbiter(Arc::clone(&unmounted))
        .heartbeat(path(of_b, of_a))
        .protect();
    assert!(
        matches!(refused, Err(RuntimeError::RunsElsewhere { peer }) if peer == of_a),
        "it was started"
    );
    assert_eq!(unmounted.record().unwrap().generation, Generation(0));
    running.handle().stop();
    running.wait().unwrap();
}

#[test]
fn an_arbiter_that_hangs_is_an_alarm_also_for_a_primary_that_runs_alone() {
    let directory = tempfile::tempdir().unwrap();
    let arbiter = Arc::new(Hesitant {
        arbiter: arbiter(directory.path()),
        decided: AtomicBool::new(true),
        hangs: AtomicBool::new(false),
    });
    let primary = primary(directory.path(), Fake::new())
        .policy(watchful())
        .arbiter(Arc::clone(&arbiter) as Arc<dyn Arbiter>);
    let primary = primary.protect().unwrap();
    let handle = primary.handle();
    arbiter.hangs.store(true, Ordering::Release);
    let hangs = |status: &Status| has_alarm(status, "the arbiter has not answered");
    wait_for("told", || handle.status(), hangs);
    arbiter.hangs.store(false, Ordering::Release);
    wait_for("over", || handle.status(), |status| !hangs(status));
    assert!(handle.stop());
    primary.wait().unwrap();
}
