//! A host that runs the guest: what a runtime does around the primary's core.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use understudy_replication::arbiter::Mark;
use understudy_replication::core::codec::Encoder;
use understudy_replication::core::disk::{DiskSyncPlan, PairId};
use understudy_replication::core::epoch::assemble::{
    BatchBytes, EpochAssembler, EpochDisks, SyncAssembler,
};
use understudy_replication::core::message::{Bye, Hello, Message};
use understudy_replication::core::primary::{
    Pause, PrimaryCore, PrimaryEffect, PrimaryInput, PrimaryPhase,
};
use understudy_replication::core::throttle::RunShare;
use understudy_replication::ids::{EpochId, Generation};
use understudy_replication::page_set::PageSet;

use super::disk::{Image, PrimaryDisks, REPLICATED, SHARED, Write, apply, encode};
use super::events::Event;
use super::gate::Gate;
use super::guest::{Guest, SimMemory, layout};
use super::outside::{Process, Question, arbiter_id};
use super::world::{Side, Snapshot, World};

pub struct PrimaryHost {
    pub core: PrimaryCore,
    pub memory: Arc<SimMemory>,
    pub guest: Guest,
    pub gate: Gate,
    pub running: bool,
    /// How much of its time it may run, as its vCPUs were told.
    share: RunShare,
    /// Its machine has broken.
    pub broke: bool,
    pub disks: PrimaryDisks,
    /// No backup is wanted before.
    pub alone_until: Duration,
    /// The generation held when last looked at: a new one was granted to go alone.
    generation: Generation,
    encoder: Encoder,
}

/// Something the runtime does meanwhile.
pub enum Work {
    Sync,
    SyncShipped,
    WriteShared(EpochId),
    Capture(EpochId),
    /// Its messages, and how many bytes they are in all.
    Ship(EpochId, VecDeque<Message>, u64),
    Shipped(EpochId, u64),
}

/// What the initial synchronisation takes for a page.
const PAGE_TAKES: Duration = Duration::from_micros(300);
/// Simulated epochs count for so many times what they are: they are small.
const EPOCH_TIMES: u64 = 8;

/// Small, so that epochs have several batches: of two disk writes at most.
const BATCHES: BatchBytes = BatchBytes {
    pages: 9000,
    disk: 1200,
};
/// Fewer than the guest has pages, so that the cache evicts.
const CACHE_PAGES: usize = 20;

pub fn hello() -> Hello {
    Hello {
        vm: "vm".into(),
        node: "primary".into(),
        fingerprint: Default::default(),
        layout: layout(),
        arbiter: arbiter_id(),
        session: 0,
    }
}

/// Everything of both disks is sent.
fn plan() -> Message {
    let plan = DiskSyncPlan {
        candidate: PairId(1),
        full: true,
        from: None,
    };
    Message::SyncDisks(vec![plan; 2])
}

/// The messages that copy a guest whose memory and disks are empty, up to its first epoch.
pub fn copy_of_guest(mut guest: Guest) -> Vec<Message> {
    let (memory, mut encoder) = (SimMemory::new(), Encoder::new(CACHE_PAGES));
    guest.step(1, &memory);
    let mut messages = vec![plan()];
    let mut assembler = SyncAssembler::new(BATCHES, &mut messages);
    for page in PageSet::full(&layout()).iter() {
        drop(
            assembler
                .page(&mut encoder, page, memory.frame(page))
                .unwrap(),
        );
    }
    assembler.end().unwrap();
    let assembler = EpochAssembler::new(EpochId(1), BATCHES, &mut messages);
    let disks = EpochDisks {
        writes: &[],
        flush: false,
        written_through: EpochId(0),
    };
    let output = Gate::new().seal(EpochId(1));
    assembler.end(disks, guest.save(), output).unwrap();
    messages
}

impl PrimaryHost {
    pub fn new(core: PrimaryCore, memory: Arc<SimMemory>, guest: Guest, shared: Image) -> Self {
        Self {
            generation: core.generation(),
            core: core.with_shared_disks(true),
            disks: PrimaryDisks::of(shared),
            memory,
            guest,
            gate: Gate::new(),
            running: false,
            share: RunShare::FULL,
            broke: false,
            alone_until: Duration::ZERO,
            encoder: Encoder::new(CACHE_PAGES),
        }
    }

    /// A copy begins.
    fn attach(&mut self) {
        self.encoder.forget();
        self.disks.attach();
    }
}

impl World {
    /// Host `host` starts the guest from nothing.
    pub fn boot_guest(&mut self, host: usize, generation: Generation) {
        let policy = self.settings.policy.clone();
        let core = PrimaryCore::new(policy, hello(), generation, self.now);
        let node = PrimaryHost::new(
            core,
            Arc::new(SimMemory::new()),
            Guest::boot(self.client.starts),
            self.shared,
        );
        self.lock = Some(self.process(host));
        self.hosts[host].side = Side::Primary(Box::new(node));
        self.run_promoted(self.process(host));
        self.start_beats(host, true);
        self.schedule_wake(host);
    }

    /// The guest runs, and the primary looks for a backup.
    pub fn run_promoted(&mut self, who: Process) {
        if let Side::Primary(node) = &mut self.hosts[who.0].side {
            if node.guest.ended {
                self.count("ended guests promoted");
                return self.primary(who.0, PrimaryInput::GuestStopped);
            }
            node.running = true;
            self.after(super::ms(1), Event::GuestStep(who));
            self.soon(0, 10_000, Event::Connect(who));
        }
    }

    pub fn guest_step(&mut self, who: Process) {
        let input = self.rng.next();
        let Side::Primary(node) = &mut self.hosts[who.0].side else {
            return;
        };
        if !node.running {
            return;
        }
        let step = node.guest.step(input, &node.memory);
        node.disks.flush |= step.flush;
        if step.flush {
            self.hosts[who.0].disk.sync_image(true, &mut self.rng);
        }
        let Side::Primary(node) = &mut self.hosts[who.0].side else {
            return;
        };
        if let Some(write) = step.write
            && node.disks.write(write)
        {
            match write.disk {
                REPLICATED => self.hosts[who.0].disk.write(write.sector, write.value),
                _ => self.write_shared(who.0, &[write]),
            }
        }
        let Side::Primary(node) = &mut self.hosts[who.0].side else {
            return;
        };
        if let Some(output) = step.output {
            let generation = node.core.generation();
            match node.gate.take(output) {
                Some(output) => self.outputs(who.0, generation, vec![output]),
                None => self.primary(who.0, PrimaryInput::OutputWaiting),
            }
        }
        self.soon(300, 1_500, Event::GuestStep(who));
    }

    pub fn primary(&mut self, host: usize, input: PrimaryInput) {
        let now = self.now;
        let Side::Primary(node) = &mut self.hosts[host].side else {
            return;
        };
        let before = node.core.phase();
        let effects = node.core.handle(now, input);
        let after = node.core.phase();
        let wakeup = node.core.next_wakeup();
        self.decided(host, &effects, wakeup);
        if before != after {
            self.trace(host, || {
                format!("primary: {} → {}", before.name(), after.name())
            });
        }
        for effect in effects {
            self.primary_effect(host, effect);
        }
        if after == PrimaryPhase::Stopped && before != after {
            self.check_end(host);
        }
        self.check_speed(host);
        self.check_protected(host);
        self.schedule_wake(host);
    }

    /// A guest without a backup has nothing to wait for.
    fn check_speed(&mut self, host: usize) {
        if let Side::Primary(node) = &self.hosts[host].side
            && node.core.phase() == PrimaryPhase::Alone
            && !node.share.is_full()
        {
            self.violate(format!("host {host} slows a guest without a backup"));
        }
    }

    /// A side that ends with its guest has let out all that the guest has said.
    fn check_end(&mut self, host: usize) {
        let Side::Primary(node) = &self.hosts[host].side else {
            // It was left to its backup.
            return;
        };
        let holds = node.gate.holds() || node.disks.holds();
        self.count("guests ended");
        if holds {
            self.violate(format!("host {host} ends with the guest's output held"));
        }
    }

    fn primary_effect(&mut self, host: usize, effect: PrimaryEffect) {
        let Side::Primary(node) = &mut self.hosts[host].side else {
            return;
        };
        let generation = node.core.generation();
        match effect {
            PrimaryEffect::Send(message) => {
                if matches!(message, Message::Bye(Bye::GuestStopped)) {
                    self.farewells.insert(generation);
                }
                self.send(host, generation, &message);
            }
            PrimaryEffect::Throttle(share) => node.share = share,
            PrimaryEffect::TakeOver { why, machine_broke } => {
                let message = Message::TakeOver {
                    why,
                    machine_broke,
                    left_through: node.gate.left_through(),
                };
                self.send(host, generation, &message);
            }
            PrimaryEffect::StartSync { .. } => self.start_sync(host, generation),
            PrimaryEffect::SyncRound => self.begin_work(host, Work::Sync),
            PrimaryEffect::Capture(epoch) => {
                if node.broke {
                    self.violate(format!(
                        "R2: host {host} captures a machine that has broken"
                    ));
                }
                self.begin_work(host, Work::Capture(epoch));
            }
            PrimaryEffect::WriteDisks(epoch) => self.begin_work(host, Work::WriteShared(epoch)),
            PrimaryEffect::Durable(epoch) => self.check_durable(host, epoch),
            PrimaryEffect::Flushed(epoch) => {
                node.disks.flushed(epoch);
                self.check_told(host, epoch);
            }
            // No images are compared here, and nothing comes in.
            PrimaryEffect::Compared(_)
            | PrimaryEffect::KeepArrivals
            | PrimaryEffect::SendArrivals => {}
            PrimaryEffect::Release(through) => self.release(host, generation, through),
            PrimaryEffect::CloseLink => {
                node.disks.detach();
                self.close_link(host);
            }
            PrimaryEffect::Claim { known, mark } => self.claim_alone(host, known, mark),
            PrimaryEffect::Confirm {
                generation,
                beat,
                mark,
            } => {
                if node.core.is_in_doubt() {
                    self.count("doubts");
                }
                self.ask(host, Question::Confirm(generation, beat, mark));
            }
            PrimaryEffect::Takeover(outcome) => self.takeover(host, outcome),
            PrimaryEffect::GoAlone { generation, cause } => self.go_alone(host, generation, &cause),
            // Nobody has the guest any more, and its process ends.
            PrimaryEffect::NotHandedOver { .. } if node.broke => self.lost_with_machine(host),
            PrimaryEffect::NotHandedOver { .. } => self.count("guests not handed over"),
            PrimaryEffect::LeftToBackup { .. } => {
                node.gate.shut();
                self.count("guests left to their backup");
                self.kill_and_restart(host, false);
            }
            PrimaryEffect::Fenced {
                reason,
                handed_over,
            } => {
                node.gate.shut();
                node.running = false;
                self.fenced(host, generation, &reason, handed_over);
            }
        }
    }

    fn start_sync(&mut self, host: usize, generation: Generation) {
        if let Side::Primary(node) = &mut self.hosts[host].side {
            node.attach();
        }
        self.arbiter.note(generation, true);
        self.send(host, generation, &plan());
        self.begin_work(host, Work::Sync);
    }

    fn lost_with_machine(&mut self, host: usize) {
        self.count("guests lost with their machine");
        self.kill_and_restart(host, false);
    }

    fn fenced(&mut self, host: usize, generation: Generation, reason: &str, handed_over: bool) {
        self.trace(host, || format!("is fenced: {reason}"));
        self.check_fenced(host, generation);
        self.count("fenced");
        if handed_over {
            self.count("guests handed over");
        }
        self.kill_and_restart(host, false);
    }

    fn claim_alone(&mut self, host: usize, known: Generation, mark: Mark) {
        if let Side::Primary(node) = &self.hosts[host].side
            && node.broke
        {
            self.violate(format!(
                "host {host}, whose machine has broken, claims the guest from its backup"
            ));
        }
        self.ask(host, Question::Claim(known, mark));
    }

    fn go_alone(&mut self, host: usize, generation: Generation, cause: &str) {
        let Side::Primary(node) = &mut self.hosts[host].side else {
            return;
        };
        let outputs = node.gate.open();
        let writes = node.disks.go_alone();
        if std::mem::replace(&mut node.generation, generation) != generation {
            self.count("solo grants");
        }
        self.arbiter.note(generation, false);
        self.trace(host, || format!("goes alone under {generation}: {cause}"));
        self.count("went alone");
        self.write_shared(host, &writes);
        self.outputs(host, generation, outputs);
        let process = self.process(host);
        self.soon(0, 3_000, Event::Opened(process));
        self.soon(1_000, 20_000, Event::Connect(process));
    }

    fn release(&mut self, host: usize, generation: Generation, through: EpochId) {
        let Side::Primary(node) = &mut self.hosts[host].side else {
            return;
        };
        let outputs = node.gate.release(through);
        if node.disks.holds_through(through) {
            self.violate(format!(
                "R1: host {host} releases frames of {through} before its disk writes"
            ));
        }
        let link = self.hosts[host].link;
        if link.and_then(|link| self.acked.get(&link)) < Some(&through) {
            self.violate(format!(
                "R1: host {host} releases {through}, which is not acked"
            ));
        }
        self.trace(host, || {
            format!("releases {through}: {} outputs", outputs.len())
        });
        self.count("releases");
        self.outputs(host, generation, outputs);
    }

    fn begin_work(&mut self, host: usize, work: Work) {
        let (process, session) = (self.process(host), self.hosts[host].session);
        let most_us = match work {
            Work::Ship(..) => 400,
            _ => 1_200,
        };
        self.soon(50, most_us, Event::Work(process, session, work));
    }

    pub fn work(&mut self, host: usize, work: Work) {
        match work {
            Work::Sync => self.sync_round(host),
            Work::WriteShared(epoch) => self.write_released(host, epoch),
            Work::SyncShipped => {
                if let Side::Primary(node) = &self.hosts[host].side {
                    let pages_left = node.memory.dirty_pages();
                    let disk_bytes_left = u64::from(node.disks.is_copying());
                    self.primary(
                        host,
                        PrimaryInput::SyncRoundShipped {
                            pages_left,
                            disk_bytes_left,
                            left_takes: PAGE_TAKES * pages_left as u32,
                        },
                    );
                }
            }
            Work::Capture(epoch) => self.capture(host, epoch),
            Work::Ship(epoch, mut messages, bytes) => {
                if let Some(message) = messages.pop_front() {
                    let Side::Primary(node) = &self.hosts[host].side else {
                        return;
                    };
                    let generation = node.core.generation();
                    self.send(host, generation, &message);
                }
                let done = messages.is_empty();
                let next = if done {
                    Work::Shipped(epoch, bytes)
                } else {
                    Work::Ship(epoch, messages, bytes)
                };
                self.begin_work(host, next);
            }
            Work::Shipped(epoch, bytes) => {
                self.primary(host, PrimaryInput::Shipped { epoch, bytes });
            }
        }
    }

    /// What an acked epoch wrote to the shared disk goes there.
    fn write_released(&mut self, host: usize, epoch: EpochId) {
        let link = self.hosts[host].link;
        if link.and_then(|link| self.acked.get(&link)) < Some(&epoch) {
            self.violate(format!(
                "R1: host {host} writes {epoch} to the shared disk, which is not acked"
            ));
        }
        let Side::Primary(node) = &mut self.hosts[host].side else {
            return;
        };
        let writes = node.disks.release(epoch);
        self.write_shared(host, &writes);
        self.primary(host, PrimaryInput::DisksWritten { epoch });
    }

    fn write_shared(&mut self, host: usize, writes: &[Write]) {
        let is_superseded = match &self.hosts[host].side {
            Side::Primary(node) => node.guest.start != self.client.starts,
            Side::Backup(_) | Side::Down => false,
        };
        if is_superseded {
            // The storage has taken its lock away, and takes no writes.
            return;
        }
        if self.lock != Some(self.process(host)) && !writes.is_empty() {
            self.violate(format!(
                "R4: host {host} writes to the shared disk without its lock"
            ));
        }
        apply(writes, SHARED, &mut self.shared);
    }

    fn check_durable(&mut self, host: usize, epoch: EpochId) {
        let Some(link) = self.hosts[host].link else {
            return;
        };
        let durable = self.durable.get(&link).copied().unwrap_or_default();
        if durable < epoch {
            let peer = self.links[link].backup.0;
            self.violate(format!(
                "host {host} takes {epoch} for durable on host {peer}, which had {durable}"
            ));
        }
        self.count("durable epochs");
    }

    /// Disks first, then all of memory, then what became dirty.
    fn sync_round(&mut self, host: usize) {
        let image = self.hosts[host].disk.image;
        let Side::Primary(node) = &mut self.hosts[host].side else {
            return;
        };
        let generation = node.core.generation();
        let all = node.disks.is_copying();
        let writes = encode(&node.disks.sync_some(&image));
        let mut messages = Vec::new();
        let mut assembler = SyncAssembler::new(BATCHES, &mut messages);
        assembler.disk(&writes).unwrap();
        if !node.disks.is_copying() {
            // Tracking starts before the first page is read: what changes meanwhile is dirty again.
            let dirty = node.memory.harvest();
            let pages = if all { PageSet::full(&layout()) } else { dirty };
            for page in pages.iter() {
                let frame = node.memory.frame(page);
                drop(assembler.page(&mut node.encoder, page, frame).unwrap());
            }
        }
        assembler.end().unwrap();
        for message in &messages {
            self.send(host, generation, message);
        }
        self.begin_work(host, Work::SyncShipped);
    }

    /// Steps ② to ④ of an epoch, the guest standing still.
    fn capture(&mut self, host: usize, epoch: EpochId) {
        let fails = self.rng.chance(self.settings.capture_failures_permille);
        let image = self.hosts[host].disk.image;
        let Side::Primary(node) = &mut self.hosts[host].side else {
            return;
        };
        let failed = fails || node.broke;
        let pages = node.memory.harvest();
        if failed {
            node.memory.give_back(&pages);
            self.count("captures failed");
            let error = String::from("simulated");
            return self.primary(host, PrimaryInput::CaptureFailed { epoch, error });
        }
        let state = node.guest.save();
        node.gate.hold();
        let output = node.gate.seal(epoch);
        let (writes, flush) = node.disks.seal(epoch);
        let snapshot = Snapshot {
            memory: node.memory.checksum(),
            state: state.clone(),
            disks: [image, node.disks.shared],
            wrote: !writes.is_empty(),
        };
        let mut messages = Vec::new();
        let mut assembler = EpochAssembler::new(epoch, BATCHES, &mut messages);
        for page in pages.iter() {
            let frame = node.memory.frame(page);
            drop(assembler.page(&mut node.encoder, page, frame).unwrap());
        }
        let disks = EpochDisks {
            writes: &encode(&writes),
            flush,
            written_through: node.disks.written_through,
        };
        assembler.end(disks, state, output).unwrap();
        if let Some(link) = self.hosts[host].link {
            self.snapshots.insert((link, epoch), snapshot);
        }
        self.count("captures");
        self.primary(
            host,
            PrimaryInput::Captured {
                epoch,
                pause: Pause::default(),
            },
        );
        let bytes = messages
            .iter()
            .map(|message| message.encode().2.len() as u64);
        let bytes = EPOCH_TIMES * bytes.sum::<u64>();
        self.begin_work(host, Work::Ship(epoch, messages.into(), bytes));
    }
}
