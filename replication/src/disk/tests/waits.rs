//! Who needs the images to himself waits for what is under way.

use std::sync::mpsc::channel;
use std::time::Duration;

use super::host::*;
use super::session::*;
use crate::disk::DiskMode::Replicated;
use crate::disk::Storage;
use crate::ids::EpochId;

const BYTES: u64 = 1 << 20;

#[test]
fn a_promotion_waits_for_the_epoch_that_is_being_written_down() {
    let setup = Setup {
        limits: [lazy(); 2],
        ..Setup::new(&[Replicated], BYTES, 4)
    };
    let (_a, b, primary, backup, mut session) = setup.protected();
    let before = b.content("disk0");
    primary.disks()[0].write_at(4096, &[7; 4096]).unwrap();
    let (begun, has_begun) = channel();
    let (go_on, may_go_on) = channel();
    b.before_write(move || {
        begun.send(()).unwrap();
        may_go_on.recv_timeout(DEADLINE).unwrap();
    });
    std::thread::scope(|scope| {
        let shipping = scope.spawn(|| session.ship());
        has_begun.recv_timeout(DEADLINE).unwrap();
        let (told, promoted) = channel();
        let backup = backup.backup();
        scope.spawn(move || told.send(backup.promote(EpochId(1), &mut |_| true)));
        let early = promoted.recv_timeout(Duration::from_millis(200));
        assert!(early.is_err(), "the journal is being written");
        go_on.send(()).unwrap();
        shipping.join().unwrap();
        promoted.recv_timeout(DEADLINE).unwrap().unwrap();
    });
    // The epoch was not committed.
    assert_eq!(b.content("disk0"), before);
}
