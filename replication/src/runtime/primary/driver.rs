//! The primary's loop: waits for one event, passes it to the core, and does what the core says.
//! Nothing is decided here, and no state changes across an `.await`.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, UnboundedReceiver};
use tokio::time::Instant;
use understudy_transport::heartbeat::Sender;
use understudy_transport::{Endpoint, Link, connect};

use super::output_signal::OutputSignal;
use super::retry::Retry;
use super::shared_disks::{DisksWritten, SharedDisks, still_held};
use super::{Finish, Request};
use crate::core::disk::PeerDisk;
use crate::core::heartbeats::Heartbeat;
use crate::core::message::{Bye, Hello, Message, Refusal};
use crate::core::primary::{PrimaryCore, PrimaryEffect, PrimaryInput, PrimaryPhase};
use crate::core::start;
use crate::core::throttle::RunShare;
use crate::fingerprint::Fingerprint;
use crate::ids::{EpochId, Generation};
use crate::output::{OutputEvent, OutputGate};
use crate::page_set::MemoryLayout;
use crate::ports::{GuestSpeed, PrimaryDisks};
use crate::runtime::alarms::Topic;
use crate::runtime::arbitration::{Arbitration, Question, Reply, overdue, part_of_session};
use crate::runtime::capture::{CaptureEvent, CaptureJob, SessionEvent, Target};
use crate::runtime::clock::{Alarm, Clock, beat};
use crate::runtime::ended::Ended;
use crate::runtime::error::RuntimeError;
use crate::runtime::heartbeats::Heartbeats;
use crate::runtime::metrics::Metrics;
use crate::runtime::reign::Reign;
use crate::runtime::session::{Session, SessionError};
use crate::runtime::threads::tokio_runtime;

/// Time limit of an attempt to reach a standby: a host that is down does not answer at all.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Setup {
    pub(super) reign: Reign,
    pub(super) backup: Option<Endpoint>,
    pub(super) fingerprint: Fingerprint,
    pub(super) layout: MemoryLayout,
    pub(super) gate: OutputGate,
    pub(super) disks: Arc<dyn PrimaryDisks>,
    pub(super) speed: Option<Arc<dyn GuestSpeed>>,
}

type Connected = Result<Box<Link>, String>;
type Connecting = Pin<Box<dyn Future<Output = Connected>>>;

pub(super) struct Driver {
    pub(super) setup: Setup,
    requests: Receiver<Request>,
    jobs: SyncSender<CaptureJob>,
    events: UnboundedReceiver<SessionEvent>,
    shared_disks: SharedDisks,
    arbitration: Arbitration,
    pub(super) metrics: Metrics,
    clock: Clock,
    pub(super) core: PrimaryCore,
    pub(super) session: Option<Session>,
    /// Number of the current session, or of the last one.
    session_number: u64,
    output: Arc<OutputSignal>,
    pub(super) retry: Retry,
    /// A stop of the guest was requested.
    pub(super) stop_asked: bool,
    /// This side is to end at once: the stop was requested twice, or no handle is left.
    pub(super) abandoned: bool,
    /// The machine is to be given back as soon as it runs alone.
    pub(super) unprotecting: bool,
    /// An attempt to reach the old backup is now useless.
    pub(super) backup_changed: bool,
    ended: Option<Finish>,
    /// The capture thread has panicked.
    broken: bool,
}

/// What the loop waits for.
enum Happened {
    Connected(Connected),
    Received(Result<(Generation, Message), SessionError>),
    Worked(Option<SessionEvent>),
    DisksWritten(DisksWritten),
    Requested(Option<Request>),
    Replied(Reply),
    Heard(Heartbeat),
    Output,
    Heartbeat,
    Timer,
}

impl Driver {
    pub(super) fn new(
        setup: Setup,
        requests: Receiver<Request>,
        jobs: SyncSender<CaptureJob>,
        events: UnboundedReceiver<SessionEvent>,
    ) -> Result<Self, RuntimeError> {
        let clock = Clock::start();
        let output = Arc::new(OutputSignal::default());
        setup.gate.set_listener(output.listener());
        let log = output.listener();
        // To the core both mean that the epoch should end.
        setup
            .disks
            .set_listener(Arc::new(move || log(OutputEvent::Full)));
        let flush = output.listener();
        setup
            .disks
            .set_flush_listener(Arc::new(move || flush(OutputEvent::Waiting)));
        let patience = setup.reign.settings.policy.storage_timeout;
        let shared_disks = SharedDisks::new(setup.disks.clone(), patience);
        let mut policy = setup.reign.settings.policy.clone();
        if setup.speed.is_none() {
            policy.latency_target = Duration::ZERO;
        }
        let core = PrimaryCore::new(policy, setup.hello(), setup.reign.generation, clock.now())
            .with_shared_disks(!setup.disks.is_empty());
        Ok(Self {
            arbitration: setup.reign.arbitration(),
            metrics: setup.reign.metrics.clone(),
            setup,
            requests,
            jobs,
            events,
            shared_disks,
            clock,
            core,
            session: None,
            session_number: 0,
            output,
            retry: Retry::new(),
            stop_asked: false,
            abandoned: false,
            unprotecting: false,
            backup_changed: false,
            ended: None,
            broken: false,
        })
    }

    pub(super) fn run(mut self) -> Result<Finish, RuntimeError> {
        let result = tokio_runtime().and_then(|runtime| runtime.block_on(self.drive()));
        if result.is_err() {
            self.shut();
        }
        self.set_speed(RunShare::FULL);
        // The capture thread stops the guest. It may be waiting for the link, which is closed
        // already.
        drop(self.session.take());
        let _ = self.jobs.send(match &result {
            Ok(Finish::Unprotected(_)) => CaptureJob::HandOn,
            _ => CaptureJob::Stop,
        });
        result
    }

    async fn drive(&mut self) -> Result<Finish, RuntimeError> {
        let mut heartbeats = Heartbeats::open(&self.setup.reign.settings, Sender::Primary).await?;
        let mut beat = beat(self.setup.reign.settings.policy.heartbeat_interval);
        let alarm = Alarm::new(self.clock);
        let mut connecting: Option<Connecting> = None;
        loop {
            self.publish();
            if let Some(ended) = self.ended.take() {
                if let Some(session) = self.session.take() {
                    session.close().await;
                }
                return Ok(ended);
            }
            let happened = self
                .wait(&mut connecting, &alarm, &mut beat, &mut heartbeats)
                .await;
            if matches!(happened, Happened::Heartbeat) {
                heartbeats
                    .send(self.core.generation(), self.core.session())
                    .await;
                continue;
            }
            let mut inputs = VecDeque::new();
            self.translate(happened, &mut inputs);
            if self.broken {
                return Err(RuntimeError::Panicked("capture"));
            }
            while let Some(input) = inputs.pop_front() {
                let link_down = matches!(input, PrimaryInput::LinkDown { .. });
                let now = self.clock.now();
                for effect in self.core.handle(now, input) {
                    inputs.extend(self.perform(effect, now).await);
                }
                if link_down {
                    self.close_session().await;
                }
            }
            if self.core.phase() == PrimaryPhase::Stopped && self.ended.is_none() {
                self.ended = Some(Finish::Ended(if self.abandoned {
                    Ended::Abandoned
                } else {
                    Ended::GuestStopped
                }));
            }
            let is_alone = self.core.phase() == PrimaryPhase::Alone && !self.core.is_opening();
            if self.unprotecting && is_alone && self.ended.is_none() {
                self.ended = Some(Finish::Unprotected(self.core.generation()));
            }
        }
    }

    async fn wait(
        &mut self,
        connecting: &mut Option<Connecting>,
        alarm: &Alarm,
        beat: &mut tokio::time::Interval,
        heartbeats: &mut Heartbeats,
    ) -> Happened {
        if std::mem::take(&mut self.backup_changed) {
            *connecting = None;
        }
        if self.session.is_none()
            && connecting.is_none()
            && let Some(endpoint) = self.setup.backup.clone()
        {
            let at = self.retry.at();
            *connecting = Some(Box::pin(async move {
                tokio::time::sleep_until(at).await;
                let connecting = connect(&endpoint, understudy_transport::Limits::default());
                match tokio::time::timeout(CONNECT_PATIENCE, connecting).await {
                    Ok(connected) => connected.map(Box::new).map_err(|error| error.to_string()),
                    Err(_) => Err(format!(
                        "{endpoint} does not answer within {CONNECT_PATIENCE:?}"
                    )),
                }
            }));
        }
        let timer = self.core.next_wakeup();
        let (opening, number) = (self.core.is_opening(), self.core.session());
        let happened = tokio::select! {
            biased;
            received = async { match &mut self.session {
                Some(session) => session.recv().await,
                None => std::future::pending().await,
            } } => Happened::Received(received),
            event = self.events.recv() => Happened::Worked(event),
            written = self.shared_disks.written() => Happened::DisksWritten(written),
            reply = self.arbitration.reply() => Happened::Replied(reply),
            // A side that ends at once takes no more requests.
            request = self.requests.recv(), if !self.abandoned => Happened::Requested(request),
            () = alarm.wait(timer) => Happened::Timer,
            _ = beat.tick() => Happened::Heartbeat,
            heard = heartbeats.recv(number) => Happened::Heard(heard),
            () = self.output.wait() => Happened::Output,
            link = async { match connecting {
                Some(connecting) if !opening => connecting.await,
                _ => std::future::pending().await,
            } } => Happened::Connected(link),
        };
        if matches!(happened, Happened::Connected(_)) {
            *connecting = None;
        }
        happened
    }

    /// Turns what happened into inputs for the core, in order.
    fn translate(&mut self, happened: Happened, inputs: &mut VecDeque<PrimaryInput>) {
        match happened {
            Happened::Connected(Ok(link)) => {
                self.metrics.linked(link.counters());
                let session =
                    Session::start(*link, self.setup.reign.settings.limits.send_bytes_max);
                tracing::info!(peer = session.peer, "connected to a standby");
                self.session = Some(session);
                self.session_number += 1;
                inputs.push_back(PrimaryInput::LinkUp {
                    session: part_of_session(),
                });
            }
            Happened::Connected(Err(error)) => self.not_connected(&error),
            Happened::Received(received) => {
                let mut messages = VecDeque::new();
                self.drain(received, &mut messages);
                // The epoch of an acknowledgement was reported before it was shipped, but both may
                // be found here at the same time. The report is the older one.
                while let Ok(report) = self.events.try_recv() {
                    self.report(report, inputs);
                }
                inputs.append(&mut messages);
            }
            Happened::Worked(Some(report)) => self.report(report, inputs),
            Happened::DisksWritten(written) => {
                if self.is_present(written.session) {
                    inputs.extend(self.shared_disks.input(written, &self.metrics));
                }
            }
            // This is not the guest's end. The standby must take over, so it is told nothing.
            Happened::Worked(None) => self.broken = true,
            Happened::Requested(request) => self.requested(request, inputs),
            Happened::Replied(Reply::Answer(answer)) => inputs.extend(self.answered(answer)),
            Happened::Replied(Reply::Overdue(time)) => self.no_answer(&overdue(time)),
            Happened::Heard(Heartbeat {
                session,
                generation,
                ..
            }) => {
                inputs.push_back(PrimaryInput::HeartbeatHeard {
                    session,
                    generation,
                });
            }
            Happened::Output => {
                if self.output.take_arrived() {
                    self.send_arrivals();
                }
                if self.output.take_full() {
                    inputs.push_back(PrimaryInput::CheckpointWanted);
                }
                // `fresh` stays set, so further output does not wake the driver until it is sealed.
                if self.output.is_fresh() {
                    inputs.push_back(PrimaryInput::OutputWaiting);
                }
            }
            Happened::Heartbeat => {}
            Happened::Timer => inputs.push_back(PrimaryInput::Tick),
        }
    }

    fn report(&mut self, report: SessionEvent, inputs: &mut VecDeque<PrimaryInput>) {
        match report.event {
            CaptureEvent::Session(input) if self.is_present(report.session) => {
                let captured = matches!(input, PrimaryInput::Captured { .. });
                inputs.push_back(input);
                if captured && self.output_waits() {
                    inputs.push_back(PrimaryInput::OutputWaiting);
                }
            }
            CaptureEvent::Session(_) => {}
            CaptureEvent::Opened => {
                self.metrics.over(Topic::Disks);
                inputs.push_back(PrimaryInput::Opened);
            }
            CaptureEvent::StillHeld { generation, error } => {
                still_held(generation, &error, self.jobs.clone(), &self.metrics);
            }
        }
    }

    /// Whether output, or a flush of the guest, has come since the last seal. What comes later wakes the driver.
    fn output_waits(&self) -> bool {
        // First the mark, then gate and disks: what comes in between is marked again.
        self.output.clear_fresh();
        self.setup.gate.is_collecting() || self.setup.disks.flush_waits()
    }

    /// Whether a report of this session still matters.
    fn is_present(&self, session: u64) -> bool {
        self.session.is_some() && session == self.session_number
    }

    fn set_speed(&self, share: RunShare) {
        if let Some(speed) = &self.setup.speed {
            speed.set(share);
        }
        self.metrics.throttled(share);
    }

    /// Stops everything that is held from ever leaving.
    fn shut(&self) {
        self.setup.gate.shut();
        self.setup.disks.shut();
    }

    /// Looks at everything that has arrived before acting on any of it. If the peer has closed the
    /// link, it may have been promoted, and earlier acknowledgements must not release anything now.
    /// The same goes for a peer that sends so much that there is no end of it.
    fn drain(
        &mut self,
        first: Result<(Generation, Message), SessionError>,
        inputs: &mut VecDeque<PrimaryInput>,
    ) {
        let mut next = first.map(Some);
        if let Some(session) = &mut self.session {
            session.begin_drain();
        }
        loop {
            match next {
                Ok(Some((generation, message))) => {
                    self.look_at(&message);
                    // One sign of life is as good as many.
                    let may_repeat = matches!(message, Message::Heartbeat);
                    let input = PrimaryInput::Received {
                        generation,
                        message,
                    };
                    if !may_repeat || inputs.back() != Some(&input) {
                        inputs.push_back(input);
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    if !error.is_peer_gone() && self.core.phase() == PrimaryPhase::Handshaking {
                        self.not_connected(&error.to_string());
                        self.retry.refused();
                    }
                    inputs.retain(|input| !PrimaryInput::is_ack(input));
                    inputs.push_back(PrimaryInput::LinkDown {
                        cause: error.to_string(),
                    });
                    return;
                }
            }
            let Some(session) = &mut self.session else {
                return;
            };
            next = session.drain();
        }
    }

    /// Whether a message makes it useless to come back at once.
    fn look_at(&mut self, message: &Message) {
        let why = match message {
            // It may be over in a moment.
            Message::Refuse(refusal @ Refusal::Busy(_)) => {
                self.not_connected(&format!("refused: {refusal}"));
                return self.retry.busy();
            }
            Message::Refuse(refusal) => format!("refused: {refusal}"),
            // What the standby lacks will not be there in a moment.
            Message::Bye(bye @ Bye::Unable(_)) => bye.to_string(),
            _ => return,
        };
        self.not_connected(&why);
        self.retry.refused();
    }

    /// Ends the session, if there is one.
    async fn close_session(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        session.close().await;
        self.setup.gate.forget_arrivals();
        self.retry.session_ended(Instant::now());
        self.order(CaptureJob::Detach);
    }

    /// Does what the core says. Returns what comes of it at once.
    async fn perform(&mut self, effect: PrimaryEffect, decided: Duration) -> Option<PrimaryInput> {
        match effect {
            PrimaryEffect::Send(message) => {
                if let Some(session) = &mut self.session {
                    session.send(self.core.generation(), &message);
                }
            }
            PrimaryEffect::StartSync { disks } => self.start_sync(disks),
            PrimaryEffect::SyncRound => self.order(CaptureJob::SyncRound),
            PrimaryEffect::Capture(epoch) => self.order(CaptureJob::Capture(epoch)),
            PrimaryEffect::WriteDisks(epoch) => self.shared_disks.write(self.session_number, epoch),
            PrimaryEffect::Durable(epoch) => {
                self.setup.disks.durable(epoch);
                self.metrics.durable(epoch);
            }
            PrimaryEffect::Flushed(epoch) => self.setup.disks.flushed(epoch),
            PrimaryEffect::Compared(differ) => {
                let what = self.setup.disks.compared(&differ).err()?.to_string();
                return Some(PrimaryInput::DisksMisreported { what });
            }
            PrimaryEffect::Release(epoch) => self.release(epoch, decided),
            PrimaryEffect::CloseLink => {
                self.close_session().await;
            }
            PrimaryEffect::Throttle(share) => self.set_speed(share),
            PrimaryEffect::Claim { known, mark } => {
                self.arbitration.ask(Question::Claim { known, mark });
            }
            PrimaryEffect::Confirm {
                generation,
                beat,
                mark,
            } => self.arbitration.ask(Question::Confirm {
                generation,
                beat,
                mark,
            }),
            PrimaryEffect::Takeover(outcome) => self.metrics.takeover(outcome),
            PrimaryEffect::GoAlone { generation, cause } => {
                self.metrics.over(Topic::Takeover);
                if self.core.is_ending() {
                    tracing::info!("what the guest said last leaves under {generation}: {cause}");
                } else if std::mem::replace(&mut self.setup.reign.generation, generation)
                    == generation
                {
                    // The backup never protected anything. This may repeat four times a second.
                    self.not_connected(&cause);
                } else {
                    self.metrics.going_alone(generation, cause);
                }
                self.order(CaptureJob::OpenGate(generation));
            }
            PrimaryEffect::TakeOver { why, machine_broke } => self.hand_over(why, machine_broke),
            PrimaryEffect::KeepArrivals => self.setup.gate.keep_arrivals(),
            PrimaryEffect::SendArrivals => self.guest_leaves(),
            PrimaryEffect::NotHandedOver { why } => self.guest_stays(why),
            PrimaryEffect::LeftToBackup { why } => {
                self.shut();
                self.ended = Some(Finish::Ended(self.metrics.left_to_backup(why)));
            }
            PrimaryEffect::Fenced {
                reason,
                handed_over,
            } => {
                self.shut();
                self.ended = Some(Finish::Ended(self.metrics.lost_guest(reason, handed_over)));
            }
        }
        None
    }

    fn release(&self, epoch: EpochId, decided: Duration) {
        // If this side stalled for longer than this during the release, the core would have a doubt.
        let patience = self.setup.reign.settings.policy.stalls_after();
        let clock = self.clock;
        let is_in_time = || clock.now() <= decided + patience;
        if !self.setup.gate.release(epoch, is_in_time) {
            tracing::warn!(%epoch, "stalled while releasing; the rest waits for the arbiter");
        }
        self.metrics.acked(epoch);
    }

    fn start_sync(&mut self, disks: Vec<PeerDisk>) {
        let Some(session) = &self.session else { return };
        let node = self.core.backup_node().unwrap_or("unnamed");
        let target = Target {
            session: self.session_number,
            queue: session.queue(),
            generation: self.core.generation(),
            backup: start::backup(node, self.core.backup_host()),
        };
        self.retry.synchronisation_begins();
        self.order(CaptureJob::Attach(target));
        self.order(CaptureJob::StartSync(disks));
    }

    pub(super) fn order(&self, job: CaptureJob) {
        // The capture thread outlives this one unless it panicked; then `events` ends too.
        let _ = self.jobs.send(job);
    }
}

impl Setup {
    fn hello(&self) -> Hello {
        Hello {
            vm: self.reign.settings.vm.clone(),
            node: self.reign.settings.node.clone(),
            fingerprint: self.fingerprint.clone(),
            layout: self.layout.clone(),
            arbiter: self.reign.arbiter_id.clone(),
            session: 0,
        }
    }
}
