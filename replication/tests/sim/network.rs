//! What goes between the hosts: messages over links, heartbeats on their own path, and who connects
//! to whom.

use std::time::Duration;

use understudy_replication::core::backup::BackupInput;
use understudy_replication::core::heartbeats::{Heartbeat, HeartbeatFilter};
use understudy_replication::core::message::Message;
use understudy_replication::core::primary::{PrimaryInput, PrimaryPhase};
use understudy_replication::ids::Generation;

use super::events::Event;
use super::link::{Arrival, Link};
use super::outside::Process;
use super::world::{Side, World};

impl World {
    /// How long something is on its way.
    pub fn latency(&mut self) -> Duration {
        self.rng.micros(50, 1_500)
    }

    pub fn send(&mut self, host: usize, generation: Generation, message: &Message) {
        let Some(number) = self.hosts[host].link else {
            return;
        };
        if !matches!(message, Message::Heartbeat) {
            self.trace(host, || {
                format!("sends {} of {generation}", describe(message))
            });
        }
        let (now, latency, byte_ns) = (self.now, self.latency(), self.settings.byte_ns);
        let link = &mut self.links[number];
        let peer = link.peer(host).0;
        if self.settings.strangers && host == link.primary.0 && host < self.settings.hosts {
            self.recorded.message(number, generation, message);
        }
        link.outgoing(host)
            .send(now, latency, byte_ns, generation, message);
        self.schedule_delivery(number, peer);
    }

    pub fn schedule_delivery(&mut self, link: usize, to: usize) {
        if let Some(due) = self.links[link].incoming(to).next_due() {
            self.at(due.max(self.now), Event::Deliver(link, to));
        }
    }

    /// This side closes its link, if it has one.
    pub fn close_link(&mut self, host: usize) {
        self.hosts[host].session += 1;
        if let Some(number) = self.hosts[host].link.take() {
            let due = self.now + self.latency();
            let link = &mut self.links[number];
            let peer = link.peer(host).0;
            link.outgoing(host).close(due);
            self.schedule_delivery(number, peer);
        }
    }

    pub fn deliver(&mut self, number: usize, host: usize) {
        while self.hosts[host].link == Some(number) {
            let Some(arrival) = self.links[number].incoming(host).arrive(self.now) else {
                break;
            };
            match arrival {
                Arrival::Message(generation, message) => {
                    self.received(host, generation, *message);
                }
                Arrival::Closed => {
                    self.trace(host, || "finds the link closed".into());
                    self.close_link(host);
                    self.link_ended(host, None);
                }
                Arrival::Broken(cause) => {
                    self.trace(host, || format!("finds the link broken: {cause}"));
                    self.count("broken links");
                    self.close_link(host);
                    self.link_ended(host, Some(cause));
                }
            }
        }
        if self.hosts[host].link == Some(number) {
            self.schedule_delivery(number, host);
        }
    }

    pub fn received(&mut self, host: usize, generation: Generation, message: Message) {
        match self.hosts[host].side {
            Side::Primary(_) => {
                let input = PrimaryInput::Received {
                    generation,
                    message,
                };
                self.primary(host, input);
            }
            Side::Backup(_) => {
                let input = BackupInput::Received {
                    generation,
                    message,
                };
                self.backup(host, input);
            }
            Side::Down => {}
        }
    }

    pub fn link_ended(&mut self, host: usize, broken: Option<String>) {
        match self.hosts[host].side {
            Side::Primary(_) => {
                let cause = broken.unwrap_or_else(|| "closed".into());
                self.primary(host, PrimaryInput::LinkDown { cause });
            }
            Side::Backup(_) => {
                let input = broken.map_or(BackupInput::LinkClosed, |cause| {
                    BackupInput::LinkBroken { cause }
                });
                self.backup(host, input);
            }
            Side::Down => {}
        }
    }

    /// A primary that runs alone looks for a backup.
    pub fn connect(&mut self, host: usize) {
        let Side::Primary(node) = &self.hosts[host].side else {
            return;
        };
        if node.core.phase() != PrimaryPhase::Alone || self.hosts[host].link.is_some() {
            return;
        }
        if node.core.is_opening() || self.now < node.alone_until {
            let process = self.process(host);
            return self.soon(1_000, 5_000, Event::Connect(process));
        }
        let candidates: Vec<usize> = (0..self.hosts.len())
            .filter(|other| {
                let other = &self.hosts[*other];
                matches!(other.side, Side::Backup(_)) && other.link.is_none() && !other.frozen
            })
            .collect();
        let process = self.process(host);
        if candidates.is_empty() {
            return self.soon(5_000, 20_000, Event::Connect(process));
        }
        let backup = candidates[self.rng.below(candidates.len() as u64) as usize];
        let number = self.links.len();
        self.links.push(Link::new(process, self.process(backup)));
        self.trace(host, || format!("connects to host {backup}, link {number}"));
        for side in [host, backup] {
            self.hosts[side].link = Some(number);
            self.hosts[side].session += 1;
        }
        let session = self.rng.next();
        self.backup(backup, BackupInput::LinkUp { session });
        let session = self.rng.next().max(1);
        self.primary(host, PrimaryInput::LinkUp { session });
    }

    pub fn start_beats(&mut self, host: usize, is_primary: bool) {
        self.hosts[host].heartbeats = HeartbeatFilter::new(is_primary);
        self.hosts[host].beats_sent = 0;
        let process = self.process(host);
        self.soon(0, 5_000, Event::BeatTimer(process));
    }

    /// What this host's heartbeats say.
    pub fn own_beat(&self, host: usize) -> Option<Heartbeat> {
        let (generation, session, from_primary) = match &self.hosts[host].side {
            Side::Primary(node) => (node.core.generation(), node.core.session(), true),
            Side::Backup(node) => (node.core.generation(), node.core.session(), false),
            Side::Down => return None,
        };
        Some(Heartbeat {
            from_primary,
            session,
            generation,
            sequence: self.hosts[host].beats_sent,
        })
    }

    pub fn send_beats(&mut self, who: Process) {
        let Some(beat) = self.own_beat(who.0) else {
            return;
        };
        self.hosts[who.0].beats_sent += 1;
        if self.settings.strangers {
            self.recorded.heartbeat(beat);
        }
        for to in 0..self.settings.hosts {
            let cut = self.beats_cut.contains(&(who.0, to));
            if to == who.0 || cut || self.rng.chance(self.settings.beats_lost_permille) {
                continue;
            }
            // Some are overtaken by later ones.
            let slow = self.rng.chance(50);
            let late = self.rng.micros(50, if slow { 12_000 } else { 1_000 });
            self.after(late, Event::Beat(to, beat));
        }
        self.after(
            self.settings.policy.heartbeat_interval,
            Event::BeatTimer(who),
        );
    }

    pub fn beat(&mut self, host: usize, beat: Heartbeat) {
        let (session, generation) = (beat.session, beat.generation);
        let own = match &self.hosts[host].side {
            Side::Primary(node) => node.core.session(),
            Side::Backup(node) => node.core.session(),
            Side::Down => return,
        };
        if !self.hosts[host].heartbeats.admits(&beat, own) {
            return;
        }
        match self.hosts[host].side {
            Side::Primary(_) => self.primary(
                host,
                PrimaryInput::HeartbeatHeard {
                    session,
                    generation,
                },
            ),
            Side::Backup(_) => self.backup(
                host,
                BackupInput::HeartbeatHeard {
                    session,
                    generation,
                },
            ),
            Side::Down => {}
        }
    }
}

fn describe(message: &Message) -> String {
    match message {
        Message::EpochPages { epoch, batch } => format!("{} bytes of pages, {epoch}", batch.len()),
        Message::EpochEnd { epoch, .. } => format!("the end of {epoch}"),
        Message::Ack { epoch, .. } => format!("Ack of {epoch}"),
        Message::Bye(bye) => format!("Bye: {bye}"),
        other => other.name().into(),
    }
}
