//! Two hosts of which one dies at any call, killed or without power, or has any call fail before that. The guest goes
//! from `a` to `b`, and `a` comes back as the backup of `b` and takes over again.

use nix::libc::EIO;

use super::host::*;
use super::session::*;
use crate::disk::DiskMode::Replicated;
use crate::disk::{DiskError, DiskSet, Storage};
use crate::files::simulated::{Call, Content as Survives, Failure};
use crate::ids::EpochId;

const BYTES: u64 = 256 << 10;
const BLOCK: u64 = 64 << 10;

/// One reign: what its backup was sent.
#[derive(Default)]
struct Reign {
    /// The guest's disk at the end of each epoch.
    epochs: Vec<Vec<u8>>,
    /// How many of them the backup has acknowledged.
    acknowledged: usize,
    /// The same, when the last one with a flush was acknowledged.
    flushed: usize,
    /// The backup has reported its copy as whole.
    whole: bool,
    /// The backup has been told to promote.
    over: bool,
}

/// The hosts, their sets, and what was said.
struct Pair {
    a: Host,
    b: Host,
    /// The images before the first reign.
    before: [Vec<u8>; 2],
    /// Whose guest it is, and whose copy, as far as they are open.
    primary: Option<DiskSet>,
    backup: Option<DiskSet>,
    reigns: [Reign; 3],
    /// Which reign it is. In even ones, the guest runs on `a`.
    reign: usize,
    /// The disk as the guest sees it, and as it was when a flush was answered last.
    disk: Vec<u8>,
    safe: Vec<u8>,
}

type Tried = Result<(), DiskError>;

fn open(host: &Host) -> Result<DiskSet, DiskError> {
    host.try_open(&[Replicated], lazy())
}

/// A backup is brought up to date. Its copy is whole with the first epoch.
fn copy(primary: &DiskSet, backup: &DiskSet) -> Tried {
    let (from, to) = (primary.primary(), backup.backup());
    let plan = from.begin_sync(&to.describe()?)?;
    to.begin_copy(&plan.disks)?;
    loop {
        let step = from.sync_some()?;
        for batch in batches(&step.writes) {
            to.apply_sync(&batch)?;
        }
        from.compared(&to.take_compared(usize::MAX))?;
        if step.bytes_left == 0 {
            return Ok(());
        }
    }
}

fn ship(
    primary: &DiskSet,
    backup: &DiskSet,
    generation: u64,
    epoch: EpochId,
) -> Result<bool, DiskError> {
    let sealed = primary.primary().seal(epoch)?;
    let flush = sealed.flush;
    persist(backup, generation, epoch, sealed)?;
    primary.primary().shipped(epoch);
    backup.backup().committed(epoch);
    Ok(flush)
}

/// Waits until the backup's image has everything. Fails if it cannot have it.
fn settle(primary: &DiskSet, backup: &DiskSet, epoch: EpochId) -> Tried {
    let images = backup.backup();
    until("it has settled", || {
        images.durable_epoch() == epoch || backup.copy_has_failed()
    });
    if images.durable_epoch() != epoch {
        return Err(DiskError::Failed("it cannot be settled".into()));
    }
    primary.primary().durable(epoch);
    Ok(())
}

impl Pair {
    fn new() -> Self {
        let (a, b) = (Host::new("a"), Host::new("b"));
        let mut random = seeded(5);
        for host in [&a, &b] {
            host.make_image("disk0", BYTES, &mut random);
        }
        let disk = a.content("disk0").0;
        Self {
            before: [disk.clone(), b.content("disk0").0],
            a,
            b,
            primary: None,
            backup: None,
            reigns: Default::default(),
            reign: 0,
            safe: disk.clone(),
            disk,
        }
    }

    fn sets(&self) -> (DiskSet, DiskSet) {
        let open = |set: &Option<DiskSet>| set.clone().expect("it is open");
        (open(&self.primary), open(&self.backup))
    }

    /// The guest writes, and flushes if it wants to.
    fn write(&mut self, at: u64, fill: u8, flush: bool) -> Tried {
        let disk = self.primary.as_ref().expect("it is open").disks()[0].clone();
        let failed = |error: std::io::Error| DiskError::Failed(error.to_string());
        self.disk[at as usize..][..4096].fill(fill);
        disk.write_at(at, &[fill; 4096]).map_err(failed)?;
        if flush {
            disk.flush().map_err(failed)?;
            self.safe.clone_from(&self.disk);
        }
        Ok(())
    }

    fn epoch(&mut self, reign: usize) -> Tried {
        let (primary, backup) = self.sets();
        let number = self.reigns[reign].epochs.len() + 1;
        self.reigns[reign].epochs.push(self.disk.clone());
        let epoch = EpochId(number as u64);
        let flush = ship(&primary, &backup, reign as u64 + 1, epoch)?;
        let reign = &mut self.reigns[reign];
        reign.acknowledged = number;
        if flush {
            reign.flushed = number;
        }
        Ok(())
    }

    /// A reign from the copy to the promotion of the backup.
    fn reign(&mut self, reign: usize) -> Tried {
        self.epochs(reign)?;
        self.promote(reign)
    }

    /// A copy, and four epochs after it.
    fn epochs(&mut self, reign: usize) -> Tried {
        let (primary, backup) = self.sets();
        copy(&primary, &backup)?;
        self.epoch(reign)?;
        settle(&primary, &backup, EpochId(1))?;
        let flushed = &mut self.reigns[reign].flushed;
        *flushed = 1.max(*flushed);
        self.reigns[reign].whole = true;
        let first = 1 + 100 * reign as u8;
        self.write(0, first, true)?;
        self.epoch(reign)?;
        self.write(BLOCK, first + 1, false)?;
        self.epoch(reign)?;
        self.write(4096, first + 2, true)?;
        self.epoch(reign)?;
        self.write(2 * BLOCK, first + 3, false)?;
        self.epoch(reign)
    }

    fn promote(&mut self, reign: usize) -> Tried {
        let first = 1 + 100 * reign as u8;
        let (_, backup) = self.sets();
        self.reigns[reign].over = true;
        backup.backup().promote(EpochId(5), &mut |_| true)?;
        // Whatever a guest sees on its disk when it begins is durable.
        self.safe.clone_from(&self.disk);
        self.reign += 1;
        (self.primary, self.backup) = (Some(backup), None);
        self.write(3 * BLOCK, first + 4, true)?;
        self.write(BLOCK + 4096, first + 5, false)
    }

    fn open(&mut self) -> Tried {
        let primary = self.primary.insert(open(&self.a)?);
        primary.claim_images()?;
        self.backup = Some(open(&self.b)?);
        Ok(())
    }

    fn life(&mut self) -> Tried {
        self.open()?;
        self.reign(0)?;
        self.backup = Some(open(&self.a)?);
        self.reign(1)
    }
}

/// Which sectors are neither as in `old` nor as in `new`.
fn is_between(found: &[u8], old: &[u8], new: &[u8]) -> bool {
    let sectors = found.chunks(512).zip(old.chunks(512)).zip(new.chunks(512));
    sectors
        .into_iter()
        .all(|((found, old), new)| found == old || found == new)
}

/// Synchronises two sets with each other, until both images are equal.
fn synchronise(from: &DiskSet, to: &DiskSet, hosts: [&Host; 2], here: &str) {
    from.primary().detach();
    let synchronised = copy(from, to).and_then(|()| {
        ship(from, to, 9, EpochId(1))?;
        settle(from, to, EpochId(1))
    });
    if let Err(error) = synchronised {
        panic!("{here}: no synchronisation: {error}");
    }
    let whole = hosts[0].content("disk0");
    assert_eq!(whole, hosts[1].content("disk0"), "{here}");
    // The copy was reported as whole, so it is durable, with all that it needs.
    let left = hosts[1].without_power(Survives::Nothing);
    let claimed = open(&left).and_then(|set| set.claim_images());
    claimed.unwrap_or_else(|error| panic!("{here}, and without power: {error}"));
    assert_eq!(whole, left.content("disk0"), "{here}, and without power");
}

impl Pair {
    /// The host that has the guest now, or the other one.
    fn host(&self, is_backup: bool) -> &Host {
        if self.reign.is_multiple_of(2) == is_backup {
            &self.b
        } else {
            &self.a
        }
    }

    /// What must be so if `left` is what remains of the host that has died.
    fn judge(&self, dead: &Host, left: &Host, here: &str) {
        let was_backup = std::ptr::eq(self.host(true), dead);
        let copied = &self.reigns[self.reign];
        let alone = left.after_kill();
        let claimed = open(&alone).and_then(|set| set.claim_images());
        let found = alone.content("disk0");
        match claimed {
            Err(error) => assert!(
                was_backup && !copied.whole,
                "{here}: it is refused: {error}"
            ),
            Ok(()) if !was_backup => {
                assert!(
                    is_between(&found, &self.safe, &self.disk),
                    "{here}: flushed, and lost"
                );
            }
            Ok(()) if copied.whole => {
                let kept = &copied.epochs[copied.flushed - 1..];
                assert!(
                    kept.contains(&found),
                    "{here}: it is at no epoch that may be left"
                );
            }
            Ok(()) => {
                let old = match self.reign {
                    0 => found.0 == self.before[1],
                    _ => is_between(&found, &self.reigns[0].epochs[3], &self.reigns[0].epochs[4]),
                };
                assert!(old || copied.epochs.contains(&found), "{here}: half a copy");
            }
        }
        if was_backup && copied.over {
            // The other host has ended, or it would not have been told to promote.
            let set = open(left).unwrap();
            set.claim_images().unwrap();
            let other = self.host(false).after_kill();
            synchronise(&set, &open(&other).unwrap(), [left, &other], here);
        } else if was_backup {
            let (from, host) = (self.primary.as_ref().unwrap(), self.host(false));
            synchronise(from, &open(left).unwrap(), [host, left], here);
        } else if copied.whole {
            let (to, host) = (self.backup.as_ref().unwrap(), self.host(true));
            let last = copied.acknowledged;
            let promoted = to.backup().promote(EpochId(last as u64), &mut |_| true);
            promoted.unwrap_or_else(|error| panic!("{here}: not promoted: {error}"));
            assert_eq!(host.content("disk0").0, copied.epochs[last - 1], "{here}");
            synchronise(to, &open(left).unwrap(), [host, left], here);
        } else {
            let set = open(left).unwrap();
            set.claim_images().unwrap();
            let other = self.host(true).after_kill();
            synchronise(&set, &open(&other).unwrap(), [left, &other], here);
        }
    }
}

fn calls(host: fn(&Pair) -> &Host) -> Vec<Call> {
    let mut pair = Pair::new();
    pair.life().unwrap();
    host(&pair).take_events()
}

/// What happens at a call.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Ends { torn: bool },
    Fails(Failure),
}

/// Has this happen to `host` at each of its calls that may change something, and judges what may be left when it is
/// dead then.
fn walk(host: fn(&Pair) -> &Host, faults: &[Fault], ends: &[Option<Survives>]) {
    let mut judged = 0;
    for (at, call) in (0..).zip(calls(host)).filter(|(_, call)| call.changes()) {
        for fault in faults {
            match (fault, &call) {
                (Fault::Ends { torn: true }, Call::Write { .. })
                | (Fault::Ends { torn: false }, _)
                | (Fault::Fails(Failure::Dropped(_)), Call::Sync { .. })
                | (Fault::Fails(Failure::NotDone(_) | Failure::Unanswered(_)), _) => {}
                _ => continue,
            }
            for survives in ends {
                let mut pair = Pair::new();
                match fault {
                    Fault::Ends { torn } => host(&pair).files().end_at(at, *torn),
                    Fault::Fails(failure) => host(&pair).files().fail_at(at, *failure),
                }
                let ended = pair.life();
                let dead = host(&pair);
                let left = match survives {
                    None => dead.after_kill(),
                    Some(survives) => dead.without_power(*survives),
                };
                let here = format!("call {at}, {call:?}, {fault:?}, then {survives:?}");
                if ended.is_err() || !std::ptr::eq(pair.host(true), dead) {
                    pair.judge(dead, &left, &here);
                } else {
                    // It had nothing to do with the guest any more.
                    open(&left).unwrap().claim_images().unwrap();
                }
                judged += 1;
            }
        }
    }
    assert!(judged > 240, "{judged}");
}

const DEATHS: [Fault; 2] = [Fault::Ends { torn: false }, Fault::Ends { torn: true }];
const LEFT: [Option<Survives>; 4] = [
    None,
    Some(Survives::Nothing),
    Some(Survives::Everything),
    Some(Survives::Torn(3)),
];

#[test]
fn a_host_that_dies_at_any_call_loses_nothing_that_was_acknowledged() {
    walk(|pair| &pair.a, &DEATHS, &LEFT);
}

#[test]
fn its_backup_that_dies_at_any_call_loses_nothing_that_was_acknowledged() {
    walk(|pair| &pair.b, &DEATHS, &LEFT);
}

const FAILURES: [Fault; 3] = [
    Fault::Fails(Failure::NotDone(EIO)),
    Fault::Fails(Failure::Unanswered(EIO)),
    Fault::Fails(Failure::Dropped(EIO)),
];

#[test]
fn a_host_with_any_call_that_fails_loses_nothing_that_was_acknowledged() {
    walk(|pair| &pair.a, &FAILURES, &LEFT[..2]);
}

#[test]
fn its_backup_with_any_call_that_fails_loses_nothing_that_was_acknowledged() {
    walk(|pair| &pair.b, &FAILURES, &LEFT[..2]);
}

/// A backup was killed, and its journal is in the cache only. The power is lost while it is brought to the image.
#[test]
fn a_recovery_that_loses_its_power_at_any_call_leaves_whole_epochs() {
    let mut pair = Pair::new();
    pair.open().unwrap();
    pair.epochs(0).unwrap();
    let sent = &pair.reigns[0];
    let mut points = 0;
    for at in 0.. {
        let killed = pair.b.after_kill();
        killed.files().end_at(at, false);
        let claimed = open(&killed).and_then(|set| set.claim_images());
        for survives in LEFT.into_iter().flatten() {
            let left = killed.without_power(survives);
            open(&left).unwrap().claim_images().unwrap();
            let found = left.content("disk0");
            let kept = &sent.epochs[sent.flushed - 1..];
            assert!(kept.contains(&found), "call {at}, {survives:?}: no epoch");
        }
        points = at;
        if claimed.is_ok() {
            break;
        }
    }
    assert!(points > 10, "{points}");
}
