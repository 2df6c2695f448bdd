//! What can go wrong, and what a seed makes go wrong.

use std::time::Duration;

use understudy_replication::core::backup::BackupInput;
use understudy_replication::core::primary::{PrimaryInput, PrimaryPhase};

use super::events::Event;
use super::hangs::What;
use super::liar::Story;
use super::link::Damage;
use super::ms;
use super::outside::Process;
use super::rng::Rng;
use super::world::{Side, World};

/// One thing that goes wrong, or that an operator does. Links are named by the host that reads from
/// them, as a host has at most one.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The process ends; the kernel closes its link.
    KillProcess(usize),
    /// The host is gone, without a word.
    LoseHost(usize),
    /// The process stands still for a while; time goes on.
    Freeze(usize, Duration),
    /// Nothing arrives at this host over its link for a while; nothing is lost, either.
    StallLink(usize, Duration),
    /// As before, and the heartbeats from the peers are lost.
    CutOff(usize, Duration),
    /// Both ends find the link reset; what was on its way is lost.
    ResetLink(usize),
    /// The next frame to this host is damaged.
    Damage(usize, Damage),
    /// The arbiter does not answer for a while.
    ArbiterSilent(Duration),
    /// Heartbeats from one host to another are lost from now on.
    CutBeats(usize, usize),
    /// The operator wants this side promoted.
    Promote(usize),
    /// Somebody wants a checkpoint.
    Checkpoint(usize),
    /// The operator wants this side's guest protected by another backup, or for a while by none.
    Dismiss(usize, Duration),
    /// This host's guest is to go on at its backup.
    HandOver(usize),
    /// Something of this host fails, and the machine with it.
    BreakMachine(usize),
    /// Somebody lies to this host, for a while.
    Lie(usize, Duration),
    /// A stranger tells this host a story, if it finds it free within this time.
    Stranger(usize, Story, Duration),
    /// Somebody starts the guest from nothing on this host; the storage may have taken away the locks
    /// that show that its holder lives.
    StartGuest(usize, bool),
    /// Somebody sends recorded heartbeats, from now on.
    ReplayBeats,
    /// What this host does there hangs, for a while or for ever.
    Hang(usize, What, Option<Duration>),
    /// The end of that.
    HangEnds(Process, What),
    /// The arbiter's record is as it was before the last grant, for a while.
    ArbiterWentBack(Duration),
    /// The end of that.
    ArbiterRestored,
    /// The guest powers off.
    StopGuest(usize),
    /// The end of a silence of the arbiter.
    ArbiterSpeaks,
    /// The end of a cut.
    BeatsBack(usize),
    /// The end of all faults.
    Heal,
}

impl Fault {
    /// Whether the backup sees the end of the link while the primary lives. It then asks to be
    /// promoted at once, with no timeout before; if the same end reaches the primary late, it finds
    /// an ack before it and repeats that epoch's output after its successor. That is harmless (the
    /// epoch is part of the successor's state, and it has repeated the same output itself), and
    /// cannot be excluded without trusting in clocks.
    pub fn closes(self) -> bool {
        matches!(
            self,
            Self::ResetLink(_) | Self::Damage(_, Damage::Cut(_)) | Self::Promote(_)
        )
    }

    /// Whether somebody must have listened before.
    pub fn listens(self) -> bool {
        matches!(
            self,
            Self::ReplayBeats | Self::Stranger(_, Story::EarlierSession, _)
        )
    }
}

/// The faults of one seed.
pub struct Plan {
    pub sync_failures_permille: u64,
    pub faults: Vec<(Duration, Fault)>,
    pub capture_failures_permille: u64,
    pub persist_failures_permille: u64,
    pub beats_lost_permille: u64,
    pub byte_ns: u64,
}

impl Plan {
    pub fn new(rng: &mut Rng, hosts: usize) -> Self {
        let mut faults = Vec::new();
        for _ in 0..rng.below(6) {
            let mut at = rng.micros(10_000, 350_000);
            // Faults like company: some come in close pairs.
            for _ in 0..1 + rng.below(2) {
                faults.push((at, fault(rng, hosts)));
                at += rng.micros(0, 50_000);
            }
        }
        // Whoever runs the guest then.
        if rng.chance(150) {
            let at = rng.micros(10_000, 350_000);
            faults.extend((0..hosts).map(|host| (at, Fault::StopGuest(host))));
        }
        faults.sort_by_key(|(at, _)| *at);
        let last = faults.last().map_or(ms(100), |(at, _)| *at);
        faults.push((last + rng.micros(1_000, 150_000), Fault::Heal));
        let sometimes =
            |rng: &mut Rng, most: u64| if rng.chance(300) { rng.below(most) } else { 0 };
        Self {
            faults,
            capture_failures_permille: sometimes(rng, 400),
            persist_failures_permille: sometimes(rng, 60),
            sync_failures_permille: sometimes(rng, 100),
            beats_lost_permille: sometimes(rng, 900),
            byte_ns: sometimes(rng, 400),
        }
    }
}

fn fault(rng: &mut Rng, hosts: usize) -> Fault {
    let host = rng.below(hosts as u64) as usize;
    // Shorter and longer than the heartbeat timeout.
    let time = rng.micros(2_000, 140_000);
    match rng.below(27) {
        0 => Fault::KillProcess(host),
        1 => Fault::LoseHost(host),
        2 | 3 => Fault::Freeze(host, time),
        4 => Fault::StallLink(host, time),
        5 | 6 => Fault::CutOff(host, time),
        7 => Fault::ResetLink(host),
        8 => Fault::Damage(host, Damage::Flip(rng.next(), rng.next() as u8)),
        9 => Fault::Damage(host, Damage::Cut(rng.next())),
        10 => Fault::ArbiterSilent(time),
        11 => Fault::CutBeats(host, rng.below(hosts as u64) as usize),
        12 => Fault::Dismiss(host, if rng.chance(500) { time } else { ms(0) }),
        13 | 14 => Fault::Lie(host, if rng.chance(500) { time } else { ms(0) }),
        15 => Fault::ArbiterWentBack(time),
        16 => Fault::Promote(host),
        25 => Fault::HandOver(host),
        26 => Fault::BreakMachine(host),
        17 => Fault::Checkpoint(host),
        18 => Fault::ReplayBeats,
        19 => Fault::Stranger(
            host,
            match rng.below(3) {
                0 => Story::LastGeneration,
                1 => Story::OtherGuest,
                _ => Story::EarlierSession,
            },
            ms(150),
        ),
        20 => Fault::StartGuest(host, rng.chance(700)),
        _ => {
            let ever = rng.chance(200);
            Fault::Hang(host, What::any(rng), (!ever).then_some(time))
        }
    }
}

impl World {
    pub fn fault(&mut self, fault: Fault) {
        self.trace(99, || format!("FAULT {fault:?}"));
        match fault {
            Fault::KillProcess(host) => {
                self.count("processes killed");
                self.kill_and_restart(host, false);
            }
            Fault::LoseHost(host) => {
                self.count("hosts lost");
                self.kill_and_restart(host, true);
            }
            Fault::Freeze(host, time) => {
                let process: Process = self.process(host);
                self.hosts[host].frozen = true;
                self.after(time, Event::Thaw(process));
            }
            Fault::StallLink(host, time) => self.stall(host, time),
            Fault::CutOff(host, time) => {
                self.stall(host, time);
                for from in 0..self.hosts.len() {
                    self.beats_cut.push((from, host));
                }
                self.after(time, Event::Fault(Fault::BeatsBack(host)));
            }
            Fault::BeatsBack(host) => self.beats_cut.retain(|(_, to)| *to != host),
            Fault::ResetLink(host) => self.reset_link(host),
            Fault::Damage(host, damage) => {
                if let Some(link) = self.hosts[host].link {
                    self.links[link].incoming(host).damage = Some(damage);
                }
            }
            Fault::ArbiterSilent(time) => {
                self.arbiter.available = false;
                self.after(time, Event::Fault(Fault::ArbiterSpeaks));
            }
            Fault::ArbiterSpeaks => self.arbiter.available = true,
            Fault::Lie(host, time) => self.keep_lying(host, time),
            Fault::Stranger(host, story, time) => self.stranger(host, story, time),
            Fault::StartGuest(host, lapsed) => self.start_guest(host, lapsed),
            Fault::ReplayBeats => self.replay_beats(),
            Fault::Hang(host, what, time) => self.hang(host, what, time),
            Fault::HangEnds((host, starts), what) => {
                if self.hosts[host].starts == starts {
                    self.end_hang(host, what);
                }
            }
            Fault::ArbiterWentBack(time) => {
                self.arbiter.went_back = true;
                self.after(time, Event::Fault(Fault::ArbiterRestored));
            }
            Fault::ArbiterRestored => self.arbiter.went_back = false,
            Fault::CutBeats(from, to) => self.beats_cut.push((from, to)),
            Fault::Promote(host) => self.backup(host, BackupInput::PromotionWanted),
            Fault::HandOver(host) => {
                let why = "this host is to stop".into();
                self.primary(host, PrimaryInput::HandOver { why });
            }
            Fault::BreakMachine(host) => self.break_machine(host),
            Fault::Checkpoint(host) => self.primary(host, PrimaryInput::CheckpointWanted),
            Fault::Dismiss(host, time) => self.dismiss(host, time),
            Fault::StopGuest(host) => {
                if let Side::Primary(node) = &mut self.hosts[host].side
                    && node.running
                {
                    node.running = false;
                    node.guest.end(&node.memory);
                    self.primary(host, PrimaryInput::GuestStopped);
                }
            }
            Fault::Heal => self.heal(),
        }
    }

    fn break_machine(&mut self, host: usize) {
        if let Side::Primary(node) = &mut self.hosts[host].side
            && node.running
        {
            (node.running, node.broke) = (false, true);
            self.count("machines broken");
            let why = "a vCPU cannot go on".into();
            self.primary(host, PrimaryInput::MachineBroke { why });
        }
    }

    fn dismiss(&mut self, host: usize, time: Duration) {
        let alone_until = self.now + time;
        if let Side::Primary(node) = &mut self.hosts[host].side {
            node.alone_until = alone_until;
            if node.core.phase() == PrimaryPhase::Protected {
                self.count("backups dismissed");
            }
            let cause = "another one is wanted".into();
            self.primary(host, PrimaryInput::BackupDismissed { cause });
        }
    }

    fn stall(&mut self, host: usize, time: Duration) {
        if let Some(link) = self.hosts[host].link {
            let until = self.now + time;
            self.links[link].incoming(host).stalled_until = until;
        }
    }

    fn reset_link(&mut self, host: usize) {
        let Some(number) = self.hosts[host].link else {
            return;
        };
        for side in [self.links[number].primary.0, self.links[number].backup.0] {
            let due = self.now + self.latency();
            self.links[number].incoming(side).reset(due);
            self.schedule_delivery(number, side);
        }
    }
}
