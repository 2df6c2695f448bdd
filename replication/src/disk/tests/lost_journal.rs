//! A journal that is damaged, missing or another one: the images are not used without it, or without a part of it.

use std::io::ErrorKind::Other;
use std::sync::Arc;

use super::host::*;
use super::session::*;
use crate::disk::DiskMode::Replicated;
use crate::disk::{DiskError, DiskSet, DiskSpec, Storage};
use crate::ids::{EpochId, Generation};

const BYTES: u64 = 1 << 20;
const GENERATION: u64 = 1;

/// A primary, and a backup whose image lacks all epochs but the first.
fn behind() -> (Host, Host, DiskSet, DiskSet, Session) {
    let setup = Setup {
        limits: [lazy(); 2],
        ..Setup::new(&[Replicated], BYTES, 3)
    };
    setup.protected()
}

/// Both hosts after the backup was killed in its promotion to epoch 4, before anything was on its
/// image. Every epoch was flushed.
fn killed_in_promotion() -> (Host, Host, DiskSet) {
    let (a, b, primary, backup, mut session) = behind();
    for fill in 1..4 {
        let disk = &primary.disks()[0];
        disk.write_at(u64::from(fill) * 4096, &[fill; 4096])
            .unwrap();
        disk.flush().unwrap();
        session.epoch();
    }
    b.fail("disk0", 3, Other); // its map can be written
    let epoch = EpochId(session.epoch);
    backup.backup().promote(epoch, &mut |_| true).unwrap_err();
    primary.primary().detach();
    (a, b.after_kill(), primary)
}

fn open(host: &Host) -> DiskSet {
    host.open(&[Replicated], limits())
}

fn files(host: &Host) -> Vec<Content> {
    let names = ["disk0", "disk0-map", "journal.0", "journal.1"];
    names
        .iter()
        .filter(|name| host.has(name))
        .map(|name| host.content(name))
        .collect()
}

/// The file of the journal that has records.
fn active(host: &Host) -> String {
    let names = journal_files().map(|path| path.display().to_string());
    names
        .into_iter()
        .max_by_key(|name| host.content(name).len())
        .unwrap()
}

fn flip(host: &Host, name: &str, at: usize) {
    let mut content = host.content(name);
    content[at] ^= 0x10;
    host.set_content(name, content.0);
}

/// Neither before nor with the arbiter's grant. Nothing is touched.
fn refused(set: &DiskSet, host: &Host) -> DiskError {
    let before = files(host);
    set.check_whole().unwrap_err();
    let refused = set.claim_images().unwrap_err();
    assert_eq!(files(host), before);
    refused
}

#[test]
fn a_promotion_that_was_cut_off_is_made_up_for_at_the_next_start() {
    let (a, b, _primary) = killed_in_promotion();
    assert_ne!(a.content("disk0"), b.content("disk0"));
    open(&b).claim_images().unwrap();
    assert_eq!(a.content("disk0"), b.content("disk0"));
    // And again: nothing is left over.
    open(&b).claim_images().unwrap();
    b.remove("journal.0");
    open(&b).claim_images().unwrap();
}

#[test]
fn after_a_promotion_one_changed_byte_of_the_journal_is_refused() {
    let (_, b, _primary) = killed_in_promotion();
    let name = active(&b);
    let mut refusals = 0;
    for at in (512..b.content(&name).len()).step_by(97) {
        let left = b.after_kill();
        flip(&left, &name, at);
        let refused = refused(&open(&left), &left);
        let place = |epoch| (Generation(GENERATION), EpochId(epoch));
        assert!(
            matches!(&refused, DiskError::JournalDamaged { wanted, have, .. }
                if *wanted == place(4) && *have < place(4)),
            "byte {at}: {refused}"
        );
        let text = refused.to_string();
        assert!(text.contains("epoch 4") && text.contains(&name), "{text}");
        refusals += 1;
    }
    assert!(refusals > 100);
}

#[test]
fn after_a_promotion_a_missing_or_other_journal_is_refused() {
    let (_, b, _primary) = killed_in_promotion();
    for name in ["journal.0", "journal.1"] {
        let left = b.after_kill();
        left.remove(name);
        let refused = refused(&open(&left), &left);
        assert!(
            matches!(&refused, DiskError::JournalMissing { journal, .. }
                if journal.display().to_string() == name),
            "{refused}"
        );
        assert!(refused.to_string().contains("disk0-map"), "{refused}");
    }
    // One is there, and nothing is in it.
    let left = b.after_kill();
    let name = active(&left);
    left.set_content(&name, Vec::new());
    let text = refused(&open(&left), &left).to_string();
    assert!(text.contains(&name) && text.contains("header"), "{text}");
    // Another path is named, where there is nothing, and where another copy's journal is.
    for other in ["elsewhere", "others"] {
        let left = b.after_kill();
        for number in ["0", "1"] {
            let (_, c, ..) = behind();
            let content = c.content(&format!("journal.{number}"));
            left.set_content(&format!("others.{number}"), content.0);
        }
        let spec = DiskSpec {
            name: "disk0".into(),
            storage: left.storage("disk0"),
            mode: Replicated,
            map_path: "disk0-map".into(),
        };
        let files = Arc::new(left.files().clone());
        let set = DiskSet::open_in(vec![spec], Some(other.into()), limits(), files).unwrap();
        let refused = refused(&set, &left);
        assert!(
            matches!(refused, DiskError::JournalMissing { .. }),
            "{refused}"
        );
    }
}

#[test]
fn a_primary_replaces_what_a_lost_journal_had() {
    type Harm = fn(&Host);
    let harm: [(&str, Harm); 3] = [
        ("damaged", |host| flip(host, &active(host), 600)),
        ("missing", |host| host.remove("journal.0")),
        ("headers damaged", |host| {
            flip(host, "journal.0", 0);
            flip(host, "journal.1", 0);
        }),
    ];
    for (what, harm) in harm {
        let (a, b, primary) = killed_in_promotion();
        harm(&b);
        let backup = open(&b);
        drop(Session::protect(&primary, &backup, 2));
        assert_eq!(a.content("disk0"), b.content("disk0"), "{what}");
        drop(backup);
        open(&b).claim_images().unwrap();
        assert_eq!(a.content("disk0"), b.content("disk0"), "{what}");
        primary.primary().detach();
    }
}

#[test]
fn without_a_promotion_what_was_flushed_is_not_lost_without_a_word() {
    let (_a, b, primary, _backup, mut session) = behind();
    let write = |fill: u8| {
        primary.disks()[0].write_at(0, &[fill; 4096]).unwrap();
    };
    write(1);
    primary.disks()[0].flush().unwrap();
    let flushed = session.epoch();
    write(2);
    session.epoch();
    write(3);
    session.epoch();
    let name = active(&b);
    let end = b.content(&name).len();
    // In the flushed record.
    let left = b.after_kill();
    flip(&left, &name, 600);
    let refused = refused(&open(&left), &left);
    assert!(
        matches!(&refused, DiskError::JournalDamaged { wanted, .. } if wanted.1 == flushed),
        "{refused}"
    );
    // In one that nobody flushed: as after a loss of power.
    let left = b.after_kill();
    flip(&left, &name, end - 1);
    open(&left).claim_images().unwrap();
    assert_eq!(left.content("disk0")[..4096], [2; 4096]);
}

/// A promotion loses power at any moment. Nothing flushed is lost, and nothing is refused.
#[test]
fn a_loss_of_power_in_a_promotion_is_no_damage() {
    let mut cut_off = 0;
    for after in 0.. {
        let (a, b, primary, backup, mut session) = behind();
        for fill in 1..4 {
            primary.disks()[0].write_at(0, &[fill; 4096]).unwrap();
            primary.disks()[0].flush().unwrap();
            session.epoch();
        }
        // This one is not flushed.
        primary.disks()[0].write_at(8192, &[9; 512]).unwrap();
        session.epoch();
        b.fail("", after, Other);
        let epoch = EpochId(session.epoch);
        let promoted = backup.backup().promote(epoch, &mut |_| true).is_ok();
        let left = b.after_power_loss(&mut seeded(after));
        open(&left).claim_images().unwrap();
        assert_eq!(left.content("disk0")[..4096], [3; 4096], "after {after}");
        if promoted {
            assert_eq!(left.content("disk0"), a.content("disk0"));
            break;
        }
        cut_off += 1;
    }
    assert!(cut_off > 10);
}

/// A promotion dies at any moment, and then the end of the journal is damaged, which nobody had flushed. From the first
/// change of the image on, that is not a loss of power: the image has parts of what is lost.
#[test]
fn after_the_first_change_of_an_image_a_promotion_needs_all_of_the_journal() {
    let (mut kept, mut refused) = (0, 0);
    for after in 0.. {
        let (a, b, primary, backup, mut session) = behind();
        let disk = &primary.disks()[0];
        let mut epochs = Vec::new();
        for fill in 1..4 {
            disk.write_at(0, &[fill; 4096]).unwrap();
            disk.flush().unwrap();
            session.epoch();
            epochs = vec![a.content("disk0")];
        }
        // Not flushed, and in two pieces of which the image may have one.
        disk.write_at(512, &[9; 512]).unwrap();
        disk.write_at(8192, &[9; 512]).unwrap();
        session.epoch();
        epochs.push(a.content("disk0"));
        b.fail("", after, Other);
        let promoted = backup
            .backup()
            .promote(EpochId(session.epoch), &mut |_| true);
        let left = b.after_kill();
        let name = active(&left);
        let end = left.content(&name).len();
        if end > 600 {
            flip(&left, &name, end - 1);
        }
        match open(&left).claim_images() {
            Ok(()) => {
                let found = left.content("disk0");
                assert!(epochs.contains(&found), "after {after}: not an epoch");
                kept += 1;
            }
            Err(error) => {
                assert!(
                    matches!(&error, DiskError::JournalDamaged { wanted, .. }
                        if wanted.1 == EpochId(session.epoch)),
                    "after {after}: {error}"
                );
                refused += 1;
            }
        }
        if promoted.is_ok() {
            break;
        }
    }
    assert!(kept > 1 && refused > 3, "{kept}, {refused}");
}
