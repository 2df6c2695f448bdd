//! Strangers and peers that lie. A stranger knows what the machine and its arbiter are called, and
//! has listened to earlier sessions and to heartbeats. It knows the number of a session of its own,
//! but cannot write to the arbiter's record, nor choose the number. A lying peer says what no honest one would.
//!
//! Left out is what nobody can find out: a backup that acknowledges what it has thrown away, and a
//! primary that says that its guest has ended.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use understudy_replication::arbiter::Mark;
use understudy_replication::core::backup::BackupInput;
use understudy_replication::core::heartbeats::Heartbeat;
use understudy_replication::core::message::{Bye, EpochSummary, Message, Refusal, Welcome};
use understudy_replication::ids::{EpochId, Generation};

use super::events::Event;
use super::faults::Fault;
use super::guest::Guest;
use super::link::Link;
use super::ms;
use super::primary_host::{copy_of_guest, hello};
use super::world::{Side, World};

/// A stranger remembers so many heartbeats, and messages of one session.
const REMEMBERED: usize = 300;

/// What strangers have listened to.
#[derive(Default)]
pub struct Recorded {
    heartbeats: VecDeque<Heartbeat>,
    /// Of the last session, and of the one before.
    session: (usize, Vec<(Generation, Message)>),
    earlier: Vec<(Generation, Message)>,
    /// Somebody sends heartbeats again, and does not stop.
    pub replays: bool,
    /// No stranger comes any more, and nobody lies.
    pub over: bool,
}

impl Recorded {
    pub fn heartbeat(&mut self, heartbeat: Heartbeat) {
        if self.heartbeats.len() >= REMEMBERED {
            self.heartbeats.pop_front();
        }
        self.heartbeats.push_back(heartbeat);
    }

    pub fn message(&mut self, link: usize, generation: Generation, message: &Message) {
        if self.session.0 != link {
            self.earlier = std::mem::take(&mut self.session.1);
            self.session.0 = link;
        }
        if self.session.1.len() < REMEMBERED {
            self.session.1.push((generation, message.clone()));
        }
    }
}

/// What a stranger tells a standby that waits.
#[derive(Debug, Clone, Copy)]
pub enum Story {
    /// Its generation is the last there is.
    LastGeneration,
    /// It runs the guest, in the generation in force, and has a copy to give.
    OtherGuest,
    /// What the primary said in an earlier session.
    EarlierSession,
}

impl World {
    /// Somebody sends heartbeats again that were sent before, from now to the end.
    pub fn replay_beats(&mut self) {
        if !self.recorded.replays {
            self.recorded.replays = true;
            self.soon(0, 5_000, Event::Replay);
        }
    }

    /// So often that no gap is as long as the heartbeat timeout.
    pub fn replay_beat(&mut self) {
        for to in 0..self.settings.hosts {
            let session = self.own_beat(to).map_or(0, |beat| beat.session);
            let heard = self.recorded.heartbeats.iter();
            let mut of_primary = heard.filter(|beat| beat.from_primary && beat.session == session);
            if let Some(beat) = of_primary.next_back().copied() {
                self.count("heartbeats replayed");
                // One of nobody's session in between.
                let session = self.rng.next().max(1);
                self.after(ms(0), Event::Beat(to, Heartbeat { session, ..beat }));
                self.after(ms(0), Event::Beat(to, beat));
            }
        }
        self.soon(2_000, 12_000, Event::Replay);
    }

    /// A stranger tries for a while to connect to a standby. One that serves a primary has no time
    /// for it.
    pub fn stranger(&mut self, host: usize, story: Story, time: Duration) {
        if self.recorded.over {
            return;
        }
        let is_free = self.hosts[host].link.is_none() && !self.hosts[host].frozen;
        if !is_free || !matches!(self.hosts[host].side, Side::Backup(_)) {
            let pause = self.rng.micros(1_000, 5_000);
            if let Some(left) = time.checked_sub(pause) {
                self.after(pause, Event::Fault(Fault::Stranger(host, story, left)));
            }
            return;
        }
        let messages = match story {
            Story::LastGeneration => self.introduction(Generation(u64::MAX)).into(),
            Story::OtherGuest => self.other_guest(),
            Story::EarlierSession => self.recorded.earlier.iter().cloned().collect(),
        };
        self.count("strangers");
        let (stranger, number) = (self.settings.hosts, self.links.len());
        let link = Link::new(self.process(stranger), self.process(host));
        self.links.push(link);
        self.hosts[host].link = Some(number);
        self.hosts[host].session += 1;
        let session = self.rng.next();
        self.backup(host, BackupInput::LinkUp { session });
        self.stranger_says(number, messages);
    }

    fn introduction(&mut self, generation: Generation) -> [(Generation, Message); 1] {
        let mut hello = hello();
        hello.session = self.rng.next().max(1);
        [(generation, Message::Hello(hello))]
    }

    /// A whole session up to the first epoch.
    fn other_guest(&mut self) -> VecDeque<(Generation, Message)> {
        let generation = self.arbiter.current;
        let hello = self.introduction(generation);
        // Its session is known once it is welcomed.
        let mark = Message::Marked(Mark {
            session: 0,
            beat: 1,
        });
        let copy = copy_of_guest(Guest::boot(0));
        let rest = std::iter::once(mark).chain(copy);
        hello
            .into_iter()
            .chain(rest.map(|message| (generation, message)))
            .collect()
    }

    /// Says the next thing, and closes the link behind the last, or falls silent.
    pub fn stranger_says(&mut self, link: usize, mut messages: VecDeque<(Generation, Message)>) {
        let (stranger, host) = (self.settings.hosts, self.links[link].backup.0);
        if self.hosts[host].link != Some(link) {
            return;
        }
        let Some((generation, mut message)) = messages.pop_front() else {
            if self.rng.chance(700) {
                self.hosts[stranger].link = Some(link);
                self.close_link(stranger);
            }
            return;
        };
        if let (Message::Marked(mark), Side::Backup(node)) = (&mut message, &self.hosts[host].side)
            && mark.session == 0
        {
            mark.session = node.core.session();
        }
        let waits = matches!(message, Message::Hello(_) | Message::Marked(_));
        self.hosts[stranger].link = Some(link);
        self.send(stranger, generation, &message);
        self.hosts[stranger].link = None;
        let delay = if waits {
            self.rng.micros(3_000, 9_000)
        } else {
            self.rng.micros(10, 400)
        };
        self.after(delay, Event::Stranger(link, messages));
    }

    pub fn is_stranger(&self, link: usize) -> bool {
        let links = self.links.get(link);
        links.is_some_and(|link| link.primary.0 == self.settings.hosts)
    }

    /// A heartbeat of this session names another generation, and so does the peer.
    pub fn lie(&mut self, host: usize) {
        let generation = match self.rng.below(3) {
            0 => Generation(u64::MAX),
            _ => Generation(self.rng.below(self.arbiter.current.0 + 3)),
        };
        let Some(beat) = self.own_beat(host) else {
            return;
        };
        self.count("lies told");
        let sequence = beat.sequence + self.rng.below(5);
        self.beat(
            host,
            Heartbeat {
                generation,
                from_primary: true,
                sequence,
                ..beat
            },
        );
        if self.hosts[host].link.is_none() {
            return;
        }
        match &self.hosts[host].side {
            Side::Primary(node) => {
                let own = node.core.generation();
                let beyond = node.core.acked().unwrap_or_default().0 + 2 + self.rng.below(9);
                let (generation, message) = self.lie_to_primary(own, generation, EpochId(beyond));
                self.trace(host, || format!("is told {message:?} of {generation}"));
                self.received(host, generation, message);
            }
            Side::Backup(node) => {
                let own = node.core.generation();
                let (generation, message) = self.lie_to_backup(own, generation);
                self.trace(host, || format!("is told {message:?} of {generation}"));
                self.received(host, generation, message);
            }
            Side::Down => {}
        }
    }

    fn lie_to_primary(
        &mut self,
        own: Generation,
        other: Generation,
        beyond: EpochId,
    ) -> (Generation, Message) {
        let current = other;
        let session = self.rng.next().max(1);
        match self.rng.below(9) {
            0 => (other, Message::Heartbeat),
            1 => (own, Message::Bye(Bye::Fenced { current })),
            2 => (other, Message::Bye(Bye::Fenced { current })),
            3 => (other, Message::Refuse(Refusal::Stale { current })),
            // Epochs that were never sent.
            4 => (own, ack(beyond, EpochId(0))),
            5 => (own, ack(beyond, beyond)),
            // In another generation than the session's, any of them.
            6 if other != own => (other, ack(EpochId(beyond.0 - 1), EpochId(0))),
            7 => (own, Message::Seen(Mark { session, beat: 1 })),
            _ => {
                let node = String::from("stranger");
                let welcome = Welcome {
                    node,
                    host: None,
                    session,
                    disks: Vec::new(),
                };
                (own, Message::Welcome(welcome))
            }
        }
    }

    fn lie_to_backup(&mut self, own: Generation, other: Generation) -> (Generation, Message) {
        let current = other;
        let epoch = EpochId(self.rng.below(400));
        let session = self.rng.next().max(1);
        match self.rng.below(6) {
            0 => (own, Message::Bye(Bye::Fenced { current })),
            1 => (other, Message::Heartbeat),
            2 if other != own => (other, Message::Bye(Bye::GuestStopped)),
            3 => (own, Message::Marked(Mark { session, beat: 9 })),
            4 => {
                let batch = Bytes::from_static(b"nonsense");
                (own, Message::EpochPages { epoch, batch })
            }
            _ => {
                let summary = EpochSummary {
                    pages: 0,
                    batches: 0,
                    disk_batches: 0,
                    flush: false,
                    written_through: EpochId(0),
                    digest: self.rng.next() as u32,
                };
                (own, Message::EpochEnd { epoch, summary })
            }
        }
    }

    /// For as long as it lasts, somebody tells this host one lie after the other.
    pub fn keep_lying(&mut self, host: usize, time: Duration) {
        if self.recorded.over {
            return;
        }
        self.lie(host);
        let pause = self.rng.micros(2_000, 20_000);
        if let Some(left) = time.checked_sub(pause) {
            self.after(pause, Event::Fault(Fault::Lie(host, left)));
        }
    }
}

fn ack(epoch: EpochId, durable: EpochId) -> Message {
    Message::Ack { epoch, durable }
}
