//! An image that was replaced or changed by somebody else is not taken for what its map says of it.

use std::time::Duration;

use super::host::*;
use super::session::*;
use crate::disk::DiskMode::Replicated;
use crate::disk::image::stamp::{STAMP_AT, STAMP_BYTES, Stamp};
use crate::disk::{Changed, DiskError, DiskSet, Storage};
use crate::ids::EpochId;

const BYTES: u64 = 2 << 20;

fn open(host: &Host) -> DiskSet {
    host.open(&[Replicated], limits())
}

/// How the process that used the images ended.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Closed,
    Killed,
    PowerLost,
}

const ENDS: [End; 3] = [End::Closed, End::Killed, End::PowerLost];

/// What is left of a host whose set was in use.
fn end(host: &Host, set: DiskSet, how: End) -> Host {
    match how {
        End::Closed => {
            drop(set);
            host.after_kill()
        }
        End::Killed => host.after_kill(),
        End::PowerLost => host.after_power_loss(&mut seeded(1)),
    }
}

/// What somebody does to the image while nobody uses it.
type Act = fn(&Host);
const CHANGES: [(&str, Act); 4] = [
    ("another file", |host| {
        host.replace("disk0", vec![1; BYTES as usize])
    }),
    ("overwritten", |host| {
        host.overwrite("disk0", vec![2; BYTES as usize], None)
    }),
    ("overwritten with its old time", |host| {
        host.overwrite("disk0", vec![3; BYTES as usize], Some(1));
    }),
    ("one sector changed", |host| {
        let mut content = host.content("disk0");
        content[512] ^= 1;
        host.overwrite("disk0", content.0, None);
    }),
];

#[test]
fn an_image_of_the_standby_that_was_changed_is_compared_as_a_whole() {
    for how in ENDS {
        for (what, change) in CHANGES {
            let (a, b, primary, backup, session) = Setup::new(&[Replicated], BYTES, 4).protected();
            drop(session);
            let b = end(&b, backup, how);
            primary.primary().detach();
            b.pass(Duration::from_secs(300));
            change(&b);
            let session = Session::protect(&primary, &open(&b), 2);
            assert_eq!(session.compared, [true], "{how:?}, {what}");
            let little = what == "one sector changed";
            assert_eq!(session.sent_bytes < BYTES / 8, little, "{how:?}, {what}");
            assert_eq!(a.content("disk0"), b.content("disk0"), "{how:?}, {what}");
        }
    }
}

#[test]
fn an_image_of_the_primary_that_was_changed_is_compared_as_a_whole() {
    for how in ENDS {
        for (what, change) in CHANGES {
            let (a, b, primary, backup, session) = Setup::new(&[Replicated], BYTES, 4).protected();
            drop(session);
            let a = end(&a, primary, how);
            drop(backup);
            a.pass(Duration::from_secs(300));
            change(&a);
            let primary = open(&a);
            primary.claim_images().unwrap();
            // Whoever runs it meanwhile does not make it a part of the pair again.
            primary.disks()[0].write_at(4096, &[7; 512]).unwrap();
            drop(primary);
            let primary = open(&a);
            primary.claim_images().unwrap();
            let session = Session::protect(&primary, &open(&b), 2);
            assert_eq!(session.compared, [true], "{how:?}, {what}");
            let little = what == "one sector changed";
            assert_eq!(session.sent_bytes < BYTES / 8, little, "{how:?}, {what}");
            assert_eq!(a.content("disk0"), b.content("disk0"), "{how:?}, {what}");
        }
    }
}

#[test]
fn an_image_that_nobody_else_changed_stays_one_of_the_pair() {
    for how in ENDS {
        let (a, b, primary, backup, mut session) = Setup::new(&[Replicated], BYTES, 4).protected();
        // Long pauses between writes, and one at the very end.
        for _ in 0..3 {
            for host in [&a, &b] {
                host.pass(Duration::from_secs(3600));
            }
            primary.disks()[0].write_at(8192, &[7; 512]).unwrap();
            session.epoch();
            session.settle();
        }
        drop(session);
        let (a, b) = (end(&a, primary, how), end(&b, backup, how));
        for host in [&a, &b] {
            host.pass(Duration::from_secs(3600));
        }
        let (primary, backup) = (open(&a), open(&b));
        primary.claim_images().unwrap();
        let session = Session::protect(&primary, &backup, 2);
        // Marks that were not cleared yet, and blocks marked ahead, may be more than half of so small a disk.
        let sent = session.sent_bytes;
        assert!(sent < BYTES, "{how:?}: {sent} bytes");
        assert_eq!(a.content("disk0"), b.content("disk0"), "{how:?}");
    }
}

#[test]
fn on_request_everything_is_copied_from_either_side() {
    for side in 0..2 {
        let (a, b, primary, backup, session) = Setup::new(&[Replicated], BYTES, 4).protected();
        drop(session);
        let (a, b) = (end(&a, primary, End::Killed), end(&b, backup, End::Killed));
        let sets = [open(&a), open(&b)];
        sets[side].copy_everything().unwrap();
        sets[0].claim_images().unwrap();
        // It is not forgotten if that host is lost before.
        let again = [open(&a.after_kill()), open(&b.after_kill())];
        let map_ids = |set: &DiskSet| set.backup().describe().unwrap()[0].ids.len();
        assert_eq!(map_ids(&again[side]), 0);
        let session = Session::protect(&sets[0], &sets[1], 2);
        assert!(session.sent_bytes > BYTES, "{side}");
        assert_eq!(a.content("disk0"), b.content("disk0"));
    }
}

#[test]
fn a_journal_is_not_applied_to_another_image() {
    let setup = Setup {
        limits: [lazy(); 2],
        ..Setup::new(&[Replicated], BYTES, 3)
    };
    let (a, b, primary, _backup, mut session) = setup.protected();
    primary.disks()[0].write_at(4096, &[1; 4096]).unwrap();
    primary.disks()[0].flush().unwrap();
    session.epoch();
    drop(session);
    primary.primary().detach();
    let b = b.after_kill();
    b.replace("disk0", vec![5; BYTES as usize]);
    let set = open(&b);
    set.check_whole().unwrap_err();
    let refused = set.claim_images().unwrap_err();
    assert!(
        matches!(&refused, DiskError::ImageReplaced { disk, why, .. }
            if disk == "disk0" && why.contains("file")),
        "{refused}"
    );
    assert_eq!(*b.content("disk0"), vec![5; BYTES as usize]);
    let session = Session::protect(&primary, &set, 2);
    assert!(session.sent_bytes > BYTES);
    assert_eq!(a.content("disk0"), b.content("disk0"));
    set.backup()
        .promote(EpochId(session.epoch), &mut |_| true)
        .unwrap();
}

#[test]
fn a_stamp_explains_what_happened_while_it_was_in_force() {
    let stamp = |closed| Stamp {
        closed,
        until_ns: 5_000_000_000,
        content_ns: 4_000_000_000,
        boot: 7,
    };
    let changed = |content_ms: u64, anything_ms: u64| Changed {
        content_ns: content_ms * 1_000_000,
        anything_ns: anything_ms * 1_000_000,
    };
    // Closed: it is as it was left, whatever else was done to the file.
    assert!(stamp(true).explains(changed(4000, 999_000), 7));
    assert!(!stamp(true).explains(changed(4001, 4001), 7));
    assert!(stamp(true).explains(changed(4000, 999_000), 8));
    // Killed: no later than it could write.
    assert!(stamp(false).explains(changed(4900, 5300), 7));
    assert!(!stamp(false).explains(changed(4900, 5500), 7));
    // After a loss of power, the stamp may be an older one.
    for closed in [false, true] {
        assert!(stamp(closed).explains(changed(90_000, 90_000), 8));
        assert!(!stamp(closed).explains(changed(1000, 130_000), 8));
    }
}

#[test]
fn any_changed_byte_of_a_stamp_is_seen() {
    let stamp = Stamp {
        closed: true,
        until_ns: 5,
        content_ns: 4,
        boot: 7,
    };
    let good = stamp.encode();
    assert_eq!(Stamp::decode(&good), Some(stamp));
    for at in 0..STAMP_BYTES {
        let mut bad = good;
        bad[at] ^= 1 << (at % 8);
        assert_eq!(Stamp::decode(&bad), None, "byte {at}");
    }
    // An image whose map has none is not trusted.
    let (_a, b, primary, backup, session) = Setup::new(&[Replicated], BYTES, 4).protected();
    drop((session, backup));
    let mut content = b.content("disk0-map");
    content[STAMP_AT as usize] ^= 1;
    b.set_content("disk0-map", content.0);
    primary.primary().detach();
    assert_eq!(Session::protect(&primary, &open(&b), 2).compared, [true]);
}
