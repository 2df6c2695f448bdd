//! The decisions of the backup. The module above has the diagram of the transitions.
//!
//! Must not be done here: blocking, looking at a clock, panicking because of what a peer said, and
//! promoting without the arbiter's grant.

mod arbitration;
mod deadlines;
mod disks;
mod endings;
#[cfg(test)]
pub(in crate::core) mod for_model;
mod health;
mod inquiry;
mod introduction;
mod restorable;
mod status;

use std::time::Duration;

use arbitration::Question;
use bytes::Bytes;
use deadlines::Timer;
use disks::Disks;
use health::Health;
use inquiry::ToStart;
use introduction::may_come_unproven;
use restorable::Restorable;
pub use status::BackupPhase;

use super::{BackupEffect as Effect, BackupInput as Input};
use crate::arbiter::{ArbiterId, Mark};
use crate::core::epoch::staging::{Committed, Staging, StagingError};
use crate::core::heartbeats::Patience;
use crate::core::message::{Bye, Hello, Message};
use crate::core::policy::Policy;
use crate::core::promise::Promise;
use crate::core::start::Starts;
use crate::core::timers::Timers;
use crate::core::violation::ProtocolViolation;
use crate::fingerprint::Fingerprint;
use crate::ids::{EpochId, Generation};
use crate::output::{Arrivals, KeptOutput};
use crate::page_set::MemoryLayout;
use crate::ports::PageMemory;

/// A tick copies at most this many pages of a whole epoch (32 MiB). Heartbeats must not wait for
/// more.
const COMMIT_PAGES_MAX: usize = 8192;

/// Who this backup is and what it can take over.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupIdentity {
    /// The virtual machine it is configured for.
    pub vm: String,
    /// Its name, for messages to people.
    pub node: String,
    /// What tells its host from others of that name.
    pub host: Option<String>,
    /// Whether it starts the guest when it has no copy and nobody else runs it.
    pub starts: Starts,
    /// Whether each host has images of its own.
    pub has_replicated: bool,
    /// Whether it has disks that the primary has, too, and must let go of before the guest can run here.
    pub has_shared: bool,
    /// Its machine.
    pub fingerprint: Fingerprint,
    /// Its guest memory.
    pub layout: MemoryLayout,
    /// Sizes of its disks in bytes, in configuration order.
    pub disks: Vec<u64>,
    /// Its arbiter.
    pub arbiter: ArbiterId,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone, Hash))]
enum Phase {
    Listening,
    Syncing,
    Standby {
        /// Why the link was cut, if it was.
        cut: Option<String>,
    },
    Claiming {
        cause: String,
        /// The primary's machine has broken.
        machine_broke: bool,
        /// When to ask (again); `None` while waiting for an answer.
        ask_at: Option<Duration>,
        /// It was asked, so this side may have been granted the guest.
        asked: bool,
        /// This side is to end unless it was.
        stops: bool,
        /// What follows a guest that is handed over; `None` if it is not.
        arrivals: Option<Arrivals>,
    },
    Promoted,
}

/// The link to a peer.
#[derive(Debug, Clone, PartialEq)]
enum Link {
    Down,
    /// Up, but the peer has not introduced itself yet.
    Stranger {
        since: Duration,
        /// This side's part of the session's number.
        session: u64,
    },
    /// The peer has introduced itself, with its generation; the arbiter is asked about it.
    Introduced {
        generation: Generation,
        hello: Box<Hello>,
        /// This side's part of the session's number.
        session: u64,
    },
    /// Up, with the primary at the other end. Until [`BackupCore::is_proven`], it may be a stranger.
    Welcomed,
}

/// The backup of one virtual machine. It lives through any number of primaries and generations.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct BackupCore {
    policy: Policy,
    timers: Timers<Timer>,
    identity: BackupIdentity,
    generation: Generation,
    now: Duration,
    phase: Phase,
    link: Link,
    staging: Staging,
    committed: Option<Committed>,
    disks: Disks,
    restorable: Restorable,
    /// The last ticket given to `Persist`, `FlushJournal` or `TryRestore`.
    ticket: u64,
    /// Output of committed epochs that the primary has not reported as really out.
    kept: KeptOutput,
    no_state: Bytes,
    primary_node: Option<String>,
    question: Option<Question>,
    /// The arbiter's record is to be looked at, later than whatever is being asked.
    rehearsal_wanted: bool,
    /// What the primary of the present or last session said that it wrote to the record last.
    told: Mark,
    promise: Promise,
    to_start: ToStart,
    health: Health,
    /// When the primary was welcomed, or this side last did not read.
    welcomed_at: Duration,
    /// Last sign of life of the primary on any path.
    heard_at: Duration,
    /// How long it may be silent.
    patience: Patience,
    beat_sent_at: Duration,
    /// This side ends: nothing follows any more, above all no claim, which could be granted to nobody.
    stopped: bool,
}

impl BackupCore {
    /// A backup that waits for a primary of at least `generation`, the last one it knows of.
    #[must_use]
    pub fn new(
        policy: Policy,
        identity: BackupIdentity,
        generation: Generation,
        now: Duration,
    ) -> Self {
        let staging = Staging::new(&identity.layout);
        let patience = Patience::new(&policy, now);
        let mut core = Self {
            policy,
            timers: Timers::new(),
            identity,
            generation,
            now,
            phase: Phase::Listening,
            link: Link::Down,
            staging,
            committed: None,
            disks: Disks::default(),
            restorable: Restorable::default(),
            ticket: 0,
            kept: KeptOutput::default(),
            no_state: Bytes::new(),
            primary_node: None,
            question: None,
            rehearsal_wanted: false,
            told: Mark::default(),
            promise: Promise::default(),
            to_start: ToStart::default(),
            health: Health::default(),
            welcomed_at: now,
            heard_at: now,
            patience,
            beat_sent_at: now,
            stopped: false,
        };
        // It may be long until something happens to a backup that nobody connects to.
        core.arm_timers();
        core
    }

    /// Takes what happened at time `now` and returns what is to be done, in order. Writes to
    /// `memory` the pages of the initial synchronisation and whole epochs. Must be called with
    /// [`BackupInput::Tick`](super::BackupInput::Tick) at [`BackupCore::next_wakeup`] at the
    /// latest.
    #[must_use = "effects are to be carried out"]
    pub fn handle(&mut self, now: Duration, input: Input, memory: &dyn PageMemory) -> Vec<Effect> {
        let mut out = Vec::new();
        if self.stopped {
            return out;
        }
        self.advance(now);
        // Any other input waits until the whole epoch is copied.
        let pages_max = match input {
            Input::Tick => COMMIT_PAGES_MAX,
            _ => usize::MAX,
        };
        self.commit(pages_max, memory, &mut out);
        self.apply(input, memory, &mut out);
        if self.stopped {
            return out;
        }
        self.look_at_timers(&mut out);
        out.extend(self.promise.news().map(Effect::Takeover));
        self.tell_health(&mut out);
        out
    }

    // --- time ---

    fn advance(&mut self, now: Duration) {
        let jump = now.saturating_sub(self.now);
        self.now = self.now.max(now);
        if jump > self.policy.stalls_after() {
            // This side slept, so the other side's silence says nothing: what it sent meanwhile is
            // not read yet.
            self.heard_at += jump;
            self.welcomed_at += jump;
            self.disks_slept(jump);
            self.restorable.slept(jump);
        }
    }

    /// Acts on every timer that has expired, once.
    fn look_at_timers(&mut self, out: &mut Vec<Effect>) {
        let mut last = Timer::Commit;
        loop {
            self.arm_timers();
            let Some(timer) = self.timers.expired_after(last, self.now) else {
                return;
            };
            self.expired(timer, out);
            last = timer;
        }
    }

    fn expired(&mut self, timer: Timer, out: &mut Vec<Effect>) {
        match timer {
            // `handle` begins with the commit.
            Timer::Commit => {}
            Timer::Handshake if self.link == Link::Welcomed => {
                let why = match self.told.beat {
                    0 => "the primary has not written a mark in time",
                    _ => "this standby's arbiter has not answered in time",
                };
                self.give_up_unproven(why.into(), out);
            }
            Timer::Handshake => self.close_link(out),
            Timer::Silence => self.primary_is_silent(out),
            Timer::Beat => {
                self.beat_sent_at = self.now;
                out.push(Effect::Send(Message::Heartbeat));
            }
            Timer::Ask => self.ask_arbiter(out),
            Timer::Promise => self.promise.expire(),
            Timer::Storage => self.storage_hangs(out),
            Timer::Trial => self.trial_expired(out),
        }
    }

    /// There is a sign of life of the primary.
    fn heard(&mut self) {
        if matches!(self.phase, Phase::Syncing | Phase::Standby { .. }) {
            let gap = self.now.saturating_sub(self.heard_at);
            self.patience.heard(gap, self.now);
        }
        self.heard_at = self.now;
    }

    fn primary_is_silent(&mut self, out: &mut Vec<Effect>) {
        let silence = self.silence_patience();
        // If the primary had only stalled, and keeps the guest, it has longer from now on.
        self.patience.heard(silence, self.now);
        let silent = format!("no sign of life for {silence:?}");
        match &self.phase {
            Phase::Syncing => self.reset(silent, out),
            Phase::Standby { cut: None } => self.claim(silent, out),
            Phase::Standby { cut: Some(cut) } => {
                let cause = format!("{cut}, then {silent}");
                self.claim(cause, out);
            }
            _ => {}
        }
    }

    /// Whether an epoch is whole and its disk writes are persisted. Until it is committed, the
    /// runtime looks only at timers.
    #[must_use]
    pub fn commit_is_due(&self) -> bool {
        self.staging.is_whole() && !self.is_persisting() && !self.is_trying_first()
    }

    /// Commits up to `pages_max` pages of the whole epoch, if there is one: step ⑦.
    fn commit(&mut self, pages_max: usize, memory: &dyn PageMemory, out: &mut Vec<Effect>) {
        if self.is_persisting() || self.is_trying_first() {
            return;
        }
        match self.staging.commit(pages_max, memory) {
            Ok(None) => {}
            Ok(Some(mut committed)) => {
                out.push(Effect::Committed(committed.epoch));
                let output = std::mem::take(&mut committed.output);
                self.kept.add(committed.epoch, output);
                self.committed = Some(committed);
                if matches!(self.phase, Phase::Syncing) {
                    self.phase = Phase::Standby { cut: None };
                }
                self.try_now_and_then(out);
            }
            Err(error) => {
                let why = format!("this standby is unusable: {error}");
                out.push(Effect::Discarded {
                    epoch: self.staging.epoch(),
                    why: why.clone(),
                });
                self.staging.restart(EpochId(1));
                if self.link == Link::Welcomed {
                    out.push(Effect::Send(Message::Bye(Bye::Unable(why.clone()))));
                }
                self.reset(why, out);
            }
        }
    }

    // --- inputs ---

    fn apply(&mut self, input: Input, memory: &dyn PageMemory, out: &mut Vec<Effect>) {
        match input {
            Input::LinkUp { session } => self.link_up(session, out),
            Input::Received {
                generation,
                message,
            } => self.received(generation, message, memory, out),
            Input::LinkClosed => self.link_closed(out),
            Input::LinkBroken { cause } => self.cut_off(cause, true, out),
            Input::HeartbeatHeard {
                session,
                generation,
            } => {
                // A heartbeat of another generation is no sign of life of our primary. If it is of
                // a later one, ours falls silent and the arbiter tells us.
                if (session, generation) == (self.told.session, self.generation) {
                    self.heard();
                    self.patience.heartbeat(self.now);
                }
            }
            Input::Persisted { ticket, outcome } => self.persisted(ticket, outcome, out),
            Input::Flushed { ticket, outcome } => self.flushed(ticket, outcome, out),
            Input::RestoreTried { ticket, outcome } => self.restore_tried(ticket, outcome, out),
            Input::DisksDurable { epoch } => self.disks_durable(epoch),
            Input::Compared(differ) => self.compared(differ, out),
            Input::DisksFailed { error } => self.disks_failed(error, out),
            Input::NotReading => {
                self.heard_at = self.now;
                self.welcomed_at = self.now;
                self.not_reading();
            }
            Input::PromotionWanted => {
                if matches!(self.phase, Phase::Standby { .. }) {
                    self.claim_from_living("promotion was asked for".into(), false, out);
                }
            }
            Input::Runs => self.take_leave(out),
            Input::Verdict(verdict) => self.verdict(verdict, out),
            Input::Health(troubles) => self.health.found(troubles),
            Input::StopWanted => self.stop(out),
            Input::Rehearsed(record) => self.rehearsed(record, out),
            Input::Looked {
                record,
                holder_lives,
            } => self.looked(record, holder_lives, out),
            Input::Inquired { theirs, disks } => self.inquired(theirs, disks, out),
            Input::ArbiterUnavailable { why } => self.arbiter_unavailable(why, out),
            Input::Tick => {}
        }
    }

    fn link_up(&mut self, session: u64, out: &mut Vec<Effect>) {
        match (&self.phase, &self.link) {
            (Phase::Listening | Phase::Standby { .. }, Link::Down) => {
                let since = self.now;
                self.link = Link::Stranger { since, session };
            }
            (Phase::Claiming { .. } | Phase::Promoted, _) => out.push(Effect::CloseLink),
            _ => self.violated(&ProtocolViolation::SecondLink, out),
        }
    }

    fn link_closed(&mut self, out: &mut Vec<Effect>) {
        let is_session = self.link == Link::Welcomed;
        self.close_link(out);
        if is_session {
            let cause = String::from("the primary closed the link");
            match self.phase {
                Phase::Syncing => self.reset(cause, out),
                Phase::Standby { .. } => self.claim(cause, out),
                _ => {}
            }
        }
    }

    fn received(
        &mut self,
        generation: Generation,
        message: Message,
        memory: &dyn PageMemory,
        out: &mut Vec<Effect>,
    ) {
        match (&self.link, message) {
            (Link::Down, _) => {}
            (Link::Stranger { session, .. }, Message::Hello(hello)) => {
                let session = *session;
                self.introduced(generation, hello, session, out);
            }
            (Link::Stranger { .. }, Message::Inquiry(inquiry)) => self.asked(&inquiry, out),
            (Link::Welcomed, _) if generation < self.generation => {
                let current = self.generation;
                out.push(Effect::Send(Message::Bye(Bye::Fenced { current })));
            }
            (Link::Welcomed, _) if generation > self.generation => {
                let violation = ProtocolViolation::LaterGeneration {
                    found: generation,
                    session: self.generation,
                };
                self.violated(&violation, out);
            }
            // A claim that was not made yet is made for nobody.
            (Link::Welcomed, Message::Bye(Bye::GuestStopped))
                if matches!(self.phase, Phase::Claiming { asked: false, .. }) =>
            {
                self.reset("the guest stopped".into(), out);
            }
            // From the claim on, nothing is staged or acked: an ack would release output that the
            // promoted side does not have. Whatever the primary says, the arbiter decides.
            (Link::Welcomed, message) if matches!(self.phase, Phase::Claiming { .. }) => {
                if let (
                    Message::Arrived(frames),
                    Phase::Claiming {
                        arrivals: Some(arrivals),
                        ..
                    },
                ) = (message, &mut self.phase)
                {
                    arrivals.add(frames);
                }
            }
            (Link::Welcomed, message) => {
                self.heard();
                self.is_reading();
                if let Err(violation) = self.in_session(message, memory, out) {
                    self.violated(&violation, out);
                }
            }
            (Link::Stranger { .. } | Link::Introduced { .. }, message) => {
                let violation = ProtocolViolation::Unexpected {
                    message: message.name(),
                    phase: "waiting for an introduction",
                };
                self.violated(&violation, out);
            }
        }
    }

    fn in_session(
        &mut self,
        message: Message,
        memory: &dyn PageMemory,
        out: &mut Vec<Effect>,
    ) -> Result<(), ProtocolViolation> {
        if !self.is_proven() && !may_come_unproven(&message) {
            return Err(ProtocolViolation::Unexpected {
                message: message.name(),
                phase: "waiting for the first mark",
            });
        }
        match message {
            Message::SyncPages(batch) => self.staging.sync(&batch, memory)?,
            Message::EpochPages { epoch, batch } => self.staging.pages(epoch, &batch, memory)?,
            Message::SyncDisks(plan) => self.sync_disks(plan, out)?,
            Message::SyncDisk(batch) => self.sync_disk(batch, out)?,
            Message::EpochDisk { epoch, batch } => self.epoch_disk(epoch, batch)?,
            Message::EpochState { epoch, state } => self.staging.state(epoch, state)?,
            Message::EpochOutput { epoch, output } => self.staging.output(epoch, output)?,
            Message::EpochEnd { epoch, summary } => self.epoch_ended(epoch, summary, out)?,
            Message::Heartbeat => {}
            Message::Marked(mark) => self.told(mark)?,
            Message::NoArbiter(why) => self.promise.fail(format!("the primary says: {why}")),
            Message::TakeOver {
                why,
                machine_broke,
                left_through,
            } if matches!(self.phase, Phase::Standby { .. }) => {
                self.kept.have_left(left_through);
                let cause = format!("the primary hands the guest over: {why}");
                self.claim_from_living(cause, machine_broke, out);
                if let (false, Phase::Claiming { arrivals, .. }) = (machine_broke, &mut self.phase)
                {
                    *arrivals = Some(Arrivals::default());
                }
            }
            Message::Bye(Bye::GuestStopped) => self.reset("the guest stopped".into(), out),
            Message::Bye(Bye::Fenced { current }) => {
                let cause = format!("{current} is in force, says the primary");
                match self.phase {
                    Phase::Standby { .. } => self.claim(cause, out),
                    _ => self.reset(cause, out),
                }
            }
            Message::Bye(bye @ Bye::Protocol(_)) => self.cut_off(bye.to_string(), false, out),
            message => {
                return Err(ProtocolViolation::Unexpected {
                    message: message.name(),
                    phase: self.phase().name(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
