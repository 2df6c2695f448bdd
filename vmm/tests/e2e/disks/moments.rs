//! Losses of hosts at any moment, one after the other.

use std::time::Duration;
use understudy_replication::disk::DiskMode;

use super::hosts::{A, Disks};
use crate::support::turn;

/// More rounds than usual, for a night: `UNDERSTUDY_FAILOVERS=100 cargo test disks::moments`.
const ROUNDS_VARIABLE: &str = "UNDERSTUDY_FAILOVERS";
const ROUNDS: usize = 3;
/// Longest time between two losses.
const MOMENT_MS_MAX: u64 = 150;

/// Any moment will do: nothing is waited for here.
fn until_any_moment() {
    let moment = rand::random_range(0..MOMENT_MS_MAX);
    std::thread::sleep(Duration::from_millis(moment));
}

fn losses(mode: DiskMode) {
    let _turn = turn();
    let rounds = std::env::var(ROUNDS_VARIABLE).map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let mut disks = Disks::start(mode);
    let mut from = A;
    for round in 1..=rounds {
        let to = 1 - from;
        if rand::random_bool(0.5) {
            // The standby is lost too, perhaps in the middle of a synchronisation.
            disks.kill(to);
            disks.start_standby(to);
            until_any_moment();
            disks.kill(to);
            disks.start_standby(to);
            disks.await_protected(from);
        }
        until_any_moment();
        disks.kill(from);
        disks.await_promoted(to);
        if mode == DiskMode::Replicated {
            let report = disks.image(from).check_exact(disks.flushed()).unwrap();
            println!("round {round}: {report:?}");
        }
        disks.await_progress(to);
        disks.start_standby(from);
        disks.await_protected(to);
        from = to;
    }
    // Both at once: the standby must not have the time to take over.
    let to = 1 - from;
    disks.host(to).freeze().unwrap();
    disks.kill(from);
    disks.kill(to);
    disks.image(from).check_exact(disks.flushed()).unwrap();
}

#[test]
fn replicated_disks_outlive_their_hosts_at_any_moment() {
    losses(DiskMode::Replicated);
}

#[test]
fn shared_disks_outlive_their_hosts_at_any_moment() {
    losses(DiskMode::Shared);
}
