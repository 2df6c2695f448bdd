//! Both hosts lose their power, and come back with what they were started with before: nobody is needed who knows
//! which of them has the newest state.

use understudy_replication::disk::DiskMode;
use understudy_replication::runtime::Side;

use super::hosts::{A, B, Disks};
use crate::support::{await_log, binary, says, turn};

/// Both at once: the standby must not have the time to take over.
fn kill_both(disks: &mut Disks) {
    disks.host(B).freeze().unwrap();
    disks.kill(A);
    disks.kill(B);
}

/// The standby knows what to boot.
const KERNEL: [&str; 2] = ["--kernel", "builtin"];

#[test]
fn a_pair_that_lost_its_power_is_protected_again_without_a_person() {
    let _turn = turn();
    let mut disks = Disks::start(DiskMode::Replicated);
    kill_both(&mut disks);
    let flushed = disks.flushed();
    // Its standby is back later.
    disks.start_primary(A, &[]);
    await_log(
        disks.host(A),
        "the guest is not started before the other host has said",
        1,
    );
    disks.start_standby_with(B, &binary(), &KERNEL);
    disks.await_protected(A);
    disks.await_progress(A);
    disks.kill(A);
    disks.await_promoted(B);
    disks.await_progress(B);
    disks.kill(B);
    disks
        .image(B)
        .check_exact(disks.flushed().max(flushed))
        .unwrap();
}

#[test]
fn the_host_that_ran_the_guest_last_starts_it_whatever_it_was_started_as() {
    let _turn = turn();
    let mut disks = Disks::new(DiskMode::Replicated);
    disks.start_standby(B);
    disks.start_primary(A, &[]);
    disks.await_protected(A);
    disks.await_progress(A);
    disks.kill(A);
    disks.await_promoted(B);
    disks.await_progress(B);
    disks.kill(B);
    // As on the first day: the one that has the older disks as the primary.
    disks.start_standby_with(B, &binary(), &KERNEL);
    disks.start_primary(A, &[]);
    disks.await_status(B, "the primary", |status| status.side == Side::Primary);
    let status = disks.await_protected(B);
    assert_eq!(status.generation, 3);
    disks.await_progress(B);
    disks.await_status(A, "the standby", |status| status.side == Side::Standby);
    let events = says(disks.host(A), "events", &[]);
    let older = "so this host's disks may be older";
    assert!(events.contains(older), "{events}");
    let events = says(disks.host(B), "events", &[]);
    assert!(events.contains("it is started here"), "{events}");
    // And back again.
    disks.kill(B);
    disks.await_promoted(A);
    disks.await_progress(A);
    disks.kill(A);
    disks.image(A).check_exact(disks.flushed()).unwrap();
}

#[test]
fn two_that_were_both_started_as_the_primary_find_out_which_one_is() {
    let _turn = turn();
    let mut disks = Disks::start(DiskMode::Replicated);
    kill_both(&mut disks);
    disks.start_primary(B, &[]);
    disks.await_status(B, "waiting", |status| status.side == Side::Standby);
    disks.start_primary(A, &[]);
    disks.await_protected(A);
    disks.await_progress(A);
    assert_eq!(disks.await_protected(B).side, Side::Standby);
}

#[test]
fn what_is_given_up_for_a_host_that_is_gone_for_good_is_said() {
    let _turn = turn();
    let mut disks = Disks::start(DiskMode::Replicated);
    kill_both(&mut disks);
    disks.start_primary(B, &["--start-over"]);
    disks.await_progress(B);
    let log = disks.host(B).log();
    assert!(
        log.contains("starting over gives up the copy of the guest's memory that b (host "),
        "{log}"
    );
    assert!(
        log.contains("and what the guest wrote to its disks as generation 1 of a"),
        "{log}"
    );
}

#[test]
fn a_guest_is_not_started_where_the_arbiters_storage_is_not_mounted() {
    let _turn = turn();
    let mut disks = Disks::start(DiskMode::Replicated);
    disks.kill(B);
    disks.kill(A);
    std::fs::rename(disks.path("arbiter"), disks.path("elsewhere")).unwrap();
    for host in [A, B] {
        disks.start_primary(host, &[]);
        let (code, log) = disks.await_end(host);
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("there is no arbiter at"), "{log}");
        assert!(!disks.path("arbiter").exists(), "one was made");
    }
    // Another one in its place.
    let other = disks.path("arbiter").display().to_string();
    crate::support::vmm_says(&["arbiter", "init", &other]);
    disks.start_primary(A, &[]);
    let (code, log) = disks.await_end(A);
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains("belongs to a guest of another arbiter"),
        "{log}"
    );
}
