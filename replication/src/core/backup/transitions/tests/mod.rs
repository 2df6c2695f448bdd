//! Each rule of the backup's transition table: a backup with a clock and memory of its own, for the
//! tests beside.

mod disks;
mod epochs;
mod flushes;
mod health;
mod inquiry;
mod introduction;
mod losing;
mod promotion;
mod restorable;
mod status;
mod strays;
mod takeover;

use super::*;
use crate::arbiter::{Record, Verdict};
use crate::core::codec::{BatchWriter, Encoder};
use crate::core::epoch::assemble::{BatchBytes, EpochAssembler, EpochDisks};
use crate::core::message::{Hello, Refusal};
use crate::core::testing::TestMemory;
use crate::ids::{PAGE_BYTES, PageIndex};
use crate::output::SealedOutput;

const MS: Duration = Duration::from_millis(1);
const GENERATION: Generation = Generation(3);
const SESSION: u64 = 7;
const STATE: Bytes = Bytes::from_static(b"state");

/// A backup with a clock and memory of its own.
struct Bench {
    core: BackupCore,
    memory: TestMemory,
    now: Duration,
}

fn arbiter() -> ArbiterId {
    ArbiterId("arbiter".into())
}

/// What the arbiter says of a generation in force, with the session's mark of this number.
fn record(generation: u64, beat: u64) -> Record {
    Record {
        arbiter: arbiter(),
        generation: Generation(generation),
        mark: mark(beat),
        ..Record::default()
    }
}

fn mark(beat: u64) -> Mark {
    Mark {
        session: SESSION,
        beat,
    }
}

fn claim() -> Effect {
    Effect::Claim {
        known: GENERATION,
        mark: mark(1),
    }
}

/// This side's part of the session's number is 0, so the number is the primary's part.
fn link_up() -> Input {
    Input::LinkUp { session: 0 }
}

fn welcomed() -> Effect {
    Effect::Welcome { session: 0 }
}

fn unavailable() -> Input {
    let why = "no answer".into();
    Input::ArbiterUnavailable { why }
}

fn ack(epoch: u64, durable: u64) -> Effect {
    Effect::Send(Message::Ack {
        epoch: EpochId(epoch),
        durable: EpochId(durable),
    })
}

fn batch(page: u64, fill: u8) -> Bytes {
    let mut writer = BatchWriter::new(1 << 20);
    let frame = Box::new([fill; PAGE_BYTES]);
    let _ = Encoder::new(0).encode(PageIndex(page), frame, &mut writer);
    writer.finish().expect("a page").body
}

/// The messages of an epoch that fills page 100.
fn epoch_messages(epoch: u64, fill: u8) -> Vec<Message> {
    epoch_with(epoch, 1, fill, EpochDisks::default())
}

/// The messages of an epoch that fills so many pages from 100 on, and writes to disks.
fn epoch_with(epoch: u64, pages: u64, fill: u8, disks: EpochDisks<'_>) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut assembler = EpochAssembler::new(EpochId(epoch), BatchBytes::default(), &mut messages);
    let mut encoder = Encoder::new(0);
    for page in 100..100 + pages {
        let frame = Box::new([fill; PAGE_BYTES]);
        let Ok(_) = assembler.page(&mut encoder, PageIndex(page), frame);
    }
    let Ok(_) = assembler.end(disks, STATE, SealedOutput::default());
    messages
}

impl Bench {
    fn new() -> Self {
        let memory = TestMemory::new(4);
        let now = 1000 * MS;
        let identity = BackupIdentity {
            vm: "vm0".into(),
            node: "b".into(),
            host: None,
            starts: Default::default(),
            has_replicated: false,
            has_shared: false,
            fingerprint: Fingerprint::new(),
            layout: memory.layout().clone(),
            disks: Vec::new(),
            arbiter: arbiter(),
        };
        Self {
            core: BackupCore::new(Policy::default(), identity, Generation(2), now),
            memory,
            now,
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            vm: "vm0".into(),
            node: "a".into(),
            fingerprint: Fingerprint::new(),
            layout: self.memory.layout().clone(),
            arbiter: arbiter(),
            session: SESSION,
        }
    }

    /// Without what is reported about takeovers; see [`Bench::give_all`].
    fn give(&mut self, input: Input) -> Vec<Effect> {
        let mut out = self.give_all(input);
        out.retain(|effect| !matches!(effect, Effect::Takeover(_)));
        out
    }

    /// Each state can be loaded, which is not reported; see [`Bench::give_raw`].
    fn give_all(&mut self, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        for effect in self.give_raw(input) {
            match effect {
                Effect::TryRestore { ticket, .. } => {
                    let outcome = Ok(());
                    out.extend(self.give_raw(Input::RestoreTried { ticket, outcome }));
                }
                effect => out.push(effect),
            }
        }
        out
    }

    fn give_raw(&mut self, input: Input) -> Vec<Effect> {
        self.core.handle(self.now, input, &self.memory)
    }

    /// A primary of this generation introduces itself, and the arbiter says that it is in force.
    fn introduce(&mut self, generation: Generation) -> Vec<Effect> {
        assert_eq!(self.give(link_up()), []);
        let hello = self.hello();
        assert_eq!(
            self.hear_from(generation, Message::Hello(hello)),
            [Effect::Rehearse]
        );
        self.give(Input::Rehearsed(record(generation.0, 0)))
    }

    fn hear_from(&mut self, generation: Generation, message: Message) -> Vec<Effect> {
        self.give(Input::Received {
            generation,
            message,
        })
    }

    fn hear(&mut self, message: Message) -> Vec<Effect> {
        self.hear_from(GENERATION, message)
    }

    fn pass(&mut self, time: Duration, link: bool, path: bool) -> Vec<Effect> {
        let end = self.now + time;
        let mut out = Vec::new();
        while self.now < end {
            self.now += MS;
            if link {
                out.extend(self.hear(Message::Heartbeat));
            }
            if path {
                let generation = GENERATION;
                out.extend(self.give(Input::HeartbeatHeard {
                    session: SESSION,
                    generation,
                }));
            }
            out.extend(self.give(Input::Tick));
        }
        out.retain(|effect| *effect != Effect::Send(Message::Heartbeat));
        out
    }

    fn fill(&self) -> u8 {
        self.memory.content()[0][0]
    }

    fn syncing() -> Self {
        let mut bench = Self::new();
        assert_eq!(bench.introduce(GENERATION), [welcomed()]);
        assert_eq!(bench.core.generation(), GENERATION);
        bench.prove();
        bench
    }

    /// The primary has written its first mark, and this side finds it.
    fn prove(&mut self) {
        assert_eq!(self.hear(Message::Marked(mark(1))), [Effect::Rehearse]);
        let seen = Effect::Send(Message::Seen(mark(1)));
        assert_eq!(self.give(Input::Rehearsed(record(GENERATION.0, 1))), [seen]);
    }

    fn receive(&mut self, epoch: u64, fill: u8) {
        let mut effects = Vec::new();
        for message in epoch_messages(epoch, fill) {
            effects.extend(self.hear(message));
        }
        let epoch = EpochId(epoch);
        assert_eq!(effects, [ack(epoch.0, 0)]);
        assert_eq!(self.core.next_wakeup(), Some(self.now), "commit at once");
        assert_eq!(self.give(Input::Tick), [Effect::Committed(epoch)]);
    }

    fn standby() -> Self {
        let mut bench = Self::syncing();
        bench.receive(1, 1);
        bench
    }

    /// Standby, and epoch 2 has begun to arrive.
    fn torn() -> Self {
        let mut bench = Self::standby();
        bench.hear(epoch_messages(2, 2).remove(0));
        bench
    }
}

/// Asserts that the effects close the link, discard epoch 2 and claim, in this order.
#[track_caller]
fn assert_discards_and_claims(effects: &[Effect]) {
    match effects {
        [
            Effect::CloseLink,
            Effect::Discarded { epoch, why },
            Effect::Claim { .. },
        ] => {
            assert_eq!(*epoch, EpochId(2));
            assert!(!why.is_empty());
        }
        other => panic!("no discard and claim: {other:?}"),
    }
}

#[track_caller]
fn assert_resets(effects: &[Effect]) {
    assert!(
        matches!(effects, [Effect::CloseLink, .., Effect::Reset { .. }]),
        "{effects:?}"
    );
}
