//! A host that waits to take over: what a runtime does around the backup's core.

use std::sync::Arc;

use understudy_replication::core::backup::{BackupCore, BackupEffect, BackupIdentity, BackupInput};
use understudy_replication::core::message::{Message, Welcome};
use understudy_replication::core::primary::PrimaryCore;
use understudy_replication::ids::{EpochId, Generation};
use understudy_replication::ports::PageMemory;

use super::guest::{Guest, SimMemory, from_sealed};
use super::outside::Question;
use super::primary_host::{PrimaryHost, hello};
use super::world::{Event, Role, World};

pub struct BackupHost {
    pub core: BackupCore,
    pub memory: Arc<SimMemory>,
    /// The link of the last session: epochs committed are of this one.
    session_link: usize,
}

impl World {
    pub fn start_backup(&mut self, host: usize) {
        let introduction = hello();
        let identity = BackupIdentity {
            vm: introduction.vm,
            node: format!("host {host}"),
            fingerprint: introduction.fingerprint,
            layout: introduction.layout,
            disks: Vec::new(),
        };
        let policy = self.settings.policy.clone();
        let core = BackupCore::new(policy, identity, Generation(0), self.now);
        self.trace(host, || "starts as backup".into());
        self.hosts[host].role = Role::Backup(Box::new(BackupHost {
            core,
            memory: Arc::new(SimMemory::new()),
            session_link: usize::MAX,
        }));
        self.start_beats(host);
    }

    pub fn backup(&mut self, host: usize, input: BackupInput) {
        let (now, link) = (self.now, self.hosts[host].link);
        let Role::Backup(node) = &mut self.hosts[host].role else {
            return;
        };
        let before = node.core.phase();
        let effects = node.core.handle(now, input, &*node.memory);
        let after = node.core.phase();
        if before != after {
            self.trace(host, || {
                format!("backup: {} → {}", before.name(), after.name())
            });
        }
        for effect in effects {
            self.backup_effect(host, effect, link);
        }
        self.schedule_wake(host);
    }

    fn backup_effect(&mut self, host: usize, effect: BackupEffect, link: Option<usize>) {
        let Role::Backup(node) = &mut self.hosts[host].role else {
            return;
        };
        match effect {
            BackupEffect::Send(message) => {
                let generation = node.core.generation();
                match (&message, link) {
                    (Message::Ack { epoch, .. }, Some(link)) => {
                        self.acked.insert(link, *epoch);
                    }
                    _ => {}
                }
                self.send(host, generation, &message);
            }
            BackupEffect::Welcome { node: name } => {
                let generation = node.core.generation();
                node.session_link = link.unwrap_or(usize::MAX);
                let disks = Vec::new();
                let welcome = Message::Welcome(Welcome { node: name, disks });
                self.send(host, generation, &welcome);
            }
            BackupEffect::BeginCopy(_)
            | BackupEffect::SyncDisk(_)
            | BackupEffect::Persist { .. } => {}
            BackupEffect::CloseLink => self.close_link(host),
            BackupEffect::Committed(epoch) => self.check_commit(host, epoch),
            BackupEffect::Discarded { epoch, why } => {
                self.trace(host, || format!("discards {epoch}: {why}"));
                self.count("epochs discarded");
            }
            BackupEffect::Claim(after) => self.ask(host, Question::Claim(after)),
            BackupEffect::Promote {
                generation,
                epoch,
                cause,
            } => {
                self.trace(host, || {
                    format!("is promoted to {generation}, {epoch}: {cause}")
                });
                self.count("promotions");
                self.promote(host, generation);
            }
            BackupEffect::Reset { reason } => {
                let cleared = node.memory.clear();
                self.trace(host, || format!("resets: {reason}"));
                self.count("resets");
                cleared.expect("memory clears");
            }
        }
    }

    /// R2: committed is exactly what was captured.
    fn check_commit(&mut self, host: usize, epoch: EpochId) {
        let Role::Backup(node) = &self.hosts[host].role else {
            return;
        };
        let key = (node.session_link, epoch);
        let memory = node.memory.checksum();
        let state = node.core.committed_state();
        let problem = match self.snapshots.get(&key) {
            None => Some("was never captured"),
            Some(snapshot) if snapshot.memory != memory => Some("has other memory"),
            Some(snapshot) if snapshot.state != *state => Some("has other machine state"),
            Some(_) => None,
        };
        if let Some(problem) = problem {
            self.violate(format!("R2: {epoch}, committed by host {host}, {problem}"));
        }
        if epoch.0 > 2 {
            self.snapshots.remove(&(key.0, EpochId(epoch.0 - 2)));
        }
        self.count("commits");
    }

    fn promote(&mut self, host: usize, generation: Generation) {
        let Role::Backup(node) = &self.hosts[host].role else {
            return;
        };
        let restored = Guest::restore(node.core.committed_state(), &node.memory);
        let sealed = from_sealed(node.core.committed_output());
        let memory = node.memory.clone();
        let guest = match restored {
            Ok(guest) => guest,
            Err(problem) => return self.violate(format!("R2: host {host} promoted: {problem}")),
        };
        let core = PrimaryCore::new(self.settings.policy.clone(), hello(), generation, self.now);
        let node = PrimaryHost::new(core, memory, guest);
        self.hosts[host].role = Role::Primary(Box::new(node));
        // Restoring and announcing take their time; the sealed output is repeated before the run.
        let process = self.process(host);
        let restoring = self.rng.micros(4_000, 8_000);
        self.after(restoring, Event::Repeat(process, sealed));
        self.after(restoring, Event::Run(process));
    }
}
