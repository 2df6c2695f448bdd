//! Each host has an image of its own.

use understudy_replication::disk::{DiskLimits, DiskMode, DiskSet, DiskSpec};
use understudy_replication::ports::Disks as _;
use understudy_vmm::devices::virtio::blk::Image;

use super::hosts::{A, B, Disks, IMAGE_BYTES, cmdline, synchronised_bytes};
use crate::support::{self, turn, vmm};

/// A synchronisation that knew what had changed sends less than this; one that did not, all of the image.
const RESYNC_BYTES_MAX: u64 = IMAGE_BYTES / 4;

/// What `vmm status` says of the disk on this host.
fn says(disks: &mut Disks, host: usize, text: &str) {
    let status = support::says(disks.host(host), "status", &[]);
    let line = status.lines().find(|line| line.contains("disk0"));
    assert!(line.is_some_and(|line| line.contains(text)), "{status}");
}

#[test]
fn the_disk_fails_over_with_the_guest_and_back_with_little_to_copy() {
    let _turn = turn();
    let mut disks = Disks::start(DiskMode::Replicated);
    let status = disks.await_protected(A);
    assert!(synchronised_bytes(&status) >= IMAGE_BYTES, "{status:?}");
    says(
        &mut disks,
        A,
        "replicated, 32.0 MiB, in sync (last time all of it was compared: 32.0 MiB",
    );
    says(&mut disks, B, "replicated, 32.0 MiB, in sync");

    disks.kill(A);
    disks.await_promoted(B);
    // What the dead host had told is on its own image too.
    disks.image(A).check_exact(disks.flushed()).unwrap();
    disks.await_progress(B);
    says(&mut disks, B, "NOT protected; ");

    disks.start_standby(A);
    let status = disks.await_protected(B);
    let bytes = synchronised_bytes(&status);
    assert!(bytes < RESYNC_BYTES_MAX, "{bytes} bytes");
    assert!(bytes > 0, "the guest went on on one side");
    says(&mut disks, B, "what had changed was copied");
    disks.await_progress(B);

    disks.kill(B);
    disks.await_promoted(A);
    disks.image(B).check_exact(disks.flushed()).unwrap();
    disks.await_progress(A);
    disks.kill(A);
    disks.image(A).check_exact(disks.flushed()).unwrap();
}

#[test]
fn all_of_the_image_is_copied_also_where_nobody_writes() {
    let _turn = turn();
    let mut disks = Disks::new(DiskMode::Replicated);
    // Beyond what the guest uses.
    let mut image = std::fs::read(disks.image_path(A)).unwrap();
    let pattern = (0..image.len()).map(|at| ((at * 2_654_435_761) >> 13) as u8);
    let used = image.len() / 4;
    for (byte, new) in image.iter_mut().zip(pattern).skip(used) {
        *byte = new;
    }
    // A hole that is one on the first host only.
    image[used * 2..used * 2 + (1 << 20)].fill(0);
    std::fs::write(disks.image_path(A), &image).unwrap();
    disks.start_primary(A, &[]);
    disks.await_progress(A);
    disks.start_standby(B);
    disks.await_protected(A);
    disks.await_progress(A);
    disks.kill(A);
    disks.await_promoted(B);
    disks.await_progress(B);
    disks.kill(B);
    disks.image(B).check_exact(disks.flushed()).unwrap();
    let copy = std::fs::read(disks.image_path(B)).unwrap();
    assert!(copy[used..] == image[used..], "the copies differ");
}

#[test]
fn after_the_loss_of_both_hosts_the_standbys_image_is_that_of_one_epoch() {
    let _turn = turn();
    let mut disks = Disks::start(DiskMode::Replicated);
    // Both at once: the standby must not have the time to take over.
    disks.host(B).freeze().unwrap();
    disks.kill(A);
    disks.kill(B);
    let image = Image::open(&disks.image_path(B), false).unwrap();
    let spec = DiskSpec {
        name: "disk0".into(),
        storage: Box::new(image),
        mode: DiskMode::Replicated,
        map_path: disks.path("b.disk.understudy-map"),
    };
    let journal = disks.path("b.disk.understudy-journal");
    let set = DiskSet::open(vec![spec], Some(journal), DiskLimits::default()).unwrap();
    set.claim_images().unwrap();
    drop(set);
    disks.image(B).check_exact(disks.flushed()).unwrap();
}

#[test]
fn a_guest_that_ran_unprotected_is_protected_again_with_little_to_copy() {
    let _turn = turn();
    let mut disks = Disks::start(DiskMode::Replicated);
    disks.host(B).freeze().unwrap();
    disks.kill(A);
    disks.kill(B);
    // The first host's image goes on by itself, unprotected: what changes is noted.
    let drive = format!("path={}", disks.image_path(A).display());
    let command = format!("{} exit_after_ms=300", cmdline());
    let arbiter = disks.path("arbiter").display().to_string();
    let mut arguments = vec![
        "run",
        "--memory-mib",
        "64",
        "--drive",
        &drive,
        "--cmdline",
        &command,
    ];
    // Its map knows that somebody decides about this guest.
    let output = vmm(&arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("name that arbiter"), "{errors}");
    arguments.extend(["--arbiter", &arbiter, "--start-over"]);
    let output = vmm(&arguments);
    assert!(output.status.success(), "{output:?}");
    disks.start_standby(B);
    disks.start_primary(A, &[]);
    let status = disks.await_protected(A);
    let bytes = synchronised_bytes(&status);
    assert!(bytes < RESYNC_BYTES_MAX, "{bytes} bytes");
    disks.await_progress(A);
    disks.kill(A);
    disks.await_promoted(B);
    disks.await_progress(B);
    disks.kill(B);
    disks.image(B).check_exact(disks.flushed()).unwrap();
}
