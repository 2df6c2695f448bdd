//! What is released goes to the shared images, and what is safe there is forgotten.

use super::host::*;
use super::session::*;
use super::shared::{BYTES, holding, image, release};
use crate::core::disk::{DiskWrite, What};
use crate::disk::DiskMode::Shared;
use crate::disk::primary::overlay::Held;
use crate::disk::{DiskLimits, Storage};
use crate::files::simulated::Content as Survives;
use crate::ids::EpochId;

fn syncs(host: &Host) -> usize {
    let calls = host.take_events().into_iter();
    calls
        .filter(|call| matches!(call, Event::Sync { .. }))
        .count()
}

/// A backup keeps what is not durable.
#[test]
fn much_that_was_released_is_made_durable_although_the_guest_flushes_nothing() {
    let small = DiskLimits {
        log_bytes_max: 80 << 10,
        ..limits()
    };
    let setup = Setup {
        limits: [small, limits()],
        ..Setup::new(&[Shared], BYTES, 1)
    };
    let (a, _b, primary, backup) = setup.sets();
    let mut session = Session::begin(&primary, &backup, 1);
    session.sync();
    session.epoch();
    a.take_events();
    // A quarter of the limit is five of these.
    for round in 1..=3_u8 {
        let before = session.written_through;
        for write in 1..=5 {
            primary.disks()[0].write_at(0, &[round; 4096]).unwrap();
            let epoch = session.epoch();
            release(&primary, epoch).unwrap();
            let flushes = usize::from(write == 5);
            assert_eq!(syncs(&a), flushes, "round {round}, write {write}");
        }
        let left = a.without_power(Survives::Nothing);
        assert_eq!(image(&left)[..4096], [round; 4096]);
        session.epoch();
        assert!(session.written_through > before, "round {round}");
    }
}

#[test]
fn after_a_failed_flush_the_next_release_makes_all_durable_without_the_guests_asking() {
    let (a, _b, primary, _backup, mut session) = holding(3);
    let disk = &primary.disks()[0];
    disk.write_at(0, &[1; 512]).unwrap();
    disk.flush().unwrap();
    let epoch = session.epoch();
    a.fail("disk0", 1, std::io::ErrorKind::HostUnreachable);
    release(&primary, epoch).unwrap_err();
    a.heal();
    // The guest has asked for nothing since.
    primary.primary().detach();
    release(&primary, epoch).unwrap();
    assert_eq!(image(&a.without_power(Survives::Nothing))[..512], [1; 512]);
    disk.write_at(512, &[2; 512]).unwrap();
    a.take_events();
    primary.primary().seal(EpochId(epoch.0 + 1)).unwrap();
    release(&primary, EpochId(epoch.0 + 1)).unwrap();
    assert_eq!(syncs(&a), 0, "nothing is in doubt any more");
}

/// Otherwise the next backup would forget what is not on the image.
#[test]
fn a_new_session_has_nothing_that_was_written_through() {
    let (_a, _b, primary, backup, mut session) = holding(2);
    for _ in 0..5 {
        primary.disks()[0].write_at(0, &[1; 4096]).unwrap();
        primary.disks()[0].flush().unwrap();
        let epoch = session.epoch();
        release(&primary, epoch).unwrap();
        session.epoch();
        assert_eq!(session.written_through, epoch);
    }
    primary.primary().detach();
    backup.backup().abandon();
    let mut session = Session::begin(&primary, &backup, 2);
    session.sync();
    session.epoch();
    assert_eq!(session.written_through, EpochId(0));
}

#[test]
fn what_is_safe_on_its_image_is_not_kept_for_readers() {
    let mut held = Held::new(1);
    held.hold();
    let fill = |fill: u8, offset| DiskWrite {
        disk: 0,
        offset,
        what: What::Data(vec![fill; 512].into()),
    };
    // As a reader finds it whose image has something else everywhere.
    let read = |held: &Held| {
        let mut data = vec![0; 4 * 512];
        held.patch(0, 0, 4 * 512).lay_over(0, &mut data);
        [0, 1, 2, 3].map(|sector| data[sector * 512])
    };
    held.push(fill(1, 0));
    held.push(fill(2, 512));
    held.seal(EpochId(1));
    held.push(fill(3, 1024));
    held.seal(EpochId(2));
    held.push(fill(4, 1536));
    assert_eq!(read(&held), [1, 2, 3, 4]);
    held.written(EpochId(1));
    assert_eq!(read(&held), [1, 2, 3, 4], "it may be lost again");
    held.safe();
    assert_eq!(read(&held), [0, 0, 3, 4]);
    held.written(EpochId(2));
    held.safe();
    assert_eq!(read(&held), [0, 0, 0, 4]);
    held.seal_all();
    held.written(EpochId(2));
    held.safe();
    assert_eq!(read(&held), [0; 4]);
}
