//! The disk itself: takes requests from the ring, has them done, and answers.
//!
//! A failing disk of the host is the guest's I/O error, if nobody can do better, and this host's alarm, nothing more: the
//! guest lives on. What must not be done here: call the storage, or wait for it; the room's top comment says why.

mod failing;
mod flushes;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use understudy_replication::disk::{Disk, DiskError};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::virtio::blk::SECTOR_BYTES;
use crate::devices::virtio::blk::counters::BlkCounters;
use crate::devices::virtio::blk::flight::{Answer, Asked, Flight, Waiting};
use crate::devices::virtio::blk::held::FailedRequests;
use crate::devices::virtio::blk::request::{
    Bounds, DATA_BYTES_MAX, ID_BYTES, QUEUE_SIZE, RANGE_SECTORS_MAX, Request, RequestKind,
    SEGMENT_BYTES_MAX, SEGMENTS_MAX, Segments, Status,
};
use crate::devices::virtio::blk::stall::{Limit, PATIENCE, StallTimer};
use crate::devices::virtio::blk::state::{BlkState, VERSION};
use crate::devices::virtio::blk::work::{Failure, Medium, Outcome, Served, Work};
use crate::devices::virtio::blk::workers::Workers;
use crate::devices::virtio::{Progress, RingFault, Rings, VirtioDevice, read_space};
use crate::devices::{DeviceError, DeviceState, EventSource};
use crate::memory::GuestRam;

const QUEUE: usize = 0;
/// A call takes and answers no more requests than this, and not many more bytes than one request may have. A pause
/// waits for one call.
const REQUESTS_PER_CALL: usize = 16;
/// Longest name of a disk: what the guest can be told of it.
pub const ID_BYTES_MAX: usize = ID_BYTES;
/// Sectors to which discards should be aligned: the usual block of file systems.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;

/// What a person should know of a disk of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskNews {
    /// It failed a request of the guest.
    Failed(String),
    /// It failed a request of the guest, which is held, as may be further ones: see [`FailedRequests`].
    Holds(String),
    /// Nothing of it has moved for a short time.
    Stalls(String),
    /// It moves again.
    Moves,
    /// It does not answer.
    Hangs(String),
    /// It answers again.
    Answers(String),
    /// This program failed at it: nobody knows what became of a request.
    Broke(String),
}

/// Called with news of the host's disk; not at every one of many failures.
pub type Alarm = Box<dyn Fn(DiskNews) + Send>;

/// A disk.
pub struct BlkDevice {
    name: String,
    /// If it has a second copy: asked whether there is room for another request, and whether a flush is done there, too.
    copied: Option<Disk>,
    workers: Workers,
    bounds: Bounds,
    alarm: Alarm,
    /// Signalled by the medium's threads when it has room again, or a flush is done on the other host.
    room: Arc<EventFd>,
    /// Signalled when the storage has answered.
    done: Arc<EventFd>,
    /// Another host may serve the guest better.
    stalls: StallTimer,
    /// A person should know.
    hangs: StallTimer,
    flight: Flight,
    failed: FailedRequests,
    /// What the storage fails is held.
    holds_failed: bool,
    /// The next of many failures that is worth a word.
    next_alarm: u64,
    /// The driver does not know of flushes, so every write must be safe when it is answered.
    write_through: bool,
    counters: BlkCounters,
}

/// The event sources, by number.
const ROOM: usize = 0;
const DONE: usize = 1;
const WORD: usize = 2;
const STALLS: usize = 3;
/// The number, behind the one queue, of the event that the storage has answered.
pub const ANSWER_EVENT: usize = 1 + DONE;

impl BlkDevice {
    /// A disk named `name` of `capacity_sectors`.
    ///
    /// # Errors
    /// If the host has no descriptors left.
    pub fn new(
        name: impl Into<String>,
        medium: Medium,
        capacity_sectors: u64,
        read_only: bool,
        alarm: Alarm,
    ) -> io::Result<Self> {
        let name = name.into();
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map(Arc::new);
        let (room, done) = (event()?, event()?);
        let copied = match &medium {
            Medium::Plain(_) => None,
            Medium::Copied(disk) => Some(disk.clone()),
        };
        if let Some(disk) = &copied {
            let room = Arc::clone(&room);
            // Fails only if the counter is full; the device is going to look then anyway.
            disk.set_room_listener(Arc::new(move || drop(room.write(1))));
        }
        Ok(Self {
            workers: Workers::new(&name, medium, Arc::clone(&done)),
            name,
            copied,
            bounds: Bounds {
                capacity_sectors,
                read_only,
            },
            alarm,
            room,
            done,
            stalls: StallTimer::new(Limit::Stalls(PATIENCE))?,
            hangs: StallTimer::new(Limit::Hangs(PATIENCE))?,
            flight: Flight::default(),
            failed: FailedRequests::new()?,
            holds_failed: false,
            next_alarm: 1,
            write_through: true,
            counters: BlkCounters::default(),
        })
    }

    /// What has been done so far.
    #[must_use]
    pub fn counters(&self) -> BlkCounters {
        let waited = self.waiting().longest().unwrap_or_default();
        BlkCounters {
            in_flight: self.flight.len() as u64,
            oldest_wait_ms: waited.as_millis() as u64,
            ..self.counters
        }
    }

    /// For how long the storage has not answered.
    #[must_use]
    pub fn waiting(&self) -> &Waiting {
        self.flight.waiting()
    }

    /// From now on, whoever has done something calls `answer`, which hands event [`ANSWER_EVENT`] to the device and returns
    /// true, or returns false if the device is busy. It saves the way over the event thread.
    pub fn answer_by(&self, answer: impl Fn() -> bool + Send + Sync + 'static) {
        self.workers.answer_by(Arc::new(answer));
    }

    /// The storage stalls when nothing of it has moved for so long.
    pub fn stalls_after(&mut self, patience: Duration) {
        self.stalls.set_limit(Limit::Stalls(patience));
    }

    #[cfg(test)]
    pub(super) fn hangs_after(&mut self, patience: Duration) {
        self.hangs.set_limit(Limit::Hangs(patience));
    }

    /// From now on, requests that the storage fails are held until somebody says what becomes of them.
    pub fn hold_failed(&mut self) -> FailedRequests {
        self.holds_failed = true;
        self.failed.clone()
    }

    /// Takes requests as long as there is room for them.
    fn take(&mut self, rings: &mut Rings<'_>) -> Result<Progress, RingFault> {
        if !rings.is_ready(QUEUE) {
            return Ok(Progress::Done);
        }
        let mut bytes = 0;
        for _ in 0..REQUESTS_PER_CALL {
            if bytes >= DATA_BYTES_MAX {
                break;
            }
            // Checked before a request is taken: one that has to wait stays in the ring, and the guest waits (R5).
            if !self.flight.has_room() {
                return Ok(Progress::Done);
            }
            if self.copied.as_ref().is_some_and(|disk| !disk.has_room()) {
                self.counters.waits += 1;
                return Ok(Progress::Done);
            }
            let head = match self.flight.take_again() {
                Some(head) => head,
                None => match rings.pop(QUEUE)? {
                    Some(chain) if self.flight.contains(chain.head_index()) => {
                        return Err(rings.bad_head(QUEUE));
                    }
                    Some(chain) => chain.head_index(),
                    None if rings.await_kick(QUEUE)? => continue,
                    None => return Ok(Progress::Done),
                },
            };
            bytes += self.begin(head, rings)?;
        }
        Ok(Progress::More(QUEUE))
    }

    /// Begins one request, or answers it if the storage has nothing to do with it. Returns how many bytes were copied.
    fn begin(&mut self, head: u16, rings: &mut Rings<'_>) -> Result<usize, RingFault> {
        let chain = rings.descriptors(QUEUE, head);
        let Ok(request) = Request::parse(chain, rings.memory, self.bounds) else {
            self.counters.malformed_chains += 1;
            rings.push_used(QUEUE, head, 0)?;
            return Ok(0);
        };
        let status_at = request.status_at;
        let prepared = request
            .kind
            .inspect_err(|_| self.counters.refused += 1)
            .and_then(|kind| self.prepare(kind, rings.memory));
        let (to, work) = match prepared {
            Ok(Prepared::Work(to, work)) => (to, work),
            Ok(Prepared::Answer(filled)) => {
                answer(head, status_at, Ok(filled), rings)?;
                return Ok(filled as usize);
            }
            Err(status) => {
                answer(head, status_at, Err(status), rings)?;
                return Ok(0);
            }
        };
        let copied = match &work {
            Work::Write { data, .. } => data.len(),
            _ => 0,
        };
        let place = Answer {
            head,
            status_at,
            to,
        };
        let ticket = self.flight.begin(place, work.bytes());
        self.stalls.began();
        self.hangs.began();
        let is_safe = self.write_through || work.is_flush();
        if let (Some(disk), Some((offset, bytes))) = (&self.copied, work.changes()) {
            disk.will_write(offset, bytes);
        }
        if let Err(error) = self.workers.submit(ticket, work, is_safe) {
            let what = "start a thread to serve the disk, for a request";
            let failure = Failure {
                what,
                offset: 0,
                error,
            };
            self.end(ticket, Err(failure), Some(rings))?;
        }
        Ok(copied)
    }

    /// What the storage has to do for a request. The data of a write are copied now: all of them are read before any
    /// are written, and nothing reads guest memory later.
    fn prepare(&mut self, kind: RequestKind, memory: &GuestRam) -> Result<Prepared, Status> {
        Ok(match kind {
            RequestKind::Read { offset, into } => {
                let data = vec![0; into.bytes() as usize];
                Prepared::Work(Asked::Read { into }, Work::Read { offset, data })
            }
            RequestKind::Write { offset, from } => {
                let mut data = vec![0; from.bytes() as usize];
                from.gather(memory, &mut data).ok_or(Status::IoError)?;
                let bytes = data.len() as u64;
                Prepared::Work(Asked::Write { bytes }, Work::Write { offset, data })
            }
            // A disk that is only read has nothing to make safe.
            RequestKind::Flush if self.bounds.read_only => {
                self.counters.flushes += 1;
                Prepared::Answer(0)
            }
            RequestKind::Flush => Prepared::Work(Asked::Flush, Work::Flush),
            RequestKind::Identify { into } => Prepared::Answer(self.identify(&into, memory)?),
            RequestKind::Discard { offset, bytes } => Prepared::Work(
                Asked::Range { is_discard: true },
                Work::Discard { offset, bytes },
            ),
            RequestKind::WriteZeroes {
                offset,
                bytes,
                may_unmap,
            } => Prepared::Work(
                Asked::Range { is_discard: false },
                Work::WriteZeroes {
                    offset,
                    bytes,
                    may_unmap,
                },
            ),
        })
    }

    fn identify(&self, into: &Segments, memory: &GuestRam) -> Result<u32, Status> {
        let mut id = [0; ID_BYTES];
        let bytes = self.name.len().min(ID_BYTES);
        id[..bytes].copy_from_slice(&self.name.as_bytes()[..bytes]);
        into.scatter(memory, &id).ok_or(Status::IoError)?;
        Ok(ID_BYTES as u32)
    }

    /// Answers what the storage has done, if the guest can be reached.
    fn answer_done(&mut self, mut rings: Option<&mut Rings<'_>>) -> Result<(), RingFault> {
        let (mut bytes, mut result) = (0, Ok(()));
        for _ in 0..REQUESTS_PER_CALL {
            if bytes >= DATA_BYTES_MAX || result.is_err() {
                break;
            }
            let Some((ticket, outcome)) = self.workers.take_done() else {
                return Ok(());
            };
            bytes += outcome.as_ref().map_or(0, |done| done.data.len());
            result = self.end(ticket, outcome, rings.as_deref_mut());
        }
        // More may be done. Fails only if the counter is full: then another call is pending anyhow.
        let _ = self.done.write(1);
        result
    }

    fn end(
        &mut self,
        ticket: u64,
        outcome: Outcome,
        rings: Option<&mut Rings<'_>>,
    ) -> Result<(), RingFault> {
        let Some((took, place)) = self.flight.end(ticket) else {
            return Ok(());
        };
        self.moved(took);
        // After a reset, or when the driver has taken the queue back, its memory is something else.
        let (Some(place), Some(rings)) = (place, rings.filter(|rings| rings.is_ready(QUEUE)))
        else {
            return Ok(());
        };
        let Some((place, outcome)) = self.hold_if_failed(place, outcome) else {
            return Ok(());
        };
        if let Ok(Served { flush, .. }) = outcome
            && !flushes::is_done(self.copied.as_ref(), flush)
        {
            self.flight.wait_for(place, flush);
            return Ok(());
        }
        let done = self.judge(&place.to, outcome, rings.memory);
        answer(place.head, place.status_at, done, rings)
    }

    /// The status for a request that the storage is done with, or how many bytes were filled before it.
    fn judge(&mut self, asked: &Asked, outcome: Outcome, memory: &GuestRam) -> Result<u32, Status> {
        let data = match outcome {
            Ok(done) => done.data,
            // Another host runs this guest. What becomes of it here matters to nobody, and the disk is all right.
            Err(failure) if DiskError::is_shut(&failure.error) => return Err(Status::IoError),
            Err(failure) if failing::is_no_failure(asked, &failure) => {
                return Err(Status::Unsupported);
            }
            Err(failure) => {
                self.counters.failures += 1;
                return Err(self.failed(&failure));
            }
        };
        match asked {
            Asked::Read { into } => {
                into.scatter(memory, &data).ok_or(Status::IoError)?;
                self.counters.reads += 1;
                self.counters.read_bytes += data.len() as u64;
            }
            Asked::Write { bytes } => {
                self.counters.writes += 1;
                self.counters.written_bytes += bytes;
            }
            Asked::Flush => self.counters.flushes += 1,
            Asked::Range { .. } => self.counters.ranges += 1,
        }
        Ok(data.len() as u32)
    }

    /// No request is waited for any more: the driver has gone, or the state of another host replaces this one's.
    fn disown(&mut self) {
        let cancelled = self.workers.cancel();
        self.flight.disown(&cancelled);
        if let Some(disk) = &self.copied {
            disk.will_write_no_more();
        }
    }
}

/// What follows from a request.
enum Prepared {
    Work(Asked, Work),
    /// It is done; so many bytes were filled.
    Answer(u32),
}

/// Writes the status of a request, and gives its chain back.
fn answer(
    head: u16,
    status_at: GuestAddress,
    done: Result<u32, Status>,
    rings: &mut Rings<'_>,
) -> Result<(), RingFault> {
    let (status, filled) = match done {
        Ok(filled) => (Status::Ok, filled),
        Err(status) => (status, 0),
    };
    let filled = match rings.memory.write_obj(status as u8, status_at) {
        Ok(()) => filled + 1,
        // Cannot happen: the address was in memory when the request was parsed.
        Err(_) => 0,
    };
    rings.push_used(QUEUE, head, filled)
}

impl VirtioDevice for BlkDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH;
        if self.bounds.read_only {
            always | 1 << VIRTIO_BLK_F_RO
        } else {
            always | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_blk_config; geometry, topology and the cache's mode are not offered and zero.
        let mut space = [0; 60];
        space[..8].copy_from_slice(&self.bounds.capacity_sectors.to_le_bytes());
        let mut set =
            |at: usize, value: u32| space[at..at + 4].copy_from_slice(&value.to_le_bytes());
        set(8, SEGMENT_BYTES_MAX);
        set(12, SEGMENTS_MAX);
        set(20, SECTOR_BYTES as u32);
        if !self.bounds.read_only {
            set(36, RANGE_SECTORS_MAX);
            set(40, 1);
            set(44, DISCARD_ALIGNMENT_SECTORS);
            set(48, RANGE_SECTORS_MAX);
            set(52, 1);
            space[56] = 1; // write zeroes may unmap
        }
        read_space(&space, offset, data);
    }

    /// Nothing is writable without a switchable cache.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, features: u64) {
        self.write_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
    }

    fn reset(&mut self) {
        self.write_through = true;
        self.disown();
    }

    fn start(&mut self, rings: Option<&mut Rings<'_>>) {
        // Without a driver, or a queue in use, nobody waits for what was in flight on the other host.
        if !rings.is_some_and(|rings| rings.is_ready(QUEUE)) {
            self.disown();
        }
    }

    fn process_queue(
        &mut self,
        _queue: usize,
        rings: &mut Rings<'_>,
    ) -> Result<Progress, RingFault> {
        self.take(rings)
    }

    fn event_sources(&self) -> Vec<EventSource> {
        let fds = [
            self.room.as_raw_fd(),
            self.done.as_raw_fd(),
            self.failed.as_raw_fd(),
            self.stalls.as_raw_fd(),
            self.hangs.as_raw_fd(),
        ];
        fds.map(EventSource::Counter).into()
    }

    fn process_event(
        &mut self,
        source: usize,
        mut rings: Option<&mut Rings<'_>>,
    ) -> Result<Progress, RingFault> {
        // Reading an event fails only if there is nothing to read; an earlier call has seen it then.
        match source {
            ROOM => {
                let _ = self.room.read();
                self.answer_flushed(rings.as_deref_mut())?;
            }
            DONE => {
                let _ = self.done.read();
                if self.workers.has_panicked() {
                    let what = "a thread of the disk panicked, which is a bug in this VMM";
                    (self.alarm)(DiskNews::Broke(what.into()));
                }
                self.answer_done(rings.as_deref_mut())?;
            }
            WORD => self.release_held(rings.as_deref_mut())?,
            STALLS => {
                if self.stalls.look(self.flight.ages()) {
                    (self.alarm)(DiskNews::Stalls(self.waits_in_words()));
                }
                return Ok(Progress::Done);
            }
            _ => {
                if self.hangs.look(self.flight.ages()) {
                    (self.alarm)(DiskNews::Hangs(self.waits_in_words()));
                }
                return Ok(Progress::Done);
            }
        }
        rings.map_or(Ok(Progress::Done), |rings| self.take(rings))
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        let state = BlkState {
            capacity_sectors: self.bounds.capacity_sectors,
            read_only: self.bounds.read_only,
            in_flight: self.flight.heads().collect(),
        };
        DeviceState::encode(&self.name, VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let state: BlkState = state.decode(&self.name, VERSION)?;
        let here = self.bounds;
        let invalid = |what: String| DeviceError::Invalid {
            device: self.name.clone(),
            what,
        };
        if state.capacity_sectors != here.capacity_sectors {
            return Err(invalid(format!(
                "a disk of {} sectors, here it has {}",
                state.capacity_sectors, here.capacity_sectors
            )));
        }
        if state.read_only != here.read_only {
            return Err(invalid(format!(
                "a disk with read_only={}, here it has read_only={}",
                state.read_only, here.read_only
            )));
        }
        if !state.has_possible_heads() {
            return Err(invalid(format!(
                "{} requests in flight; they must be different ones of {QUEUE_SIZE}",
                state.in_flight.len()
            )));
        }
        // The last step: from here on the old state is gone.
        self.disown();
        self.flight.set_again(state.in_flight);
        Ok(())
    }
}
