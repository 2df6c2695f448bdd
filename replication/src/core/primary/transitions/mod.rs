//! The decisions of the primary. The module above has the diagram of the transitions.
//!
//! Must not be done here: blocking, looking at a clock, and panicking because of what a peer said.

mod arbitration;
mod deadlines;
mod dismissal;
mod ending;
#[cfg(test)]
pub(in crate::core) mod for_model;
mod handover;
mod status;
mod syncing;

use std::time::Duration;

use arbitration::{Doubt, Question};
use deadlines::Timer;
use dismissal::Dismissal;
use ending::Ending;
use handover::Handover;
pub use status::{EndingAwaits, PrimaryPhase};

use super::epochs::Epochs;
use super::{PrimaryEffect as Effect, PrimaryInput as Input};
use crate::arbiter::Mark;
use crate::core::disk::PeerDisk;
use crate::core::heartbeats::Patience;
use crate::core::message::{Bye, Hello, Message, Refusal, Trouble, session_number};
use crate::core::policy::Policy;
use crate::core::promise::Promise;
use crate::core::throttle::Throttle;
use crate::core::timers::Timers;
use crate::core::violation::ProtocolViolation;
use crate::ids::Generation;

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
enum Phase {
    Alone,
    Handshaking {
        /// The backup's disks, once it has welcomed this side, until it has found the first mark.
        welcomed: Option<Vec<PeerDisk>>,
        /// The first mark is in the record.
        marked: bool,
    },
    Syncing {
        rounds: u32,
        /// When the round of memory began that is being shipped.
        round_at: Duration,
        /// When to try the failed capture of epoch 1 again.
        capture_at: Option<Duration>,
        failures: u32,
    },
    Protected(Epochs),
    Claiming {
        cause: String,
        /// When to ask (again); `None` while waiting for an answer.
        ask_at: Option<Duration>,
    },
    Fenced,
    Stopped,
}

/// The primary of one virtual machine. It lives through any number of backups and generations.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct PrimaryCore {
    policy: Policy,
    timers: Timers<Timer>,
    introduction: Hello,
    /// Whether output must wait for writes to shared disks.
    disks_first: bool,
    generation: Generation,
    now: Duration,
    phase: Phase,
    /// This side goes alone, but not everything held has left yet. No session begins meanwhile: its
    /// first epoch would contain what is just leaving.
    opening: bool,
    ending: Option<Ending>,
    dismissal: Option<Dismissal>,
    handover: Option<Handover>,
    /// Something of this host failed: the machine can neither go on nor be captured any more.
    machine_broke: bool,
    question: Option<Question>,
    doubt: Option<Doubt>,
    /// When the generation is confirmed next although nothing is wrong.
    confirm_at: Option<Duration>,
    /// When the arbiter was last asked to confirm it.
    confirm_asked_at: Duration,
    /// The last mark that is known to be in the record. Its session is the present or last one, and
    /// its beat goes on from session to session.
    mark: Mark,
    /// When it was known.
    marked_at: Duration,
    /// The one before.
    mark_before: (Mark, Duration),
    /// The beat of the last mark that was written in this generation; 0 if none was.
    beat_written: u64,
    promise: Promise,
    throttle: Throttle,
    backup_node: Option<String>,
    /// What tells the backup's host from others of that name.
    backup_host: Option<String>,
    /// What fails on the backup's host, once it has said so.
    backup_troubles: Option<Vec<Trouble>>,
    /// When the link came up.
    link_up_at: Duration,
    /// When something last came over the link; time that this side slept is not counted.
    link_heard_at: Duration,
    /// When something last came over the link.
    message_at: Duration,
    /// When a heartbeat last came on the separate path; time that this side slept is not counted.
    beat_heard_at: Duration,
    /// How long the backup may be silent.
    patience: Patience,
    /// When a heartbeat was last sent over the link.
    beat_sent_at: Duration,
}

impl PrimaryCore {
    /// A primary that holds `generation`, runs alone, and introduces itself to backups with
    /// `introduction`.
    #[must_use]
    pub fn new(policy: Policy, introduction: Hello, generation: Generation, now: Duration) -> Self {
        let policy_check = policy.arbiter_check;
        let patience = Patience::new(&policy, now);
        let throttle = Throttle::new(policy.latency_target, policy.epoch_interval);
        let mut core = Self {
            policy,
            timers: Timers::new(),
            introduction,
            disks_first: false,
            generation,
            now,
            phase: Phase::Alone,
            opening: false,
            ending: None,
            dismissal: None,
            handover: None,
            machine_broke: false,
            question: None,
            doubt: None,
            confirm_at: Some(now + policy_check),
            confirm_asked_at: now,
            mark: Mark::default(),
            marked_at: now,
            mark_before: (Mark::default(), now),
            beat_written: 0,
            promise: Promise::default(),
            throttle,
            backup_node: None,
            backup_host: None,
            backup_troubles: None,
            link_up_at: now,
            link_heard_at: now,
            message_at: now,
            beat_heard_at: now,
            patience,
            beat_sent_at: now,
        };
        // It may be long until something happens to a primary that has no backup.
        core.arm_timers();
        core
    }

    /// Whether there are shared disks. Writes to them go before the other output of their epoch.
    #[must_use]
    pub fn with_shared_disks(mut self, shared: bool) -> Self {
        self.disks_first = shared;
        self
    }

    /// Takes what happened at time `now` and returns what is to be done, in order. Must be called
    /// with [`PrimaryInput::Tick`](super::PrimaryInput::Tick) at [`PrimaryCore::next_wakeup`] at
    /// the latest.
    #[must_use = "effects are to be carried out"]
    pub fn handle(&mut self, now: Duration, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        self.advance(now);
        self.arm_timers();
        if self.timers.has_expired(Timer::AllSaid, self.now) {
            self.expired(Timer::AllSaid, &mut out);
        }
        self.apply(input, &mut out);
        self.look_at_acked();
        self.release(&mut out);
        self.look_at_timers(&mut out);
        self.settle_handover(&mut out);
        out.extend(self.throttle.news().map(Effect::Throttle));
        out.extend(self.promise.news().map(Effect::Takeover));
        out
    }

    fn epochs(&self) -> Option<&Epochs> {
        match &self.phase {
            Phase::Protected(epochs) => Some(epochs),
            _ => None,
        }
    }

    // --- time ---

    fn advance(&mut self, now: Duration) {
        let jump = now.saturating_sub(self.now);
        self.now = self.now.max(now);
        if jump <= self.policy.stalls_after() {
            return;
        }
        // This side slept, so the other side's silence says nothing: what it sent meanwhile is not
        // read yet.
        self.link_heard_at += jump;
        self.beat_heard_at += jump;
        self.link_up_at += jump;
        if let Some(handover) = &mut self.handover {
            handover.slept(jump);
        }
        self.throttle.slept(jump);
        self.begin_to_doubt();
    }

    /// Acts on every timer that has expired, once.
    fn look_at_timers(&mut self, out: &mut Vec<Effect>) {
        let mut last = Timer::AllSaid;
        loop {
            self.arm_timers();
            let Some(timer) = self.timers.expired_after(last, self.now) else {
                return;
            };
            self.expired(timer, out);
            last = timer;
        }
    }

    /// There is a sign of life of the backup, which is not noted yet.
    fn heard(&mut self) {
        if matches!(self.phase, Phase::Syncing { .. } | Phase::Protected(_)) {
            let last = self.link_heard_at.max(self.beat_heard_at);
            self.patience.heard(self.now.saturating_sub(last), self.now);
        }
    }

    fn expired(&mut self, timer: Timer, out: &mut Vec<Effect>) {
        match timer {
            Timer::AllSaid => self.await_last_answer(),
            Timer::LastAnswer => self.stop(out),
            Timer::Handshake => {
                let cause = match self.backup_node {
                    None => "no answer to the introduction",
                    Some(_) => "nobody could take over, the arbiter gives no answer",
                };
                self.lose_backup(cause.into(), out);
            }
            Timer::Silence => {
                let silence = self.patience.timeout();
                // If the backup had only stalled, it has longer when it is back.
                self.patience.heard(silence, self.now);
                self.lose_backup(format!("no sign of life for {silence:?}"), out);
            }
            Timer::Unacked => {
                if let Some(epoch) = self.in_flight() {
                    self.lose_backup(format!("{epoch} not acknowledged, link silent"), out);
                }
            }
            Timer::HandOver => self.handover_expired(out),
            Timer::Beat => {
                self.beat_sent_at = self.now;
                out.push(Effect::Send(Message::Heartbeat));
            }
            Timer::Capture => match &mut self.phase {
                Phase::Syncing { failures, .. } => {
                    let failures = *failures;
                    self.capture_first(failures, out);
                }
                Phase::Protected(epochs) => {
                    out.push(Effect::Capture(epochs.end(self.now, &self.policy)));
                    self.throttle.ended(self.now);
                }
                _ => {}
            },
            Timer::Ask => self.ask_arbiter(out),
            Timer::Promise => self.promise.expire(),
            Timer::Late => self.throttle.late(self.now),
        }
    }

    /// A promoted backup repeats the output of its last epoch only. So at most one epoch may ever
    /// be acked but not released.
    fn may_end(&self, epochs: &Epochs) -> bool {
        let may_leave = self.doubt.is_none() && !self.has_let_go();
        may_leave && !epochs.is_releasing() && self.has_more_to_say(epochs) && !self.machine_broke
    }

    /// R1: the only place where output of an epoch is released.
    fn release(&mut self, out: &mut Vec<Effect>) {
        let Phase::Protected(epochs) = &mut self.phase else {
            return;
        };
        if self.doubt.is_some() {
            return;
        }
        if self.disks_first {
            out.extend(epochs.write_disks().map(Effect::WriteDisks));
        }
        out.extend(epochs.release(self.disks_first).map(Effect::Release));
    }

    // --- inputs ---

    fn apply(&mut self, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::LinkUp { session } => self.link_up(session, out),
            Input::LinkDown { cause } => self.lose_backup(cause, out),
            Input::BackupDismissed { cause } => self.dismiss_backup(cause, out),
            Input::Received {
                generation,
                message,
            } => self.received(generation, message, out),
            Input::HeartbeatHeard {
                session,
                generation,
            } => {
                if session != self.mark.session || session == 0 {
                    // A stranger's, or an old one.
                } else if generation > self.generation {
                    self.hear_of_later();
                } else if generation == self.generation {
                    self.heard();
                    self.patience.heartbeat(self.now);
                    self.beat_heard_at = self.now;
                }
            }
            Input::SyncRoundShipped {
                pages_left,
                disk_bytes_left: 0,
                left_takes,
            } => self.round_shipped(pages_left, left_takes, out),
            Input::SyncRoundShipped { .. } => self.disks_shipped(out),
            Input::DisksWritten { epoch } => {
                self.report(|epochs| epochs.disks_written(epoch), out);
            }
            Input::DisksMisreported { what } if self.has_link() => {
                self.violated(&ProtocolViolation::Disks(what), out);
            }
            Input::DisksMisreported { .. } => {}
            Input::Captured { epoch, pause } => {
                let (now, policy) = (self.now, self.policy.clone());
                self.report(|epochs| epochs.captured(epoch, pause, now, &policy), out);
            }
            Input::Shipped { epoch, bytes } => {
                self.report(|epochs| epochs.shipped(epoch, bytes), out);
            }
            Input::CaptureFailed { epoch, error } => self.capture_failed(epoch, &error, out),
            Input::HandOver { why } => self.hand_over(why, out),
            Input::MachineBroke { why } => self.machine_broke(why, out),
            Input::OutputWaiting => {
                if let Phase::Protected(epochs) = &mut self.phase {
                    epochs.output_waiting(self.now);
                }
            }
            Input::CheckpointWanted => {
                if let Phase::Protected(epochs) = &mut self.phase {
                    epochs.want_checkpoint();
                }
            }
            Input::Verdict(verdict) => self.verdict(verdict, out),
            Input::ArbiterUnavailable { why } => self.arbiter_unavailable(why, out),
            Input::Opened => self.opened(out),
            Input::GuestStopped => self.guest_stopped(out),
            Input::Abandoned => self.abandon(out),
            Input::Tick => {}
        }
    }

    fn link_up(&mut self, session: u64, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Alone if !self.opening => {
                self.phase = Phase::Handshaking {
                    welcomed: None,
                    marked: false,
                };
                self.mark.session = session;
                self.link_up_at = self.now;
                self.link_heard_at = self.now;
                self.message_at = self.now;
                self.beat_sent_at = self.now;
                out.push(Effect::Send(Message::Hello(Hello {
                    session,
                    ..self.introduction.clone()
                })));
            }
            Phase::Handshaking { .. } | Phase::Syncing { .. } | Phase::Protected(_) => {
                self.violated(&ProtocolViolation::SecondLink, out);
            }
            Phase::Alone | Phase::Claiming { .. } | Phase::Fenced | Phase::Stopped => {
                out.push(Effect::CloseLink);
            }
        }
    }

    fn received(&mut self, generation: Generation, message: Message, out: &mut Vec<Effect>) {
        if !self.has_link() {
            return;
        }
        // A refusal may come from a backup of another virtual machine, whose generation means
        // nothing.
        if let (Phase::Handshaking { .. }, Message::Refuse(refusal)) = (&self.phase, &message) {
            if matches!(refusal, Refusal::Stale { .. }) {
                self.hear_of_later();
            }
            return self.lose_backup(format!("refused: {refusal}"), out);
        }
        if generation > self.generation {
            self.hear_of_later();
            let (found, session) = (generation, self.generation);
            let violation = ProtocolViolation::LaterGeneration { found, session };
            return self.lose_backup(violation.to_string(), out);
        }
        if generation < self.generation {
            let current = self.generation;
            return out.push(Effect::Send(Message::Bye(Bye::Fenced { current })));
        }
        if self.now.saturating_sub(self.message_at) > self.policy.stalls_after() {
            // What comes now may have been on its way for long.
            self.begin_to_doubt();
        }
        self.heard();
        self.message_at = self.now;
        self.link_heard_at = self.now;
        match (&mut self.phase, message) {
            (Phase::Handshaking { welcomed, .. }, Message::Welcome(welcome))
                if welcomed.is_none() =>
            {
                self.backup_node = Some(welcome.node);
                self.backup_host = welcome.host;
                self.mark.session = session_number(self.mark.session, welcome.session);
                *welcomed = Some(welcome.disks);
                // From here on it is the arbiter that is waited for.
                self.link_up_at = self.now;
                self.confirm_at = Some(self.now);
            }
            (_, Message::Heartbeat) if self.backup_node.is_some() => {}
            (
                Phase::Handshaking { marked: true, .. }
                | Phase::Syncing { .. }
                | Phase::Protected(_),
                Message::Seen(mark),
            ) => self.seen(mark, out),
            (Phase::Syncing { .. } | Phase::Protected(_), Message::NoArbiter(why)) => {
                self.promise.fail(format!("the standby says: {why}"));
            }
            (Phase::Protected(_), Message::Health(troubles)) => {
                self.backup_troubles = Some(troubles);
            }
            (Phase::Protected(epochs), message @ (Message::Ack { .. } | Message::Flushed(_))) => {
                match what_is_safe(epochs, message) {
                    Ok(effect) => out.extend(effect),
                    Err(violation) => self.violated(&violation, out),
                }
            }
            (Phase::Syncing { .. } | Phase::Protected(_), Message::Compared(differ)) => {
                out.push(Effect::Compared(differ));
            }
            (_, Message::Bye(bye @ Bye::Fenced { .. })) => {
                self.hear_of_later();
                self.lose_backup(bye.to_string(), out);
            }
            (_, Message::Bye(bye @ (Bye::BackupStopped | Bye::Protocol(_) | Bye::Unable(_)))) => {
                self.backup_goes(&bye, out);
            }
            (_, message) => {
                let violation = ProtocolViolation::Unexpected {
                    message: message.name(),
                    phase: self.phase().name(),
                };
                self.violated(&violation, out);
            }
        }
    }

    fn report<E: std::fmt::Display>(
        &mut self,
        apply: impl FnOnce(&mut Epochs) -> Result<(), E>,
        out: &mut Vec<Effect>,
    ) {
        // Reports on a session that has ended meanwhile are ignored.
        if let Phase::Protected(epochs) = &mut self.phase
            && let Err(error) = apply(epochs)
        {
            self.lose_backup(error.to_string(), out);
        }
    }

    // --- endings ---

    fn has_link(&self) -> bool {
        matches!(
            self.phase,
            Phase::Handshaking { .. } | Phase::Syncing { .. } | Phase::Protected(_)
        )
    }

    fn end_session(&mut self, phase: Phase) {
        self.phase = phase;
        self.doubt = None;
        self.dismissal = None;
        self.backup_node = None;
        self.backup_host = None;
        self.backup_troubles = None;
        self.promise.end();
        self.throttle.end();
    }

    fn violated(&mut self, violation: &ProtocolViolation, out: &mut Vec<Effect>) {
        let text = violation.to_string();
        out.push(Effect::Send(Message::Bye(Bye::Protocol(text.clone()))));
        self.lose_backup(text, out);
    }

    fn lose_backup(&mut self, cause: String, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Handshaking { .. } | Phase::Syncing { .. } => {
                out.push(Effect::CloseLink);
                out.push(Effect::GoAlone {
                    generation: self.generation,
                    cause,
                });
                self.opening = true;
                self.end_session(Phase::Alone);
            }
            Phase::Protected(_) if self.leaves_guest() => self.leave_guest(&cause, out),
            Phase::Protected(_) => {
                out.push(Effect::CloseLink);
                // A side that gives way awaits the answer that is open, and asks for nothing.
                let ask_at = (!self.gives_way()).then_some(self.now);
                self.end_session(Phase::Claiming { cause, ask_at });
            }
            Phase::Alone | Phase::Claiming { .. } | Phase::Fenced | Phase::Stopped => {}
        }
    }

    /// R4: another side holds a later generation.
    fn fence(&mut self, current: Generation, how: String, out: &mut Vec<Effect>) {
        if matches!(self.phase, Phase::Fenced | Phase::Stopped) {
            return;
        }
        if self.has_link() {
            out.push(Effect::Send(Message::Bye(Bye::Fenced { current })));
            out.push(Effect::CloseLink);
        }
        let handed_over = self.has_let_go();
        self.handover = None;
        out.push(Effect::Fenced {
            handed_over,
            reason: format!(
                "{current} is in force, this side holds {}: {how}",
                self.generation
            ),
        });
        self.end_session(Phase::Fenced);
    }
}

/// What the backup says that it has; what follows from that at once.
fn what_is_safe(
    epochs: &mut Epochs,
    message: Message,
) -> Result<Option<Effect>, ProtocolViolation> {
    match message {
        Message::Ack { epoch, durable } => {
            let is_news = epochs.ack(epoch, durable)?;
            Ok(is_news.then_some(Effect::Durable(durable)))
        }
        Message::Flushed(epoch) => {
            epochs.flushed(epoch)?;
            Ok(Some(Effect::Flushed(epoch)))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests;
