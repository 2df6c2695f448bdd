//! The guest flushes: when it is told, and what the backup does meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;

use super::host::*;
use super::session::*;
use crate::disk::DiskMode::{Replicated, Shared};
use crate::disk::{Disk, DiskSet, GuestFlush, Storage};
use crate::ids::EpochId;

const BYTES: u64 = 1 << 20;

/// Two hosts with a replicated disk; the backup has epoch 1, and brings nothing to its image by itself any more.
fn protected(seed: u64) -> (Host, Host, DiskSet, DiskSet, Session) {
    let setup = Setup::new(&[Replicated], BYTES, seed);
    let limits = [limits(), lazy()];
    Setup { limits, ..setup }.protected()
}

/// The guest writes and flushes.
fn flush(disk: &Disk, fill: u8) -> GuestFlush {
    disk.write_at(4096, &[fill; 512]).unwrap();
    disk.flush_for_guest().unwrap()
}

/// A callback, and how often it was called.
fn counted() -> (Arc<dyn Fn() + Send + Sync>, Arc<AtomicU64>) {
    let calls = Arc::new(AtomicU64::new(0));
    let count = calls.clone();
    let callback = move || {
        count.fetch_add(1, Ordering::Relaxed);
    };
    (Arc::new(callback), calls)
}

#[test]
fn a_flush_is_said_to_be_done_only_once_the_journal_is_durable() {
    let (a, b, primary, _backup, mut session) = protected(4);
    primary.disks()[0].write_at(4096, &[7; 512]).unwrap();
    session.epoch();
    b.take_events();
    a.take_events();
    // Nothing is written in this epoch: the flush is for what the one before has written.
    primary.disks()[0].flush().unwrap();
    assert!(a.take_events().contains(&Event::Sync {
        name: "disk0".into()
    }));
    session.epoch();
    let synced =
        |event: &Event| matches!(event, Event::Sync { name } if name.starts_with("journal"));
    assert!(b.take_events().iter().any(synced));
    // And really: what is left after a loss of power has it.
    let left = b.after_power_loss(&mut seeded(4));
    let restarted = left.open(&[Replicated], limits());
    restarted.claim_images().unwrap();
    assert_eq!(left.content("disk0")[4096..4608], [7; 512]);
}

#[test]
fn the_guest_is_told_of_a_flush_once_the_backup_has_done_its_part() {
    let (_a, _b, primary, _backup, mut session) = protected(1);
    let (disk, images) = (primary.disks()[0].clone(), primary.primary());
    let ((tell, told), (wake, woken)) = (counted(), counted());
    images.set_flush_listener(tell);
    disk.set_room_listener(wake);
    let first = flush(&disk, 1);
    assert!(!disk.may_answer(first));
    assert_eq!(told.load(Ordering::Relaxed), 1, "its epoch is to end");
    assert!(images.flush_waits());
    let epoch = session.ship();
    assert!(!images.flush_waits(), "it has");
    assert!(!disk.may_answer(first));
    let second = flush(&disk, 2);
    // What is said of earlier epochs means nothing.
    images.flushed(EpochId(epoch.0 - 1));
    assert!(!disk.may_answer(first));
    assert_eq!(woken.load(Ordering::Relaxed), 0);
    images.flushed(epoch);
    assert!(disk.may_answer(first));
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    assert!(!disk.may_answer(second), "it came later");
    let epoch = session.ship();
    images.flushed(epoch);
    assert!(disk.may_answer(second));
}

/// As long as nothing depends on the backup, nothing waits for it. What begins then may end later.
#[test]
fn flushes_wait_from_the_first_epoch_on_and_until_this_side_goes_alone() {
    let (_a, _b, primary, backup) = Setup::new(&[Replicated], BYTES, 2).sets();
    let (disk, images) = (primary.disks()[0].clone(), primary.primary());
    let alone = flush(&disk, 1);
    let mut session = Session::begin(&primary, &backup, 1);
    session.sync();
    let (tell, told) = counted();
    images.set_flush_listener(tell);
    let copying = flush(&disk, 2);
    assert!(disk.may_answer(alone) && disk.may_answer(copying));
    assert_eq!(told.load(Ordering::Relaxed), 0);
    let epoch = session.ship();
    assert!(disk.may_answer(alone) && !disk.may_answer(copying));
    images.flushed(epoch);
    assert!(disk.may_answer(copying));
    let flushes = [flush(&disk, 3), {
        session.ship();
        flush(&disk, 4)
    }];
    // The backup is lost: it may have been granted the guest.
    images.detach();
    let flushes = [&flushes[..], &[flush(&disk, 5)]].concat();
    assert!(!flushes.iter().any(|flush| disk.may_answer(*flush)));
    let (wake, woken) = counted();
    disk.set_room_listener(wake);
    let (done, is_alone) = done();
    images.go_alone(done);
    is_alone.recv_timeout(DEADLINE).unwrap().unwrap();
    assert!(flushes.iter().all(|flush| disk.may_answer(*flush)));
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    assert!(disk.may_answer(flush(&disk, 6)));
}

/// A flush may take longer here than it takes to lose a backup and to get another one.
#[test]
fn a_flush_that_outlasts_its_backup_is_answered_by_the_next_one_and_not_before() {
    let (_a, _b, primary, backup, mut session) = protected(8);
    let (disk, images) = (primary.disks()[0].clone(), primary.primary());
    let flushes = [flush(&disk, 1), {
        session.ship();
        images.detach();
        flush(&disk, 2)
    }];
    let (done, is_alone) = done();
    images.go_alone(done);
    is_alone.recv_timeout(DEADLINE).unwrap().unwrap();
    drop(session);
    let mut session = Session::begin(&primary, &backup, 2);
    session.sync();
    let epoch = session.ship();
    assert!(!flushes.iter().any(|flush| disk.may_answer(*flush)));
    images.flushed(epoch);
    assert!(flushes.iter().all(|flush| disk.may_answer(*flush)));
}

/// What the guest wrote to a shared disk is on no image yet: its output waits for that.
#[test]
fn a_flush_of_a_shared_disk_waits_for_nobody() {
    let (_a, _b, primary, _backup, _session) = Setup::new(&[Shared], BYTES, 3).protected();
    let disk = &primary.disks()[0];
    assert!(disk.may_answer(flush(disk, 1)));
    assert!(!primary.primary().flush_waits());
}

/// R5, whatever a backup leaves unsaid.
#[test]
fn many_epochs_with_flushes_need_little_memory_and_none_is_answered_early() {
    let (_a, _b, primary, _backup, mut session) = protected(5);
    let (disk, images) = (primary.disks()[0].clone(), primary.primary());
    let flushes: Vec<_> = (0..100)
        .map(|fill| {
            let flush = flush(&disk, fill);
            (flush, session.ship())
        })
        .collect();
    for (at, (_, epoch)) in flushes.iter().enumerate() {
        images.flushed(*epoch);
        let answered = flushes
            .iter()
            .filter(|(it, _)| disk.may_answer(*it))
            .count();
        // Further ones wait for the last of them.
        let expected = if at == 99 { 100 } else { (at + 1).min(63) };
        assert_eq!(answered, expected, "{at}");
    }
}

/// Acknowledgements wait for the journal to be written, and must not wait for it to be flushed.
#[test]
fn epochs_are_persisted_while_the_journal_is_flushed_and_are_not_covered() {
    let (_a, b, primary, backup, mut session) = protected(6);
    let disk = primary.disks()[0].clone();
    disk.write_at(0, &[1; 512]).unwrap();
    let epoch = session.ship();
    let ((begins, begun), (go_on, goes_on)) = (channel(), channel::<()>());
    b.files().before_sync(move || {
        begins.send(()).unwrap();
        goes_on.recv_timeout(DEADLINE).unwrap();
    });
    let (told, flushed) = done();
    backup.backup().flush(epoch, told);
    begun.recv_timeout(DEADLINE).unwrap();
    disk.write_at(0, &[2; 512]).unwrap();
    let later = session.ship();
    let (told, second) = done();
    backup.backup().flush(later, told);
    let refused = second.recv_timeout(DEADLINE).unwrap();
    assert!(refused.is_err(), "one at a time");
    go_on.send(()).unwrap();
    flushed.recv_timeout(DEADLINE).unwrap().unwrap();
    b.take_events();
    super::session::flush(&backup, later).unwrap();
    let synced =
        |event: &Event| matches!(event, Event::Sync { name } if name.starts_with("journal"));
    assert!(b.take_events().iter().any(synced), "it was appended later");
}
