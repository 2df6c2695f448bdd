//! Counts and times what the runtime does; [`Status`] is made from this. The numbers are those of
//! the data path: ③ pause, ④ encode, ⑤ ship, ⑧ ack.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use parking_lot::{Mutex, MutexGuard};
use understudy_transport::LinkCounters;

use super::alarms::{Alarms, Topic};
use super::disk_progress::DiskStep;
use super::ended::Ended;
use super::events::{EventKind, EventSource, Events};
use super::status::{
    DiskSync, Encoded, FailoverFigures, Percentiles, Side, Status, StrangerCounts,
};
use crate::core::codec::CodecStats;
use crate::core::message::Trouble;
use crate::core::throttle::RunShare;
use crate::ids::{EpochId, Generation, PAGE_BYTES};
use crate::log_thinning::LogThinning;
use crate::ports::disks::SyncPlan;

/// Times and counts above this are recorded as this: a minute in microseconds, or 60 million pages.
/// A histogram that grows by itself would clamp them to its first, tiny range instead.
const HISTOGRAM_MAX: u64 = 60_000_000;
/// How many epochs' capture times are kept for their acks.
const PENDING_EPOCHS_MAX: usize = 64;

/// A guest with a smaller share of the time for so long is an alarm, until it has twice that.
const SLOW: f64 = 0.25;
const SLOW_FOR: Duration = Duration::from_secs(1);

/// Shared by the runtime's threads.
#[derive(Debug, Clone)]
pub(super) struct Metrics(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    status: Status,
    events: EventSource,
    alarms: Alarms,
    pause_us: Histogram<u64>,
    ack_us: Histogram<u64>,
    dirty_pages: Histogram<u64>,
    captured: VecDeque<(EpochId, Instant)>,
    failed_at: Option<Instant>,
    copying_since: Option<Instant>,
    /// Counters of the last link. Those of earlier links are in the status.
    link: Arc<LinkCounters>,
    /// Why the arbiter gave no answer, until it does.
    no_answer: Option<String>,
    /// Since when the guest has been slowed a lot.
    slow_since: Option<Instant>,
    /// The side's work has ended.
    ended: bool,
    /// Keeps what a peer can cause from filling the log and the events.
    log: LogThinning,
}

impl Inner {
    fn tell(&mut self, kind: EventKind) {
        self.ended |= kind == EventKind::Ended;
        let status = &self.status;
        (self.events).tell(&status.vm, &status.node, status.generation, kind);
    }
}

impl Metrics {
    pub(super) fn new(side: Side, vm: &str, node: &str) -> Self {
        let histogram =
            || Histogram::new_with_max(HISTOGRAM_MAX, 3).expect("range and three digits are valid");
        Self(Arc::new(Mutex::new(Inner {
            status: Status {
                side,
                vm: vm.into(),
                node: node.into(),
                phase: "starting".into(),
                ..Status::default()
            },
            events: EventSource::new(),
            alarms: Alarms::default(),
            pause_us: histogram(),
            ack_us: histogram(),
            dirty_pages: histogram(),
            captured: VecDeque::new(),
            failed_at: None,
            copying_since: None,
            link: Arc::default(),
            no_answer: None,
            slow_since: None,
            ended: false,
            log: LogThinning::default(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    /// The guest goes on without the backup it had.
    pub(super) fn going_alone(&self, generation: Generation, cause: String) {
        self.lock().status.generation = generation.0;
        let text =
            format!("the backup is lost ({cause}); the guest goes on unprotected as {generation}");
        self.raise(Topic::Peer, text, EventKind::GoingAlone { cause });
    }

    /// Another side owns the guest. Returns how this side ends.
    pub(super) fn lost_guest(&self, reason: String, handed_over: bool) -> Ended {
        if handed_over {
            tracing::info!("the guest was handed over: {reason}");
            return Ended::HandedOver { reason };
        }
        let fenced = reason.clone();
        self.raise(Topic::Peer, reason.clone(), EventKind::Fenced { reason });
        Ended::Fenced { reason: fenced }
    }

    /// The machine has broken, and the backup is to go on. Returns how this side ends.
    pub(super) fn left_to_backup(&self, reason: String) -> Ended {
        self.alarm(Topic::Peer, reason.clone());
        Ended::LeftToBackup { reason }
    }

    /// Whether a takeover would be granted now.
    pub(super) fn takeover(&self, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => self.over(Topic::Takeover),
            Err(why) => {
                let what = format!("a takeover would not be granted now: {why}");
                self.alarm(Topic::Takeover, what);
            }
        }
    }

    /// The guest was to be handed over, and stays here.
    pub(super) fn not_handed_over(&self, why: String) {
        tracing::warn!("the guest could not be handed over: {why}");
        self.lock().tell(EventKind::NotHandedOver { why });
    }

    /// Also counts what goes over a new link.
    pub(super) fn linked(&self, link: Arc<LinkCounters>) {
        let mut inner = self.lock();
        let before = std::mem::replace(&mut inner.link, link);
        inner.status.link = inner.status.link + before.snapshot();
    }

    /// A side begins its work, possibly after another one has ended its own.
    pub(super) fn begin(&self) {
        self.lock().ended = false;
    }

    /// The present state, and what happens from now on.
    pub(super) fn subscribe(&self) -> Events {
        let inner = self.lock();
        let status = &inner.status;
        let first = match (inner.ended, status.protected) {
            (true, _) => EventKind::Ended,
            (false, true) => EventKind::Protected,
            (false, false) => EventKind::Unprotected,
        };
        (inner.events).subscribe(&status.vm, &status.node, status.generation, first)
    }

    /// The status, without what the gate and the disks themselves count.
    pub(super) fn status(&self) -> Status {
        let inner = self.lock();
        let mut status = inner.status.clone();
        status.link = status.link + inner.link.snapshot();
        status.alarm = inner.alarms.text();
        status.pause_us = percentiles(&inner.pause_us);
        status.ack_us = percentiles(&inner.ack_us);
        status.dirty_pages = percentiles(&inner.dirty_pages);
        status
    }

    pub(super) fn set_phase(
        &self,
        phase: &str,
        generation: Generation,
        epoch: EpochId,
        protected: bool,
    ) {
        let mut inner = self.lock();
        let status = &mut inner.status;
        if status.phase != phase {
            phase.clone_into(&mut status.phase);
        }
        status.generation = generation.0;
        status.epoch = epoch.0;
        let before = std::mem::replace(&mut status.protected, protected);
        match (before, protected) {
            (false, true) => {
                // What went wrong before has been repaired.
                inner.alarms.all_over();
                inner.tell(EventKind::Protected);
            }
            (true, false) => inner.tell(EventKind::Unprotected),
            _ => {}
        }
        if protected
            && let Some(failed_at) = inner.failed_at.take()
            && let Some(failover) = &mut inner.status.failover
        {
            let repair_ms = milliseconds(failed_at.elapsed());
            failover.repair_ms = Some(repair_ms);
            tracing::info!(repair_ms, "protected again");
        }
    }

    pub(super) fn set_silence_timeout(&self, timeout: Duration) {
        self.lock().status.silence_timeout_ms = milliseconds(timeout);
    }

    pub(super) fn set_peer(&self, peer: Option<String>) {
        self.lock().status.peer = peer;
    }

    /// What fails on the backup's host; `None` if it has not said so.
    pub(super) fn set_backup_troubles(&self, troubles: Option<&[Trouble]>) {
        let mut inner = self.lock();
        if inner.status.backup_troubles.as_deref() != troubles {
            let troubles = troubles.map(<[Trouble]>::to_vec);
            inner.status.backup_troubles = troubles.clone();
            inner.tell(EventKind::BackupHealth { troubles });
        }
    }

    pub(super) fn set_ending(&self, awaits: Option<&str>) {
        self.lock().status.ending = awaits.map(str::to_owned);
    }

    /// Raises an alarm that has no event of its own. It stands until [`Metrics::over`], or until the
    /// guest is protected anew.
    pub(super) fn alarm(&self, topic: Topic, text: String) {
        self.raise(topic, text.clone(), EventKind::Alarm(text));
    }

    /// What a topic's alarm was about is over.
    pub(super) fn over(&self, topic: Topic) {
        self.lock().alarms.over(topic);
    }

    /// The guest may run for this part of the time from now on.
    pub(super) fn throttled(&self, share: RunShare) {
        let mut inner = self.lock();
        let share = share.fraction();
        inner.status.slowed_percent = ((1.0 - share) * 1000.0).round() / 10.0;
        inner.slow_since = match share < SLOW {
            true => inner.slow_since.or_else(|| Some(Instant::now())),
            false => None,
        };
        if share >= 2.0 * SLOW {
            inner.alarms.over(Topic::Speed);
        }
    }

    /// A guest that has been slow for a while is an alarm. To be called now and then.
    fn look_at_speed(&self) {
        let inner = self.lock();
        let is_slow = inner.slow_since.is_some_and(|at| at.elapsed() >= SLOW_FOR);
        let is_known = inner.alarms.stands(Topic::Speed);
        drop(inner);
        if is_slow && !is_known {
            let what = "the guest runs at less than a quarter of its speed, because its changes cannot be shipped any faster: it \
                        needs a faster link to its standby, or a longer latency target";
            self.alarm(Topic::Speed, what.into());
        }
    }

    /// The arbiter gave no answer. It may be asked many times a second, so the same reason is an alarm
    /// only once.
    pub(super) fn no_answer(&self, alarm: String) {
        let mut inner = self.lock();
        inner.status.arbiter_failures += 1;
        let is_known = inner.no_answer.as_ref() == Some(&alarm);
        inner.no_answer = Some(alarm.clone());
        drop(inner);
        if !is_known {
            self.alarm(Topic::Arbiter, alarm);
        }
    }

    /// The arbiter gave an answer.
    pub(super) fn answered(&self) {
        if self.lock().no_answer.take().is_some() {
            tracing::info!("the arbiter answers again");
            self.over(Topic::Arbiter);
        }
    }

    /// For the log, for readers of the status, and for listeners. An alarm that is raised again
    /// within a second is only for readers of the status.
    fn raise(&self, topic: Topic, text: String, kind: EventKind) {
        let mut inner = self.lock();
        let line = match &kind {
            EventKind::Alarm(text) => inner.log.line(text),
            _ => Some(0),
        };
        match line {
            Some(0) => tracing::warn!("{text}"),
            Some(left_out) => tracing::warn!(left_out, "{text}"),
            None => {}
        }
        inner.alarms.raise(topic, text);
        if line.is_some() {
            inner.tell(kind);
        }
    }

    /// Counts what came of a connection.
    pub(super) fn strangers(&self, count: impl FnOnce(&mut StrangerCounts)) {
        count(&mut self.lock().status.strangers);
    }

    /// ③: one epoch was captured.
    pub(super) fn captured(&self, epoch: EpochId, began: Instant, pause: Duration, pages: u64) {
        let mut inner = self.lock();
        inner.pause_us.saturating_record(microseconds(pause));
        inner.dirty_pages.saturating_record(pages);
        inner.status.dirty_pages_total += pages;
        inner.status.raw_dirty_bytes += pages * PAGE_BYTES as u64;
        if inner.captured.len() == PENDING_EPOCHS_MAX {
            inner.captured.pop_front();
        }
        inner.captured.push_back((epoch, began));
    }

    /// ⑤: one epoch was shipped. `stats` covers all epochs.
    pub(super) fn shipped(&self, stats: CodecStats, wire_bytes: u64, open_pages: u64) {
        let mut inner = self.lock();
        let status = &mut inner.status;
        status.wire_bytes += wire_bytes;
        status.open_pages = open_pages;
        status.encoded = Encoded {
            zero: stats.zero_pages,
            unchanged: stats.unchanged_pages,
            delta: stats.delta_pages,
            compressed: stats.lz4_pages,
            raw: stats.raw_pages,
        };
    }

    pub(super) fn synchronised(&self, wire_bytes: u64) {
        self.lock().status.sync_bytes += wire_bytes;
        self.look_at_speed();
    }

    /// Disks will be copied as planned.
    pub(super) fn disks_planned(&self, plan: &SyncPlan) {
        let mut inner = self.lock();
        inner.copying_since = Some(Instant::now());
        let disks = &mut inner.status.disks;
        disks.durable_epoch = 0;
        disks.sync = Some(DiskSync {
            full: plan.disks.iter().map(|disk| disk.full).collect(),
            compared: plan.compared.clone(),
            bytes: plan.bytes,
            bytes_left: plan.bytes,
            bytes_sent: 0,
            bytes_equal: 0,
            elapsed_ms: 0,
        });
    }

    /// A piece of the disks was sent.
    pub(super) fn disks_synchronised(&self, step: DiskStep) {
        let mut inner = self.lock();
        let since = inner.copying_since;
        if let Some(sync) = &mut inner.status.disks.sync {
            // What is sent after the end is what the guest writes until the first epoch.
            if let Some(since) = since.filter(|_| sync.bytes_left > 0) {
                sync.elapsed_ms = since.elapsed().as_millis() as u64;
            }
            sync.bytes_sent += step.bytes_sent;
            sync.bytes_left = step.bytes_left;
            sync.bytes_equal = step.bytes_equal;
        }
    }

    /// ⑤: disk writes of an epoch were shipped.
    pub(super) fn disks_shipped(&self, wire_bytes: u64) {
        self.lock().status.disks.wire_bytes += wire_bytes;
    }

    /// Everything through `epoch` is durable on the backup's images.
    pub(super) fn durable(&self, epoch: EpochId) {
        let disks = &mut self.lock().status.disks;
        disks.durable_epoch = epoch.0;
        disks.unfinished &= epoch.0 == 0;
    }

    /// On the standby: the images are being overwritten.
    pub(super) fn disks_unfinished(&self) {
        let disks = &mut self.lock().status.disks;
        disks.durable_epoch = 0;
        disks.unfinished = true;
    }

    /// ⑧ on the primary: epochs through `epoch` were acknowledged and released.
    pub(super) fn acked(&self, epoch: EpochId) {
        self.look_at_speed();
        let mut inner = self.lock();
        while inner
            .captured
            .front()
            .is_some_and(|(captured, _)| *captured <= epoch)
        {
            if let Some((captured, began)) = inner.captured.pop_front()
                && captured == epoch
            {
                inner
                    .ack_us
                    .saturating_record(microseconds(began.elapsed()));
            }
            inner.status.epochs += 1;
        }
    }

    /// The pending epochs of a session that ended will never be acknowledged.
    pub(super) fn session_ended(&self) {
        let mut inner = self.lock();
        inner.captured.clear();
        inner.status.open_pages = 0;
        inner.status.peer = None;
    }

    /// ⑦ on the standby.
    pub(super) fn committed(&self) {
        self.lock().status.epochs += 1;
    }

    pub(super) fn promoted(&self, figures: FailoverFigures, failed_at: Option<Instant>) {
        let mut inner = self.lock();
        inner.status.side = Side::Primary;
        // Those were a standby's.
        inner.alarms.all_over();
        inner.status.generation = figures.generation;
        inner.tell(EventKind::Promoted {
            epoch: EpochId(figures.epoch),
            cause: figures.cause.clone(),
            machine_broke: figures.machine_broke,
        });
        inner.status.failover = Some(figures);
        inner.failed_at = failed_at;
    }
}

/// Reports that a side's work has ended, however it ends, even by a panic.
pub(super) struct EndTold(Option<Metrics>);

impl EndTold {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self(Some(metrics))
    }

    /// The work continues elsewhere: nothing is reported.
    pub(super) fn goes_on(mut self) {
        self.0 = None;
    }
}

impl Drop for EndTold {
    fn drop(&mut self) {
        if let Some(metrics) = &self.0 {
            metrics.lock().tell(EventKind::Ended);
        }
    }
}

pub(super) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn percentiles(histogram: &Histogram<u64>) -> Percentiles {
    Percentiles {
        count: histogram.len(),
        p50: histogram.value_at_quantile(0.5),
        p90: histogram.value_at_quantile(0.9),
        p99: histogram.value_at_quantile(0.99),
        max: histogram.max(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_that_took_over_is_the_primary() {
        let metrics = Metrics::new(Side::Standby, "vm", "node");
        metrics.alarm(Topic::Arbiter, "no answer, so no promotion".into());
        metrics.promoted(
            FailoverFigures {
                cause: "test".into(),
                machine_broke: false,
                generation: 2,
                epoch: 7,
                reaction_ms: 1.0,
                recovery_ms: 1.0,
                outage_ms: 2.0,
                repair_ms: None,
                detected_monotonic_ns: 0,
                running_monotonic_ns: 0,
            },
            Some(Instant::now()),
        );
        assert_eq!(metrics.status().side, Side::Primary);
        assert_eq!(metrics.status().alarm, None, "it has been promoted");
        metrics.set_phase("protected", Generation(2), EpochId(8), true);
        let failover = metrics.status().failover.unwrap();
        assert!(failover.repair_ms.is_some(), "{failover:?}");
    }

    #[test]
    fn who_subscribes_late_hears_how_things_stand_and_does_not_wait_for_what_is_over() {
        let metrics = Metrics::new(Side::Primary, "vm", "node");
        let first = || metrics.subscribe().try_recv().map(|event| event.kind);
        assert_eq!(first(), Some(EventKind::Unprotected));
        let mut early = metrics.subscribe();
        metrics.set_phase("protected", Generation(1), EpochId(1), true);
        assert_eq!(first(), Some(EventKind::Protected));
        drop(EndTold::new(metrics.clone()));
        let told = std::iter::from_fn(|| early.blocking_recv()).map(|event| event.kind);
        let all = [
            EventKind::Unprotected,
            EventKind::Protected,
            EventKind::Ended,
        ];
        assert_eq!(told.collect::<Vec<_>>(), all);
        let mut late = metrics.subscribe();
        assert_eq!(late.blocking_recv().unwrap().kind, EventKind::Ended);
        assert_eq!(late.blocking_recv(), None);
        metrics.begin();
        assert_eq!(first(), Some(EventKind::Protected));
    }

    #[test]
    fn an_alarm_is_over_once_the_guest_is_protected_anew() {
        let metrics = Metrics::new(Side::Primary, "vm", "node");
        let phase = |protected| metrics.set_phase("any", Generation(1), EpochId(1), protected);
        metrics.alarm(Topic::Peer, "no standby".into());
        phase(false);
        assert!(metrics.status().alarm.is_some());
        phase(true);
        assert_eq!(metrics.status().alarm, None);
        metrics.alarm(Topic::Disks, "a disk".into());
        metrics.alarm(Topic::Arbiter, "no answer".into());
        phase(true);
        let alarm = metrics.status().alarm;
        assert_eq!(
            alarm.as_deref(),
            Some("a disk; no answer"),
            "protected all the time"
        );
        metrics.over(Topic::Arbiter);
        assert_eq!(metrics.status().alarm.as_deref(), Some("a disk"));
    }

    #[test]
    fn long_times_and_large_counts_are_counted_as_they_are() {
        let metrics = Metrics::new(Side::Primary, "vm", "node");
        let pause = Duration::from_millis(1500);
        let began = Instant::now() - pause;
        metrics.captured(EpochId(1), began, pause, 1_000_000);
        metrics.acked(EpochId(1));
        let status = metrics.status();
        let close = |found: u64, to: u64| found.abs_diff(to) <= to / 500;
        assert!(
            close(status.pause_us.p50, 1_500_000),
            "{:?}",
            status.pause_us
        );
        assert!(
            close(status.dirty_pages.p50, 1_000_000),
            "{:?}",
            status.dirty_pages
        );
        assert!(status.ack_us.p50 >= 1_490_000, "{:?}", status.ack_us);
    }
}
