//! The standby's loop: waits for one event, passes it to the core, and does what the core says.
//! Steps ⑥ to ⑧ happen inside the core's `handle`, except for disks. The promotion is done here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Receiver;
use understudy_transport::heartbeat::Sender;
use understudy_transport::{ConnectError, Endpoint, Link, Listener};

use super::disks::{DiskEvent, DiskThread};
use super::ending::{Detected, Ended, Granted};
use super::health::HealthNews;
use super::strangers::{Introduced, Strangers};
use super::trials::Trials;
use super::{Outcome, Request};
use crate::core::backup::{BackupCore, BackupEffect, BackupIdentity, BackupInput, BackupPhase};
use crate::core::heartbeats::Heartbeat;
use crate::core::message::{Inquiry, Message, Refusal, Trouble, Welcome};
use crate::core::start::Starts;
use crate::ids::{EpochId, Generation};
use crate::log_thinning::LogThinning;
use crate::ports::disks::EpochToPersist;
use crate::ports::{Disks, Machine, PageMemory};
use crate::runtime::alarms::Topic;
use crate::runtime::arbitration::{Arbitration, Question, Reply, overdue, part_of_session};
use crate::runtime::clock::{Clock, beat, until};
use crate::runtime::error::RuntimeError;
use crate::runtime::heartbeats::Heartbeats;
use crate::runtime::metrics::Metrics;
use crate::runtime::reign::Reign;
use crate::runtime::session::{Session, SessionError};
use crate::runtime::stopped_on_drop::StoppedOnDrop;
use crate::runtime::threads::tokio_runtime;

/// Pause after a connection could not be accepted.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

pub(super) struct Setup {
    pub(super) reign: Reign,
    pub(super) listen: Endpoint,
    /// Whether it starts the guest when it has no copy and nobody else runs it.
    pub(super) starts: Starts,
    /// Whom it asks before.
    pub(super) other: Option<Endpoint>,
}

pub(super) struct Driver<M: Machine> {
    pub(super) setup: Setup,
    pub(super) trials: Trials<M>,
    /// The machine's.
    all_disks: Arc<dyn Disks>,
    pub(super) memory: Arc<dyn PageMemory>,
    pub(super) disks: DiskThread,
    /// The welcome, while this side's disks are being described for it. Nothing else is sent before
    /// it.
    welcome: Option<Welcome>,
    /// The last epoch that the core knows to be durable.
    durable: EpochId,
    pub(super) requests: Receiver<Request>,
    health: HealthNews,
    pub(super) arbitration: Arbitration,
    pub(super) metrics: Metrics,
    pub(super) clock: Clock,
    pub(super) core: BackupCore,
    strangers: Strangers,
    pub(super) session: Option<Session>,
    log: LogThinning,
    /// Last sign of life of the primary, on any path.
    pub(super) last_contact: Instant,
    /// When this side first claimed the guest.
    pub(super) detected: Option<Detected>,
    ended: Option<Ended>,
    /// No connection is accepted before this.
    accept_at: tokio::time::Instant,
}

/// What the loop waits for.
enum Happened {
    Accepted(Result<Box<Link>, ConnectError>),
    Introduced(Box<Introduced>),
    Received(Result<(Generation, Message), SessionError>),
    Disks(DiskEvent),
    Tried(u64, Result<(), String>),
    Requested(Option<Request>),
    Health(Vec<Trouble>),
    Replied(Reply),
    Heard(Heartbeat),
    Heartbeat,
    Timer,
}

impl<M: Machine> Driver<M> {
    pub(super) fn new(
        setup: Setup,
        machine: StoppedOnDrop<M>,
        requests: Receiver<Request>,
        health: HealthNews,
    ) -> Result<Self, RuntimeError> {
        let clock = Clock::start();
        let (memory, disks) = (machine.memory(), machine.disks());
        let core = BackupCore::new(
            setup.reign.settings.policy.clone(),
            BackupIdentity {
                vm: setup.reign.settings.vm.clone(),
                node: setup.reign.settings.node.clone(),
                host: setup.reign.settings.host.clone(),
                starts: setup.starts,
                has_replicated: disks.has_replicated(),
                has_shared: disks.has_shared(),
                fingerprint: machine.fingerprint(),
                layout: memory.layout().clone(),
                disks: disks.list().iter().map(|disk| disk.bytes).collect(),
                arbiter: setup.reign.arbiter_id.clone(),
            },
            setup.reign.generation,
            clock.now(),
        );
        Ok(Self {
            arbitration: setup.reign.arbitration(),
            metrics: setup.reign.metrics.clone(),
            strangers: Strangers::new(
                setup.reign.settings.limits.send_bytes_max,
                setup.reign.metrics.clone(),
            ),
            setup,
            trials: Trials::start(machine)?,
            all_disks: Arc::clone(&disks),
            memory,
            disks: DiskThread::start(disks.backup())?,
            welcome: None,
            durable: EpochId(0),
            requests,
            health,
            clock,
            core,
            session: None,
            log: LogThinning::default(),
            last_contact: Instant::now(),
            detected: None,
            ended: None,
            accept_at: tokio::time::Instant::now(),
        })
    }

    pub(super) fn run(mut self, ready: &SyncSender<Endpoint>) -> Result<Outcome<M>, RuntimeError> {
        let runtime = tokio_runtime()?;
        let ended = runtime.block_on(async {
            let ended = self.drive(ready).await;
            self.trials.settle().await;
            ended
        })?;
        match ended {
            Ended::Stopped => {
                if let Err(error) = self.trials.take_machine() {
                    tracing::warn!("{error}");
                }
                Ok(Outcome::Stopped)
            }
            Ended::Starts { known } => {
                self.trials.take_machine()?;
                Ok(Outcome::Starts { known })
            }
            Ended::Promoted(granted) => self.promote(granted, &runtime),
        }
    }

    async fn drive(&mut self, ready: &SyncSender<Endpoint>) -> Result<Ended, RuntimeError> {
        let limits = understudy_transport::Limits::default();
        let listener = Listener::bind(&self.setup.listen, limits).await?;
        let mut heartbeats = Heartbeats::open(&self.setup.reign.settings, Sender::Backup).await?;
        // This cannot fail: the builder waits for it.
        let _ = ready.send(listener.local_endpoint().clone());
        let mut beat = beat(self.setup.reign.settings.policy.heartbeat_interval);
        loop {
            self.publish();
            if let Some(ended) = self.ended.take() {
                // That of a guest that goes on here is of use for a moment longer.
                let is_promoted = matches!(ended, Ended::Promoted(_));
                if let Some(session) = self.session.take_if(|_| !is_promoted) {
                    session.close().await;
                }
                return Ok(ended);
            }
            let happened = self.wait(&listener, &mut beat, &mut heartbeats).await?;
            if matches!(happened, Happened::Heartbeat) {
                heartbeats
                    .send(self.core.generation(), self.core.session())
                    .await;
                continue;
            }
            if matches!(happened, Happened::Received(_) | Happened::Accepted(_)) {
                // If there is always something to receive, nothing here would ever wait. But what
                // is sent, above all heartbeats, leaves only while this waits, and strangers are
                // listened to only then.
                tokio::task::yield_now().await;
            }
            let mut inputs = VecDeque::new();
            self.look_at_disks(&mut inputs);
            self.translate(happened, &mut inputs);
            for input in inputs {
                let broken = matches!(input, BackupInput::LinkBroken { .. });
                // A link that is down is closed before the arbiter is asked. A primary that was
                // only stalled then sees the end behind the acknowledgements sent before.
                if matches!(input, BackupInput::LinkClosed)
                    && let Some(session) = self.session.take()
                {
                    session.close().await;
                }
                let memory = Arc::clone(&self.memory);
                for effect in self.core.handle(self.clock.now(), input, memory.as_ref()) {
                    self.perform(effect).await?;
                }
                // The core closes the link, after a farewell, if it knew of it. Nothing more is
                // read from it.
                if broken && let Some(session) = self.session.take() {
                    session.close().await;
                }
            }
        }
    }

    async fn wait(
        &mut self,
        listener: &Listener,
        beat: &mut tokio::time::Interval,
        heartbeats: &mut Heartbeats,
    ) -> Result<Happened, RuntimeError> {
        if self.core.commit_is_due() {
            // Nothing else may be looked at before the whole epoch is in memory. But what is sent,
            // an acknowledgement and heartbeats, must leave meanwhile.
            tokio::task::yield_now().await;
            return Ok(tokio::select! {
                biased;
                _ = beat.tick() => Happened::Heartbeat,
                () = std::future::ready(()) => Happened::Timer,
            });
        }
        let is_full = self.disks.is_full();
        let timer = self.core.next_wakeup().map(|at| self.clock.instant(at));
        let (accept_at, number) = (self.accept_at, self.core.session());
        Ok(tokio::select! {
            biased;
            // Rare events first: during a synchronisation there is always something to receive.
            reply = self.arbitration.reply() => Happened::Replied(reply),
            request = self.requests.recv() => Happened::Requested(request),
            troubles = self.health.next() => Happened::Health(troubles),
            event = self.disks.event() => Happened::Disks(event?),
            tried = self.trials.done() => {
                let (ticket, outcome) = tried?;
                Happened::Tried(ticket, outcome)
            }
            _ = beat.tick() => Happened::Heartbeat,
            // Before the timer: silence is judged only after everything that has arrived was looked
            // at.
            received = async { match &mut self.session {
                Some(session) if !is_full => session.recv().await,
                _ => std::future::pending().await,
            } } => Happened::Received(received),
            heard = heartbeats.recv(number) => Happened::Heard(heard),
            () = until(timer) => Happened::Timer,
            introduced = self.strangers.introduced() => Happened::Introduced(Box::new(introduced)),
            accepted = async {
                tokio::time::sleep_until(accept_at).await;
                listener.accept().await
            } => Happened::Accepted(accepted.map(Box::new)),
        })
    }

    fn translate(&mut self, happened: Happened, inputs: &mut VecDeque<BackupInput>) {
        match happened {
            Happened::Accepted(Ok(link)) => {
                self.strangers.listen_to(*link, self.core.generation());
            }
            Happened::Introduced(introduced) => self.introduced(*introduced, inputs),
            Happened::Accepted(Err(error)) => {
                if let Some(left_out) = self.log.line("accept") {
                    tracing::warn!(%error, left_out, "cannot accept a connection");
                }
                // The cause may last, for example if there are no file descriptors left.
                self.accept_at = tokio::time::Instant::now() + ACCEPT_RETRY;
            }
            Happened::Received(Ok((generation, message))) => {
                self.last_contact = Instant::now();
                inputs.push_back(BackupInput::Received {
                    generation,
                    message,
                });
            }
            Happened::Received(Err(error)) => {
                inputs.push_back(if error.is_peer_gone() {
                    BackupInput::LinkClosed
                } else {
                    if let Some(left_out) = self.log.line("malformed") {
                        tracing::warn!(%error, left_out, "cannot understand the primary");
                    }
                    BackupInput::LinkBroken {
                        cause: error.to_string(),
                    }
                });
            }
            Happened::Requested(Some(Request::Promote)) => {
                if self.core.phase() != BackupPhase::Standby {
                    let phase = self.core.phase().name();
                    tracing::warn!(
                        "cannot be promoted while {phase}: there is no whole copy to go on from"
                    );
                }
                inputs.push_back(BackupInput::PromotionWanted);
            }
            Happened::Health(troubles) => inputs.push_back(BackupInput::Health(troubles)),
            Happened::Requested(Some(Request::Stop) | None) => {
                self.say_what_a_stop_means();
                inputs.push_back(BackupInput::StopWanted);
            }
            Happened::Replied(Reply::Answer(answer)) => inputs.push_back(self.answered(answer)),
            Happened::Replied(Reply::Overdue(time)) => self.no_answer(&overdue(time)),
            Happened::Heard(Heartbeat {
                session,
                generation,
                ..
            }) => {
                if (session, generation) == (self.core.session(), self.core.generation()) {
                    self.last_contact = Instant::now();
                }
                inputs.push_back(BackupInput::HeartbeatHeard {
                    session,
                    generation,
                });
            }
            Happened::Disks(event) => self.disks_happened(event, inputs),
            Happened::Tried(ticket, outcome) => {
                inputs.push_back(BackupInput::RestoreTried { ticket, outcome });
            }
            Happened::Heartbeat => {}
            Happened::Timer => inputs.push_back(BackupInput::Tick),
        }
    }

    /// Looks at what the disks thread changes without an event.
    fn look_at_disks(&mut self, inputs: &mut VecDeque<BackupInput>) {
        if self.disks.is_full() || self.welcome.is_some() {
            inputs.push_back(BackupInput::NotReading);
        }
        let epoch = self.disks.durable_epoch();
        if std::mem::replace(&mut self.durable, epoch) < epoch {
            self.metrics.durable(epoch);
            inputs.push_back(BackupInput::DisksDurable { epoch });
        }
        while let Some(differ) = self.disks.compared() {
            inputs.push_back(BackupInput::Compared(differ));
        }
        if let Some(failed) = self.disks.failure() {
            self.disks_happened(failed, inputs);
        }
    }

    fn disks_happened(&mut self, event: DiskEvent, inputs: &mut VecDeque<BackupInput>) {
        match event {
            DiskEvent::Described(disks) => {
                if let (Some(welcome), Some(session)) = (self.welcome.take(), &mut self.session) {
                    let welcome = Message::Welcome(Welcome { disks, ..welcome });
                    session.send(self.core.generation(), &welcome);
                }
            }
            DiskEvent::Copying => self.metrics.disks_unfinished(),
            DiskEvent::Idle | DiskEvent::Compared => {}
            DiskEvent::Persisted { ticket, outcome } => {
                if let Err(error) = &outcome {
                    self.copy_fails(error);
                }
                inputs.push_back(BackupInput::Persisted { ticket, outcome });
            }
            DiskEvent::Flushed { ticket, outcome } => {
                if let Err(error) = &outcome {
                    self.copy_fails(error);
                }
                inputs.push_back(BackupInput::Flushed { ticket, outcome });
            }
            DiskEvent::Failed(error) => {
                self.copy_fails(&error);
                inputs.push_back(BackupInput::DisksFailed { error });
            }
        }
    }

    fn copy_fails(&self, error: &str) {
        let what = format!("the copy cannot be kept: {error}");
        self.metrics.alarm(Topic::Disks, what);
    }

    /// Serves one primary at a time. Another one is told so, and nothing else.
    fn introduced(&mut self, introduced: Introduced, inputs: &mut VecDeque<BackupInput>) {
        let busy = match &self.session {
            Some(_) => {
                let primary = self.core.primary_node().unwrap_or("another primary");
                Some(format!("it serves {primary}"))
            }
            None if self.disks.is_behind() => Some("its storage is slow".into()),
            None if self.core.phase() == BackupPhase::Claiming => {
                Some("it asks the arbiter for the guest".into())
            }
            None => None,
        };
        if let Some(why) = busy {
            let generation = self.core.generation();
            return (self.strangers).refuse(introduced, generation, Refusal::Busy(why));
        }
        let Introduced {
            session,
            generation,
            hello,
        } = introduced;
        self.metrics.linked(session.counters());
        self.session = Some(session);
        inputs.push_back(BackupInput::LinkUp {
            session: part_of_session(),
        });
        inputs.push_back(BackupInput::Received {
            generation,
            message: hello,
        });
    }

    fn send(&mut self, message: &Message) {
        if let Message::Ack { epoch, .. } = message {
            self.disks.disks.committed(*epoch);
        }
        if let Message::Refuse(refusal) = message {
            self.metrics.strangers(|counts| counts.refused += 1);
            // The primary logs this too, but a person may be looking here.
            if let Some(left_out) = self.log.line("refused") {
                tracing::warn!(left_out, "refused a primary: {refusal}");
            }
        }
        if let Some(session) = &mut self.session {
            session.send(self.core.generation(), message);
        }
    }

    fn welcome(&mut self, session: u64) {
        if let (Some(session), Some(left_out)) = (&self.session, self.log.line("connected")) {
            tracing::info!(peer = session.peer, left_out, "a primary connected");
        }
        self.last_contact = Instant::now();
        let settings = &self.setup.reign.settings;
        self.welcome = Some(Welcome {
            node: settings.node.clone(),
            host: settings.host.clone(),
            session,
            disks: Vec::new(),
        });
        self.disks.describe();
    }

    fn reset(&mut self, reason: &str) -> Result<(), RuntimeError> {
        self.metrics.over(Topic::Takeover);
        let what = format!("the copy is given up: {reason}; waiting for a primary");
        self.metrics.alarm(Topic::Peer, what);
        self.detected = None;
        self.disks.abandon();
        Ok(self.memory.clear()?)
    }

    /// Whether a promotion has anything to do with disks.
    pub(super) fn has_disks(&self) -> bool {
        self.all_disks.has_replicated() || self.all_disks.has_shared()
    }

    /// Asks the other side what it has of the guest.
    fn inquire(&self) {
        let reign = &self.setup.reign;
        let inquiry = Inquiry {
            vm: reign.settings.vm.clone(),
            node: reign.settings.node.clone(),
            arbiter: reign.arbiter_id.clone(),
        };
        let other = self.setup.other.clone();
        (self.arbitration).inquire(other, inquiry, Arc::clone(&self.all_disks));
    }

    pub(super) async fn perform(&mut self, effect: BackupEffect) -> Result<(), RuntimeError> {
        match effect {
            // No heartbeat is sent before the welcome.
            BackupEffect::Send(Message::Heartbeat) if self.welcome.is_some() => {}
            BackupEffect::Send(message) => self.send(&message),
            BackupEffect::CloseLink => {
                self.welcome = None;
                if let Some(session) = self.session.take() {
                    session.close().await;
                }
            }
            BackupEffect::Committed(epoch) => {
                // An epoch that was not acked is committed, too.
                self.disks.disks.committed(epoch);
                self.metrics.committed();
            }
            BackupEffect::Welcome { session } => self.welcome(session),
            BackupEffect::BeginCopy(plan) => {
                let history = self.setup.reign.history(self.core.generation());
                self.disks.begin_copy(plan, history);
            }
            BackupEffect::SyncDisk(batch) => self.disks.sync(batch),
            BackupEffect::Persist {
                ticket,
                epoch,
                batches,
                written_through,
            } => {
                let epoch = EpochToPersist {
                    generation: self.core.generation(),
                    epoch,
                    batches,
                    written_through,
                };
                self.disks.persist(ticket, epoch);
            }
            BackupEffect::FlushJournal { ticket, epoch } => self.disks.flush(ticket, epoch),
            BackupEffect::TryRestore { ticket, state } => self.trials.begin(ticket, state),
            BackupEffect::Discarded { epoch, why } => {
                let what = format!("discarded {epoch} whole: {why}");
                self.metrics.alarm(Topic::Peer, what);
            }
            BackupEffect::ClaimWaits { why } => self.claim_waits(&why),
            BackupEffect::Doubtful { why } => {
                let what = format!("the guest could perhaps not go on here: {why}");
                self.metrics.alarm(Topic::Peer, what);
            }
            BackupEffect::Claim { known, mark } => self.claim(known, mark),
            BackupEffect::Stop => self.ended = Some(Ended::Stopped),
            BackupEffect::Rehearse => self.arbitration.ask(Question::Rehearse),
            BackupEffect::Look => self.arbitration.look(),
            BackupEffect::Inquire => self.inquire(),
            BackupEffect::CannotStart { why } => {
                let what = format!("nobody runs the guest, and it cannot be started here: {why}");
                self.metrics.alarm(Topic::Peer, what);
            }
            BackupEffect::StartGuest { known } => self.ended = Some(Ended::Starts { known }),
            BackupEffect::Takeover(outcome) => self.metrics.takeover(outcome),
            BackupEffect::Promote {
                generation,
                epoch,
                cause,
                machine_broke,
                arrivals,
            } => {
                self.ended = Some(Ended::Promoted(Granted {
                    generation,
                    epoch,
                    cause,
                    machine_broke,
                    arrivals,
                }));
            }
            BackupEffect::Reset { reason } => self.reset(&reason)?,
        }
        Ok(())
    }

    fn publish(&self) {
        let core = &self.core;
        self.metrics.set_phase(
            core.phase().name(),
            core.generation(),
            core.committed_epoch().unwrap_or_default(),
            core.is_protecting(),
        );
        self.metrics.set_silence_timeout(core.silence_timeout());
        self.metrics
            .set_peer(core.primary_node().map(str::to_owned));
    }
}
