//! A peer may say anything at any time: neither core may panic, loop, or give away what is only to
//! be had by the rules.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use understudy_replication::arbiter::{ArbiterId, Mark, Record, Verdict};
use understudy_replication::core::backup::{BackupCore, BackupEffect, BackupIdentity, BackupInput};
use understudy_replication::core::codec::Encoder;
use understudy_replication::core::disk::{
    DiskBatchWriter, DiskSyncPlan, DiskWrite, PairId, PeerDisk, What,
};
use understudy_replication::core::epoch::assemble::{BatchBytes, EpochAssembler, EpochDisks};
use understudy_replication::core::message::{Bye, Hello, Message, Refusal, Trouble, Welcome};
use understudy_replication::core::policy::Policy;
use understudy_replication::core::primary::{
    Pause, PrimaryCore, PrimaryEffect, PrimaryInput, PrimaryPhase,
};
use understudy_replication::ids::{EpochId, Generation, PAGE_BYTES, Page, PageIndex};
use understudy_replication::output::{NetworkFrame, SealedOutput};
use understudy_replication::page_set::{MemoryLayout, Region};
use understudy_replication::ports::{MachineError, PageMemory};

const GENERATION: u64 = 3;
const SESSION: u64 = 7;

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

fn welcome_of_b() -> Welcome {
    Welcome {
        node: "b".into(),
        host: None,
        session: 0,
        disks: Vec::new(),
    }
}

fn hello(pages: u64) -> Hello {
    let first = PageIndex(0);
    Hello {
        vm: "vm".into(),
        node: "a".into(),
        fingerprint: Default::default(),
        layout: MemoryLayout::new(vec![Region { first, pages }]),
        arbiter: ArbiterId("arbiter".into()),
        session: SESSION,
    }
}

fn first_mark() -> Message {
    let session = SESSION;
    Message::Marked(Mark { session, beat: 1 })
}

/// The backup's only disk.
const DISK_BYTES: u64 = 1 << 20;

fn plan(disks: usize) -> Message {
    let candidate = PairId(7);
    let (full, from) = (true, None);
    Message::SyncDisks(vec![
        DiskSyncPlan {
            candidate,
            full,
            from
        };
        disks
    ])
}

fn disk_write(epoch: EpochId) -> DiskWrite {
    DiskWrite {
        disk: 0,
        offset: 512,
        what: What::Data(vec![epoch.0 as u8; 512].into()),
    }
}

fn disk_batch(epoch: EpochId) -> Bytes {
    let mut writer = DiskBatchWriter::new(1 << 16);
    writer.push(&disk_write(epoch), |_| {});
    writer.finish().expect("a write").body
}

/// Every other epoch writes to the disk, and the first one is persisted in any case.
fn has_disk_writes(epoch: EpochId) -> bool {
    epoch.0 % 2 == 1
}

/// The messages of a good epoch, in order.
fn good_epoch(epoch: u64) -> Vec<Message> {
    let epoch = EpochId(epoch);
    let mut messages = Vec::new();
    let mut assembler = EpochAssembler::new(epoch, BatchBytes::default(), &mut messages);
    let frame = Box::new([epoch.0 as u8; PAGE_BYTES]);
    let Ok(_) = assembler.page(&mut Encoder::new(0), PageIndex(1), frame);
    let writes = [disk_write(epoch)];
    let writes = &writes[..usize::from(has_disk_writes(epoch))];
    let disks = EpochDisks {
        writes,
        ..EpochDisks::default()
    };
    let Ok(_) = assembler.end(disks, Bytes::from_static(b"s"), SealedOutput::default());
    messages
}

/// One message of a good epoch, to be sent out of order.
fn epoch_part(epoch: u64, part: usize) -> Message {
    let mut messages = good_epoch(epoch);
    messages.swap_remove(part % messages.len())
}

fn messages() -> impl Strategy<Value = Message> {
    let epochs = prop_oneof![4 => 1u64..4, 1 => any::<u64>()];
    let generations = (0u64..6).prop_map(Generation);
    prop_oneof![
        (1u64..4).prop_map(|pages| Message::Hello(hello(pages))),
        Just(Message::Welcome(welcome_of_b())),
        Just(Message::Refuse(Refusal::Busy("so".into()))),
        generations
            .clone()
            .prop_map(|current| Message::Refuse(Refusal::Stale { current })),
        proptest::collection::vec(any::<u8>(), 0..40)
            .prop_map(|bytes| Message::SyncPages(bytes.into())),
        (1u64..4, 0usize..5).prop_map(|(epoch, part)| epoch_part(epoch, part)),
        (epochs, prop_oneof![3 => Just(0u64), 1 => any::<u64>()]).prop_map(|(epoch, durable)| {
            Message::Ack {
                epoch: EpochId(epoch),
                durable: EpochId(durable),
            }
        }),
        prop_oneof![4 => 1u64..4, 1 => any::<u64>()]
            .prop_map(|epoch| Message::Flushed(EpochId(epoch))),
        prop_oneof![3 => Just(1), 1 => 0usize..3, 1 => Just(5000)].prop_map(plan),
        proptest::collection::vec(any::<u8>(), 0..40)
            .prop_map(|bytes| Message::SyncDisk(bytes.into())),
        (1u64..4, proptest::collection::vec(any::<u8>(), 0..40)).prop_map(|(epoch, bytes)| {
            Message::EpochDisk {
                epoch: EpochId(epoch),
                batch: bytes.into(),
            }
        }),
        any::<u64>().prop_map(|bytes| {
            Message::Welcome(Welcome {
                disks: vec![PeerDisk {
                    name: "d".into(),
                    bytes,
                    ids: vec![PairId(0); 9],
                    unfinished: true,
                    replace: false,
                    block_bytes: bytes,
                    dirty: Bytes::from_static(&[255; 64]),
                }],
                ..welcome_of_b()
            })
        }),
        Just(Message::SyncDisk(disk_batch(EpochId(1)))),
        (1u64..4)
            .prop_map(EpochId)
            .prop_map(|epoch| Message::EpochDisk {
                epoch,
                batch: disk_batch(epoch),
            }),
        Just(Message::Bye(Bye::Unable("so".into()))),
        Just(Message::Heartbeat),
        (SESSION..SESSION + 2, 0u64..4)
            .prop_map(|(session, beat)| Message::Marked(Mark { session, beat })),
        (SESSION..SESSION + 2, 0u64..4)
            .prop_map(|(session, beat)| Message::Seen(Mark { session, beat })),
        Just(Message::NoArbiter("so".into())),
        (any::<bool>(), 0u64..4).prop_map(|(machine_broke, left)| Message::TakeOver {
            why: "so".into(),
            machine_broke,
            left_through: EpochId(left),
        }),
        proptest::collection::vec(any::<u16>(), 0..9).prop_map(|devices| {
            let bytes = Bytes::from_static(b"so");
            let frame = |device| NetworkFrame {
                device,
                bytes: bytes.clone(),
            };
            Message::Arrived(devices.into_iter().map(frame).collect())
        }),
        Just(Message::Health(vec![Trouble::new("net0", "so")])),
        proptest::collection::vec(any::<bool>(), 0..9).prop_map(Message::Compared),
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
    /// acked in its session, goes alone after epoch 1 only under a later generation that the
    /// arbiter granted, and does nothing any more once fenced.
    #[test]
    fn primary_gives_nothing_away(steps in steps()) {
        let mut now = Duration::from_secs(1);
        let mut core = PrimaryCore::new(Policy::default(), hello(2), Generation(GENERATION), now);
        let (mut shipped, mut acked) = (EpochId(0), EpochId(0));
        let mut todo: Vec<PrimaryInput> = Vec::new();
        let mut granted = GENERATION;
        let mut confirms = false;
        let mut marked = None;
        for step in steps {
            let generation = core.generation();
            let input = match step {
                Step::LinkUp => PrimaryInput::LinkUp { session: SESSION },
                Step::LinkEnds(_) => PrimaryInput::LinkDown { cause: "so".into() },
                Step::Hear(from, message) => {
                    if let Message::Ack { epoch, durable } = message && durable <= epoch && from == generation.0 {
                        // Also before the report that it is shipped.
 if core.in_flight() == Some(epoch) { acked = epoch; }
                    }
                    PrimaryInput::Received { generation: Generation(from), message }
                }
                Step::Introduce => PrimaryInput::Received {
                    generation,
                    message: Message::Welcome(welcome_of_b()),
                },
                Step::Good => match core.in_flight() {
                    Some(epoch) => {
                        acked = epoch;
                        PrimaryInput::Received { generation, message: Message::Ack { epoch, durable: EpochId(0) } }
                    }
                    None => PrimaryInput::Received {
                        generation,
                        message: match core.phase() {
                            PrimaryPhase::Handshaking => match marked.take() {
                                Some(mark) => Message::Seen(mark),
                                None => Message::Welcome(welcome_of_b()),
                            },
                            _ => Message::Heartbeat,
                        },
                    },
                },
                Step::Beat(from) => PrimaryInput::HeartbeatHeard {
                    session: SESSION,
                    generation: Generation(from),
                },
                Step::Pass(millis) => {
                    now += Duration::from_millis(millis);
                    PrimaryInput::Tick
                }
                Step::Obey if confirms => {
                    confirms = false;
                    PrimaryInput::Verdict(Verdict::Granted(generation))
                }
                Step::Obey if todo.is_empty() => PrimaryInput::CheckpointWanted,
                Step::Obey => todo.remove(0),
                Step::Answer(None) => PrimaryInput::ArbiterUnavailable { why: "so".into() },
                Step::Answer(Some(verdict)) => {
                    confirms = false;
                    if let Verdict::Granted(generation) = verdict {
                        granted = granted.max(generation.0);
                    }
                    PrimaryInput::Verdict(verdict)
                }
            };
            if let PrimaryInput::Shipped { epoch, bytes: 0 } = input {
                shipped = epoch;
            }
            let has_verdict = matches!(input, PrimaryInput::Verdict(_));
            let was_fenced = core.phase() == PrimaryPhase::Fenced;
            let effects = core.handle(now, input);
            for effect in effects {
                prop_assert!(!was_fenced || effect == PrimaryEffect::CloseLink, "{:?}", effect);
                match effect {
                    PrimaryEffect::Release(through) => {
                        prop_assert!(through <= shipped && through <= acked, "{} of {} acked", through, acked);
                    }
                    PrimaryEffect::Flushed(epoch) => prop_assert!(epoch <= acked, "{} of {} acked", epoch, acked),
                    PrimaryEffect::Confirm { .. } => confirms = true,
                    PrimaryEffect::Claim { .. } => confirms = false,
                    // R10: only the arbiter fences.
                    PrimaryEffect::Fenced { .. } => prop_assert!(has_verdict),
                    PrimaryEffect::StartSync { .. } | PrimaryEffect::SyncRound => {
                        todo.push(PrimaryInput::SyncRoundShipped { pages_left: 0, disk_bytes_left: 0, left_takes: Duration::ZERO });
                    }
                    PrimaryEffect::Capture(epoch) => {
                        todo.push(PrimaryInput::Captured { epoch, pause: Pause::default() });
                        todo.push(PrimaryInput::Shipped { epoch, bytes: 0 });
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

    /// Whatever the peer says: the backup acks and commits epochs 1, 2, 3 … of a session, each
    /// whole, claims only with a committed epoch, and is promoted only by a grant of a later
    /// generation.
    #[test]
    fn backup_gives_nothing_away(steps in steps()) {
        let memory = Memory::new();
        let mut now = Duration::from_secs(1);
        let identity = BackupIdentity {
            vm: "vm".into(),
            node: "b".into(),
            host: None,
            starts: Default::default(),
            has_replicated: false,
            has_shared: false,
            fingerprint: Default::default(),
            layout: memory.layout().clone(),
            disks: vec![DISK_BYTES],
            arbiter: ArbiterId("arbiter".into()),
        };
        let mut core = BackupCore::new(Policy::default(), identity, Generation(0), now);
        let (mut committed, mut acked) = (EpochId(0), EpochId(0));
        // What the runtime was asked to persist and has not answered, and what it has persisted.
        let mut pending: Option<(u64, EpochId)> = None;
        let mut persisted = EpochId(0);
        for step in steps {
            let before = core.generation();
            let is_good = matches!(step, Step::Good);
            let mut inputs = VecDeque::new();
            match step {
                Step::LinkUp => inputs.push_back(BackupInput::LinkUp { session: 0 }),
                Step::LinkEnds(true) => inputs.push_back(BackupInput::LinkClosed),
                Step::LinkEnds(false) => inputs.push_back(BackupInput::LinkBroken { cause: "so".into() }),
                Step::Hear(from, message) => {
                    let generation = Generation(from);
                    inputs.push_back(BackupInput::Received { generation, message });
                }
                Step::Introduce => {
                    let generation = Generation(GENERATION).max(core.generation());
                    let message = Message::Hello(hello(2));
                    inputs.push_back(BackupInput::LinkUp { session: 0 });
                    for message in [message, first_mark()] {
                        inputs.push_back(BackupInput::Received {
                            generation,
                            message,
                        });
                    }
                }
                Step::Good => {
                    let next = core.committed_epoch().map_or(1, |epoch| epoch.0 + 1);
                    let good = [Message::Hello(hello(2)), first_mark()].into_iter().filter(|_| core.primary_node().is_none());
                    let plan = [plan(1)].into_iter().filter(|_| next == 1);
                    for message in good.chain(plan).chain(good_epoch(next)) {
                        let generation = Generation(GENERATION).max(core.generation());
                        inputs.push_back(BackupInput::Received { generation, message });
                    }
                    inputs.push_back(BackupInput::Tick);
                }
                Step::Beat(from) => inputs.push_back(BackupInput::HeartbeatHeard {
                    session: SESSION,
                    generation: Generation(from),
                }),
                Step::Pass(millis) => {
                    now += Duration::from_millis(millis);
                    inputs.push_back(BackupInput::Tick);
                }
                Step::Obey => match pending.take() {
                    None => inputs.push_back(BackupInput::PromotionWanted),
                    Some((ticket, epoch)) => {
                        let outcome = if ticket % 4 == 0 { Err("full".into()) } else { Ok(()) };
                        if outcome.is_ok() {
                            persisted = epoch;
                        }
                        inputs.push_back(BackupInput::Persisted { ticket, outcome });
                        inputs.push_back(BackupInput::DisksDurable { epoch });
                    }
                },
                Step::Answer(None) => inputs.push_back(BackupInput::ArbiterUnavailable { why: "so".into() }),
                Step::Answer(Some(verdict)) => inputs.push_back(BackupInput::Verdict(verdict)),
            }
            while let Some(input) = inputs.pop_front() {
                let may_reset = matches!(
                    input,
                    BackupInput::Verdict(_)
                        | BackupInput::Rehearsed(_)
                        | BackupInput::Received { message: Message::Bye(Bye::GuestStopped), .. }
                );
            for effect in core.handle(now, input, &memory) {
                match effect {
                    BackupEffect::Persist { ticket, epoch, .. } => {
                        prop_assert_eq!(epoch, committed.next());
                        pending = Some((ticket, epoch));
                        if is_good {
                            pending = None;
                            persisted = epoch;
                            inputs.push_front(BackupInput::Persisted { ticket, outcome: Ok(()) });
                        }
                    }
                    BackupEffect::FlushJournal { ticket, epoch } => {
                        prop_assert!(epoch <= acked);
                        inputs.push_front(BackupInput::Flushed { ticket, outcome: Ok(()) });
                    }
                    BackupEffect::Send(Message::Flushed(epoch)) => prop_assert!(epoch <= acked),
                    BackupEffect::Rehearse => inputs.push_front(BackupInput::Rehearsed(Record {
                        generation: Generation(GENERATION).max(core.generation()),
                        mark: Mark { session: SESSION, beat: 2 },
                        ..Record::default()
                    })),
                    // R10: no copy is given up because of what a peer says about generations.
                    BackupEffect::Reset { .. } if committed.0 > 0 => {
                        prop_assert!(may_reset);
                        (committed, acked, persisted) = (EpochId(0), EpochId(0), EpochId(0));
                    }
                    BackupEffect::BeginCopy(plan) => prop_assert_eq!(plan.len(), 1),
                    BackupEffect::Send(Message::Ack { epoch, durable }) => {
                        prop_assert!(durable <= epoch);
                        prop_assert!(!has_disk_writes(epoch) || persisted == epoch);
                        prop_assert_eq!(epoch, committed.next());
                        acked = epoch;
                    }
                    BackupEffect::Committed(epoch) => {
                        // What was persisted is committed even if it could not be acked any more.
                        prop_assert!(epoch == acked || epoch == persisted);
                        prop_assert!(!has_disk_writes(epoch) || persisted == epoch);
                        prop_assert_eq!(epoch, committed.next());
                        committed = epoch;
                        let mut page = [0; PAGE_BYTES];
                        memory.read_page(PageIndex(1), &mut page).expect("memory");
                        prop_assert_eq!(page, [epoch.0 as u8; PAGE_BYTES]);
                    }
                    BackupEffect::Welcome { .. } | BackupEffect::Reset { .. } => {
                        (committed, acked, persisted) = (EpochId(0), EpochId(0), EpochId(0));
                    }
                    BackupEffect::Claim { .. } => prop_assert!(committed.0 > 0),
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
}
