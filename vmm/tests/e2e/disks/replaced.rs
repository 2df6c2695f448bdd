//! Somebody puts another image in the place of one, or writes to it, while its host is down.

use std::time::Duration;

use understudy_replication::disk::DiskMode;

use super::hosts::{A, B, Disks, IMAGE_BYTES, synchronised_bytes};
use crate::support::{await_log, turn, wait_for};

const NOT_ITS_MAPS: &str = "its image is not as its map knows it";

/// The standby's host is lost, and comes back with what `change` has made of its image.
fn comes_back(change: impl FnOnce(&Disks)) -> Disks {
    let mut disks = Disks::start(DiskMode::Replicated);
    disks.kill(B);
    disks.await_status(A, "alone", |status| !status.protected);
    change(&disks);
    disks.start_standby(B);
    let status = disks.await_protected(A);
    assert!(synchronised_bytes(&status) >= IMAGE_BYTES, "{status:?}");
    await_log(disks.host(B), NOT_ITS_MAPS, 1);
    disks.await_progress(A);
    disks
}

/// What the standby has is whole.
fn takes_over(mut disks: Disks) {
    disks.kill(A);
    disks.await_promoted(B);
    disks.await_progress(B);
    disks.kill(B);
    disks.image(B).check_exact(disks.flushed()).unwrap();
}

#[test]
fn another_file_in_the_place_of_the_standbys_image_is_not_trusted() {
    let _turn = turn();
    let disks = comes_back(|disks| {
        let other = disks.path("other");
        std::fs::write(&other, vec![0x55; IMAGE_BYTES as usize]).unwrap();
        std::fs::rename(other, disks.image_path(B)).unwrap();
    });
    takes_over(disks);
}

#[test]
fn a_standbys_image_that_was_overwritten_in_place_is_not_trusted() {
    let _turn = turn();
    let disks = comes_back(|disks| {
        let image = disks.image_path(B);
        // What happens right after a kill may have been the host's own doing.
        let modified = std::fs::metadata(&image).unwrap().modified().unwrap();
        wait_for("a later time", || {
            let age = modified.elapsed().ok()?;
            (age > Duration::from_millis(1500)).then_some(())
        });
        std::fs::write(&image, vec![0x55; IMAGE_BYTES as usize]).unwrap();
    });
    takes_over(disks);
}

#[test]
fn a_primarys_image_that_was_replaced_is_sent_as_a_whole() {
    let _turn = turn();
    let mut disks = Disks::start(DiskMode::Replicated);
    // The standby must not have the time to take over.
    disks.host(B).freeze().unwrap();
    disks.kill(A);
    disks.kill(B);
    let (image, copy) = (disks.image_path(A), disks.path("copy"));
    std::fs::copy(&image, &copy).unwrap();
    std::fs::rename(copy, image).unwrap();
    disks.start_standby(B);
    disks.start_primary(A, &["--start-over"]);
    let status = disks.await_protected(A);
    assert!(synchronised_bytes(&status) >= IMAGE_BYTES, "{status:?}");
    await_log(disks.host(A), NOT_ITS_MAPS, 1);
    disks.await_progress(A);
    takes_over(disks);
}

#[test]
fn all_of_a_disk_is_copied_on_request() {
    let _turn = turn();
    let mut disks = Disks::start(DiskMode::Replicated);
    disks.kill(B);
    disks.await_status(A, "alone", |status| !status.protected);
    disks.start_standby_with(B, &crate::support::binary(), &["--full-resync"]);
    let status = disks.await_protected(A);
    assert!(synchronised_bytes(&status) >= IMAGE_BYTES, "{status:?}");
    disks.await_progress(A);
    takes_over(disks);
}
