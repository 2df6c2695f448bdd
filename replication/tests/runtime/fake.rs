//! A machine without KVM: a thread that writes pages and says numbers, some pages, a gate in memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use understudy_replication::disk::{Disk, DiskSet};
use understudy_replication::ids::Page;
use understudy_replication::output::{GateMode, MemoryFrames, NetPort, OutputGate};
use understudy_replication::ports::{Disks, Machine, MachineError, PageMemory, PausedMachine};
use understudy_replication::{Fingerprint, MemoryLayout, PAGE_BYTES, PageIndex, PageSet, Region};

use crate::hang::Hang;
use crate::images::{self, DiskUse, Images};

/// So many that the guest takes seconds to come back to a page: what an epoch forgot stays wrong for as
/// long.
pub(crate) const PAGES: u64 = 8192;

/// What the guest computes: page `n % PAGES` gets `n`, the end of page 0, too, then `n` is said.
#[derive(Default)]
struct Guest {
    steps: u64,
}

pub(crate) struct Memory {
    /// Nothing can be written by replication.
    write_fails: Arc<AtomicBool>,
    write_hangs: Arc<Hang>,
    layout: MemoryLayout,
    pages: Mutex<Vec<Box<Page>>>,
    dirty: Mutex<PageSet>,
}

/// How far the guest is, by its memory.
pub(crate) fn steps(memory: &dyn PageMemory) -> u64 {
    let mut page = [0; PAGE_BYTES];
    memory.read_page(PageIndex(0), &mut page).unwrap();
    u64::from_le_bytes(page[PAGE_BYTES - 8..].try_into().unwrap())
}

impl Memory {
    fn count(&self, steps: u64) {
        let page = &mut self.pages.lock().unwrap()[0];
        page[PAGE_BYTES - 8..].copy_from_slice(&steps.to_le_bytes());
        self.dirty.lock().unwrap().insert(PageIndex(0));
    }
}

impl PageMemory for Memory {
    fn layout(&self) -> &MemoryLayout {
        &self.layout
    }

    fn read_page(&self, page: PageIndex, into: &mut Page) -> Result<(), MachineError> {
        let pages = self.pages.lock().unwrap();
        let page = pages
            .get(page.0 as usize)
            .ok_or_else(|| MachineError::new("no such page"))?;
        into.copy_from_slice(page.as_slice());
        Ok(())
    }

    fn write_page(&self, page: PageIndex, from: &Page) -> Result<(), MachineError> {
        self.write_hangs.pass();
        if self.write_fails.load(Ordering::Acquire) {
            return Err(MachineError::new("this write fails on purpose"));
        }
        let mut pages = self.pages.lock().unwrap();
        let page = pages
            .get_mut(page.0 as usize)
            .ok_or_else(|| MachineError::new("no such page"))?;
        page.copy_from_slice(from);
        Ok(())
    }

    fn clear(&self) -> Result<(), MachineError> {
        self.pages
            .lock()
            .unwrap()
            .iter_mut()
            .for_each(|page| page.fill(0));
        Ok(())
    }
}

/// The shipped gate, before a network in memory. Each number that the guest says is a frame.
pub(crate) struct Gate {
    gate: OutputGate,
    port: NetPort,
    network: MemoryFrames,
    said: Mutex<Vec<u64>>,
    /// The guest's step when it began to run here, and what waited for it.
    found: Mutex<(u64, Vec<u64>)>,
}

impl Gate {
    fn new() -> Self {
        let (gate, network) = (OutputGate::default(), MemoryFrames::default());
        let port = gate.add_network(Arc::new(network.clone()), || ());
        Self {
            gate,
            port,
            network,
            said: Mutex::default(),
            found: Mutex::default(),
        }
    }

    fn say(&self, number: u64) {
        let frame = number.to_le_bytes().to_vec();
        self.port.send(frame.into()).expect("room in the gate");
        self.said.lock().unwrap().push(number);
    }

    /// With each step, the guest is given a frame with the step's number.
    fn give(&self, number: u64) {
        self.port.received(&number.to_le_bytes());
    }

    /// How far the guest was when it began to run here, and what waited for it.
    pub(crate) fn found(&self) -> (u64, Vec<u64>) {
        self.found.lock().unwrap().clone()
    }

    /// Everything that left, in order.
    pub(crate) fn out(&self) -> Vec<u64> {
        let frames = self.network.contents().into_iter();
        frames
            .map(|frame| u64::from_le_bytes(frame.try_into().unwrap()))
            .collect()
    }

    /// Everything that the guest said here, whatever has become of it.
    pub(crate) fn said(&self) -> Vec<u64> {
        self.said.lock().unwrap().clone()
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.gate.mode() == GateMode::Shut
    }

    pub(crate) fn is_holding(&self) -> bool {
        self.gate.mode() == GateMode::Holding
    }
}

pub(crate) struct Fake {
    memory: Arc<Memory>,
    gate: Arc<Gate>,
    guest: Arc<Mutex<Guest>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    fingerprint: Fingerprint,
    /// While positive, saving state fails and this counts down.
    pub(crate) save_failures: Arc<AtomicU64>,
    /// While set, no page can be written.
    pub(crate) write_fails: Arc<AtomicBool>,
    /// While set, whoever writes a page waits.
    pub(crate) write_hangs: Arc<Hang>,
    /// While set, no state can be loaded.
    pub(crate) refuses_state: Arc<AtomicBool>,
    /// While set, a trial does not come to an end.
    pub(crate) trial_hangs: Arc<Hang>,
    /// Trials cannot be undone.
    pub(crate) is_unusable: bool,
    /// How often a state was tried.
    pub(crate) trials: Arc<AtomicU64>,
    /// How often it was stopped by its owner.
    pub(crate) stops: Arc<AtomicU64>,
    /// The next pause panics.
    pub(crate) pause_panics: Arc<AtomicBool>,
    disks: DiskSet,
    pub(crate) disk_use: Arc<DiskUse>,
    /// Between two steps of the guest.
    pace: Duration,
    /// The guest does at most one step after each pause, if `turn` is set.
    a_step_per_pause: bool,
    turn: Arc<AtomicBool>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        let layout = MemoryLayout::new(vec![Region {
            first: PageIndex(0),
            pages: PAGES,
        }]);
        let mut fingerprint = Fingerprint::new();
        fingerprint.set("memory.pages", PAGES);
        let write_fails = Arc::new(AtomicBool::new(false));
        let write_hangs = Arc::<Hang>::default();
        Self {
            write_fails: Arc::clone(&write_fails),
            write_hangs: Arc::clone(&write_hangs),
            memory: Arc::new(Memory {
                write_fails,
                write_hangs,
                pages: Mutex::new((0..PAGES).map(|_| Box::new([0; PAGE_BYTES])).collect()),
                dirty: Mutex::new(PageSet::empty(&layout)),
                layout,
            }),
            gate: Arc::new(Gate::new()),
            guest: Arc::default(),
            stop: Arc::default(),
            thread: None,
            fingerprint,
            save_failures: Arc::default(),
            refuses_state: Arc::default(),
            trial_hangs: Arc::default(),
            is_unusable: false,
            trials: Arc::default(),
            stops: Arc::default(),
            pause_panics: Arc::default(),
            disks: DiskSet::empty(),
            disk_use: Arc::default(),
            pace: Duration::from_micros(300),
            a_step_per_pause: false,
            turn: Arc::default(),
        }
    }

    pub(crate) fn with_disks(mut self, images: &Images) -> Self {
        self.disks = images.set.clone();
        self
    }

    pub(crate) fn with_a_step_per_pause(mut self) -> Self {
        self.a_step_per_pause = true;
        self
    }

    pub(crate) fn with_pace(mut self, pace: Duration) -> Self {
        self.pace = pace;
        self
    }

    pub(crate) fn with(mut self, key: &str, value: &str) -> Self {
        self.fingerprint.set(key, value);
        self
    }

    pub(crate) fn gate_handle(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    fn check_state(&self, state: &[u8]) -> Result<u64, MachineError> {
        if self.refuses_state.load(Ordering::Acquire) {
            return Err(MachineError::new("this state is refused on purpose"));
        }
        let steps = state
            .try_into()
            .map_err(|_| MachineError::new("state of a wrong size"))?;
        Ok(u64::from_le_bytes(steps))
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// Panics unless memory is what the guest's number of steps makes it.
    pub(crate) fn assert_consistent(&self) {
        let guest = self.guest.lock().unwrap();
        let pages = self.memory.pages.lock().unwrap();
        let steps = guest.steps;
        assert!(steps > 0, "the guest never ran");
        for (number, page) in pages.iter().enumerate() {
            let number = number as u64;
            let last = (number < steps).then(|| steps - 1 - (steps - 1 - number) % PAGES);
            let expected = last.map_or(0, |step| step + 1);
            let got = u64::from_le_bytes(page[..8].try_into().unwrap());
            assert_eq!(got, expected, "page {number} after {steps} steps");
        }
        if !self.disks.is_empty() {
            images::assert_written(&self.disks, steps);
        }
    }
}

/// Fills a page with what does not compress, so that epochs have many batches.
pub(crate) fn noise(seed: u64, page: &mut Page) {
    let mut state = seed;
    for word in page.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

fn step(guest: &Mutex<Guest>, memory: &Memory, gate: &Gate, disks: &DiskSet, used: &DiskUse) {
    let mut guest = guest.lock().unwrap();
    if !disks.is_empty() {
        // An error: another side runs the guest, and this one is about to be stopped.
        if images::step(disks, guest.steps + 1).is_err() {
            return;
        }
        used.writes.fetch_add(1, Ordering::AcqRel);
    }
    let page = PageIndex(guest.steps % PAGES);
    guest.steps += 1;
    let mut content = [0; PAGE_BYTES];
    noise(guest.steps, &mut content);
    content[..8].copy_from_slice(&guest.steps.to_le_bytes());
    memory.write_page(page, &content).unwrap();
    memory.count(guest.steps);
    memory.dirty.lock().unwrap().insert(page);
    gate.give(guest.steps);
    gate.say(guest.steps);
}

impl Machine for Fake {
    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    fn memory(&self) -> Arc<dyn PageMemory> {
        self.memory.clone()
    }

    fn gate(&self) -> OutputGate {
        self.gate.gate.clone()
    }

    fn disks(&self) -> Arc<dyn Disks> {
        Arc::new(self.disks.clone())
    }

    fn start_tracking(&mut self) -> Result<(), MachineError> {
        self.memory.dirty.lock().unwrap().clear();
        Ok(())
    }

    fn stop_tracking(&mut self) -> Result<(), MachineError> {
        Ok(())
    }

    fn harvest_running(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        let mut dirty = self.memory.dirty.lock().unwrap();
        into.union(&dirty);
        dirty.clear();
        Ok(())
    }

    fn pause(&mut self) -> Result<Box<dyn PausedMachine + '_>, MachineError> {
        assert!(
            !self.pause_panics.load(Ordering::Acquire),
            "this pause panics on purpose"
        );
        Ok(Box::new(Paused {
            guest: self.guest.lock().unwrap(),
            memory: &self.memory,
            save_failures: &self.save_failures,
            turn: &self.turn,
        }))
    }

    fn try_restore(&mut self, state: &[u8]) -> Result<(), MachineError> {
        self.trials.fetch_add(1, Ordering::AcqRel);
        self.trial_hangs.pass();
        if self.is_unusable {
            let what = "this trial cannot be undone, on purpose";
            return Err(MachineError::Unusable(what.into()));
        }
        self.check_state(state).map(drop)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), MachineError> {
        let steps = self.check_state(state)?;
        self.guest.lock().unwrap().steps = steps;
        if !self.disks.is_empty() {
            // Exactly at this moment: a little later the guest has written everything once more.
            images::assert_written(&self.disks, steps);
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), MachineError> {
        let waiting = std::iter::from_fn(|| self.gate.port.arrived());
        let waiting = waiting.map(|frame| u64::from_le_bytes(frame[..].try_into().unwrap()));
        let steps = self.guest.lock().unwrap().steps;
        *self.gate.found.lock().unwrap() = (steps, waiting.collect());
        let (guest, memory) = (Arc::clone(&self.guest), Arc::clone(&self.memory));
        let (gate, stop) = (Arc::clone(&self.gate), Arc::clone(&self.stop));
        let (disks, used, pace) = (self.disks.clone(), self.disk_use.clone(), self.pace);
        let (turn, waits) = (Arc::clone(&self.turn), self.a_step_per_pause);
        self.thread = Some(std::thread::spawn(move || {
            while !stop.load(Ordering::Acquire) {
                if waits && !turn.swap(false, Ordering::AcqRel) {
                    // Its turn comes with the end of the next pause.
                } else if used.rests.load(Ordering::Acquire) {
                    // Until it is woken.
                } else if disks.disks().iter().all(Disk::has_room) {
                    step(&guest, &memory, &gate, &disks, &used);
                } else {
                    used.refused.fetch_add(1, Ordering::AcqRel);
                }
                // The pace of the guest, not a wait for something.
                std::thread::sleep(pace);
            }
        }));
        Ok(())
    }

    fn reset(&mut self) -> Result<(), MachineError> {
        let mut guest = self.guest.lock().unwrap();
        guest.steps = 0;
        self.memory.clear()?;
        *self.memory.dirty.lock().unwrap() = PageSet::full(&self.memory.layout);
        Ok(())
    }

    fn stop(&mut self) {
        self.stops.fetch_add(1, Ordering::AcqRel);
        self.end();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.end();
    }
}

struct Paused<'a> {
    guest: MutexGuard<'a, Guest>,
    memory: &'a Memory,
    save_failures: &'a AtomicU64,
    turn: &'a AtomicBool,
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        self.turn.store(true, Ordering::Release);
    }
}

impl PausedMachine for Paused<'_> {
    fn harvest(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        let mut dirty = self.memory.dirty.lock().unwrap();
        into.union(&dirty);
        dirty.clear();
        Ok(())
    }

    fn save(&mut self, into: &mut Vec<u8>) -> Result<(), MachineError> {
        let failing = self.save_failures.load(Ordering::Acquire);
        if failing > 0 {
            self.save_failures.store(failing - 1, Ordering::Release);
            return Err(MachineError::new("this save fails on purpose"));
        }
        into.extend(self.guest.steps.to_le_bytes());
        Ok(())
    }
}
