//! Steps ② to ⑤ on the primary: the thread that owns the machine. It harvests dirty pages, captures
//! them and the disk writes while the guest is paused, encodes and ships them while it runs again.
//!
//! A dirty bit lives in `dirty` from its harvest until its epoch has been handed to the link (R3):
//! whatever fails in between, the next capture finds it there. The pause is a guard: whatever fails,
//! the guest runs on (R7).

mod notes;
mod target;

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;
use tracing::trace_span;
use understudy_transport::LinkError;

use self::notes::Notes;
pub(super) use self::target::Target;
use super::disk_progress::DiskProgress;
use super::metrics::Metrics;
use super::reign::Reign;
use super::settings::Limits;
use super::stopped_on_drop::StoppedOnDrop;
use crate::arbiter::ArbiterError;
use crate::causes::causes;
use crate::core::codec::Encoder;
use crate::core::disk::PeerDisk;
use crate::core::epoch::assemble::{
    BatchBytes, EpochAssembler, EpochDisks, MessageSink, SyncAssembler,
};
use crate::core::message::Message;
use crate::core::primary::PrimaryInput;
use crate::ids::{EpochId, Generation, PAGE_BYTES, Page, PageIndex};
use crate::output::{OutputGate, SealedOutput};
use crate::page_set::PageSet;
use crate::ports::disks::SealedDisks;
use crate::ports::{DiskError, Machine, MachineError, PageMemory, PrimaryDisks, STATE_BYTES_MAX};

/// Frames at hand beyond those that the next capture is expected to need (1 MiB).
const SPARE_FRAMES_MIN: usize = 256;
/// The synchronisation reads so many pages at once (256 KiB): they stay in the processor's cache.
const SYNC_PAGES: usize = 64;

/// What the driver asks of this thread, done in order.
#[derive(Debug)]
pub(super) enum CaptureJob {
    /// A backup is connected; ship to it.
    Attach(Target),
    /// Begin the synchronisation with a backup that has these disks.
    StartSync(Vec<PeerDisk>),
    /// Go on with it: disks first, then all of memory, then what was dirtied since.
    SyncRound,
    /// Capture and ship one epoch.
    Capture(EpochId),
    /// The backup is gone: stop tracking.
    Detach,
    /// The core says to run alone under this generation: let output go.
    OpenGate(Generation),
    /// Start the guest over.
    ResetGuest,
    /// End, and leave the guest running.
    HandOn,
    /// Stop the guest and end.
    Stop,
}

/// What this thread tells the driver, and of which session. What it says of an ended session means
/// nothing.
#[derive(Debug)]
pub(super) struct SessionEvent {
    pub(super) session: u64,
    pub(super) event: CaptureEvent,
}

#[derive(Debug)]
pub(super) enum CaptureEvent {
    /// What the core must hear. A `LinkDown` says that the session cannot go on, although the link
    /// may still be up.
    Session(PrimaryInput),
    /// All that was held has left: this side runs alone.
    Opened,
    /// What is held for shared disks cannot be written, so nothing leaves.
    StillHeld {
        generation: Generation,
        error: String,
    },
}

#[derive(Debug, thiserror::Error)]
enum ShipError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("the logging channel failed: {0}")]
    Link(#[from] LinkError),
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
    #[error("{}", causes(.0))]
    Disk(#[from] DiskError),
}

pub(super) struct Capturer<M: Machine> {
    /// First, so that nothing else of this thread is gone before it is stopped.
    machine: StoppedOnDrop<M>,
    notes: Notes,
    memory: Arc<dyn PageMemory>,
    gate: OutputGate,
    disks: Arc<dyn PrimaryDisks>,
    /// Disks are being copied; memory waits.
    copying: bool,
    progress: DiskProgress,
    events: UnboundedSender<SessionEvent>,
    metrics: Metrics,
    limits: Limits,
    target: Option<Target>,
    session: u64,
    encoder: Encoder,
    /// Harvested and not yet shipped (R3).
    dirty: PageSet,
    /// Spare frames, allocated on first use, at most `limits.capture_pages_max`.
    spare: Vec<Box<Page>>,
    captured: Vec<(PageIndex, Box<Page>)>,
    tracking: bool,
}

impl<M: Machine> Capturer<M> {
    pub(super) fn new(
        machine: StoppedOnDrop<M>,
        reign: &Reign,
        events: UnboundedSender<SessionEvent>,
    ) -> Self {
        let (memory, limits) = (machine.memory(), reign.settings.limits.clone());
        Self {
            gate: machine.gate(),
            disks: machine.disks().primary(),
            copying: false,
            progress: DiskProgress::default(),
            dirty: PageSet::empty(memory.layout()),
            encoder: Encoder::new(limits.cache_pages_max),
            machine,
            notes: Notes::new(Arc::clone(&reign.arbiter)),
            memory,
            events,
            metrics: reign.metrics.clone(),
            limits,
            target: None,
            session: 0,
            spare: Vec::new(),
            captured: Vec::new(),
            tracking: false,
        }
    }

    /// Obeys until told to end, or until the driver is gone. Returns the machine if it is to run on.
    pub(super) fn run(mut self, jobs: &Receiver<CaptureJob>) -> Option<M> {
        while let Ok(job) = jobs.recv() {
            let outcome = match job {
                CaptureJob::Attach(target) => {
                    self.session = target.session;
                    self.target = Some(target);
                    self.encoder.forget();
                    Ok(())
                }
                CaptureJob::StartSync(peer) => self.start_sync(&peer),
                CaptureJob::SyncRound => self.sync_round(),
                CaptureJob::Capture(epoch) => self.epoch(epoch),
                CaptureJob::Detach => {
                    self.target = None;
                    self.disks.detach();
                    self.encoder.forget();
                    self.metrics.session_ended();
                    self.stop_tracking()
                }
                CaptureJob::OpenGate(generation) => {
                    self.open_gate(generation);
                    Ok(())
                }
                CaptureJob::ResetGuest => {
                    // No failure of the session: the next epoch is of what the guest is now.
                    if let Err(error) = self.machine.reset() {
                        let error = causes(&error);
                        self.metrics
                            .alarm(format!("the guest cannot be started over: {error}"));
                    }
                    Ok(())
                }
                CaptureJob::HandOn => {
                    self.notes.finish();
                    return Some(self.machine.hand_on());
                }
                CaptureJob::Stop => break,
            };
            if let Err(error) = outcome {
                let cause = error.to_string();
                self.report(PrimaryInput::LinkDown { cause });
            }
        }
        self.machine.stop();
        self.notes.finish();
        None
    }

    fn tell(&self, event: CaptureEvent) {
        let session = self.session;
        // Without a driver, `jobs` ends too: `run` returns.
        let _ = self.events.send(SessionEvent { session, event });
    }

    fn report(&self, input: PrimaryInput) {
        self.tell(CaptureEvent::Session(input));
    }

    /// Lets everything held go: writes to shared disks before what else the guest said after them.
    fn open_gate(&mut self, generation: Generation) {
        let (done, written) = std::sync::mpsc::sync_channel(1);
        self.disks.go_alone(Box::new(move |outcome| {
            // This thread waits for it.
            let _ = done.send(outcome);
        }));
        let error = match written.recv() {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(causes(&error)),
            Err(_) => Some("nobody writes them any more".into()),
        };
        if let Some(error) = error {
            return self.tell(CaptureEvent::StillHeld { generation, error });
        }
        self.gate.open();
        self.notes.no_backup(generation);
        self.tell(CaptureEvent::Opened);
    }

    fn start_sync(&mut self, peer: &[PeerDisk]) -> Result<(), ShipError> {
        let Some(mut target) = self.target.clone() else {
            return Ok(());
        };
        // Before there can be a copy, so that none is ever forgotten.
        self.notes.backup(target.generation, &target.backup)?;
        self.copying = true;
        if !self.disks.is_empty() {
            let plan = self.disks.begin_sync(peer)?;
            self.metrics.disks_planned(&plan);
            self.progress.begin(&*self.disks, &plan);
            target.put(Message::SyncDisks(plan.disks))?;
        }
        self.sync_round()
    }

    /// Ships the next piece of the disks; returns how much is left to be copied.
    fn sync_disks(&self, target: Target) -> Result<u64, ShipError> {
        if self.disks.is_empty() {
            return Ok(0);
        }
        let step = self.disks.sync_some()?;
        let mut assembler = SyncAssembler::new(BatchBytes::default(), target);
        assembler.disk(&step.writes)?;
        let bytes = assembler.end()?.disk_bytes;
        // Not what the guest has written meanwhile: it may never stop.
        let bytes_left = self.disks.copy_bytes_left();
        self.metrics.disks_synchronised(bytes, bytes_left);
        Ok(bytes_left)
    }

    /// One round of the synchronisation. Disks come first, as they take longest: all that time memory
    /// need not be tracked.
    fn sync_round(&mut self) -> Result<(), ShipError> {
        let Some(target) = self.target.clone() else {
            return Ok(());
        };
        let disk_bytes_left = self.sync_disks(target.clone())?;
        if !self.copying {
            return self.memory_round(target, false);
        }
        self.progress.left(disk_bytes_left);
        if disk_bytes_left > 0 {
            self.report(PrimaryInput::SyncRoundShipped {
                pages_left: self.dirty.len(),
                disk_bytes_left,
            });
            return Ok(());
        }
        self.copying = false;
        self.machine.start_tracking()?;
        self.tracking = true;
        self.dirty = PageSet::full(self.memory.layout());
        self.memory_round(target, true)
    }

    fn stop_tracking(&mut self) -> Result<(), ShipError> {
        if std::mem::take(&mut self.tracking) {
            self.machine.stop_tracking()?;
        }
        Ok(())
    }

    /// One pre-copy round. Pages may be torn by the running guest; then they are dirty again. The
    /// backup's memory starts as zero, so the first round leaves zero pages out.
    fn memory_round(&mut self, target: Target, first: bool) -> Result<(), ShipError> {
        // Not the epochs' encoder: these pages would only crowd its cache.
        let mut encoder = Encoder::new(0);
        let mut assembler = SyncAssembler::new(BatchBytes::default(), target.clone());
        let (mut left, mut read) = (self.dirty.iter(), Vec::with_capacity(SYNC_PAGES));
        loop {
            read.extend(left.by_ref().take(SYNC_PAGES).map(|page| {
                let frame = self.spare.pop().unwrap_or_else(new_frame);
                (page, frame)
            }));
            if read.is_empty() {
                break;
            }
            self.memory.read_pages(&mut read)?;
            for (page, frame) in read.drain(..) {
                if first && frame.iter().all(|byte| *byte == 0) {
                    self.spare.push(frame);
                    continue;
                }
                self.spare
                    .extend(assembler.page(&mut encoder, page, frame)?);
                if assembler.is_between_batches() {
                    // A guest that writes to disks meanwhile must not be slowed for a whole round.
                    self.sync_disks(target.clone())?;
                }
            }
        }
        drop(left);
        self.metrics.synchronised(assembler.end()?.machine_bytes);
        self.dirty.clear();
        self.machine.harvest_running(&mut self.dirty)?;
        let pages_left = self.dirty.len();
        self.provide_frames(pages_left);
        self.report(PrimaryInput::SyncRoundShipped {
            pages_left,
            disk_bytes_left: 0,
        });
        Ok(())
    }

    fn epoch(&mut self, epoch: EpochId) -> Result<(), ShipError> {
        let Some(target) = self.target.clone() else {
            return Ok(());
        };
        let mut assembler = EpochAssembler::new(epoch, BatchBytes::default(), target);
        let (disks, state, output) = match self.capture(epoch, &mut assembler) {
            Ok(captured) => captured,
            Err(error) => {
                // What was copied is of a moment that no epoch ends at; what was encoded has not
                // arrived. The bits wait in `dirty` for the next capture.
                self.spare
                    .extend(self.captured.drain(..).map(|(_, frame)| frame));
                self.encoder.forget();
                return match error {
                    error @ (ShipError::Machine(_) | ShipError::Disk(_))
                        if !assembler.has_begun() =>
                    {
                        self.report(PrimaryInput::CaptureFailed {
                            epoch,
                            error: error.to_string(),
                        });
                        Ok(())
                    }
                    // Part of it is on its way.
                    error => Err(error),
                };
            }
        };
        self.report(PrimaryInput::Captured { epoch });
        self.encode_captured(&mut assembler)?;
        let parts = EpochDisks {
            writes: &disks.writes,
            flush: disks.flush,
            written_through: disks.written_through,
        };
        let assembled = assembler.end(parts, state.into(), output)?;
        self.metrics.disks_shipped(assembled.disk_bytes);
        self.disks.shipped(epoch);
        drop(disks);
        self.provide_frames(self.dirty.len());
        self.dirty.clear();
        let wire_bytes = assembled.machine_bytes + assembled.disk_bytes;
        self.metrics.shipped(self.encoder.stats(), wire_bytes);
        self.report(PrimaryInput::Shipped { epoch });
        Ok(())
    }

    /// Step ③. The guest stands still from `pause` to the end of the guard's life, and nothing is
    /// allocated or sent in between unless the dirty set outgrows the pool.
    fn capture(
        &mut self,
        epoch: EpochId,
        assembler: &mut EpochAssembler<Target>,
    ) -> Result<(SealedDisks, Vec<u8>, SealedOutput), ShipError> {
        let mut state = Vec::with_capacity(64 * 1024);
        let began = Instant::now();
        let mut paused = self.machine.pause()?;
        {
            let _step = trace_span!(target: "understudy::pause", "harvest").entered();
            paused.harvest(&mut self.dirty)?;
        }
        let step = trace_span!(target: "understudy::pause", "copy").entered();
        let mut pages = 0;
        for page in self.dirty.iter() {
            if self.captured.len() == self.limits.capture_pages_max {
                self.memory.read_pages(&mut self.captured)?;
                // Bounded (R5): what does not fit is encoded while the guest waits.
                encode(
                    &mut self.captured,
                    &mut self.spare,
                    &mut self.encoder,
                    assembler,
                )?;
            }
            let frame = self.spare.pop().unwrap_or_else(new_frame);
            self.captured.push((page, frame));
            pages += 1;
        }
        self.memory.read_pages(&mut self.captured)?;
        drop(step);
        {
            let _step = trace_span!(target: "understudy::pause", "save").entered();
            paused.save(&mut state)?;
            check_size(&state)?;
        }
        let step = trace_span!(target: "understudy::pause", "seal").entered();
        self.disks.hold()?;
        let disks = self.disks.seal(epoch)?;
        // Nothing fails from here on: output is sealed under this epoch if and only if it ships.
        self.gate.hold();
        let output = self.gate.seal(epoch);
        drop(step);
        {
            let _step = trace_span!(target: "understudy::pause", "resume").entered();
            drop(paused);
        }
        self.metrics.captured(epoch, began, began.elapsed(), pages);
        Ok((disks, state, output))
    }

    /// Makes sure, while the guest runs, that the next capture finds frames for as many pages as the
    /// last one had and some more: the encoder keeps frames as long as its cache grows.
    fn provide_frames(&mut self, pages: u64) {
        let pages = usize::try_from(pages).unwrap_or(usize::MAX);
        let wanted = pages
            .saturating_add(pages / 4 + SPARE_FRAMES_MIN)
            .min(self.limits.capture_pages_max);
        let missing = wanted.saturating_sub(self.spare.len());
        self.spare
            .extend(std::iter::repeat_with(new_frame).take(missing));
        self.captured.reserve(wanted);
    }

    /// Step ④.
    fn encode_captured(&mut self, assembler: &mut EpochAssembler<Target>) -> Result<(), ShipError> {
        encode(
            &mut self.captured,
            &mut self.spare,
            &mut self.encoder,
            assembler,
        )?;
        self.spare.truncate(self.limits.capture_pages_max);
        Ok(())
    }
}

fn encode(
    captured: &mut Vec<(PageIndex, Box<Page>)>,
    spare: &mut Vec<Box<Page>>,
    encoder: &mut Encoder,
    assembler: &mut EpochAssembler<Target>,
) -> Result<(), ShipError> {
    for (page, frame) in captured.drain(..) {
        spare.extend(assembler.page(encoder, page, frame)?);
    }
    Ok(())
}

fn check_size(state: &[u8]) -> Result<(), MachineError> {
    let bytes = state.len();
    if bytes <= STATE_BYTES_MAX {
        return Ok(());
    }
    Err(MachineError::new(format!(
        "the machine's state has {bytes} bytes; at most {STATE_BYTES_MAX} can be sent"
    )))
}

/// A frame whose memory is present. Zeroed memory may come from the kernel at the first touch only,
/// in the middle of the pause.
fn new_frame() -> Box<Page> {
    Box::new([0xff; PAGE_BYTES])
}
