//! The link between the two cores, and what goes over it. Within a link the order is kept. What is
//! never delivered is lost or late: both look the same to whoever waits.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::arbiter::{ArbiterId, Mark};
use crate::core::codec::Encoder;
use crate::core::disk::{DiskSyncPlan, PairId};
use crate::core::epoch::assemble::{BatchBytes, EpochAssembler, EpochDisks};
use crate::core::message::{Bye, Hello, Message, Refusal, Welcome};
use crate::ids::{EpochId, Generation, PAGE_BYTES, Page, PageIndex};
use crate::output::SealedOutput;
use crate::page_set::{MemoryLayout, Region};
use crate::ports::{MachineError, PageMemory};

/// The page that the guest has.
const PAGE: PageIndex = PageIndex(0);

/// A session's number that no primary has.
pub(super) const STRANGERS_SESSION: u64 = 77;

/// What a message says, without words for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Wire {
    Hello,
    Welcome,
    Stale(u64),
    Refuse,
    Plan,
    /// All of an epoch but its end.
    Head(u64),
    End(u64),
    Ack(u64),
    Flushed(u64),
    Heartbeat,
    Marked(Mark),
    Seen(Mark),
    NoArbiter,
    TakeOver,
    GuestStopped,
    BackupStopped,
    Fenced(u64),
    Protocol,
    Unable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Frame {
    pub(super) generation: u64,
    pub(super) wire: Wire,
}

#[derive(Debug, Clone, Default, Hash)]
pub(super) struct End {
    pub(super) open: bool,
    pub(super) inbox: VecDeque<Frame>,
}

#[derive(Debug, Clone, Hash)]
pub(super) struct Link {
    pub(super) ends: [End; 2],
    /// Nothing more gets through, and both sides may notice.
    pub(super) severed: bool,
}

impl Link {
    pub(super) fn new() -> Self {
        let end = || End {
            open: true,
            inbox: VecDeque::new(),
        };
        Self {
            ends: [end(), end()],
            severed: false,
        }
    }

    /// Whether this side may find that the link is gone.
    pub(super) fn is_gone_for(&self, host: usize) -> bool {
        self.ends[host].open && (self.severed || !self.ends[1 - host].open)
    }

    pub(super) fn send(&mut self, from: usize, frame: Frame) {
        let inbox = &mut self.ends[1 - from].inbox;
        // It is said at every question that is not answered, for ever. A third in a row says nothing new.
        let is_repeated = frame.wire == Wire::NoArbiter
            && inbox.iter().rev().take_while(|it| **it == frame).count() == 2;
        if is_repeated {
            return;
        }
        if self.ends[from].open && self.ends[1 - from].open && !self.severed {
            self.ends[1 - from].inbox.push_back(frame);
        }
    }

    /// Returns whether both sides are done with it.
    pub(super) fn close(&mut self, host: usize) -> bool {
        self.ends[host] = End::default();
        !self.ends[1 - host].open
    }
}

impl Wire {
    pub(super) fn of(message: &Message) -> Self {
        match message {
            Message::Hello(_) => Self::Hello,
            Message::Welcome(_) => Self::Welcome,
            Message::Refuse(Refusal::Stale { current }) => Self::Stale(current.0),
            Message::Refuse(_) => Self::Refuse,
            Message::SyncDisks(_) => Self::Plan,
            Message::Ack { epoch, .. } => Self::Ack(epoch.0),
            Message::Flushed(epoch) => Self::Flushed(epoch.0),
            Message::Heartbeat => Self::Heartbeat,
            Message::Marked(mark) => Self::Marked(*mark),
            Message::Seen(mark) => Self::Seen(*mark),
            Message::NoArbiter(_) => Self::NoArbiter,
            Message::TakeOver { .. } => Self::TakeOver,
            Message::Bye(Bye::GuestStopped) => Self::GuestStopped,
            Message::Bye(Bye::BackupStopped) => Self::BackupStopped,
            Message::Bye(Bye::Fenced { current }) => Self::Fenced(current.0),
            Message::Bye(Bye::Protocol(_)) => Self::Protocol,
            Message::Bye(Bye::Unable(_)) => Self::Unable,
            other => panic!("no core sends {}", other.name()),
        }
    }

    /// The messages it stands for. A state names its generation, session and epoch.
    pub(super) fn messages(self, generation: u64, session: u64, disks: bool) -> Vec<Message> {
        let none = String::new;
        vec![match self {
            Self::Head(epoch) | Self::End(epoch) => {
                let mut all = epoch_messages([generation, session, epoch], disks);
                let end = all.pop();
                return match self {
                    Self::Head(_) => all,
                    _ => end.into_iter().collect(),
                };
            }
            Self::Hello => Message::Hello(hello(session)),
            Self::Welcome => Message::Welcome(Welcome {
                node: none(),
                host: None,
                session: 0,
                disks: Vec::new(),
            }),
            Self::Stale(current) => Message::Refuse(Refusal::Stale {
                current: Generation(current),
            }),
            Self::Refuse => Message::Refuse(Refusal::Busy(none())),
            Self::Plan => Message::SyncDisks(vec![DiskSyncPlan {
                candidate: PairId(1),
                full: true,
                from: None,
            }]),
            Self::Ack(epoch) => Message::Ack {
                epoch: EpochId(epoch),
                durable: EpochId(0),
            },
            Self::Flushed(epoch) => Message::Flushed(EpochId(epoch)),
            Self::Heartbeat => Message::Heartbeat,
            Self::Marked(mark) => Message::Marked(mark),
            Self::Seen(mark) => Message::Seen(mark),
            Self::NoArbiter => Message::NoArbiter(none()),
            Self::TakeOver => Message::TakeOver {
                why: none(),
                machine_broke: false,
                left_through: EpochId(0),
            },
            Self::GuestStopped => Message::Bye(Bye::GuestStopped),
            Self::BackupStopped => Message::Bye(Bye::BackupStopped),
            Self::Fenced(current) => Message::Bye(Bye::Fenced {
                current: Generation(current),
            }),
            Self::Protocol => Message::Bye(Bye::Protocol(none())),
            Self::Unable => Message::Bye(Bye::Unable(none())),
        }]
    }
}

/// What a stranger may say that speaks the whole protocol.
pub(super) fn whole_session(generation: u64) -> [Frame; 4] {
    let mark = Mark {
        session: STRANGERS_SESSION,
        beat: 1,
    };
    let all = [Wire::Marked(mark), Wire::Plan, Wire::Head(1), Wire::End(1)];
    all.map(|wire| Frame { generation, wire })
}

pub(super) fn layout() -> MemoryLayout {
    MemoryLayout::new(vec![Region {
        first: PAGE,
        pages: 1,
    }])
}

pub(super) fn hello(session: u64) -> Hello {
    Hello {
        vm: String::new(),
        node: String::new(),
        fingerprint: Default::default(),
        layout: layout(),
        arbiter: ArbiterId::default(),
        session,
    }
}

/// What the state of an epoch says.
pub(super) fn state_of(at: [u64; 3]) -> Bytes {
    at.iter().map(|number| *number as u8).collect()
}

fn epoch_messages(at: [u64; 3], disks: bool) -> Vec<Message> {
    type Known = HashMap<([u64; 3], bool), Vec<Message>>;
    thread_local!(static KNOWN: RefCell<Known> = RefCell::default());
    let make = || {
        let mut messages = Vec::new();
        let epoch = EpochId(at[2]);
        let mut assembler = EpochAssembler::new(epoch, BatchBytes::default(), &mut messages);
        let frame = Box::new([0; PAGE_BYTES]);
        let Ok(_) = assembler.page(&mut Encoder::new(0), PAGE, frame);
        let writes = EpochDisks {
            flush: disks,
            ..EpochDisks::default()
        };
        let Ok(_) = assembler.end(writes, state_of(at), SealedOutput::default());
        messages
    };
    KNOWN.with_borrow_mut(|known| known.entry((at, disks)).or_insert_with(make).clone())
}

/// Guest memory whose content does not matter.
pub(super) struct Memory(pub(super) MemoryLayout);

impl PageMemory for Memory {
    fn layout(&self) -> &MemoryLayout {
        &self.0
    }

    fn read_page(&self, _page: PageIndex, into: &mut Page) -> Result<(), MachineError> {
        into.fill(0);
        Ok(())
    }

    fn write_page(&self, _page: PageIndex, _from: &Page) -> Result<(), MachineError> {
        Ok(())
    }
}
