//! Disks that cannot be: what is said, and that the guest runs on.

use std::path::Path;
use std::process::Command;

use understudy_replication::core::disk::{DiskSyncPlan, PairId};
use understudy_replication::disk::{DiskLimits, DiskMode, DiskSet, DiskSpec};
use understudy_replication::ports::Disks as _;
use understudy_vmm::devices::virtio::blk::Image;

use super::hosts::{A, B, Disks, IMAGE_BYTES};
use crate::support::{await_log, turn, vmm};

/// `vmm` must end with `texts` in its one message.
fn fails(arguments: &[&str], texts: &[&str]) {
    let output = vmm(arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {errors}");
    for text in texts {
        assert!(errors.contains(text), "no {text:?} in {errors}");
    }
    assert!(!errors.contains("panicked"), "{errors}");
}

fn resize(path: &Path, bytes: u64) {
    let image = std::fs::File::options().write(true).open(path).unwrap();
    image.set_len(bytes).unwrap();
}

#[test]
fn a_standbys_image_of_another_size_is_named_and_the_guest_runs_on() {
    let _turn = turn();
    let mut disks = Disks::new(DiskMode::Replicated);
    resize(&disks.image_path(B), IMAGE_BYTES * 2);
    disks.start_standby(B);
    disks.start_primary(A, &[]);
    for host in [A, B] {
        await_log(disks.host(host), "device.disk0.capacity", 1);
    }
    disks.await_progress(A);
    let status = disks.host(A).status().unwrap();
    assert!(!status.protected, "{status:?}");
    // The right one is protected as soon as it is there.
    disks.kill(B);
    resize(&disks.image_path(B), IMAGE_BYTES);
    disks.start_standby(B);
    disks.await_protected(A);
}

#[test]
fn sides_that_disagree_about_sharing_are_told_so() {
    let _turn = turn();
    let mut disks = Disks::new(DiskMode::Replicated);
    disks.start_standby(B);
    let drive = format!("path={},shared", disks.image_path(A).display());
    disks.start_primary(A, &["--drive", &drive]);
    await_log(disks.host(A), "device.disk0.replication", 1);
    disks.await_progress(A);
}

/// Makes a host's image the beginning of a copy.
fn interrupt_copy(disks: &Disks, host: usize) {
    let path = disks.image_path(host);
    let spec = DiskSpec {
        name: "disk0".into(),
        storage: Box::new(Image::open(&path, false).unwrap()),
        mode: DiskMode::Replicated,
        map_path: path.with_extension("disk.understudy-map"),
    };
    let journal = path.with_extension("disk.understudy-journal");
    let set = DiskSet::open(vec![spec], Some(journal), DiskLimits::default()).unwrap();
    let plan = DiskSyncPlan {
        candidate: PairId(7),
        full: true,
        from: None,
    };
    set.backup().begin_copy(&[plan]).unwrap();
}

#[test]
fn an_unfinished_copy_is_never_run_but_can_be_finished() {
    let _turn = turn();
    let mut disks = Disks::new(DiskMode::Replicated);
    interrupt_copy(&disks, B);
    let drive = format!("path={}", disks.image_path(B).display());
    let arbiter = disks.path("other-arbiter").display().to_string();
    let texts = ["disk0", "unfinished copy", "as a standby again"];
    fails(&["run", "--console", "none", "--drive", &drive], &texts);
    let primary = [
        "primary",
        "--console",
        "none",
        "--drive",
        &drive,
        "--arbiter",
        &arbiter,
    ];
    fails(&primary, &texts);
    disks.start_standby(B);
    disks.start_primary(A, &[]);
    disks.await_protected(A);
    disks.await_progress(A);
    disks.kill(A);
    disks.await_promoted(B);
    disks.await_progress(B);
}

/// Where the map of an image says what the image is, twice.
const MAP_HEADERS: [usize; 2] = [0, 4096];

#[test]
fn damaged_maps_and_journals_are_named() {
    let _turn = turn();
    let mut disks = Disks::start(DiskMode::Replicated);
    disks.kill(A);
    disks.await_promoted(B);
    disks.kill(B);
    let map = disks.path("b.disk.understudy-map");
    let drive = format!("path={}", disks.image_path(B).display());
    let run = ["run", "--console", "none", "--drive", &drive];
    let whole = std::fs::read(&map).unwrap();
    let mut other = whole.clone();
    MAP_HEADERS.iter().for_each(|at| other[at + 20] ^= 1);
    std::fs::write(&map, &other).unwrap();
    fails(&run, &[&map.display().to_string(), "damaged", "remove"]);
    std::fs::write(&map, &whole).unwrap();
    let journal = disks.path("b.disk.understudy-journal.0");
    // What cannot be read is not taken for an empty one.
    std::fs::remove_file(&journal).unwrap();
    std::fs::create_dir(&journal).unwrap();
    fails(&run, &[&journal.display().to_string(), "directory"]);
}

#[test]
fn images_in_use_missing_or_without_a_place_for_the_map_are_explained() {
    let _turn = turn();
    let mut disks = Disks::start(DiskMode::Shared);
    let arbiter = disks.path("other-arbiter").display().to_string();
    let image = disks.image_path(A).display().to_string();
    for further in ["", ",shared"] {
        let drive = format!("path={image}{further}");
        let primary = [
            "primary",
            "--console",
            "none",
            "--drive",
            &drive,
            "--arbiter",
            &arbiter,
        ];
        fails(&primary, &[&image, "in use by process"]);
    }
    fails(
        &[
            "standby",
            "--arbiter",
            &arbiter,
            "--listen",
            "127.0.0.1:0",
            "--drive",
            "path=/nonexistent/disk,shared",
        ],
        &["/nonexistent/disk", "mount the storage", "replicated"],
    );
    let device = disks.path("device").display().to_string();
    let made = Command::new("mknod")
        .args([&device, "b", "7", "200"])
        .status();
    assert!(made.unwrap().success(), "these tests run as root");
    let drive = format!("path={device}");
    fails(
        &["primary", "--arbiter", &arbiter, "--drive", &drive],
        &["drives.disk0.map_path", "map=FILE"],
    );
    disks.await_progress(A);
}
