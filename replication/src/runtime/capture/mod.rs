//! Steps ② to ⑤ on the primary: the thread that owns the machine. It harvests dirty pages. While
//! the guest is paused, it captures them and the disk writes. When the guest runs again, it encodes
//! and ships them.
//!
//! A dirty bit stays in `dirty` from its harvest until its epoch has been handed to the link (R3).
//! If anything fails in between, the next capture finds it there. The pause is a guard: whatever
//! fails, the guest runs on (R7).

mod notes;
mod sync;
mod target;

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

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
use crate::core::epoch::assemble::{BatchBytes, EpochAssembler, EpochDisks};
use crate::core::policy::Checkpointing;
use crate::core::primary::{Pause, PrimaryInput};
use crate::ids::{EpochId, Generation, PAGE_BYTES, Page, PageIndex};
use crate::open_pages::Looked;
use crate::output::{OutputGate, SealedOutput};
use crate::page_set::PageSet;
use crate::ports::disks::SealedDisks;
use crate::ports::{DiskError, Machine, MachineError, PageMemory, PrimaryDisks, STATE_BYTES_MAX};

/// Frames kept in addition to those that the next capture probably needs (1 MiB).
const SPARE_FRAMES_MIN: usize = 256;

/// The driver's jobs for this thread, done in order.
#[derive(Debug)]
pub(super) enum CaptureJob {
    /// A backup is connected; ship to it.
    Attach(Target),
    /// Begin the synchronisation with a backup that has these disks.
    StartSync(Vec<PeerDisk>),
    /// Continue it: disks first, then all of memory, then what was dirtied since.
    SyncRound,
    /// Capture and ship one epoch.
    Capture(EpochId),
    /// The backup is gone: stop tracking.
    Detach,
    /// The core says to run alone under this generation: let held output leave.
    OpenGate(Generation),
    /// Reset the guest.
    ResetGuest,
    /// End, and leave the guest running.
    HandOn,
    /// Stop the guest and end.
    Stop,
}

/// What this thread tells the driver, and about which session. The driver ignores events of an
/// ended session, except [`CaptureEvent::Opened`] and [`CaptureEvent::StillHeld`].
#[derive(Debug)]
pub(super) struct SessionEvent {
    pub(super) session: u64,
    pub(super) event: CaptureEvent,
}

#[derive(Debug)]
pub(super) enum CaptureEvent {
    /// An input for the core. `LinkDown` says that the session cannot go on, although the link may
    /// still be up.
    Session(PrimaryInput),
    /// Everything that was held has left: this side runs alone.
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

/// What a capture took out of the machine, besides pages.
struct Captured {
    disks: SealedDisks,
    state: Vec<u8>,
    output: SealedOutput,
    pause: Pause,
    /// How many pages, and how long it took to copy them.
    pages: u64,
    copying: Duration,
    /// From the pause before to this one.
    interval: Duration,
}

pub(super) struct Capturer<M: Machine> {
    /// The first field, so that the machine is stopped before anything else here is dropped.
    machine: StoppedOnDrop<M>,
    notes: Notes,
    memory: Arc<dyn PageMemory>,
    gate: OutputGate,
    disks: Arc<dyn PrimaryDisks>,
    /// Disks are being copied, and memory waits.
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
    /// Spare frames; `provide_frames` allocates up to `limits.capture_pages_max` in advance.
    spare: Vec<Box<Page>>,
    captured: Vec<(PageIndex, Box<Page>)>,
    /// Pages of the present epoch that differ from what was shipped last.
    changed: PageSet,
    /// When the guest last stood still.
    paused_at: Option<Instant>,
    epoch_interval: Duration,
    checkpointing: Checkpointing,
    tracking: bool,
}

impl<M: Machine> Capturer<M> {
    pub(super) fn new(
        machine: StoppedOnDrop<M>,
        reign: &Reign,
        events: UnboundedSender<SessionEvent>,
    ) -> Self {
        let (memory, limits) = (machine.memory(), reign.settings.limits.clone());
        let policy = &reign.settings.policy;
        Self {
            gate: machine.gate(),
            disks: machine.disks().primary(),
            copying: false,
            progress: DiskProgress::default(),
            dirty: PageSet::empty(memory.layout()),
            changed: PageSet::empty(memory.layout()),
            paused_at: None,
            epoch_interval: policy.epoch_interval,
            checkpointing: policy.checkpointing,
            encoder: match policy.checkpointing {
                Checkpointing::Adaptive => Encoder::new(limits.cache_pages_max),
                Checkpointing::Remus | Checkpointing::StopAndSend => Encoder::plain(),
            },
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

    /// Does jobs until told to end or until the driver is gone. Returns the machine if it is to run
    /// on.
    pub(super) fn run(mut self, jobs: &Receiver<CaptureJob>) -> Option<M> {
        while let Ok(job) = jobs.recv() {
            let outcome = match job {
                CaptureJob::Attach(target) => {
                    self.session = target.session;
                    self.target = Some(target);
                    self.encoder.forget();
                    self.paused_at = None;
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
                    // This does not fail the session: the next epoch captures the guest as it is
                    // now.
                    if let Err(error) = self.machine.reset() {
                        // The machine tells its own listeners; its guest ends by that.
                        let error = causes(&error);
                        tracing::warn!("the guest cannot be started over: {error}");
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
        // Without a driver, `jobs` ends too and `run` returns.
        let _ = self.events.send(SessionEvent { session, event });
    }

    fn report(&self, input: PrimaryInput) {
        self.tell(CaptureEvent::Session(input));
    }

    /// Lets everything held leave: writes to shared disks first, then the other output.
    fn open_gate(&mut self, generation: Generation) {
        let (done, written) = std::sync::mpsc::sync_channel(1);
        self.disks.go_alone(Box::new(move |outcome| {
            // This thread waits for the outcome below.
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

    fn stop_tracking(&mut self) -> Result<(), ShipError> {
        if std::mem::take(&mut self.tracking) {
            self.machine.stop_tracking()?;
        }
        Ok(())
    }

    fn epoch(&mut self, epoch: EpochId) -> Result<(), ShipError> {
        let Some(target) = self.target.clone() else {
            return Ok(());
        };
        let mut assembler = EpochAssembler::new(epoch, BatchBytes::default(), target.clone());
        self.changed.clear();
        let Captured {
            disks,
            state,
            output,
            pause,
            pages,
            copying,
            interval,
        } = match self.capture(epoch, &target, &mut assembler) {
            Ok(captured) => captured,
            Err(error) => {
                // The copied pages belong to a moment at which no epoch ends, and the encoded ones
                // have not arrived. The bits wait in `dirty` for the next capture.
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
                    // Part of the epoch is on its way.
                    error => Err(error),
                };
            }
        };
        self.report(PrimaryInput::Captured { epoch, pause });
        self.encode_captured(&mut assembler)?;
        let open_pages = self.machine.looked(Looked {
            changed: &self.changed,
            pages,
            copying,
            epoch: interval,
            // An open page that is not remembered is sent whole, and one too many is encoded in the pause.
            open_max: match self.checkpointing {
                Checkpointing::Adaptive => {
                    let limits = &self.limits;
                    limits.cache_pages_max.min(limits.capture_pages_max) as u64 / 2
                }
                Checkpointing::Remus | Checkpointing::StopAndSend => 0,
            },
        });
        let parts = EpochDisks {
            writes: &disks.writes,
            flush: disks.flush,
            written_through: disks.written_through,
        };
        let state_bytes = state.len() as u64;
        let assembled = assembler.end(parts, state.into(), output)?;
        self.metrics.disks_shipped(assembled.disk_bytes);
        self.disks.shipped(epoch);
        drop(disks);
        self.provide_frames(self.dirty.len());
        self.dirty.clear();
        let wire_bytes = assembled.machine_bytes + assembled.disk_bytes;
        self.metrics
            .shipped(self.encoder.stats(), wire_bytes, open_pages);
        self.report(PrimaryInput::Shipped {
            epoch,
            bytes: wire_bytes.saturating_sub(state_bytes),
        });
        Ok(())
    }

    /// Step ③. The guest stands still from `pause` until the guard is dropped. In between nothing
    /// is allocated or sent, unless the dirty set outgrows the pool.
    fn capture(
        &mut self,
        epoch: EpochId,
        target: &Target,
        assembler: &mut EpochAssembler<Target>,
    ) -> Result<Captured, ShipError> {
        let mut state = Vec::with_capacity(64 * 1024);
        // It waits for storage the first time. The guest must not stand still meanwhile.
        self.disks.hold()?;
        let began = Instant::now();
        let mut paused = self.machine.pause()?;
        trace_span!(target: "understudy::pause", "harvest")
            .in_scope(|| paused.harvest(&mut self.dirty))?;
        let step = trace_span!(target: "understudy::pause", "copy").entered();
        let copying = Instant::now();
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
                    &mut self.changed,
                )?;
            }
            let frame = self.spare.pop().unwrap_or_else(new_frame);
            self.captured.push((page, frame));
            pages += 1;
        }
        self.memory.read_pages(&mut self.captured)?;
        let copying = copying.elapsed();
        drop(step);
        if self.checkpointing == Checkpointing::StopAndSend {
            let _step = trace_span!(target: "understudy::pause", "send").entered();
            encode(
                &mut self.captured,
                &mut self.spare,
                &mut self.encoder,
                assembler,
                &mut self.changed,
            )?;
            assembler.end_batch()?;
            target.queue.blocking_written()?;
        }
        {
            let _step = trace_span!(target: "understudy::pause", "save").entered();
            paused.save(&mut state)?;
            check_size(&state)?;
        }
        let idle = paused.is_idle();
        let step = trace_span!(target: "understudy::pause", "seal").entered();
        let disks = self.disks.seal(epoch)?;
        // Nothing fails from here on, so output is sealed under this epoch if and only if the epoch
        // ships.
        self.gate.hold();
        let output = self.gate.seal(epoch);
        drop(step);
        trace_span!(target: "understudy::pause", "resume").in_scope(|| drop(paused));
        let took = began.elapsed();
        self.metrics.captured(epoch, began, took, pages);
        let before = self.paused_at.replace(began);
        Ok(Captured {
            disks,
            state,
            output,
            pause: Pause { took, idle },
            pages,
            copying,
            // A longer one is no measure of those to come.
            interval: before.map_or(Duration::ZERO, |before| {
                (began - before).min(self.epoch_interval)
            }),
        })
    }

    /// Allocates frames while the guest runs, so that the next capture has enough for as many pages
    /// as the last one and some more. The encoder keeps frames as long as its cache grows.
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
            &mut self.changed,
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
    changed: &mut PageSet,
) -> Result<(), ShipError> {
    for (page, frame) in captured.drain(..) {
        let encoded = assembler.page(encoder, page, frame)?;
        spare.extend(encoded.spare);
        if encoded.changed {
            changed.insert(page);
        }
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

/// A frame whose memory is present. The kernel may provide zeroed memory only at the first touch,
/// which would be in the middle of the pause.
fn new_frame() -> Box<Page> {
    Box::new([0xff; PAGE_BYTES])
}
