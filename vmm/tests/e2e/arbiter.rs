//! Nothing leaves and nobody is promoted without the arbiter's word (R1, R4).

use understudy_vmm::local_cluster::VmmProcess;

use crate::support::{DEADLINE, TestCluster, await_code, await_log, says, turn};

/// Questions that an unusable arbiter leaves without an answer before a test goes on.
const RETRIES: usize = 8;

/// A guest whose primary can neither get an acknowledgement nor ask the arbiter, and has noticed.
fn undecided() -> TestCluster {
    let mut cluster = TestCluster::start();
    cluster.arbiter().break_it();
    cluster.local.standby.freeze().unwrap();
    await_undecided(&mut cluster, 1);
    cluster
}

fn await_undecided(cluster: &mut TestCluster, times: usize) {
    let primary = &mut cluster.local.primary;
    await_log(primary, "no answer, so nothing is decided", 1);
    await_questions(primary, times);
}

/// Waits until the arbiter was asked so often in vain from now on.
fn await_questions(host: &mut VmmProcess, times: usize) {
    let before = host.status().unwrap().arbiter_failures;
    let enough = |status: &understudy_replication::runtime::Status| {
        status.arbiter_failures >= before + times as u64
    };
    host.await_status("questions", DEADLINE, enough).unwrap();
}

/// Waits until the guest has ended and the arbiter was asked in vain for what it said last.
fn await_ending(cluster: &mut TestCluster) {
    let primary = &mut cluster.local.primary;
    await_log(primary, "is held until the arbiter answers", 1);
    await_questions(primary, RETRIES);
}

#[test]
fn a_standby_that_cannot_ask_is_not_promoted_until_it_can() {
    let _turn = turn();
    let mut cluster = TestCluster::start();
    cluster.arbiter().break_it();
    cluster.local.primary.kill().unwrap();
    await_log(&cluster.local.standby, "no answer, so no promotion", 1);
    await_questions(&mut cluster.local.standby, RETRIES);
    let status = cluster.local.standby.status().unwrap();
    assert_eq!(status.phase, "claiming");
    let alarm = status.alarm.unwrap();
    assert!(alarm.contains("arbiter"), "{alarm}");
    assert!(alarm.contains("vanished"), "{alarm}");
    assert_eq!(
        cluster.frames_from(1),
        0,
        "a standby that was not promoted spoke"
    );

    cluster.arbiter().repair();
    let status = cluster.local.await_promotion(DEADLINE).unwrap();
    assert_eq!(status.generation, 2);
    cluster.await_progress("clients of the promoted guest");
    cluster.assert_exact();
}

#[test]
fn nothing_leaves_a_primary_without_acks_until_it_may_run_alone() {
    let _turn = turn();
    let mut cluster = undecided();
    // Long after the last epoch that the standby can have acknowledged: what was released has left.
    await_undecided(&mut cluster, 2);
    let (frames, figures) = (cluster.frames_from(0), cluster.figures());
    await_undecided(&mut cluster, RETRIES);
    let status = cluster.local.primary.status().unwrap();
    assert_eq!(status.phase, "claiming");
    assert_eq!(
        cluster.frames_from(0),
        frames,
        "frames left without ack and grant"
    );
    let later = cluster.figures();
    assert_eq!(later.bytes_checked, figures.bytes_checked);
    assert_eq!(later.acked_writes, figures.acked_writes);

    cluster.arbiter().repair();
    let status = cluster
        .local
        .primary
        .await_status("alone", DEADLINE, |status| status.phase == "alone")
        .unwrap();
    assert_eq!(status.generation, 2);
    cluster.await_progress("clients of the unprotected guest");
    // The standby wakes up, finds the guest owned by another generation, and takes nothing over.
    cluster.local.standby.thaw().unwrap();
    cluster
        .local
        .primary
        .await_status("protected again", DEADLINE, |status| status.protected)
        .unwrap();
    assert_eq!(cluster.frames_from(1), 0, "the old standby spoke");
    cluster.await_progress("clients of the guest that is protected again");
    cluster.assert_exact();
}

/// A guest is stopped by `stop` while nobody answers, and again.
fn is_given_up(stop: impl Fn(&VmmProcess)) {
    let _turn = turn();
    let mut cluster = undecided();
    let frames = cluster.frames_from(0);
    stop(&cluster.local.primary);
    let ending = |status: &understudy_replication::runtime::Status| status.ending.is_some();
    let primary = &mut cluster.local.primary;
    let status = primary.await_status("ending", DEADLINE, ending).unwrap();
    assert_eq!(status.ending.as_deref(), Some("the arbiter"));
    let text = says(primary, "status", &[]);
    assert!(
        text.contains("the guest has ended; what it said last waits for the arbiter"),
        "{text}"
    );
    await_ending(&mut cluster);
    stop(&cluster.local.primary);
    let log = await_code(&mut cluster.local.primary, 1);
    let last = log.lines().last().unwrap();
    assert!(last.contains("ended at once, as was asked for"), "{log}");
    assert_eq!(cluster.frames_from(0), frames, "what was given up has left");
}

#[test]
fn a_guest_that_is_stopped_twice_is_not_waited_for() {
    is_given_up(|host| {
        says(host, "stop", &[]);
    });
}

#[test]
fn a_guest_that_is_terminated_twice_is_not_waited_for() {
    is_given_up(|host| host.terminate().unwrap());
}

#[test]
fn a_guest_that_is_stopped_while_nobody_answers_ends_once_somebody_does() {
    let _turn = turn();
    let mut cluster = undecided();
    let frames = cluster.frames_from(0);
    says(&cluster.local.primary, "stop", &[]);
    await_ending(&mut cluster);
    cluster.arbiter().repair();
    await_code(&mut cluster.local.primary, 0);
    assert!(cluster.frames_from(0) > frames, "what was held was dropped");
    // It finds the guest owned by another generation.
    cluster.local.standby.thaw().unwrap();
    let standby = &mut cluster.local.standby;
    let status = standby.await_status("reset", DEADLINE, |status| status.phase == "listening");
    assert!(status.unwrap().failover.is_none(), "it was revived");
}
