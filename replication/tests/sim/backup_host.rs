//! A host that waits to take over: what a runtime does around the backup's core.

use std::sync::Arc;

use understudy_replication::arbiter::Mark;
use understudy_replication::core::backup::{
    BackupCore, BackupEffect, BackupIdentity, BackupInput, BackupPhase,
};
use understudy_replication::core::heartbeats::HeartbeatFilter;
use understudy_replication::core::message::{Message, Welcome};
use understudy_replication::core::primary::PrimaryCore;
use understudy_replication::ids::{EpochId, Generation};
use understudy_replication::ports::PageMemory;

use super::disk::{DISK_BYTES, SHARED, Write, apply, decode};
use super::events::Event;
use super::guest::{Guest, SimMemory};
use super::outside::Question;
use super::primary_host::{PrimaryHost, hello};
use super::world::{Side, World};

pub struct BackupHost {
    pub core: BackupCore,
    pub memory: Arc<SimMemory>,
    /// The link of the last session: epochs committed are of this one.
    pub session_link: usize,
    /// Number of the copy: what was begun for an earlier one means nothing.
    copy: u64,
    /// The last epoch whose disk writes are in the journal.
    persisted: EpochId,
    /// The journal is being written.
    persisting: bool,
    /// The arbiter was asked for the guest.
    claims: bool,
    /// Writes to the shared disk that the primary has not reported as written.
    shared: Vec<(EpochId, Vec<Write>)>,
}

/// Disk writes of an epoch on their way to the journal.
pub struct Persisting {
    ticket: u64,
    copy: u64,
    epoch: EpochId,
    writes: Vec<Write>,
    written_through: EpochId,
}

/// The journal on its way to the disk.
pub struct Flushing {
    ticket: u64,
    copy: u64,
    epoch: EpochId,
}

impl BackupHost {
    fn next_copy(&mut self) {
        self.copy += 1;
        self.persisted = EpochId(0);
        self.persisting = false;
        self.claims = false;
        self.shared.clear();
    }
}

impl World {
    pub fn start_backup(&mut self, host: usize) {
        let introduction = hello();
        let identity = BackupIdentity {
            vm: introduction.vm,
            node: format!("host {host}"),
            host: None,
            starts: Default::default(),
            has_replicated: false,
            has_shared: false,
            fingerprint: introduction.fingerprint,
            layout: introduction.layout,
            disks: DISK_BYTES.to_vec(),
            arbiter: introduction.arbiter,
        };
        self.hosts[host].disk.recover(&mut self.rng);
        let policy = self.settings.policy.clone();
        let core = BackupCore::new(policy, identity, Generation(0), self.now);
        self.trace(host, || "starts as backup".into());
        self.hosts[host].side = Side::Backup(Box::new(BackupHost {
            core,
            memory: Arc::new(SimMemory::new()),
            session_link: usize::MAX,
            copy: 0,
            persisted: EpochId(0),
            persisting: false,
            claims: false,
            shared: Vec::new(),
        }));
        self.start_beats(host, false);
    }

    pub fn backup(&mut self, host: usize, input: BackupInput) {
        let (now, link) = (self.now, self.hosts[host].link);
        let Side::Backup(node) = &mut self.hosts[host].side else {
            return;
        };
        let before = node.core.phase();
        let copy = node.core.committed_epoch().map(|_| node.core.generation());
        let effects = node.core.handle(now, input, &*node.memory);
        let after = node.core.phase();
        let wakeup = node.core.next_wakeup();
        self.decided(host, &effects, wakeup);
        if before != after {
            self.trace(host, || {
                format!("backup: {} → {}", before.name(), after.name())
            });
        }
        for effect in effects {
            if let (BackupEffect::Reset { .. }, Some(generation)) = (&effect, copy) {
                self.check_given_up(host, generation);
            }
            self.backup_effect(host, effect, link);
        }
        self.schedule_wake(host);
    }

    fn backup_effect(&mut self, host: usize, effect: BackupEffect, link: Option<usize>) {
        let Side::Backup(node) = &mut self.hosts[host].side else {
            return;
        };
        match effect {
            BackupEffect::Send(message) => self.say(host, &message, link),
            BackupEffect::Welcome { session } => self.welcome(host, session, link),
            BackupEffect::BeginCopy(_) => self.begin_copy(host, link),
            BackupEffect::SyncDisk(batch) => {
                self.hosts[host].disk.write_all(&decode(&batch));
            }
            BackupEffect::Persist {
                ticket,
                epoch,
                batches,
                written_through,
            } => {
                node.persisting = true;
                let persisting = Persisting {
                    ticket,
                    copy: node.copy,
                    epoch,
                    writes: batches.iter().flat_map(decode).collect(),
                    written_through,
                };
                let process = self.process(host);
                self.soon(50, 4_000, Event::Persisted(process, persisting));
            }
            BackupEffect::FlushJournal { ticket, epoch } => self.begin_flush(host, ticket, epoch),
            BackupEffect::TryRestore { ticket, .. } => self.try_restore(host, ticket),
            BackupEffect::CloseLink => self.close_link(host),
            BackupEffect::Committed(epoch) => self.check_commit(host, epoch),
            BackupEffect::Discarded { epoch, why } => {
                self.trace(host, || format!("discards {epoch}: {why}"));
                self.count("epochs discarded");
            }
            BackupEffect::Claim { known, mark } => self.claim(host, known, mark),
            BackupEffect::Stop => self.kill_and_restart(host, false),
            BackupEffect::Rehearse => self.ask(host, Question::Rehearse),
            BackupEffect::Takeover(outcome) => self.takeover(host, outcome),
            BackupEffect::Promote {
                generation,
                epoch,
                cause,
                ..
            } => {
                let persisting = node.persisting;
                self.trace(host, || {
                    format!("is promoted to {generation}, {epoch}: {cause}")
                });
                self.count("promotions");
                // No persisting may be open: what it ended with decides which epoch this is.
                if persisting {
                    self.violate(format!("R2: host {host} is promoted while it persists"));
                }
                self.backup(host, BackupInput::Runs);
                self.promote(host, generation);
            }
            BackupEffect::ClaimWaits { .. } => self.count("claims that waited for a trial"),
            // These backups start no guest.
            BackupEffect::Look
            | BackupEffect::Inquire
            | BackupEffect::CannotStart { .. }
            | BackupEffect::StartGuest { .. } => {
                self.violate(format!("host {host} is to start a guest"));
            }
            BackupEffect::Doubtful { why } => {
                self.trace(host, || format!("perhaps could not go on: {why}"));
                self.count("doubtful copies");
            }
            BackupEffect::Reset { reason } => self.reset_backup(host, &reason),
        }
    }

    fn begin_flush(&mut self, host: usize, ticket: u64, epoch: EpochId) {
        let Side::Backup(node) = &self.hosts[host].side else {
            return;
        };
        let flushing = Flushing {
            ticket,
            copy: node.copy,
            epoch,
        };
        let process = self.process(host);
        self.soon(50, 12_000, Event::Flushed(process, flushing));
    }

    /// What is said over a link is checked before it is sent.
    fn say(&mut self, host: usize, message: &Message, link: Option<usize>) {
        let Side::Backup(node) = &mut self.hosts[host].side else {
            return;
        };
        let (generation, persisted) = (node.core.generation(), node.persisted);
        match (message, link) {
            (Message::Ack { epoch, .. }, Some(link)) => {
                self.check_ack(host, *epoch, link, persisted);
            }
            (Message::Flushed(epoch), Some(link)) => self.check_flushed(host, *epoch, link),
            _ => {}
        }
        self.send(host, generation, message);
    }

    fn reset_backup(&mut self, host: usize, reason: &str) {
        let Side::Backup(node) = &mut self.hosts[host].side else {
            return;
        };
        let cleared = node.memory.clear();
        node.next_copy();
        self.hosts[host].disk.recover(&mut self.rng);
        self.trace(host, || format!("resets: {reason}"));
        self.count("resets");
        cleared.expect("memory clears");
    }

    fn try_restore(&mut self, host: usize, ticket: u64) {
        let works = !self.rng.chance(self.settings.persist_failures_permille);
        let process = self.process(host);
        self.soon(50, 2_000, Event::RestoreTried(process, ticket, works));
    }

    fn claim(&mut self, host: usize, known: Generation, mark: Mark) {
        let Side::Backup(node) = &mut self.hosts[host].side else {
            return;
        };
        let first = !std::mem::replace(&mut node.claims, true);
        let disk = &self.hosts[host].disk;
        if first && disk.failed && !disk.whole {
            self.violate(format!(
                "R2: host {host} claims, its disks failed before their copy was whole"
            ));
        }
        self.ask(host, Question::Claim(known, mark));
    }

    fn begin_copy(&mut self, host: usize, link: Option<usize>) {
        if link.is_some_and(|link| self.is_stranger(link)) {
            self.violate(format!(
                "R10: host {host} lets a stranger write to its disks"
            ));
        }
        self.hosts[host].disk.recover(&mut self.rng);
    }

    /// A new copy begins.
    fn welcome(&mut self, host: usize, session: u64, link: Option<usize>) {
        let Side::Backup(node) = &mut self.hosts[host].side else {
            return;
        };
        let generation = node.core.generation();
        node.session_link = link.unwrap_or(usize::MAX);
        node.next_copy();
        self.hosts[host].disk.recover(&mut self.rng);
        let welcome = Message::Welcome(Welcome {
            node: format!("host {host}"),
            host: None,
            session,
            disks: Vec::new(),
        });
        self.send(host, generation, &welcome);
    }

    /// R1: an epoch is said to be flushed only once it would survive a loss of power.
    fn check_flushed(&mut self, host: usize, epoch: EpochId, link: usize) {
        if !self.hosts[host].disk.is_safe(epoch) {
            self.violate(format!(
                "R1: host {host} says that {epoch} is flushed, which would not survive a loss of power"
            ));
        }
        self.flushed.insert(link, epoch);
        self.count("epochs flushed");
    }

    /// R1: an epoch with disk writes is acknowledged only once they are in the journal.
    fn check_ack(&mut self, host: usize, epoch: EpochId, link: usize, persisted: EpochId) {
        let Some(snapshot) = self.snapshots.get(&(link, epoch)) else {
            return;
        };
        if snapshot.wrote && persisted != epoch {
            self.violate(format!(
                "R1: host {host} acks {epoch} before its disk writes are in the journal"
            ));
        }
        self.acked.insert(link, epoch);
    }

    /// R2: committed is exactly what was captured.
    fn check_commit(&mut self, host: usize, epoch: EpochId) {
        let Side::Backup(node) = &self.hosts[host].side else {
            return;
        };
        let key = (node.session_link, epoch);
        let memory = node.memory.checksum();
        let state = node.core.committed_state();
        // What came right behind the epoch's end may have had the copy given up.
        let is_kept = node.core.committed_epoch().is_some();
        let problem = match self.snapshots.get(&key) {
            None => Some("was never captured"),
            Some(snapshot) if snapshot.memory != memory => Some("has other memory"),
            Some(snapshot) if is_kept && snapshot.state != *state => {
                Some("has other machine state")
            }
            // The copy is being given up, for disks that failed before it was whole.
            Some(_) if self.hosts[host].disk.failed && !self.hosts[host].disk.whole => None,
            Some(snapshot) if snapshot.disks[0] != self.hosts[host].disk.at(epoch) => {
                Some("has other disks")
            }
            Some(_) => None,
        };
        if let Some(problem) = problem {
            self.violate(format!("R2: {epoch}, committed by host {host}, {problem}"));
        }
        self.count("commits");
        // Now and then what the journal has goes to the image.
        if self.rng.chance(300) {
            let process = self.process(host);
            self.soon(0, 3_000, Event::Destage(process));
        }
    }

    /// Only what memory has committed goes to the image.
    pub fn destage(&mut self, host: usize) {
        let Side::Backup(node) = &self.hosts[host].side else {
            return;
        };
        let (link, epoch) = (node.session_link, node.core.committed_epoch());
        let Some(epoch) = epoch.filter(|_| !self.hosts[host].disk.failed) else {
            return;
        };
        let fail = self.settings.sync_failures_permille;
        let works = [(); 2].map(|()| !self.rng.chance(fail));
        if self.hosts[host].disk.destage(epoch, works, &mut self.rng) {
            self.durable.insert(link, epoch);
            return self.backup(host, BackupInput::DisksDurable { epoch });
        }
        self.count("syncs failed");
        let error = "simulated".into();
        self.backup(host, BackupInput::DisksFailed { error });
    }

    pub fn restore_tried(&mut self, host: usize, ticket: u64, works: bool) {
        let outcome = works.then_some(()).ok_or_else(|| "simulated".into());
        if !works {
            self.count("trials failed");
        }
        self.backup(host, BackupInput::RestoreTried { ticket, outcome });
    }

    /// The journal has taken an epoch, or cannot.
    pub fn persisted(&mut self, host: usize, persisting: Persisting) {
        let Side::Backup(node) = &mut self.hosts[host].side else {
            return;
        };
        let Persisting {
            ticket,
            copy,
            epoch,
            writes,
            written_through,
        } = persisting;
        let is_present = node.copy == copy;
        if is_present {
            node.persisting = false;
        }
        if node.core.phase() == BackupPhase::Claiming {
            self.count("persisting when promoted");
        }
        if is_present && !self.put_down(host, epoch, &writes) {
            let outcome = Err("simulated".into());
            return self.backup(host, BackupInput::Persisted { ticket, outcome });
        }
        if is_present && let Side::Backup(node) = &mut self.hosts[host].side {
            node.persisted = epoch;
            node.shared.retain(|(of, _)| *of > written_through);
            node.shared.push((epoch, writes));
        }
        let outcome = Ok(());
        self.backup(host, BackupInput::Persisted { ticket, outcome });
    }

    /// The journal is on the disk, or cannot be.
    pub fn flushed(&mut self, host: usize, flushing: Flushing) {
        let Side::Backup(node) = &self.hosts[host].side else {
            return;
        };
        let Flushing {
            ticket,
            copy,
            epoch,
        } = flushing;
        let is_present = node.copy == copy;
        let works = !self.rng.chance(self.settings.sync_failures_permille);
        let disk = &mut self.hosts[host].disk;
        let mut outcome = Ok(());
        if is_present && (disk.failed || !disk.sync_journal(epoch, works)) {
            self.count("syncs failed");
            outcome = Err("simulated".into());
        }
        self.backup(host, BackupInput::Flushed { ticket, outcome });
    }

    /// The journal takes an epoch. After a failure it takes nothing more: what was written before a
    /// sync that failed may be gone, though the next one succeeds.
    fn put_down(&mut self, host: usize, epoch: EpochId, writes: &[Write]) -> bool {
        let cannot_write = self.rng.chance(self.settings.persist_failures_permille);
        let disk = &mut self.hosts[host].disk;
        if cannot_write || disk.failed {
            disk.failed = true;
            self.count("persisting failed");
            return false;
        }
        disk.append(epoch, writes.to_vec());
        true
    }

    /// A process ends: what a restart would make of the journal is one epoch's, and if power is
    /// lost, not an earlier one than the last that was said to be flushed.
    pub fn check_crash(&mut self, host: usize, power_lost: bool) {
        if power_lost {
            self.hosts[host].disk.lose_power(&mut self.rng);
        }
        let Side::Backup(node) = &self.hosts[host].side else {
            return;
        };
        let (disk, link) = (&self.hosts[host].disk, node.session_link);
        // Before the copy is whole, the image is marked as of no use.
        if !disk.whole && (power_lost || disk.failed) {
            return;
        }
        let epoch = disk.persisted().unwrap_or(disk.durable);
        let Some(snapshot) = self.snapshots.get(&(link, epoch)) else {
            return;
        };
        let flushed = self.flushed.get(&link).copied().unwrap_or_default();
        if disk.at(EpochId(u64::MAX)) != snapshot.disks[0] {
            self.violate(format!(
                "R2: host {host} crashes, its disk is not {epoch}'s"
            ));
        } else if epoch < flushed {
            self.violate(format!(
                "R1: host {host} loses power and has {epoch}; {flushed} was said to be flushed"
            ));
        }
        self.count("crashes of a backup checked");
        if power_lost {
            self.count("losses of power checked");
        }
    }

    pub fn promote(&mut self, host: usize, generation: Generation) {
        let Side::Backup(node) = &self.hosts[host].side else {
            return;
        };
        if self.lock.is_some() {
            // Whoever has it is stalled, or about to find out.
            self.count("waits for the lock");
            let process = self.process(host);
            return self.after(super::ms(1), Event::Lock(process, generation));
        }
        if self.is_stranger(node.session_link) {
            return self.violate(format!("R10: host {host} goes on with a stranger's guest"));
        }
        if self.hosts[host].disk.failed && !self.hosts[host].disk.whole {
            // They did so after it had asked.
            self.count("guests lost with their disks");
            return self.kill_and_restart(host, false);
        }
        let key = (
            node.session_link,
            node.core.committed_epoch().unwrap_or_default(),
        );
        let again = node.shared.iter().flat_map(|(_, writes)| writes);
        apply(again, SHARED, &mut self.shared);
        self.lock = Some(self.process(host));
        let disk = &mut self.hosts[host].disk;
        disk.cut(key.1);
        disk.recover(&mut self.rng);
        let disks = [disk.image, self.shared];
        if self.snapshots.get(&key).is_none_or(|s| s.disks != disks) {
            let epoch = key.1;
            self.violate(format!(
                "R2: host {host} goes on from {epoch} with other disks"
            ));
        }
        let Side::Backup(node) = &self.hosts[host].side else {
            return;
        };
        let restored = Guest::restore(node.core.committed_state(), &node.memory);
        let sealed = node.core.output_to_repeat();
        let memory = node.memory.clone();
        let guest = match restored {
            Ok(guest) => guest,
            Err(problem) => return self.violate(format!("R2: host {host} promoted: {problem}")),
        };
        let core = PrimaryCore::new(self.settings.policy.clone(), hello(), generation, self.now);
        let node = PrimaryHost::new(core, memory, guest, self.shared);
        self.hosts[host].side = Side::Primary(Box::new(node));
        self.hosts[host].heartbeats = HeartbeatFilter::new(true);
        self.schedule_wake(host);
        // Restoring and announcing take their time; the sealed output is repeated before the run.
        let process = self.process(host);
        let restoring = self.rng.micros(4_000, 8_000);
        self.after(restoring, Event::Repeat(process, sealed));
        self.after(restoring, Event::Run(process));
    }
}
