//! The `disk` workload: writes self-checking blocks, flushes, reads back, and says what it finds.
//!
//! A step after the other, one request at a time: write number `s`, then another block is read back and must
//! hold exactly what this guest knows was last written there; after every `flush_every` writes a flush, and
//! then the ledger. The blocks, their order and the ledger are `understudy_workload::disk`. What must not be
//! done here: waiting for the disk; its interrupt wakes the guest up.

mod device;

use crate::{log, virtio};
use alloc::vec;
use alloc::vec::Vec;
use device::{Request, VirtioBlk};
use understudy_workload::disk::{self, Content, LEDGER};
use understudy_workload::options::{Disk, Options};
use virtio_drivers::transport::DeviceType;

const NS_PER_S: u64 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;
/// A loop that has fallen further behind its rate than this starts afresh.
const BEHIND_NS_MAX: u64 = NS_PER_S / 10;
/// Steps between two looks at the rest of the guest.
const STEPS_PER_RUN: usize = 16;

/// What is asked of the disk at the moment.
#[derive(Clone, Copy)]
enum Step {
    /// At the start: what is in this block?
    Scan(u32),
    /// Nothing, until the next write is due.
    Rest,
    Write,
    ReadBack(u32),
    Flush,
    Ledger,
}

/// The workload's state. It is all in guest memory: what a checkpoint must keep in step with the disk.
pub(crate) struct DiskLoop {
    plan: Disk,
    device: VirtioBlk,
    step: Step,
    /// The last write to each block.
    known: Vec<u64>,
    /// The last write begun, over the disk's life.
    write: u64,
    flushed: u64,
    since_flush: u32,
    checked: u64,
    /// The last run ended although the disk may have answered.
    again: bool,
    next_ns: u64,
    log_ns: u64,
}

impl DiskLoop {
    /// Finds the first disk of the command line and begins to look through it; `None` (with a line on the
    /// console) if there is none that will do.
    pub(crate) fn start(options: &Options, now_ns: u64) -> Option<Self> {
        let Some((place, transport)) = virtio::find(options, DeviceType::Block) else {
            log!("disk: no disk");
            return None;
        };
        let device = match VirtioBlk::new(transport) {
            Ok(device) => device,
            Err(error) => {
                log!("disk: the disk at {place} does not start: {error}");
                return None;
            }
        };
        let plan = options.disk;
        if device.blocks() < u64::from(plan.blocks) {
            let there = device.blocks();
            log!("disk: it has {there} blocks, disk.blocks={}", plan.blocks);
            return None;
        }
        if device.is_read_only() {
            log!("disk: it is read-only, the workload writes");
            return None;
        }
        virtio::route_interrupt(&place);
        let mut this = Self {
            plan,
            device,
            step: Step::Rest,
            known: vec![0; plan.blocks as usize],
            write: 0,
            flushed: 0,
            since_flush: 0,
            checked: 0,
            again: false,
            next_ns: u64::MAX,
            log_ns: now_ns + log_interval_ns(plan),
        };
        this.ask(Step::Scan(LEDGER));
        Some(this)
    }

    /// When to run even if the disk says nothing.
    pub(crate) fn next_ns(&self) -> u64 {
        match self.step {
            _ if self.again => 0,
            Step::Rest => self.next_ns.min(self.log_ns),
            _ => self.log_ns,
        }
    }

    /// Goes on as far as the disk has answered.
    pub(crate) fn run(&mut self, now_ns: u64) {
        if now_ns >= self.log_ns {
            log!(
                "disk: writes={} flushed={} checked={}",
                self.write,
                self.flushed,
                self.checked
            );
            self.log_ns = now_ns + log_interval_ns(self.plan);
        }
        self.again = false;
        for _ in 0..STEPS_PER_RUN {
            match self.step {
                Step::Rest if now_ns >= self.next_ns => self.begin_write(now_ns),
                Step::Rest => return,
                step => match self.device.poll() {
                    None => return,
                    Some(Ok(())) => self.answered(step, now_ns),
                    Some(Err(status)) => self.refused(step, status, now_ns),
                },
            }
        }
        self.again = true;
    }

    fn ask(&mut self, step: Step) {
        self.step = step;
        let blocks = self.plan.blocks;
        match step {
            Step::Rest => {}
            Step::Scan(block) | Step::ReadBack(block) => self.device.ask(Request::Read, block),
            Step::Flush => self.device.ask(Request::Flush, 0),
            Step::Write => {
                let block = disk::block_of(self.write, blocks);
                disk::fill(self.device.block_mut(), block, self.write, blocks);
                self.device.ask(Request::Write, block);
            }
            Step::Ledger => {
                disk::fill(self.device.block_mut(), LEDGER, self.flushed, blocks);
                self.device.ask(Request::Write, LEDGER);
            }
        }
    }

    fn begin_write(&mut self, now_ns: u64) {
        let interval_ns = match self.plan.rate {
            0 => 0,
            rate => NS_PER_S / u64::from(rate),
        };
        self.next_ns = self.next_ns.max(now_ns.saturating_sub(BEHIND_NS_MAX)) + interval_ns;
        self.write += 1;
        let block = disk::block_of(self.write, self.plan.blocks);
        // After a restart it goes on behind the last flush known. What was written after that and is there
        // stays; what is lost is written again.
        if self.known[block as usize] >= self.write {
            self.ask(Step::ReadBack(disk::read_back_of(
                self.write,
                self.plan.blocks,
            )));
        } else {
            self.ask(Step::Write);
        }
    }

    fn answered(&mut self, step: Step, now_ns: u64) {
        match step {
            Step::Rest => {}
            Step::Scan(block) => self.scanned(block, now_ns),
            Step::Write => {
                self.known[disk::block_of(self.write, self.plan.blocks) as usize] = self.write;
                self.since_flush += 1;
                self.ask(Step::ReadBack(disk::read_back_of(
                    self.write,
                    self.plan.blocks,
                )));
            }
            Step::ReadBack(block) => {
                self.check(block);
                self.checked += 1;
                self.after_write();
            }
            Step::Flush => {
                self.flushed = self.write;
                self.since_flush = 0;
                self.ask(Step::Ledger);
            }
            Step::Ledger => self.step = Step::Rest,
        }
    }

    fn after_write(&mut self) {
        if self.since_flush >= self.plan.flush_every {
            self.ask(Step::Flush);
        } else {
            self.step = Step::Rest;
        }
    }

    /// The disk has failed a request: told, and tried again a second later where it matters.
    fn refused(&mut self, step: Step, status: u8, now_ns: u64) {
        let what = match step {
            Step::Scan(_) | Step::ReadBack(_) => "read",
            Step::Flush => "flush",
            _ => "write",
        };
        log!("disk: cannot {what}: status {status}");
        if let Step::Scan(_) = step {
            log!("fatal: the disk cannot be looked through");
            crate::cpu::shut_down();
        }
        if let Step::Write = step {
            // Some of it may be there: the block is written anew, by the same write.
            self.write -= 1;
        }
        self.step = Step::Rest;
        self.next_ns = now_ns + NS_PER_S;
    }

    fn scanned(&mut self, block: u32, now_ns: u64) {
        match disk::read(self.device.block(), block, self.plan.blocks) {
            Ok(Content::Empty) => {}
            Ok(Content::Write(write)) if block == LEDGER => {
                self.flushed = write;
                self.write = write;
            }
            Ok(Content::Write(write)) => self.known[block as usize] = write,
            Err(bad) => {
                log!("disk: BAD block {block}: {bad}");
                log!("fatal: the disk holds something else; zero it, or use another");
                crate::cpu::shut_down();
            }
        }
        if block + 1 < self.plan.blocks {
            self.ask(Step::Scan(block + 1));
            return;
        }
        log!(
            "ready: disk blocks={} writes={} flushed={}",
            self.plan.blocks,
            self.write,
            self.flushed
        );
        self.step = Step::Rest;
        self.next_ns = now_ns;
    }

    /// Holds what was read against what this guest knows: neither older nor newer, and whole.
    fn check(&self, block: u32) {
        let known = self.known[block as usize];
        match disk::read(self.device.block(), block, self.plan.blocks) {
            Ok(Content::Empty) if known == 0 => {}
            Ok(Content::Write(found)) if found == known => {}
            Ok(content) => {
                let found = match content {
                    Content::Empty => 0,
                    Content::Write(found) => found,
                };
                log!("disk: BAD block {block}: write {found} is there, {known} was the last one");
            }
            Err(bad) => log!("disk: BAD block {block}: {bad}"),
        }
    }
}

fn log_interval_ns(plan: Disk) -> u64 {
    u64::from(plan.log_ms) * NS_PER_MS
}
