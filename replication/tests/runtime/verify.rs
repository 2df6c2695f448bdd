//! Images that are compared end to end: of a pair that runs, and of one that comes together again.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use understudy_replication::core::policy::Policy;
use understudy_replication::disk::{DiskError, DiskLimits, Verified, VerifyOptions};
use understudy_replication::ports::Machine;
use understudy_replication::runtime::{Ended, Status};

use crate::fake::Fake;
use crate::images::{IMAGE_BYTES, Images};
use crate::wait_for;

/// Beyond what the guest writes.
const FAR: u64 = 40 << 20;
const OPTIONS: VerifyOptions = VerifyOptions {
    bytes_per_second: 1 << 30,
    repair: false,
};

fn open(directory: &Path, host: &str) -> Images {
    Images::open(directory, host, false, DiskLimits::default())
}

fn patient() -> Policy {
    Policy {
        heartbeat_timeout: Duration::from_secs(20),
        ..Policy::default()
    }
}

fn is_whole(status: &Status) -> bool {
    status.protected && status.disks.durable_epoch > 0
}

fn write(directory: &Path, host: &str, offset: u64, bytes: &[u8]) {
    let path = directory.join(format!("{host}.img"));
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

#[test]
fn a_byte_that_changed_on_the_standbys_image_is_found_while_the_guest_writes() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let (a, b) = (open(directory, "a"), open(directory, "b"));
    let standby = crate::standby(directory, Fake::new().with_disks(&b))
        .policy(patient())
        .start()
        .unwrap();
    let primary = crate::primary(directory, Fake::new().with_disks(&a))
        .policy(patient())
        .protect()
        .unwrap();
    let handle = primary.handle();
    wait_for("durable", || handle.status(), is_whole);
    let found = a.set.verify(OPTIONS, &mut |_| true).unwrap();
    assert_eq!(
        (found.compared_bytes, found.differing_blocks),
        (IMAGE_BYTES, 0)
    );
    write(directory, "b", FAR + 5, &[1]);
    let found = a.set.verify(OPTIONS, &mut |_| true).unwrap();
    assert_eq!(found.differing_blocks, 1);
    assert_eq!(
        (found.first[0].offset, found.first[0].bytes),
        (FAR, 64 << 10)
    );
    // Sent once more, it is equal again, and protection has never ended.
    let repair = VerifyOptions {
        repair: true,
        ..OPTIONS
    };
    assert_eq!(
        a.set.verify(repair, &mut |_| true).unwrap().repaired_blocks,
        1
    );
    assert_eq!(
        a.set
            .verify(OPTIONS, &mut |_| true)
            .unwrap()
            .differing_blocks,
        0
    );
    assert!(handle.status().protected);
    // The standby goes in the middle.
    let slow = VerifyOptions {
        bytes_per_second: 1 << 20,
        ..OPTIONS
    };
    let mut stops = Some(standby);
    let ended = a.set.verify(slow, &mut |_: &Verified| {
        if let Some(standby) = stops.take() {
            assert!(standby.handle().stop());
            drop(standby);
        }
        true
    });
    assert!(
        matches!(&ended, Err(DiskError::NotCompared { why }) if why.contains("lost")),
        "{ended:?}"
    );
    assert!(handle.stop());
    drop((a, handle));
    assert!(matches!(primary.wait().unwrap(), Ended::GuestStopped));
}

#[test]
fn an_image_that_was_replaced_by_a_nearly_equal_one_gets_only_what_differs() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let noise: Vec<u8> = (0..8 << 20)
        .map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for host in ["a", "b"] {
        File::create(directory.join(format!("{host}.img"))).unwrap();
        write(directory, host, FAR, &noise);
    }
    write(directory, "b", FAR + (1 << 20), &[0xaa; 512]);
    let (a, b) = (open(directory, "a"), open(directory, "b"));
    let machine = Fake::new().with_disks(&a);
    let standby = crate::standby(directory, Fake::new().with_disks(&b))
        .policy(patient())
        .start()
        .unwrap();
    let primary = crate::primary(directory, machine)
        .policy(patient())
        .protect()
        .unwrap();
    let handle = primary.handle();
    wait_for("durable", || handle.status(), is_whole);
    let sync = handle.status().disks.sync.unwrap();
    assert_eq!(
        (&sync.full[..], &sync.compared[..]),
        (&[true][..], &[true][..])
    );
    assert!(sync.bytes_equal >= (8 << 20) - (128 << 10), "{sync:?}");
    // What the guest writes meanwhile is in here, too: 2 MiB at the beginning of the image.
    assert!(sync.bytes_sent < 6 << 20, "{sync:?}");
    assert_eq!(
        a.set
            .verify(OPTIONS, &mut |_| true)
            .unwrap()
            .differing_blocks,
        0
    );
    drop((a, handle));
    assert!(standby.handle().promote());
    assert!(matches!(primary.wait().unwrap(), Ended::Fenced { .. }));
    let mut promoted = crate::promoted(standby);
    promoted.machine.stop();
    promoted.machine.assert_consistent();
}
