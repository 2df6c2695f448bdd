//! What is under way when something else happens: devices write on threads of their own, and storage may hang.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::host::*;
use super::session::*;
use crate::disk::DiskMode::{Replicated, Shared};
use crate::disk::Storage;
use crate::ids::EpochId;

const BYTES: u64 = 512 << 10;
const BLOCK_BYTES: u64 = 64 << 10;

fn marked_bytes(set: &crate::disk::DiskSet) -> u64 {
    set.counts().marked_bytes
}

/// A pause does not wait for the write. It belongs to the next epoch, so that the end of this one must not clear its
/// mark: if this host is lost, nothing else says that the block differs.
#[test]
fn an_epoch_ends_in_the_middle_of_a_write_and_the_mark_of_its_block_stays() {
    let (a, b, primary, backup, mut session) = Setup::new(&[Replicated], BYTES, 1).protected();
    until("nothing is marked", || marked_bytes(&primary) == 0);
    let disk = &primary.disks()[0];
    disk.write_at(0, &[1; 512]).unwrap();
    disk.write_at(4 * BLOCK_BYTES, &[1; 512]).unwrap();
    let (set, kept) = (primary.clone(), Arc::new(Mutex::new(None)));
    let sealed = kept.clone();
    // Its block is marked already, so the next write of a file is that of the image.
    a.before_write(move || {
        *sealed.lock().unwrap() = Some(set.primary().seal(EpochId(2)).unwrap());
    });
    disk.write_at(0, &[2; 512]).unwrap();
    let sealed = kept.lock().unwrap().take().unwrap();
    assert_eq!(sealed.writes.len(), 2, "{sealed:?}");
    persist(&backup, 1, EpochId(2), sealed).unwrap();
    backup.backup().committed(EpochId(2));
    session.epoch = 2;
    session.settle();
    until("the marks of epoch 2 are cleared", || {
        marked_bytes(&primary) < 2 * BLOCK_BYTES
    });
    assert_eq!(marked_bytes(&primary), BLOCK_BYTES);
    assert_ne!(a.content("disk0"), b.content("disk0"));
    session.epoch();
    session.settle();
    until("nothing is marked", || marked_bytes(&primary) == 0);
    assert_eq!(a.content("disk0"), b.content("disk0"));
}

/// Otherwise the guest has seen, and perhaps told others, what is in no epoch: after a failover it would read
/// something older.
#[test]
fn a_read_of_what_is_being_written_is_answered_once_that_is_logged() {
    let (a, _b, primary, _backup, _session) = Setup::new(&[Replicated], BYTES, 1).protected();
    let disk = primary.disks()[0].clone();
    disk.write_at(4096, &[1; 512]).unwrap();
    let (told, answered) = channel();
    let answered = Arc::new(Mutex::new(answered));
    let (reader, early) = (disk.clone(), answered.clone());
    a.before_write(move || {
        // Elsewhere on the disk nothing is waited for, not even right beside it.
        let (other, elsewhere) = (reader.clone(), channel());
        std::thread::spawn(move || {
            for at in [BLOCK_BYTES, 4096 - 512, 4096 + 512] {
                other.read_at(at, &mut [0; 512]).unwrap();
            }
            elsewhere.0.send(()).unwrap();
        });
        elsewhere.1.recv_timeout(DEADLINE).unwrap();
        std::thread::spawn(move || {
            let read = reader.read_at(4096 - 512, &mut [0; 1024]);
            told.send(read).unwrap();
        });
        let early = early
            .lock()
            .unwrap()
            .recv_timeout(Duration::from_millis(200));
        assert!(early.is_err(), "answered in the middle of a write");
    });
    disk.write_at(4096, &[2; 512]).unwrap();
    let read = answered.lock().unwrap().recv_timeout(DEADLINE);
    read.unwrap().unwrap();
}

/// One whose storage hangs must not keep the others waiting.
#[test]
fn a_session_that_waits_for_a_write_keeps_no_other_disk_waiting() {
    let setup = Setup::new(&[Replicated, Replicated], BYTES, 1);
    let (a, _b, primary, backup) = setup.sets();
    let peer = backup.backup().describe().unwrap();
    let (told, begun) = channel();
    let (set, other) = (primary.clone(), primary.disks()[0].clone());
    a.before_write(move || {
        std::thread::spawn(move || {
            told.send(set.primary().begin_sync(&peer).map(drop))
                .unwrap()
        });
        // It has its turn of every disk but this one by now, if it keeps them.
        std::thread::sleep(Duration::from_millis(200));
        let (told, written) = channel();
        std::thread::spawn(move || told.send(other.write_at(0, &[1; 512])).unwrap());
        written.recv_timeout(DEADLINE).unwrap().unwrap();
    });
    primary.disks()[1].write_at(0, &[2; 512]).unwrap();
    begun.recv_timeout(DEADLINE).unwrap().unwrap();
}

/// Otherwise it would be on the image, answered, and in no epoch, but perhaps lost with this host.
#[test]
fn a_write_that_passes_when_holding_begins_is_durable_when_it_has_begun() {
    let (a, _b, primary, backup) = Setup::new(&[Shared], BYTES, 1).sets();
    let mut session = Session::begin(&primary, &backup, 1);
    session.sync();
    a.take_events();
    let (told, holds) = channel();
    let holds = Arc::new(Mutex::new(holds));
    let (set, early) = (primary.clone(), holds.clone());
    a.before_write(move || {
        std::thread::spawn(move || told.send(set.primary().hold()).unwrap());
        let early = early
            .lock()
            .unwrap()
            .recv_timeout(Duration::from_millis(200));
        assert!(early.is_err(), "it holds in the middle of a write");
    });
    primary.disks()[0].write_at(0, &[2; 512]).unwrap();
    let held = holds.lock().unwrap().recv_timeout(DEADLINE);
    held.unwrap().unwrap();
    let events = a.take_events();
    let written = events
        .iter()
        .rposition(|event| matches!(event, Event::Write { .. }));
    let synced = events
        .iter()
        .rposition(|event| matches!(event, Event::Sync { .. }));
    assert!(written.is_some() && synced > written, "{events:?}");
    // What comes now is held.
    primary.disks()[0].write_at(0, &[3; 512]).unwrap();
    assert_eq!(a.content("disk0")[..512], [2; 512]);
}

/// A disk that hangs keeps neither the others' output nor, later, the guest's end waiting.
#[test]
fn what_is_released_does_not_wait_for_the_marks_of_another_disk() {
    let (a, _b, primary, backup, mut session) =
        Setup::new(&[Replicated, Shared], BYTES, 2).protected();
    until("nothing is marked", || marked_bytes(&primary) == 0);
    primary.disks()[0].write_at(0, &[4; 512]).unwrap();
    primary.disks()[1].write_at(0, &[5; 512]).unwrap();
    let epoch = session.ship();
    backup.backup().committed(epoch);
    until("the backup's images have the epoch", || {
        backup.backup().durable_epoch() == epoch
    });
    let (told, hangs) = channel();
    let (go_on, goes_on) = channel::<()>();
    // The next write is that of the marks to the map.
    a.before_write(move || {
        told.send(()).unwrap();
        let _ = goes_on.recv_timeout(DEADLINE);
    });
    primary.primary().durable(epoch);
    hangs.recv_timeout(DEADLINE).unwrap();
    let (told, released) = done();
    primary.primary().release(epoch, told);
    released.recv_timeout(DEADLINE / 2).unwrap().unwrap();
    assert_eq!(a.content("disk1")[..512], [5; 512]);
    // Nor does a pause.
    primary.primary().seal(EpochId(epoch.0 + 1)).unwrap();
    go_on.send(()).unwrap();
    until("nothing is marked", || marked_bytes(&primary) == 0);
}
