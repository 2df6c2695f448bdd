//! The end of a set: its threads end, and its images are closed.

use std::sync::mpsc::channel;
use std::time::Duration;

use super::host::*;
use super::session::*;
use crate::disk::DiskMode::{Replicated, Shared};
use crate::disk::Storage;

const BYTES: u64 = 512 << 10;

#[test]
fn a_set_that_is_dropped_closes_its_images() {
    let (a, b, primary, backup, mut session) =
        Setup::new(&[Replicated, Shared], BYTES, 1).protected();
    // All threads of both sides have had work.
    for disk in primary.disks() {
        disk.write_at(0, &[1; 512]).unwrap();
    }
    let epoch = session.epoch();
    session.settle();
    let (told, released) = done();
    primary.primary().release(epoch, told);
    released.recv_timeout(DEADLINE).unwrap().unwrap();
    let sides = [&a, &b];
    assert!(a.open_images() > 0);
    drop((session, primary, backup));
    assert_eq!(sides.map(Host::open_images), [0, 0]);
}

#[test]
fn the_end_of_a_set_waits_for_a_call_of_storage_that_is_under_way() {
    let (a, _b, primary, backup, mut session) = Setup::new(&[Shared], BYTES, 1).protected();
    primary.disks()[0].write_at(0, &[1; 512]).unwrap();
    let epoch = session.epoch();
    drop((session, backup));
    let (told, is_writing) = channel();
    let (go_on, goes_on) = channel::<()>();
    a.before_write(move || {
        told.send(()).unwrap();
        goes_on.recv_timeout(DEADLINE).unwrap();
    });
    let (told, _released) = done();
    primary.primary().release(epoch, told);
    is_writing.recv_timeout(DEADLINE).unwrap();
    let (told, ended) = channel();
    std::thread::spawn(move || {
        drop(primary);
        told.send(()).unwrap();
    });
    let early = ended.recv_timeout(Duration::from_millis(200));
    assert!(early.is_err(), "the image is being written");
    go_on.send(()).unwrap();
    ended.recv_timeout(DEADLINE).unwrap();
    assert_eq!(a.open_images(), 0);
}
