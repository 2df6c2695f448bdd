//! Flushes of a disk with a second copy, which wait for the other host once this one has done its part.
//!
//! What must not be done here: wait for anybody.

use understudy_replication::disk::{Disk, GuestFlush};

use super::{BlkDevice, QUEUE, answer};
use crate::devices::virtio::blk::work::Served;
use crate::devices::virtio::{RingFault, Rings};

impl BlkDevice {
    /// Answers what has waited for the other host.
    pub(super) fn answer_flushed(
        &mut self,
        rings: Option<&mut Rings<'_>>,
    ) -> Result<(), RingFault> {
        let Some(rings) = rings.filter(|rings| rings.is_ready(QUEUE)) else {
            return Ok(());
        };
        let copied = self.copied.as_ref();
        for place in (self.flight).take_flushed(|flush| is_done(copied, flush)) {
            let (data, flush) = (Vec::new(), GuestFlush::DONE);
            let done = self.judge(&place.to, Ok(Served { data, flush }), rings.memory);
            answer(place.head, place.status_at, done, rings)?;
        }
        Ok(())
    }
}

/// Whether the other host has done its part of a flush.
pub(super) fn is_done(copied: Option<&Disk>, flush: GuestFlush) -> bool {
    copied.is_none_or(|disk| disk.may_answer(flush))
}
