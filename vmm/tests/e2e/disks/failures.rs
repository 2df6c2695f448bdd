//! Storage of a host that refuses: the guest lives, and somebody is told.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use understudy_replication::disk::DiskMode;

use nix::fcntl::{FallocateFlags, fallocate};
use understudy_vmm::local_cluster::GuestDiskProgress;

use super::hosts::{A, B, BLOCKS, Disks};
use crate::support::{await_log, binary, turn, wait_for};

/// Where the marks are in a map of this size, and how much of the file they share.
const MARKS_AT: u64 = 8192;
const PAGE_BYTES: u64 = 4096;
const REFUSED: &str = "disk: cannot write";

/// A program that is `vmm` with a small file system at `place`, of which `filled` bytes are in use.
fn vmm_beside(place: &Path, bytes: u64, filled: u64) -> PathBuf {
    std::fs::create_dir(place).unwrap();
    let program = place.with_extension("sh");
    let script = format!(
        "#!/bin/sh\nexec unshare --mount sh -c '\n\
         mount -t tmpfs -o size={bytes} none \"{place}\" || exit 9\n\
         head -c {filled} /dev/zero > \"{place}/filler\"\n\
         exec \"{vmm}\" \"$@\"' sh \"$@\"\n",
        place = place.display(),
        vmm = binary().display(),
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[test]
fn a_standby_without_room_for_the_map_says_so_and_the_guest_runs_on() {
    let _turn = turn();
    let mut disks = Disks::new(DiskMode::Replicated);
    let full = disks.path("full");
    let program = vmm_beside(&full, PAGE_BYTES, PAGE_BYTES);
    let map = full.join("map").display().to_string();
    let drive = format!("path={},map={map}", disks.image_path(B).display());
    disks.start_standby_with(B, &program, &["--drive", &drive]);
    disks.start_primary(A, &[]);
    for host in [A, B] {
        await_log(disks.host(host), &map, 1);
        await_log(disks.host(host), "No space left", 1);
    }
    disks.await_progress(A);
    let status = disks.host(A).status().unwrap();
    assert!(!status.protected, "{status:?}");
    let alarm = status.alarm.unwrap_or_default();
    assert!(alarm.contains(&map), "{alarm}");
    // The standby is there still, and can be put right.
    disks.kill(B);
    disks.start_standby(B);
    disks.await_protected(A);
}

/// Takes the room away in which the marks of the map are, and all that is left beside it.
fn take_room(place: &Path) {
    let map = File::options().write(true).open(place.join("map")).unwrap();
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&map, hole, MARKS_AT.cast_signed(), PAGE_BYTES.cast_signed()).unwrap();
    let mut filler = File::options()
        .append(true)
        .open(place.join("filler"))
        .unwrap();
    while filler.write_all(&[1; PAGE_BYTES as usize]).is_ok() {}
}

/// A block that cannot be marked must not be written: the standby's image would differ, and nobody would know.
#[test]
fn a_primary_that_cannot_mark_blocks_fails_the_guests_writes_and_nothing_else() {
    let _turn = turn();
    let mut disks = Disks::new(DiskMode::Replicated);
    let small = disks.path("small");
    let program = vmm_beside(&small, 16 * PAGE_BYTES, 0);
    let map = small.join("map").display().to_string();
    let image = disks.image_path(A).display().to_string();
    let drive = format!("path={image},map={map},on-error=report");
    // So slow that marks go, and blocks must be marked anew.
    let command = format!(
        "workload=disk disk.blocks={BLOCKS} disk.rate=20 disk.flush_every=8 disk.log_ms=20"
    );
    disks.start_standby(B);
    disks.start_primary_with(A, &program, &["--drive", &drive, "--cmdline", &command]);
    disks.await_protected(A);
    disks.await_progress(A);
    let root = PathBuf::from(format!("/proc/{}/root", disks.host(A).pid()));
    let inside = root.join(small.strip_prefix("/").unwrap());
    wait_for("a write that is refused", || {
        take_room(&inside);
        disks.host(A).console().contains(REFUSED).then_some(())
    });
    let alarm = format!("cannot mark blocks in {map}: No space left");
    await_log(disks.host(A), &alarm, 1);
    let status = disks.host(A).status().unwrap();
    assert!(status.protected, "{status:?}");

    std::fs::remove_file(inside.join("filler")).unwrap();
    let failed = wait_for("progress once there is room", || {
        let console = disks.host(A).console();
        let (before, after) = console.rsplit_once(REFUSED).unwrap();
        let words = |text: &str| {
            let lines = text.lines().filter(|line| !line.contains("cannot"));
            let text: String = lines.map(|line| format!("{line}\n")).collect();
            GuestDiskProgress::latest(&text).unwrap()
        };
        let (before, now) = (words(before)?, words(after.split_once('\n')?.1)?);
        (now.flushed > before.flushed + 8).then_some(now)
    });
    disks.host(A).kill().unwrap();
    disks.hosts[A] = None;
    disks.await_promoted(B);
    disks.await_progress(B);
    disks.kill(B);
    let report = disks.image(B).check_exact(disks.flushed()).unwrap();
    assert!(report.highest > failed.flushed, "{report:?}, {failed:?}");
}
