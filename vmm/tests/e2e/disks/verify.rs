//! Images that are compared: of a pair that runs, on request, and of one that comes together again.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::process::Output;

use understudy_replication::disk::DiskMode;
use understudy_vmm::control::Verifying;
use understudy_vmm::local_cluster::VmmProcess;

use super::hosts::{A, B, Disks, IMAGE_BYTES};
use crate::support::{turn, vmm};

/// Far beyond what the guest uses.
const FAR: u64 = 16 << 20;
/// So much of the images is no zeros there.
const FULL_BYTES: u64 = 8 << 20;

fn verify(host: &VmmProcess, further: &[&str]) -> Output {
    let control = host.control().to_str().unwrap();
    let usual = ["disk", "verify", "--control", control];
    vmm(&[&usual[..], further].concat())
}

/// The exit code, and the last line as an object.
fn verified(host: &VmmProcess, further: &[&str]) -> (Option<i32>, Verifying) {
    let output = verify(host, &[&["--json"], further].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let last = text.lines().last().unwrap_or_else(|| {
        panic!("{}", String::from_utf8_lossy(&output.stderr));
    });
    (output.status.code(), serde_json::from_str(last).unwrap())
}

fn write(disks: &Disks, host: usize, offset: u64, bytes: &[u8]) {
    let image = OpenOptions::new()
        .write(true)
        .open(disks.image_path(host))
        .unwrap();
    image.write_all_at(bytes, offset).unwrap();
}

#[test]
fn a_flipped_byte_of_the_standbys_image_is_named_and_repaired_on_request() {
    let _turn = turn();
    let mut disks = Disks::start(DiskMode::Replicated);
    disks.await_status(A, "durable", |status| status.disks.durable_epoch > 0);
    let (code, found) = verified(disks.host(A), &[]);
    assert_eq!(
        (code, found.done, found.found.differing_blocks),
        (Some(0), true, 0)
    );
    assert_eq!(found.found.compared_bytes, IMAGE_BYTES);
    write(&disks, B, FAR + 5, &[0x77]);
    let (code, found) = verified(disks.host(A), &[]);
    assert_eq!((code, found.found.differing_blocks), (Some(4), 1));
    let first = &found.found.first[0];
    assert_eq!((first.offset, first.bytes), (FAR, 64 << 10));
    let output = verify(disks.host(A), &["--repair"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(&format!("bytes {FAR} to")), "{text}");
    assert!(text.contains("1 blocks sent once more"), "{text}");
    assert_eq!(output.status.code(), Some(4));
    let (code, _) = verified(disks.host(A), &[]);
    assert_eq!(code, Some(0));
    // Only the primary can be asked.
    let output = verify(disks.host(B), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("ask the primary"));
    disks.await_progress(A);
    disks.kill(A);
    disks.await_promoted(B);
    disks.await_progress(B);
    disks.kill(B);
    disks.image(B).check_exact(disks.flushed()).unwrap();
}

#[test]
fn a_nearly_equal_image_in_the_place_of_the_standbys_gets_only_what_differs() {
    let _turn = turn();
    let mut disks = Disks::new(DiskMode::Replicated);
    let noise: Vec<u8> = (0..FULL_BYTES as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    write(&disks, A, FAR, &noise);
    disks.start_standby(B);
    disks.start_primary(A, &[]);
    disks.await_protected(A);
    disks.await_progress(A);
    disks.kill(B);
    disks.await_status(A, "alone", |status| !status.protected);
    let copy = disks.path("copy");
    std::fs::copy(disks.image_path(A), &copy).unwrap();
    std::fs::rename(&copy, disks.image_path(B)).unwrap();
    write(&disks, B, FAR, &[0x55; 512]);
    disks.start_standby(B);
    let status = disks.await_protected(A);
    let sync = status.disks.sync.unwrap();
    assert_eq!(
        (&sync.full[..], &sync.compared[..]),
        (&[true][..], &[true][..])
    );
    assert!(sync.bytes_equal >= FULL_BYTES - (64 << 10), "{sync:?}");
    // One block, and what the guest writes, which uses 1 MiB of the image over and over.
    assert!(sync.bytes_sent < FULL_BYTES, "{sync:?}");
    disks.await_status(A, "durable", |status| status.disks.durable_epoch > 0);
    let (code, _) = verified(disks.host(A), &[]);
    assert_eq!(code, Some(0));
}
