//! A peer may say anything at any time: neither core may panic, loop, or give away what is only to be
//! had by the rules.
#![forbid(unsafe_code)]

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use understudy_replication::arbiter::Verdict;
use understudy_replication::core::backup::{BackupCore, BackupEffect, BackupIdentity, BackupInput};
use understudy_replication::core::codec::{BATCH_BYTES_DEFAULT, BatchWriter, Encoder};
use understudy_replication::core::message::{Bye, EpochTally, Hello, Message, Refusal, Welcome};
use understudy_replication::core::primary::{
    Policy, PrimaryCore, PrimaryEffect, PrimaryInput, PrimaryPhase,
};
use understudy_replication::ids::{EpochId, Generation, PAGE_BYTES, Page, PageIndex};
use understudy_replication::page_set::{MemoryLayout, Region};
use understudy_replication::ports::{MachineError, PageMemory, SealedOutput};

const GENERATION: u64 = 3;

/// Two pages.
struct Memory(MemoryLayout, Mutex<[Page; 2]>);

impl Memory {
    fn new() -> Self {
        let first = PageIndex(0);
        let layout = MemoryLayout::new(vec![Region { first, pages: 2 }]);
        Self(layout, Mutex::new([[0; PAGE_BYTES]; 2]))
    }
}

impl PageMemory for Memory {
    fn layout(&self) -> &MemoryLayout {
        &self.0
    }
    fn read_page(&self, page: PageIndex, into: &mut Page) -> Result<(), MachineError> {
        *into = self.1.lock().expect("lock")[page.0 as usize];
        Ok(())
    }
    fn write_page(&self, page: PageIndex, from: &Page) -> Result<(), MachineError> {
        self.1.lock().expect("lock")[page.0 as usize] = *from;
        Ok(())
    }
    fn clear(&self) -> Result<(), MachineError> {
        *self.1.lock().expect("lock") = [[0; PAGE_BYTES]; 2];
        Ok(())
    }
}

fn hello(pages: u64) -> Hello {
    let first = PageIndex(0);
    Hello {
        vm: "vm".into(),
        node: "a".into(),
        fingerprint: Default::default(),
        layout: MemoryLayout::new(vec![Region { first, pages }]),
    }
}

/// The messages of a good epoch, to be sent in any order.
fn epoch_part(epoch: u64, part: u8) -> Message {
    let epoch = EpochId(epoch);
    let mut writer = BatchWriter::new(BATCH_BYTES_DEFAULT);
    let frame = Box::new([epoch.0 as u8; PAGE_BYTES]);
    drop(Encoder::new(0).encode(PageIndex(1), frame, &mut writer));
    let batch = writer.finish().expect("a page");
    let (state, output) = (Bytes::from_static(b"s"), SealedOutput::default());
    match part {
        0 => Message::EpochPages {
            epoch,
            batch: batch.body,
        },
        1 => Message::EpochState { epoch, state },
        2 => Message::EpochOutput { epoch, output },
        _ => {
            let mut tally = EpochTally::new();
            tally.batch(&batch.body, batch.pages);
            tally.state(&state);
            tally.output(&output);
            let summary = tally.summary();
            Message::EpochEnd { epoch, summary }
        }
    }
}

fn messages() -> impl Strategy<Value = Message> {
    let epochs = prop_oneof![4 => 1u64..4, 1 => any::<u64>()];
    let generations = (0u64..6).prop_map(Generation);
    prop_oneof![
        (1u64..4).prop_map(|pages| Message::Hello(hello(pages))),
        Just(Message::Welcome(Welcome { node: "b".into() })),
        Just(Message::Refuse(Refusal::Busy("so".into()))),
        generations
            .clone()
            .prop_map(|current| Message::Refuse(Refusal::Stale { current })),
        proptest::collection::vec(any::<u8>(), 0..40)
            .prop_map(|bytes| Message::SyncPages(bytes.into())),
        (1u64..4, 0u8..4).prop_map(|(epoch, part)| epoch_part(epoch, part)),
        epochs.prop_map(|epoch| Message::Ack {
            epoch: EpochId(epoch)
        }),
        Just(Message::Heartbeat),
        Just(Message::Bye(Bye::GuestStopped)),
        Just(Message::Bye(Bye::BackupStopped)),
        Just(Message::Bye(Bye::Protocol("so".into()))),
        generations.prop_map(|current| Message::Bye(Bye::Fenced { current })),
    ]
}

/// What the world does to a core.
#[derive(Debug, Clone)]
enum Step {
    LinkUp,
    LinkEnds(bool),
    Hear(u64, Message),
    /// The peer introduces itself, as it should.
    Introduce,
    /// A whole good epoch, or for a primary an ack of what is in flight.
    Good,
    Beat(u64),
    Pass(u64),
    /// The runtime does what it was last asked to.
    Obey,
    Answer(Option<Verdict>),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let verdicts = prop_oneof![
        Just(None),
        (1u64..6).prop_map(|generation| Some(Verdict::Granted(Generation(generation)))),
        (1u64..6).prop_map(|generation| Some(Verdict::Refused {
            current: Generation(generation),
            holder: "c".into()
        })),
    ];
    let step = prop_oneof![
        2 => Just(Step::LinkUp),
        1 => any::<bool>().prop_map(Step::LinkEnds),
        4 => (prop_oneof![8 => Just(GENERATION), 1 => 0u64..6], messages())
            .prop_map(|(generation, message)| Step::Hear(generation, message)),
        3 => Just(Step::Introduce),
        6 => Just(Step::Good),
        1 => (0u64..6).prop_map(Step::Beat),
        3 => (0u64..200).prop_map(Step::Pass),
        6 => Just(Step::Obey),
        1 => verdicts.prop_map(Step::Answer),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the peer says: the primary releases no epoch that it did not ship and that was not
    /// acked in its session, goes alone after epoch 1 only under a later generation that the arbiter
    /// granted, and does nothing any more once fenced.
    #[test]
    fn primary_gives_nothing_away(steps in steps()) {
        let mut now = Duration::from_secs(1);
        let mut core = PrimaryCore::new(Policy::default(), hello(2), Generation(GENERATION), now);
        let (mut shipped, mut acked) = (EpochId(0), EpochId(0));
        let mut todo: Vec<PrimaryInput> = Vec::new();
        let mut granted = GENERATION;
        for step in steps {
            let generation = core.generation();
            let input = match step {
                Step::LinkUp => PrimaryInput::LinkUp,
                Step::LinkEnds(_) => PrimaryInput::LinkDown { cause: "so".into() },
                Step::Hear(from, message) => {
                    if let Message::Ack { epoch } = message && from == generation.0 {
                        // Also before the report that it is shipped.
 if core.in_flight() == Some(epoch) { acked = epoch; }
                    }
                    PrimaryInput::Received { generation: Generation(from), message }
                }
                Step::Introduce => PrimaryInput::Received {
                    generation,
                    message: Message::Welcome(Welcome { node: "b".into() }),
                },
                Step::Good => match core.in_flight() {
                    Some(epoch) => {
                        acked = epoch;
                        PrimaryInput::Received { generation, message: Message::Ack { epoch } }
                    }
                    None => PrimaryInput::Received {
                        generation,
                        message: match core.phase() {
                            PrimaryPhase::Handshaking => Message::Welcome(Welcome { node: "b".into() }),
                            _ => Message::Heartbeat,
                        },
                    },
                },
                Step::Beat(from) => PrimaryInput::HeartbeatHeard { generation: Generation(from) },
                Step::Pass(millis) => {
                    now += Duration::from_millis(millis);
                    PrimaryInput::Tick
                }
                Step::Obey if todo.is_empty() => PrimaryInput::CheckpointWanted,
                Step::Obey => todo.remove(0),
                Step::Answer(None) => PrimaryInput::ArbiterUnavailable,
                Step::Answer(Some(verdict)) => {
                    if let Verdict::Granted(generation) = verdict {
                        granted = granted.max(generation.0);
                    }
                    PrimaryInput::Verdict(verdict)
                }
            };
            if let PrimaryInput::Shipped { epoch } = input {
                shipped = epoch;
            }
            let was_fenced = core.phase() == PrimaryPhase::Fenced;
            let effects = core.handle(now, input);
            for effect in effects {
                prop_assert!(!was_fenced || effect == PrimaryEffect::CloseLink, "{:?}", effect);
                match effect {
                    PrimaryEffect::Release(through) => {
                        prop_assert!(through <= shipped && through <= acked, "{} of {} acked", through, acked);
                    }
                    PrimaryEffect::StartSync | PrimaryEffect::SyncRound => {
                        todo.push(PrimaryInput::SyncRoundShipped { pages_left: 0 });
                    }
                    PrimaryEffect::Capture(epoch) => {
                        todo.push(PrimaryInput::Captured { epoch });
                        todo.push(PrimaryInput::Shipped { epoch });
                    }
                    PrimaryEffect::CloseLink => {
                        todo.clear();
                        (shipped, acked) = (EpochId(0), EpochId(0));
                    }
                    PrimaryEffect::GoAlone { generation, .. } => {
                        prop_assert!(generation.0 <= granted, "{} was never granted", generation);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Whatever the peer says: the backup acks and commits epochs 1, 2, 3 … of a session, each whole,
    /// claims only with a committed epoch, and is promoted only by a grant of a later generation.
    #[test]
    fn backup_gives_nothing_away(steps in steps()) {
        let memory = Memory::new();
        let mut now = Duration::from_secs(1);
        let identity = BackupIdentity {
            vm: "vm".into(),
            node: "b".into(),
            fingerprint: Default::default(),
            layout: memory.layout().clone(),
        };
        let mut core = BackupCore::new(Policy::default(), identity, Generation(0), now);
        let (mut committed, mut acked) = (EpochId(0), EpochId(0));
        for step in steps {
            let before = core.generation();
            let mut inputs = Vec::new();
            match step {
                Step::LinkUp => inputs.push(BackupInput::LinkUp),
                Step::LinkEnds(true) => inputs.push(BackupInput::LinkClosed),
                Step::LinkEnds(false) => inputs.push(BackupInput::LinkBroken { cause: "so".into() }),
                Step::Hear(from, message) => {
                    let generation = Generation(from);
                    inputs.push(BackupInput::Received { generation, message });
                }
                Step::Introduce => {
                    let generation = Generation(GENERATION).max(core.generation());
                    let message = Message::Hello(hello(2));
                    inputs.push(BackupInput::LinkUp);
                    inputs.push(BackupInput::Received {
                        generation,
                        message,
                    });
                }
                Step::Good => {
                    let next = core.committed_epoch().map_or(1, |epoch| epoch.0 + 1);
                    let good = [Message::Hello(hello(2))].into_iter().filter(|_| core.primary_node().is_none());
                    for message in good.chain((0..4).map(|part| epoch_part(next, part))) {
                        let generation = Generation(GENERATION).max(core.generation());
                        inputs.push(BackupInput::Received { generation, message });
                    }
                    inputs.push(BackupInput::Tick);
                }
                Step::Beat(from) => inputs.push(BackupInput::HeartbeatHeard { generation: Generation(from) }),
                Step::Pass(millis) => {
                    now += Duration::from_millis(millis);
                    inputs.push(BackupInput::Tick);
                }
                Step::Obey => inputs.push(BackupInput::PromotionWanted),
                Step::Answer(None) => inputs.push(BackupInput::ArbiterUnavailable),
                Step::Answer(Some(verdict)) => inputs.push(BackupInput::Verdict(verdict)),
            }
            let effects: Vec<_> = inputs
                .into_iter()
                .flat_map(|input| core.handle(now, input, &memory))
                .collect();
            for effect in effects {
                match effect {
                    BackupEffect::Send(Message::Ack { epoch }) => {
                        prop_assert_eq!(epoch, committed.next());
                        acked = epoch;
                    }
                    BackupEffect::Committed(epoch) => {
                        prop_assert_eq!(epoch, acked);
                        prop_assert_eq!(epoch, committed.next());
                        committed = epoch;
                        let mut page = [0; PAGE_BYTES];
                        memory.read_page(PageIndex(1), &mut page).expect("memory");
                        prop_assert_eq!(page, [epoch.0 as u8; PAGE_BYTES]);
                    }
                    BackupEffect::Send(Message::Welcome(_)) | BackupEffect::Reset { .. } => {
                        (committed, acked) = (EpochId(0), EpochId(0));
                    }
                    BackupEffect::Claim(_) => prop_assert!(committed.0 > 0),
                    BackupEffect::Promote { generation, epoch, .. } => {
                        prop_assert!(generation > before);
                        prop_assert_eq!(epoch, committed);
                        prop_assert_eq!(core.committed_epoch(), Some(epoch));
                    }
                    _ => {}
                }
            }
        }
    }
}
