//! The `dirty` workload: writes guest memory in a chosen pattern, mode and rate.
//!
//! Each vCPU writes its own range. The work is cut into slices, so that vCPU 0 can serve the network
//! between them. What must not be done here: writing outside the ranges that `check_fits` accepted.

use crate::cpu::VCPUS_MAX;
use crate::log;
use crate::memory_map::DIRTY_START;
use core::ptr;
use core::sync::atomic::{AtomicU64, Ordering};
use understudy_workload::options::{Dirty, DirtyMode, DirtyPattern, Options};

const PAGE_BYTES: usize = 4096;
const WORD_BYTES: usize = 8;
const NS_PER_S: u64 = 1_000_000_000;
/// Page writes in a slice: well below a millisecond even when every one of them faults.
const SLICE_WRITES: u32 = 64;
/// A loop that has fallen further behind its rate than this starts afresh.
const BEHIND_NS_MAX: u64 = NS_PER_S / 10;

static ITERATIONS: [AtomicU64; VCPUS_MAX] = [const { AtomicU64::new(0) }; VCPUS_MAX];

/// Finished iterations of each vCPU.
pub(crate) fn iterations() -> [u64; VCPUS_MAX] {
    core::array::from_fn(|vcpu| ITERATIONS[vcpu].load(Ordering::Relaxed))
}

/// Whether the ranges of all vCPUs lie in RAM; says on the console if not.
pub(crate) fn check_fits(options: &Options, ram_end: usize) -> bool {
    let bytes = options.dirty.pages as usize * PAGE_BYTES * usize::from(options.nr_cpus);
    let end = DIRTY_START + bytes;
    if end > ram_end {
        log!(
            "dirty: {} pages on each of {} vcpus end at {end:#x}, behind RAM that ends at {ram_end:#x}",
            options.dirty.pages,
            options.nr_cpus
        );
    }
    end <= ram_end
}

/// The loop of one vCPU.
pub(crate) struct DirtyLoop {
    vcpu: usize,
    plan: Dirty,
    start: usize,
    random: u64,
    written: u32,
    iterations: u64,
    pages: u64,
    next_ns: u64,
    log_ns: u64,
}

impl DirtyLoop {
    /// Begins now. The ranges must have passed [`check_fits`].
    pub(crate) fn new(plan: Dirty, vcpu: usize, now_ns: u64) -> Self {
        let start = DIRTY_START + vcpu * plan.pages as usize * PAGE_BYTES;
        log!(
            "ready: dirty vcpu={vcpu} pages={} at {start:#x}",
            plan.pages
        );
        Self {
            vcpu,
            plan,
            start,
            random: 0x9e37_79b9_7f4a_7c15 ^ (vcpu as u64 + 1),
            written: 0,
            iterations: 0,
            pages: 0,
            next_ns: now_ns,
            log_ns: now_ns + NS_PER_S,
        }
    }

    /// When to run the next slice.
    pub(crate) fn next_ns(&self) -> u64 {
        match self.rests() {
            true => self.log_ns,
            false => self.next_ns.min(self.log_ns),
        }
    }

    /// All that was planned is done.
    fn rests(&self) -> bool {
        self.plan.iterations > 0 && self.iterations >= u64::from(self.plan.iterations)
    }

    /// Runs a slice if it is time, and tells the console once a second how far it is.
    pub(crate) fn run(&mut self, now_ns: u64) {
        if now_ns >= self.log_ns {
            log!(
                "dirty: vcpu={} iterations={} pages={}",
                self.vcpu,
                self.iterations,
                self.pages
            );
            self.log_ns = now_ns + NS_PER_S;
        }
        if now_ns < self.next_ns || self.rests() {
            return;
        }
        let writes = (self.plan.pages - self.written).min(SLICE_WRITES);
        for _ in 0..writes {
            let page = self.pick();
            self.write(page);
            self.written += 1;
        }
        self.pages += u64::from(writes);
        if self.written == self.plan.pages {
            self.finish_iteration(now_ns);
        }
    }

    fn finish_iteration(&mut self, now_ns: u64) {
        self.written = 0;
        self.iterations += 1;
        ITERATIONS[self.vcpu].store(self.iterations, Ordering::Relaxed);
        if self.plan.rate > 0 {
            self.next_ns += NS_PER_S / u64::from(self.plan.rate);
            if self.next_ns + BEHIND_NS_MAX < now_ns {
                self.next_ns = now_ns;
            }
        }
    }

    /// xorshift64 (Marsaglia 2003).
    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn pick(&mut self) -> usize {
        let pages = u64::from(self.plan.pages);
        let page = match self.plan.pattern {
            DirtyPattern::Sequential => u64::from(self.written),
            DirtyPattern::Random => self.random() % pages,
            DirtyPattern::HotCold => {
                let hot = (pages / 10).max(1);
                if pages == hot || self.random() % 10 < 9 {
                    self.random() % hot
                } else {
                    hot + self.random() % (pages - hot)
                }
            }
        };
        page as usize
    }

    fn write(&mut self, page: usize) {
        let page = (self.start + page * PAGE_BYTES) as *mut u64;
        match self.plan.mode {
            DirtyMode::Page => {
                for word in 0..PAGE_BYTES / WORD_BYTES {
                    let value = self.random();
                    // SAFETY: the page is one of this vCPU's range, which is RAM (`check_fits`) and
                    // belongs to nobody else (memory_map.rs); `word` stays inside it.
                    unsafe { ptr::write_volatile(page.add(word), value) };
                }
            }
            DirtyMode::Word => {
                let word = self.iterations as usize % (PAGE_BYTES / WORD_BYTES);
                let value = self.random();
                // SAFETY: as above.
                unsafe { ptr::write_volatile(page.add(word), value) };
            }
        }
    }
}
