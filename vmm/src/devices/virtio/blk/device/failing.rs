//! Storage that does not do what it should: who hears of it, and what becomes of the requests.
//!
//! What must not be done here: decide whether the guest goes on elsewhere.

use std::io;
use std::time::Duration;

use understudy_replication::disk::DiskError;

use super::{BlkDevice, DiskNews, QUEUE, answer};
use crate::devices::virtio::blk::flight::{Answer, Asked, Held};
use crate::devices::virtio::blk::held::Word;
use crate::devices::virtio::blk::request::Status;
use crate::devices::virtio::blk::work::{Failure, Outcome};
use crate::devices::virtio::{RingFault, Rings};

impl BlkDevice {
    /// The storage has answered a request, which `took` so long.
    pub(super) fn moved(&mut self, took: Duration) {
        let ages = self.flight.ages();
        if self.stalls.answered(ages) {
            (self.alarm)(DiskNews::Moves);
        }
        if self.hangs.answered(ages) {
            let seconds = took.as_secs_f64();
            let what = format!("it has answered a request that waited for {seconds:.1} s");
            (self.alarm)(DiskNews::Answers(what));
        }
    }

    /// What waits for the storage.
    pub(super) fn waits_in_words(&self) -> String {
        let seconds = self.flight.ages().oldest.unwrap_or_default().as_secs_f64();
        let requests = self.flight.len();
        format!(
            "it has not answered for {seconds:.1} s; {requests} requests of the guest wait for it"
        )
    }

    /// Holds a request that has failed, if that is wanted; returns any other one.
    pub(super) fn hold_if_failed(
        &mut self,
        place: Answer,
        outcome: Outcome,
    ) -> Option<(Answer, Outcome)> {
        match outcome {
            Err(failure) if self.holds_failed && !is_no_failure(&place.to, &failure) => {
                self.hold(place, failure);
                None
            }
            outcome => Some((place, outcome)),
        }
    }

    /// Turns a failure of the host's disk into the guest's error and an alarm.
    pub(super) fn failed(&mut self, failure: &Failure) -> Status {
        let failures = self.counters.failures;
        // A guest that keeps trying must not fill the host's log.
        if failures >= self.next_alarm {
            self.next_alarm = failures.saturating_mul(2);
            let hint = match failure.error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "; make room on this host, the guest sees I/O errors until then"
                }
                _ => "; the guest sees an I/O error",
            };
            let what = failure.in_words();
            let what = format!("{what} (failure {failures}){hint}");
            (self.alarm)(DiskNews::Failed(what));
        }
        Status::IoError
    }

    fn hold(&mut self, place: Answer, failure: Failure) {
        self.counters.failures += 1;
        let news = (!self.flight.has_held()).then(|| failure.in_words());
        self.flight.hold(place, failure);
        if let Some(what) = news {
            (self.alarm)(DiskNews::Holds(what));
        }
    }

    /// Does with what is held as somebody has said.
    pub(super) fn release_held(&mut self, rings: Option<&mut Rings<'_>>) -> Result<(), RingFault> {
        let held = match self.failed.word() {
            None => Vec::new(),
            Some(Word::Retry) => self.flight.retry_held(),
            Some(Word::Answer) => self.flight.take_held(),
        };
        let Some(rings) = rings.filter(|rings| rings.is_ready(QUEUE)) else {
            return Ok(());
        };
        for Held { place, failure } in held {
            let status = self.failed(&failure);
            answer(place.head, place.status_at, Err(status), rings)?;
        }
        Ok(())
    }
}

/// A kind of storage that does not know a discard has not failed; nor has one that is shut because another host runs
/// the guest.
pub(super) fn is_no_failure(asked: &Asked, failure: &Failure) -> bool {
    let is_discard = matches!(asked, Asked::Range { is_discard: true });
    let is_unknown = is_discard && failure.error.kind() == io::ErrorKind::Unsupported;
    is_unknown || DiskError::is_shut(&failure.error)
}
