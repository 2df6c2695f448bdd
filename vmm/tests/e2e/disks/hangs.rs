//! Storage of a host that hangs, or fails. Only the guest's disk waits for it: its output leaves, and its epochs go on. If
//! there is another host, the guest goes on there; if it is the standby's, the primary goes on alone.
//!
//! A frozen file system stands for such storage. Its calls do not return, and nothing can interrupt them.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use understudy_replication::disk::DiskMode;

use understudy_vmm::control;
use understudy_vmm::local_cluster::WorkloadDisk;
use understudy_vmm::node::BlkCounters;

use super::hosts::{A, B, BLOCKS, Disks, IMAGE_BYTES};
use crate::support::{self, await_log, binary, turn, wait_for};

/// Epochs that show that they go on.
const EPOCHS: u64 = 20;
/// What the guest says of its disk, whether it is answered or not.
const WORDS: &str = "disk: writes=";

/// A program that is `vmm` with a file system of its own at `place`, which has an image `disk`.
fn vmm_beside(place: &Path) -> PathBuf {
    std::fs::create_dir(place).unwrap();
    let program = place.with_extension("sh");
    let script = format!(
        "#!/bin/sh\nexec unshare --mount sh -c '\n\
         truncate -s {} \"{place}.ext4\" && mkfs.ext4 -q \"{place}.ext4\" || exit 9\n\
         mount -o loop \"{place}.ext4\" \"{place}\" || exit 9\n\
         truncate -s {IMAGE_BYTES} \"{place}/disk\"\n\
         exec \"{vmm}\" \"$@\"' sh \"$@\"\n",
        4 * IMAGE_BYTES,
        place = place.display(),
        vmm = binary().display(),
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

/// The file system of a host's images. It is thawed when this is dropped: a process that waits for it cannot be killed.
struct Storage {
    root: File,
    is_frozen: bool,
}

impl Storage {
    /// That at `place`, as process `pid` sees it.
    fn of(pid: u32, place: &Path) -> Self {
        let inside = place.strip_prefix("/").unwrap();
        let root = PathBuf::from(format!("/proc/{pid}/root")).join(inside);
        Self {
            root: File::open(root).unwrap(),
            is_frozen: false,
        }
    }

    fn image(&self) -> WorkloadDisk {
        WorkloadDisk::at(&self.path().join("disk"), BLOCKS)
    }

    fn path(&self) -> PathBuf {
        let (pid, fd) = (std::process::id(), self.root.as_raw_fd());
        PathBuf::from(format!("/proc/{pid}/fd/{fd}"))
    }

    fn set_frozen(&mut self, is_frozen: bool) {
        let flag = if is_frozen { "-f" } else { "-u" };
        let mut command = Command::new("fsfreeze");
        let status = command.arg(flag).arg(self.path()).status().unwrap();
        assert!(status.success(), "{command:?}");
        self.is_frozen = is_frozen;
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if self.is_frozen {
            self.set_frozen(false);
        }
    }
}

/// Longer than a test: the guest stays where it is.
const STAYS: [&str; 2] = ["--storage-timeout-ms", "600000"];
const LEAVES: [&str; 2] = ["--storage-timeout-ms", "600"];

/// A protected guest that writes; the images of host [`A`] are on storage that can hang.
fn start(further: &[&str]) -> (Disks, Storage) {
    let mut disks = Disks::new(DiskMode::Replicated);
    let place = disks.path("place");
    let drive = format!("path={}/disk", place.display());
    disks.start_standby(B);
    let further = [&["--drive", &drive], further].concat();
    disks.start_primary_with(A, &vmm_beside(&place), &further);
    disks.await_protected(A);
    let storage = Storage::of(disks.host(A).pid(), &place);
    disks.await_progress(A);
    (disks, storage)
}

fn counters(disks: &mut Disks, host: usize) -> BlkCounters {
    let status = control::status(disks.host(host).control()).unwrap();
    status.metrics.blk[0].counters
}

/// Waits until a request hangs, and until the standby has epochs whose state says so.
fn await_hang(disks: &mut Disks) {
    let hung = wait_for("a request that hangs", || {
        let now = counters(disks, A);
        (now.in_flight > 0 && now.oldest_wait_ms > 200).then_some(now)
    });
    let epochs = disks.host(A).status().unwrap().epochs;
    disks.await_status(A, "epochs go on", |status| {
        assert!(status.protected, "{status:?}");
        status.epochs >= epochs + EPOCHS
    });
    assert_eq!(
        counters(disks, A).writes,
        hung.writes,
        "nothing is answered"
    );
}

#[test]
fn a_guest_whose_disk_hangs_speaks_on_and_is_protected_and_told_once_it_is_back() {
    let _turn = turn();
    let (mut disks, mut storage) = start(&STAYS);
    storage.set_frozen(true);
    await_hang(&mut disks);
    let said = disks.host(A).console().matches(WORDS).count();
    wait_for("output of the guest", || {
        let now = disks.host(A).console().matches(WORDS).count();
        (now > said + 5).then_some(())
    });
    await_log(disks.host(A), "this host's storage hangs", 1);
    let status = support::says(disks.host(A), "status", &[]);
    let line = status.lines().find(|line| line.contains("disk0"));
    assert!(line.is_some_and(|line| line.contains("HANGS")), "{status}");

    storage.set_frozen(false);
    disks.await_progress(A);
    await_log(disks.host(A), "this host's storage answers again", 1);
    let report = storage.image().check(disks.flushed()).unwrap();
    assert!(report.highest > 0, "{report:?}");
    disks.await_protected(A);
    disks.await_progress(A);
    disks.kill(A);
    disks.await_promoted(B);
    disks.await_progress(B);
    disks.kill(B);
    disks.image(B).check_exact(disks.flushed()).unwrap();
}

#[test]
fn a_request_that_hung_on_the_primary_is_done_by_the_host_that_takes_over() {
    let _turn = turn();
    let (mut disks, mut storage) = start(&STAYS);
    storage.set_frozen(true);
    await_hang(&mut disks);
    disks.host(A).freeze().unwrap();
    disks.await_promoted(B);
    disks.await_progress(B);
    let counted = wait_for("a write of the guest", || {
        let counted = counters(&mut disks, B);
        (counted.writes > 0).then_some(counted)
    });
    assert_eq!(counted.malformed_chains, 0, "{counted:?}");
    storage.set_frozen(false);
    disks.kill(A);
    disks.kill(B);
    disks.image(B).check_exact(disks.flushed()).unwrap();
}

/// Who stops a guest must not have to wait for its storage.
#[test]
fn a_guest_whose_disk_hangs_can_be_stopped() {
    let _turn = turn();
    let (mut disks, mut storage) = start(&STAYS);
    storage.set_frozen(true);
    await_hang(&mut disks);
    for _ in 0..2 {
        support::says(disks.host(A), "stop", &[]);
    }
    // It has ended; only the thread whose call hangs in the kernel is still there.
    let stat = format!("/proc/{}/stat", disks.host(A).pid());
    wait_for("the end of the process", || {
        std::fs::read_to_string(&stat)
            .unwrap()
            .contains(") Z ")
            .then_some(())
    });
    storage.set_frozen(false);
    let (code, log) = disks.await_end(A);
    assert!(code.is_some(), "{log}");
}

#[test]
fn a_guest_whose_storage_hangs_goes_on_where_it_does_not() {
    let _turn = turn();
    let (mut disks, mut storage) = start(&LEAVES);
    storage.set_frozen(true);
    disks.await_promoted(B);
    disks.await_progress(B);
    storage.set_frozen(false);
    let (code, log) = disks.await_end(A);
    assert_eq!(code, Some(3), "{log}");
    let last = log.lines().last().unwrap();
    assert!(last.contains("disk0 hangs"), "{log}");
    disks.kill(B);
    disks.image(B).check_exact(disks.flushed()).unwrap();
}

/// The guest's output must not wait for it.
#[test]
fn a_standby_whose_storage_hangs_is_given_up_until_it_is_back() {
    let _turn = turn();
    let mut disks = Disks::new(DiskMode::Replicated);
    let place = disks.path("place");
    let drive = format!("path={}/disk", place.display());
    let further = [&["--drive", &drive], &LEAVES[..]].concat();
    disks.start_standby_with(B, &vmm_beside(&place), &further);
    disks.start_primary(A, &[]);
    disks.await_protected(A);
    let mut storage = Storage::of(disks.host(B).pid(), &place);
    disks.await_progress(A);
    storage.set_frozen(true);
    disks.await_status(A, "alone", |status| status.phase == "alone");
    await_log(disks.host(A), "storage has not answered", 1);
    disks.await_progress(A);
    storage.set_frozen(false);
    disks.await_protected(A);
    disks.await_progress(A);
    disks.kill(A);
    disks.await_promoted(B);
    disks.await_progress(B);
    disks.kill(B);
    storage.image().check_exact(disks.flushed()).unwrap();
}

/// A program that is `vmm` with little room at `place`, where it has a sparse image `disk`.
fn vmm_in_need(place: &Path) -> PathBuf {
    std::fs::create_dir(place).unwrap();
    let program = place.with_extension("sh");
    let script = format!(
        "#!/bin/sh\nexec unshare --mount sh -c '\n\
         mount -t tmpfs -o size=256k tmpfs \"{place}\" || exit 9\n\
         truncate -s {IMAGE_BYTES} \"{place}/disk\"\n\
         exec \"{vmm}\" \"$@\"' sh \"$@\"\n",
        place = place.display(),
        vmm = binary().display(),
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn a_guest_whose_storage_is_full_goes_on_where_there_is_room_and_sees_no_error() {
    let _turn = turn();
    let mut disks = Disks::new(DiskMode::Replicated);
    let place = disks.path("place");
    let drive = format!("path={}/disk", place.display());
    let program = vmm_in_need(&place);
    disks.start_standby(B);
    // It waits until there is a standby.
    let further = ["--drive", &format!("{drive},on-error=wait")];
    disks.start_primary_with(A, &program, &further);
    disks.await_promoted(B);
    disks.await_progress(B);
    let (code, log) = disks.await_end(A);
    assert_eq!(code, Some(3), "{log}");
    assert!(log.lines().last().unwrap().contains("disk0 fails"), "{log}");
    let failures = counters(&mut disks, B).failures;
    assert_eq!(failures, 0);
    disks.kill(B);
    disks.image(B).check_exact(disks.flushed()).unwrap();
}

#[test]
fn a_guest_that_nobody_protects_may_wait_until_there_is_room() {
    let _turn = turn();
    let mut disks = Disks::new(DiskMode::Replicated);
    let place = disks.path("place");
    let drive = format!("path={}/disk,on-error=wait", place.display());
    disks.start_primary_with(A, &vmm_in_need(&place), &["--drive", &drive]);
    await_log(disks.host(A), "the guest waits until it succeeds", 1);
    let status = support::says(disks.host(A), "status", &[]);
    assert!(status.contains("the guest waits"), "{status}");
    let pid = disks.host(A).pid().to_string();
    let mut room = Command::new("nsenter");
    room.args([
        "--mount",
        "--target",
        &pid,
        "mount",
        "-o",
        "remount,size=64m",
    ]);
    assert!(room.arg(&place).status().unwrap().success());
    disks.await_progress(A);
    await_log(disks.host(A), "this host's storage answers again", 1);
    disks.kill(A);
}
