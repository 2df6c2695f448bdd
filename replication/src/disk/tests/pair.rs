//! Two hosts through failovers, crashes and losses of power: what the maps mark always suffices.

use rand::Rng;
use rand::rngs::StdRng;

use super::host::*;
use super::session::*;
use crate::disk::DiskMode::Replicated;
use crate::disk::{DiskError, DiskSet, Storage};
use crate::ids::EpochId;

const BYTES: u64 = 8 << 20;
const BLOCK: u64 = 64 << 10;

fn host(name: &str, random: &mut StdRng) -> Host {
    let host = Host::new(name);
    host.make_image("disk0", BYTES, random);
    host
}

fn image(host: &Host) -> Content {
    host.content("disk0")
}

fn open(host: &Host) -> DiskSet {
    host.open(&[Replicated], limits())
}

/// Writes to a few blocks.
fn write_some(set: &DiskSet, random: &mut StdRng) {
    let disk = &set.disks()[0];
    for _ in 0..random.random_range(0..5) {
        let offset = random.random_range(0..BYTES / 512 - 8) * 512;
        let mut data = vec![0; 512 * random.random_range(1..8)];
        random.fill(&mut data[..]);
        disk.write_at(offset, &data).unwrap();
        if random.random_bool(0.2) {
            disk.flush().unwrap();
        }
    }
}

fn crash(host: &Host, random: &mut StdRng) -> Host {
    if random.random_bool(0.5) {
        host.after_kill()
    } else {
        host.after_power_loss(random)
    }
}

#[test]
fn after_a_failover_little_is_sent_in_either_direction() {
    let mut random = seeded(1);
    let (mut a, b) = (host("a", &mut random), host("b", &mut random));
    let (primary, backup) = (open(&a), open(&b));
    primary.claim_images().unwrap();
    let session = Session::protect(&primary, &backup, 1);
    assert!(session.sent_bytes > BYTES, "the first copy is whole");
    primary.disks()[0].write_at(0, &[1; 4096]).unwrap();
    let committed = EpochId(session.epoch);
    // The primary dies with a write that nobody acknowledged; the backup runs on.
    a = a.after_power_loss(&mut random);
    backup.backup().promote(committed, &mut |_| true).unwrap();
    backup.disks()[0].write_at(5 * BLOCK, &[2; 4096]).unwrap();
    // The old primary comes back as the backup.
    let returned = open(&a);
    let mut session = Session::begin(&backup, &returned, 2);
    session.sync();
    session.epoch();
    session.settle();
    assert_eq!(image(&a), image(&b));
    assert!(
        session.sent_bytes <= 2 * BLOCK + 4096,
        "{} bytes",
        session.sent_bytes
    );
    // And back again.
    backup.disks()[0].write_at(9 * BLOCK, &[3; 512]).unwrap();
    session.epoch();
    let (b, committed) = (b.after_kill(), EpochId(session.epoch));
    returned.backup().promote(committed, &mut |_| true).unwrap();
    let again = open(&b);
    let mut session = Session::begin(&returned, &again, 3);
    session.sync();
    session.epoch();
    session.settle();
    assert_eq!(image(&a), image(&b));
    assert!(
        session.sent_bytes <= 3 * BLOCK,
        "{} bytes",
        session.sent_bytes
    );
}

/// Who of two hosts runs the guest, and how the other one stands.
struct Story {
    random: StdRng,
    hosts: [Host; 2],
    runs: usize,
    set: DiskSet,
    generation: u64,
    sent_bytes: Vec<u64>,
}

impl Story {
    fn new(seed: u64) -> Self {
        let mut random = seeded(seed);
        let hosts = [host("a", &mut random), host("b", &mut random)];
        let set = open(&hosts[0]);
        set.claim_images().unwrap();
        Self {
            random,
            hosts,
            runs: 0,
            set,
            generation: 1,
            sent_bytes: Vec::new(),
        }
    }

    /// One protection from its beginning to something that ends it.
    fn chapter(&mut self, seed: u64) {
        let random = &mut self.random;
        let other = 1 - self.runs;
        let backup = open(&self.hosts[other]);
        let mut session = Session::begin(&self.set, &backup, self.generation);
        // It may be cut off while the copy is made.
        let mut steps = random.random_range(0..80);
        while session.sync_step() > 0 && steps > 0 {
            write_some(&self.set, random);
            steps -= 1;
        }
        let cut = steps == 0 || random.random_bool(0.1);
        if cut {
            backup.backup().abandon();
            drop((session, backup));
            self.hosts[other] = crash(&self.hosts[other], random);
            let unfinished = open(&self.hosts[other]).claim_images();
            assert!(matches!(unfinished, Err(DiskError::Unfinished { .. })));
            self.alone();
            return;
        }
        session.sync();
        let mut at_epoch = Vec::new();
        for _ in 0..random.random_range(1..8) {
            write_some(&self.set, random);
            session.epoch();
            at_epoch.push(image(&self.hosts[self.runs]));
            if random.random_bool(0.3) {
                session.settle();
                assert_eq!(
                    Some(&image(&self.hosts[other])),
                    at_epoch.last(),
                    "seed {seed}"
                );
            }
        }
        self.sent_bytes.push(session.sent_bytes);
        write_some(&self.set, random);
        let committed = EpochId(session.epoch);
        match random.random_range(0..3) {
            // The primary dies: the backup is promoted.
            0 => {
                drop(session);
                self.set = DiskSet::empty();
                self.hosts[self.runs] = crash(&self.hosts[self.runs], random);
                backup.backup().promote(committed, &mut |_| true).unwrap();
                assert_eq!(
                    Some(&image(&self.hosts[other])),
                    at_epoch.last(),
                    "seed {seed}"
                );
                self.runs = other;
                self.set = backup;
            }
            // The backup dies: the primary goes on.
            1 => {
                drop((session, backup));
                self.hosts[other] = crash(&self.hosts[other], random);
                self.set.primary().detach();
            }
            // Both die, and the primary starts again; or the backup does.
            _ => {
                drop(session);
                self.set = DiskSet::empty();
                drop(backup);
                self.hosts = [0, 1].map(|at| crash(&self.hosts[at], random));
                if random.random_bool(0.5) {
                    self.start_backup(&at_epoch, seed);
                } else {
                    self.start_primary();
                }
            }
        }
        self.alone();
    }

    /// Both died, and the host that had the copy starts: its image is at one of the epochs.
    fn start_backup(&mut self, at_epoch: &[Content], seed: u64) {
        let other = 1 - self.runs;
        let started = open(&self.hosts[other]);
        match started.claim_images() {
            Ok(()) => {
                let now = image(&self.hosts[other]);
                assert!(at_epoch.contains(&now), "seed {seed}: not one epoch");
                self.runs = other;
                self.set = started;
            }
            // The copy was not declared whole yet.
            Err(DiskError::Unfinished { .. }) => self.start_primary(),
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }

    /// The host that ran the guest starts again.
    fn start_primary(&mut self) {
        self.set = open(&self.hosts[self.runs]);
        self.set.claim_images().unwrap();
    }

    /// The guest runs unprotected for a while, and may be restarted.
    fn alone(&mut self) {
        self.set.primary().detach();
        self.generation += 1;
        write_some(&self.set, &mut self.random);
        if self.random.random_bool(0.3) {
            self.set = DiskSet::empty();
            self.hosts[self.runs] = crash(&self.hosts[self.runs], &mut self.random);
            self.set = open(&self.hosts[self.runs]);
            self.set.claim_images().unwrap();
            write_some(&self.set, &mut self.random);
        }
    }
}

#[test]
fn what_is_marked_always_suffices() {
    let (mut all, mut small) = (0, 0);
    for seed in 0..40 {
        let mut story = Story::new(seed);
        for _ in 0..12 {
            story.chapter(seed);
        }
        // In the end the other side is brought up to date once more, and is equal.
        let other = 1 - story.runs;
        let backup = open(&story.hosts[other]);
        let mut session = Session::protect(&story.set, &backup, story.generation);
        session.epoch();
        session.settle();
        assert_eq!(
            image(&story.hosts[0]),
            image(&story.hosts[1]),
            "seed {seed}"
        );
        all += story.sent_bytes.len();
        small += story.sent_bytes.iter().filter(|b| **b < BYTES / 2).count();
    }
    // Most of the synchronisations did not send the disk.
    assert!(small * 2 > all, "{small} of {all}");
}

#[test]
fn strangers_are_compared() {
    let mut random = seeded(3);
    let (a, b, c) = (
        host("a", &mut random),
        host("b", &mut random),
        host("c", &mut random),
    );
    let sets = [open(&a), open(&b), open(&c)];
    sets[0].claim_images().unwrap();
    let first = Session::protect(&sets[0], &sets[1], 1);
    sets[0].primary().detach();
    // Another backup is no pair, and afterwards the first one is none any more.
    let second = Session::protect(&sets[0], &sets[2], 2);
    // Until the primary has heard of it, the first backup may still be the pair.
    until("the primary knows its new pair", || {
        sets[0].backup().describe().unwrap()[0].ids.len() == 1
    });
    sets[0].disks()[0].write_at(0, &[1; 512]).unwrap();
    sets[0].primary().detach();
    // While all of it is being replaced, it belongs to nobody.
    let plan = sets[0]
        .primary()
        .begin_sync(&sets[1].backup().describe().unwrap())
        .unwrap();
    assert_eq!(sets[1].backup().describe().unwrap()[0].ids.len(), 1);
    sets[1].backup().begin_copy(&plan.disks).unwrap();
    assert_eq!(sets[1].backup().describe().unwrap()[0].ids, []);
    sets[1].backup().abandon();
    let third = Session::protect(&sets[0], &sets[1], 3);
    for session in [&first, &second, &third] {
        assert_eq!(
            (&session.full[..], &session.compared[..]),
            (&[true][..], &[true][..])
        );
    }
    assert!(first.sent_bytes > BYTES && second.sent_bytes > BYTES);
    // It was the pair once, so most of it is equal.
    assert!(third.sent_bytes < 2 * BLOCK, "{} bytes", third.sent_bytes);
    assert_eq!(image(&a), image(&b));
}

#[test]
fn an_interrupted_copy_of_what_changed_goes_on_with_what_is_left() {
    let mut random = seeded(4);
    let (a, mut b) = (host("a", &mut random), host("b", &mut random));
    let (primary, backup) = (open(&a), open(&b));
    primary.claim_images().unwrap();
    drop(Session::protect(&primary, &backup, 1));
    primary.primary().detach();
    for block in 0..40 {
        primary.disks()[0]
            .write_at(block * 3 * BLOCK, &[4; 512])
            .unwrap();
    }
    drop(backup);
    let backup = open(&b);
    Session::begin(&primary, &backup, 2).sync_step();
    drop(backup);
    b = b.after_power_loss(&mut random);
    let backup = open(&b);
    assert!(matches!(
        backup.claim_images(),
        Err(DiskError::Unfinished { .. })
    ));
    let session = Session::protect(&primary, &backup, 3);
    assert!(
        (40 * BLOCK..42 * BLOCK).contains(&session.sent_bytes),
        "{}",
        session.sent_bytes
    );
    assert_eq!(image(&a), image(&b));
    drop(backup);
    open(&b).claim_images().unwrap();
}

#[test]
fn a_backup_with_other_disks_is_refused_by_name() {
    let mut random = seeded(5);
    let a = host("a", &mut random);
    let primary = open(&a);
    primary.claim_images().unwrap();
    let good = primary.backup().describe().unwrap();
    let refused = |change: &dyn Fn(&mut crate::core::disk::PeerDisk)| {
        let mut peer = good.clone();
        change(&mut peer[0]);
        let refused = primary.primary().begin_sync(&peer);
        refused.unwrap_err().to_string()
    };
    assert!(primary.primary().begin_sync(&[]).is_err());
    assert!(refused(&|disk| disk.name = "other".into()).contains("other"));
    assert!(refused(&|disk| disk.bytes += 512).contains("disk0"));
    assert!(refused(&|disk| disk.dirty = vec![1; 17].into()).contains("17 bytes"));
    assert!(refused(&|disk| disk.ids = vec![crate::core::disk::PairId(1); 3]).contains("3 ids"));
}
