//! The built-in guest: a ring-3 machine with a network stack and workloads.
//!
//! It boots by the Linux 64-bit boot protocol, leaves privileged mode after a few dozen instructions
//! and runs everything else at CPL 3, so that it is fast even where privileged guest code is
//! emulated, and small enough to reason about when a checkpoint of it misbehaves. README.md has the
//! memory map and the workloads; the options are `understudy_workload::options`.
#![no_std]
#![no_main]

extern crate alloc;

mod cpu;
mod dirty;
mod disk;
mod heap;
mod memory_map;
mod net;
mod virtio;

use alloc::boxed::Box;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};
use cpu::{apic, boot::BootParams, clock, timer::Timer};
use dirty::DirtyLoop;
use disk::DiskLoop;
use net::Network;
use understudy_workload::options::Options;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::DeviceType;

const NS_PER_MS: u64 = 1_000_000;

/// What vCPU 0 read from the command line, for the others.
static OPTIONS: AtomicPtr<Options> = AtomicPtr::new(ptr::null_mut());

/// Where the assembler part goes on at CPL 3: `boot_params` is for vCPU 0 only.
#[unsafe(no_mangle)]
extern "C" fn guest_main(boot_params: usize, vcpu: usize) -> ! {
    apic::enable();
    if vcpu == 0 {
        // SAFETY: entry.s passes on what the machine was entered with, and nothing has run since.
        boot(unsafe { BootParams::new(boot_params) })
    }
    // SAFETY: vCPU 0 stores a leaked box before it starts any other vCPU, and never changes it.
    let options = unsafe { &*OPTIONS.load(Ordering::Acquire) };
    run_other(options, vcpu)
}

/// vCPU 0 after entry: checks what it was given and starts everything.
fn boot(boot: BootParams) -> ! {
    let line = boot.command_line();
    log!("understudy guest {}: {line}", env!("CARGO_PKG_VERSION"));
    let ram_end = boot.ram_end(memory_map::HEAP_START);
    if ram_end < memory_map::RAM_END_MIN {
        log!(
            "fatal: RAM ends at {ram_end:#x}, {:#x} is the least",
            memory_map::RAM_END_MIN
        );
        cpu::shut_down();
    }
    if !clock::is_present(0) {
        log!("fatal: the host offers no kvmclock");
        cpu::shut_down();
    }
    let options = Options::parse(line).unwrap_or_else(|error| {
        log!("fatal: {error}");
        cpu::shut_down();
    });
    // SAFETY: nothing has allocated yet, this runs once, and RAM reaches beyond the heap.
    unsafe { heap::init() };
    let options: &'static Options = Box::leak(Box::new(options));
    OPTIONS.store(ptr::from_ref(options).cast_mut(), Ordering::Release);

    let seed = seed(options);
    let workloads = options.workloads;
    let serves = workloads.stream || workloads.counter || workloads.echo;
    let disk = match workloads
        .disk
        .then(|| DiskLoop::start(options, clock::now_ns(0)))
    {
        Some(None) => {
            log!("fatal: the disk workload does not start");
            cpu::shut_down();
        }
        disk => disk.flatten(),
    };
    let network = match Network::start(options, seed, clock::now_ns(0)) {
        None if serves => {
            log!("fatal: workloads that need the network, and no network");
            cpu::shut_down();
        }
        network => network,
    };
    if workloads.dirty && !dirty::check_fits(options, ram_end) {
        log!("fatal: the dirty workload does not fit");
        cpu::shut_down();
    }
    let dirty = workloads
        .dirty
        .then(|| DirtyLoop::new(options.dirty, 0, clock::now_ns(0)));
    for vcpu in 1..usize::from(options.nr_cpus) {
        apic::start(vcpu);
    }
    if !serves && !workloads.dirty && !workloads.disk {
        log!("ready: idle");
    }
    let after =
        |ms: u64| (ms > 0).then(|| clock::now_ns(0).saturating_add(ms.saturating_mul(NS_PER_MS)));
    let ends = Ends {
        exit_ns: after(options.exit_after_ms),
        reboot_ns: after(options.reboot_after_ms),
    };
    run_first(network, dirty, disk, ends)
}

/// When the guest ends by itself, if it does.
struct Ends {
    exit_ns: Option<u64>,
    reboot_ns: Option<u64>,
}

impl Ends {
    fn end_if_due(&self, now_ns: u64) {
        let due = |at: Option<u64>| at.is_some_and(|at| now_ns >= at);
        if due(self.exit_ns) {
            log!("exit_after_ms is over");
            cpu::shut_down();
        }
        if due(self.reboot_ns) {
            log!("reboot_after_ms is over");
            cpu::reset();
        }
    }
}

/// Something unpredictable for port and sequence numbers: the entropy device, or at least the clock.
fn seed(options: &Options) -> u64 {
    let mut bytes = clock::now_ns(0).to_le_bytes();
    if let Some((place, transport)) = virtio::find(options, DeviceType::EntropySource) {
        let filled = VirtIORng::<virtio::IdentityHal, _>::new(transport)
            .and_then(|mut rng| rng.request_entropy(&mut bytes));
        if let Err(error) = filled {
            log!("rng: the device at {place} gives no entropy: {error}");
        }
    }
    u64::from_le_bytes(bytes)
}

/// The loop of vCPU 0: the network, slices of dirtying, and sleep in between.
fn run_first(
    mut network: Option<Network>,
    mut dirty: Option<DirtyLoop>,
    mut disk: Option<DiskLoop>,
    ends: Ends,
) -> ! {
    let mut timer = Timer::new(0);
    loop {
        let pending = cpu::take_pending(0);
        timer.note(pending);
        let now_ns = clock::now_ns(0);
        ends.end_if_due(now_ns);
        if let Some(network) = &mut network {
            let due = network.next_ns().is_some_and(|next_ns| now_ns >= next_ns);
            if due || network.has_work() {
                network.poll(now_ns);
            }
        }
        if let Some(dirty) = &mut dirty {
            dirty.run(now_ns);
        }
        if let Some(disk) = &mut disk {
            disk.run(now_ns);
        }
        let deadline_ns = [
            network.as_ref().and_then(Network::next_ns),
            dirty.as_ref().map(DirtyLoop::next_ns),
            disk.as_ref().map(DiskLoop::next_ns),
            ends.exit_ns,
            ends.reboot_ns,
        ];
        if !timer.set(deadline_ns.into_iter().flatten().min()) {
            continue;
        }
        if let Some(network) = &network {
            if network.may_sleep() {
                cpu::wait_for_interrupt();
                network.wake();
            }
        } else {
            cpu::wait_for_interrupt();
        }
    }
}

/// The loop of every other vCPU: dirtying, or nothing at all.
fn run_other(options: &Options, vcpu: usize) -> ! {
    let mut dirty = options
        .workloads
        .dirty
        .then(|| DirtyLoop::new(options.dirty, vcpu, clock::now_ns(vcpu)));
    let mut timer = Timer::new(vcpu);
    loop {
        timer.note(cpu::take_pending(vcpu));
        if let Some(dirty) = &mut dirty {
            dirty.run(clock::now_ns(vcpu));
            if !timer.set(Some(dirty.next_ns())) {
                continue;
            }
        }
        cpu::wait_for_interrupt();
    }
}
