//! The machine of these tests keeps the contract of the ports, and machines that do not are found out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use understudy_replication::conformance::{Breach, check};
use understudy_replication::ids::Page;
use understudy_replication::output::OutputGate;
use understudy_replication::ports::{Machine, MachineError, PageMemory, PausedMachine};
use understudy_replication::{MemoryLayout, PAGE_BYTES, PageIndex, PageSet};

use crate::fake::{Fake, steps};

/// What a machine does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    Nothing,
    /// It does not report the lowest page that is dirty.
    LosesDirtyPage,
    /// What was dirty once is reported for ever.
    ForgetsNothing,
    /// Each harvest begins with an empty set.
    ClearsTheSet,
    /// A harvest of the running guest finds nothing, and forgets it.
    DropsRunningHarvest,
    /// The guest runs on while it is paused.
    DoesNotPause,
    /// The guest stands still from its first pause on.
    DoesNotResume,
    /// The state is restored as if it were that of a fresh machine.
    RestoresNothing,
    /// A state that is tried leaves something in memory.
    TriesInMemory,
    /// State that was cut off is taken for good.
    TakesTornState,
    /// Saving writes guest memory.
    SavesIntoMemory,
    /// Pages read at once come in the wrong frames.
    SwapsPages,
    /// Memory outside guest RAM reads as zero.
    ReadsBeyond,
    /// The guest runs on after it was stopped.
    DoesNotStop,
    /// Memory is not zero after it was cleared.
    ClearsNothing,
    /// Each question for the gate is answered with a new one.
    ForgetsItsGate,
}

use Defect::*;

struct Broken {
    fake: Fake,
    memory: Arc<BrokenMemory>,
    defect: Defect,
    ever_dirty: PageSet,
}

struct BrokenMemory {
    memory: Arc<dyn PageMemory>,
    defect: Defect,
    /// So that memory changes although the guest stands still.
    restless: AtomicBool,
}

impl Broken {
    fn new(defect: Defect) -> Self {
        // A guest must not get far before somebody looks where it has begun, however late that is.
        let fake = match defect {
            RestoresNothing => Fake::new().with_a_step_per_pause(),
            _ => Fake::new(),
        };
        let memory = fake.memory();
        Self {
            ever_dirty: PageSet::empty(memory.layout()),
            memory: Arc::new(BrokenMemory {
                memory,
                defect,
                restless: AtomicBool::new(false),
            }),
            fake,
            defect,
        }
    }
}

impl PageMemory for BrokenMemory {
    fn layout(&self) -> &MemoryLayout {
        self.memory.layout()
    }

    fn read_page(&self, page: PageIndex, into: &mut Page) -> Result<(), MachineError> {
        if self.defect == ReadsBeyond && !self.layout().contains(page) {
            into.fill(0);
            return Ok(());
        }
        self.memory.read_page(page, into)?;
        if self.restless.load(Ordering::Acquire) && page == PageIndex(3) {
            into[100] = into[100].wrapping_add(1);
            self.memory.write_page(page, into)?;
        }
        Ok(())
    }

    fn write_page(&self, page: PageIndex, from: &Page) -> Result<(), MachineError> {
        self.memory.write_page(page, from)
    }

    fn read_pages(&self, pages: &mut [(PageIndex, Box<Page>)]) -> Result<(), MachineError> {
        for (page, into) in pages.iter_mut() {
            self.read_page(*page, into)?;
        }
        if self.defect == SwapsPages
            && let [(_, first), .., (_, last)] = pages
        {
            std::mem::swap(first, last);
        }
        Ok(())
    }

    fn clear(&self) -> Result<(), MachineError> {
        if self.defect == ClearsNothing {
            return Ok(());
        }
        self.memory.clear()
    }
}

impl Machine for Broken {
    fn memory(&self) -> Arc<dyn PageMemory> {
        self.memory.clone()
    }

    fn gate(&self) -> OutputGate {
        if self.defect == ForgetsItsGate {
            return OutputGate::default();
        }
        self.fake.gate()
    }

    fn start_tracking(&mut self) -> Result<(), MachineError> {
        self.fake.start_tracking()
    }

    fn stop_tracking(&mut self) -> Result<(), MachineError> {
        self.fake.stop_tracking()
    }

    fn harvest_running(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        if self.defect != DropsRunningHarvest {
            return self.fake.harvest_running(into);
        }
        let mut dropped = PageSet::empty(into.layout());
        while dropped.is_empty() {
            self.fake.harvest_running(&mut dropped)?;
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<Box<dyn PausedMachine + '_>, MachineError> {
        if self.defect == DoesNotPause {
            self.memory.restless.store(true, Ordering::Release);
        }
        if self.defect == DoesNotResume {
            self.fake.stop();
        }
        Ok(Box::new(BrokenPause {
            paused: self.fake.pause()?,
            memory: &self.memory,
            ever_dirty: &mut self.ever_dirty,
        }))
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), MachineError> {
        match self.defect {
            RestoresNothing => {
                self.fake.restore(state)?;
                self.fake.restore(&[0; 8])
            }
            TakesTornState if state.len() < 8 => Ok(()),
            _ => self.fake.restore(state),
        }
    }

    fn try_restore(&mut self, state: &[u8]) -> Result<(), MachineError> {
        if self.defect == TriesInMemory {
            self.memory.write_page(PageIndex(5), &[1; PAGE_BYTES])?;
        }
        self.fake.try_restore(state)
    }

    fn run(&mut self) -> Result<(), MachineError> {
        self.fake.run()
    }

    fn stop(&mut self) {
        if self.defect == DoesNotStop {
            self.memory.restless.store(true, Ordering::Release);
        }
        self.fake.stop();
    }
}

struct BrokenPause<'a> {
    paused: Box<dyn PausedMachine + 'a>,
    memory: &'a BrokenMemory,
    ever_dirty: &'a mut PageSet,
}

impl PausedMachine for BrokenPause<'_> {
    fn harvest(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        let mut found = PageSet::empty(into.layout());
        self.paused.harvest(&mut found)?;
        self.ever_dirty.union(&found);
        match self.memory.defect {
            LosesDirtyPage => {
                let lost = found.iter().last();
                lost.into_iter().for_each(|page| found.remove(page));
            }
            ForgetsNothing => found.union(self.ever_dirty),
            ClearsTheSet => into.clear(),
            _ => {}
        }
        into.union(&found);
        Ok(())
    }

    fn save(&mut self, into: &mut Vec<u8>) -> Result<(), MachineError> {
        if self.memory.defect == SavesIntoMemory {
            self.memory
                .write_page(PageIndex(5), &[into.len() as u8 + 1; PAGE_BYTES])?;
        }
        self.paused.save(into)
    }
}

fn found(defect: Defect) -> Result<(), Breach> {
    check(|| Broken::new(defect), steps)
}

#[test]
fn the_machine_of_these_tests_keeps_the_contract() {
    check(Fake::new, steps).unwrap();
    found(Nothing).unwrap();
}

#[test]
fn each_defect_is_found_in_the_method_that_has_it() {
    let defects = [
        (LosesDirtyPage, "harvest", "is not reported"),
        (ForgetsNothing, "harvest", "is reported again"),
        (ClearsTheSet, "harvest", "must add only"),
        (DropsRunningHarvest, "harvest", "is not reported"),
        (DoesNotPause, "pause", "while the guest is paused"),
        (DoesNotResume, "pause", "does not go on"),
        (RestoresNothing, "restore", "goes on from"),
        (TriesInMemory, "try_restore", "it changes memory"),
        (TakesTornState, "restore", "it accepts 0 bytes"),
        (SavesIntoMemory, "pause", "paused and saved"),
        (SwapsPages, "read_pages", "another content"),
        (ReadsBeyond, "read_page", "not guest RAM"),
        (DoesNotStop, "stop", "memory changes after it"),
        (ClearsNothing, "clear", "is not zero"),
        (ForgetsItsGate, "gate", "another gate"),
    ];
    // One after the other: beside them run tests that a busy machine fails.
    for (defect, method, what) in defects {
        let breach = found(defect).expect_err(&format!("{defect:?} was not found"));
        assert_eq!(breach.method, method, "{defect:?}: {breach}");
        assert!(breach.what.contains(what), "{defect:?}: {breach}");
    }
}
