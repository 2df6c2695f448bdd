//! A guest that runs: tracked, paused, saved, started over and stopped.

use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::memory::{Pages, copy};
use super::{Breach, breach, works};
use crate::page_set::PageSet;
use crate::ports::{Machine, MachineError, PageMemory, STATE_BYTES_MAX};

/// The guest runs so long between two pauses.
const RUNS: Duration = Duration::from_millis(5);
/// It is watched for so long when it must stand still.
const STANDS: Duration = Duration::from_millis(5);
/// Only a guest that does not go on takes longer, however busy the host is.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many epochs of each kind in which the guest has gone on.
const ADVANCES: u32 = 3;
/// A guest may write all its pages again between two pauses, but not each time.
const TRIES: u32 = 200;
/// What stands in front of the state must stay there.
const BEFORE: &[u8] = b"before";

/// A machine whose guest runs and is tracked.
pub(super) struct Guest<'a, M, P> {
    machine: M,
    progress_of: &'a P,
    memory: Arc<dyn PageMemory>,
    /// Memory at the last pause.
    known: Pages,
    /// Reported since then.
    dirty: PageSet,
}

/// A guest at the moment of a pause.
pub(super) struct Saved {
    pub(super) state: Vec<u8>,
    pub(super) progress: u64,
    memory: Pages,
}

impl Saved {
    /// Tries the state twice, writes memory and restores the state, as a standby does that is then promoted.
    pub(super) fn load_into(&self, machine: &mut impl Machine) -> Result<(), Breach> {
        let memory = machine.memory();
        works("clear", memory.clear())?;
        let empty = copy(&*memory)?;
        for _ in 0..2 {
            works("try_restore", machine.try_restore(&self.state))?;
        }
        if copy(&*memory)? != empty {
            return breach("try_restore", "it changes memory");
        }
        works("write_pages", memory.write_pages(&self.memory))?;
        works("restore", machine.restore(&self.state))?;
        if copy(&*memory)? != self.memory {
            return breach("restore", "it changes memory, which is as it was saved");
        }
        Ok(())
    }
}

impl<'a, M: Machine, P: Fn(&dyn PageMemory) -> u64> Guest<'a, M, P> {
    /// The machine runs already.
    pub(super) fn new(machine: M, progress_of: &'a P) -> Result<Self, Breach> {
        let memory = machine.memory();
        let mut guest = Self {
            known: Vec::new(),
            dirty: PageSet::empty(memory.layout()),
            machine,
            progress_of,
            memory,
        };
        guest.start_tracking()?;
        Ok(guest)
    }

    /// From the pause that this ends with, every change must be reported. That pause is of an epoch which is
    /// given up: nothing is harvested, so nothing is forgotten.
    fn start_tracking(&mut self) -> Result<(), Breach> {
        works("start_tracking", self.machine.start_tracking())?;
        self.dirty.clear();
        let paused = works("pause", self.machine.pause())?;
        self.known = copy(&*self.memory)?;
        drop(paused);
        Ok(())
    }

    /// One epoch: whatever has changed since the last one was reported.
    fn epoch(&mut self) -> Result<Saved, Breach> {
        let mut paused = works("pause", self.machine.pause())?;
        let before = self.dirty.clone();
        works("harvest", paused.harvest(&mut self.dirty))?;
        only_adds("harvest", &before, &self.dirty)?;
        let memory = copy(&*self.memory)?;
        let mut state = BEFORE.to_vec();
        works("save", paused.save(&mut state))?;
        if state.get(..BEFORE.len()) != Some(BEFORE) {
            return breach("save", "it does not append to what was there");
        }
        state.drain(..BEFORE.len());
        if state.len() > STATE_BYTES_MAX {
            let bytes = state.len();
            let what =
                format!("the state has {bytes} bytes, at most {STATE_BYTES_MAX} can be sent");
            return breach("save", what);
        }
        sleep(STANDS);
        if copy(&*self.memory)? != memory {
            return breach(
                "pause",
                "memory changes while the guest is paused and saved",
            );
        }
        let progress = (self.progress_of)(&*self.memory);
        drop(paused);
        let changed = memory
            .iter()
            .zip(&self.known)
            .filter(|(now, then)| now != then);
        for ((page, _), _) in changed {
            if !self.dirty.contains(*page) {
                return breach("harvest", format!("{page} has changed and is not reported"));
            }
        }
        self.dirty.clear();
        self.known.clone_from(&memory);
        Ok(Saved {
            state,
            progress,
            memory,
        })
    }

    /// A guest that was saved so far and loaded goes on from there. Its memory says so before it has run at all,
    /// so only a guest that has counted again shows what was restored.
    pub(super) fn goes_on_from(&mut self, saved: u64) -> Result<(), Breach> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let found = self.epoch()?.progress;
            if found > saved {
                return Ok(());
            }
            if found < saved {
                let what = format!("the guest was saved at {saved} and goes on from {found}");
                return breach("restore", what);
            }
            if Instant::now() > deadline {
                let what = format!("the guest was saved at {saved} and does not go on");
                return breach("restore", what);
            }
            sleep(RUNS);
        }
    }

    /// Several epochs in which the guest goes on. In every other one, some pages are harvested while it runs.
    pub(super) fn runs_tracked_and_paused(&mut self) -> Result<(), Breach> {
        let (mut last, mut since) = (self.epoch()?.progress, Instant::now());
        let mut advances = [0, 0];
        for harvests in [0, 1].into_iter().cycle() {
            sleep(RUNS);
            if harvests == 1 {
                let before = self.dirty.clone();
                let harvested = self.machine.harvest_running(&mut self.dirty);
                works("harvest_running", harvested)?;
                only_adds("harvest_running", &before, &self.dirty)?;
            }
            let now = self.epoch()?.progress;
            if now < last {
                return breach("pause", format!("the guest goes back from {last} to {now}"));
            }
            if now > last {
                (last, since) = (now, Instant::now());
                advances[harvests] += 1;
            }
            if advances.iter().all(|epochs| *epochs >= ADVANCES) {
                break;
            }
            if since.elapsed() > PATIENCE {
                let what = format!("the guest does not go on after it was paused at {now}");
                return breach("pause", what);
            }
        }
        Ok(())
    }

    /// What was in a set before is still there after a harvest.
    pub(super) fn adds_to_sets(&mut self) -> Result<(), Breach> {
        let all = PageSet::full(self.memory.layout());
        self.dirty = all.clone();
        let harvested = self.machine.harvest_running(&mut self.dirty);
        works("harvest_running", harvested)?;
        only_adds("harvest_running", &all, &self.dirty)?;
        self.epoch().map(drop)
    }

    /// A page that was reported and not written since is not reported again.
    pub(super) fn reports_pages_once(&mut self) -> Result<(), Breach> {
        let (mut tries, mut since) = (0, Instant::now());
        while tries < TRIES && since.elapsed() < PATIENCE {
            sleep(Duration::from_millis(1));
            let (first, second) = (self.harvested()?, self.harvested()?);
            if first.is_empty() {
                // The guest has not run in between.
                continue;
            }
            if first.iter().any(|page| !second.contains(page)) {
                return Ok(());
            }
            (tries, since) = (tries + 1, Instant::now());
        }
        if tries == 0 {
            return breach("harvest", "nothing is reported of a guest that runs");
        }
        let what = "a page that was reported is reported again, although nobody has written to it";
        breach("harvest", what)
    }

    /// What one pause finds.
    fn harvested(&mut self) -> Result<PageSet, Breach> {
        let mut found = PageSet::empty(self.memory.layout());
        let mut paused = works("pause", self.machine.pause())?;
        works("harvest", paused.harvest(&mut found))?;
        drop(paused);
        self.dirty.union(&found);
        Ok(found)
    }

    /// The backup is lost, and there is another one later.
    pub(super) fn is_tracked_anew(&mut self) -> Result<(), Breach> {
        works("stop_tracking", self.machine.stop_tracking())?;
        sleep(RUNS);
        self.start_tracking()?;
        sleep(RUNS);
        self.epoch().map(drop)
    }

    /// Something to go on with elsewhere.
    pub(super) fn saved(&mut self) -> Result<Saved, Breach> {
        self.epoch()
    }

    /// The guest starts over, if the machine can do that: what was written on the way is reported.
    pub(super) fn is_reset(&mut self) -> Result<(), Breach> {
        match self.machine.reset() {
            Err(MachineError::Unsupported(_)) => Ok(()),
            result => {
                works("reset", result)?;
                self.runs_tracked_and_paused()
            }
        }
    }

    /// Once it is stopped it writes nothing, and it may be stopped again.
    pub(super) fn stops(mut self) -> Result<(), Breach> {
        self.machine.stop();
        let memory = copy(&*self.memory)?;
        sleep(STANDS);
        if copy(&*self.memory)? != memory {
            return breach("stop", "memory changes after it");
        }
        self.machine.stop();
        Ok(())
    }
}

/// A harvest leaves what was harvested before.
fn only_adds(method: &'static str, before: &PageSet, after: &PageSet) -> Result<(), Breach> {
    match before.iter().find(|page| !after.contains(*page)) {
        Some(page) => breach(
            method,
            format!("it takes {page} out of the set; it must add only"),
        ),
        None => Ok(()),
    }
}
