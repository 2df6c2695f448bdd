//! Time in the guest: whose time-stamp counter it reads, and how that goes on after a restore.
//!
//! kvmclock gives the guest a base (set by `KVM_SET_CLOCK`) and a rule: base plus what the time-stamp
//! counter has advanced since. It only works if KVM and the guest's `rdtsc` agree about the counter.
//!
//! - Ordinarily KVM gives each vCPU its own counter ([`Counter::Own`]), the host's plus an offset. Then the
//!   counter is state: it is saved and restored, and goes on where it was.
//! - There are KVMs that run guest code natively and cannot offset what its `rdtsc` reads
//!   ([`Counter::Host`]), although they accept and use an offset in kvmclock. There the offset must be 0,
//!   from the start and after a restore, or kvmclock is off by it. The counter itself then jumps at a
//!   failover, kvmclock does not.
//!
//! Which of both it is, is tried out once ([`guest_counter`]). What must not be done here: assume it.

use std::sync::OnceLock;

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use super::Msr;
use crate::kvm::{KvmError, System, VcpuHandle};
use crate::memory::{Backing, Memory};

pub(super) const MSR_TSC: u32 = 0x10;
pub(super) const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// Counters whose speeds differ by less count as equal: that is what clocks are corrected by anyhow.
const SPEED_TOLERANCE_PPM: u64 = 250;

/// Whose time-stamp counter the guest's `rdtsc` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// The vCPU's own: the host's plus an offset that KVM chooses.
    Own,
    /// The host's, whatever offset KVM believes in.
    Host,
}

impl Counter {
    /// The word for it in fingerprints: both hosts must do alike.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Host => "host",
        }
    }

    /// Makes the vCPU's counter as fast as the one its state was saved with.
    pub(super) fn match_speed(self, fd: &VcpuFd, saved_khz: u32) -> Result<(), KvmError> {
        let Ok(here_khz) = fd.get_tsc_khz() else {
            return Ok(());
        };
        let apart = u64::from(here_khz.abs_diff(saved_khz));
        if saved_khz == 0 || apart * 1_000_000 <= u64::from(saved_khz) * SPEED_TOLERANCE_PPM {
            return Ok(());
        }
        // The host's own counter cannot be slowed down or sped up; kvmclock adapts to it.
        if self == Self::Host {
            return Ok(());
        }
        fd.set_tsc_khz(saved_khz).map_err(KvmError::call(format!(
            "make the guest's time-stamp counter run at {saved_khz} kHz on a host with {here_khz} kHz"
        )))
    }

    /// Splits saved MSRs into those to write before the LAPIC and those to write after it.
    pub(super) fn split(self, msrs: &[Msr]) -> (Vec<Msr>, Vec<Msr>) {
        let (mut last, mut first): (Vec<Msr>, Vec<Msr>) = msrs
            .iter()
            .copied()
            .partition(|msr| msr.index == MSR_TSC_DEADLINE);
        if self == Self::Host {
            // Writing the counter would set an offset that the guest does not see. But a deadline in the
            // old host's counter means another moment here: move it along.
            let saved = first.iter().find(|msr| msr.index == MSR_TSC).copied();
            first.retain(|msr| msr.index != MSR_TSC);
            if let Some(saved) = saved {
                let moved = host_counter().wrapping_sub(saved.data);
                for deadline in last.iter_mut().filter(|msr| msr.data != 0) {
                    deadline.data = deadline.data.wrapping_add(moved);
                }
            }
        }
        (first, last)
    }
}

/// The host's time-stamp counter.
fn host_counter() -> u64 {
    // SAFETY: `rdtsc` has no preconditions on any 64-bit x86 processor in user space.
    #[allow(unused_unsafe)]
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
}

/// Tells KVM that the vCPU's counter is the host's, offset 0. For [`Counter::Host`], before it first runs.
///
/// # Errors
/// If KVM cannot be told; kvmclock would be wrong then.
pub fn use_host_counter(handle: &VcpuHandle) -> Result<(), KvmError> {
    crate::kvm::set_counter_offset(&handle.lock(), 0)
}

/// Tries out whose counter guests read here. The answer is kept for the life of the process.
///
/// # Errors
/// If the trial VM cannot be built.
pub fn guest_counter(system: &System) -> Result<Counter, KvmError> {
    static ANSWER: OnceLock<Counter> = OnceLock::new();
    if let Some(answer) = ANSWER.get() {
        return Ok(*answer);
    }
    let answer = try_counter(system)?;
    Ok(*ANSWER.get_or_init(|| answer))
}

/// `rdtsc; shl rdx, 32; or rax, rdx; mov [0x2000], rax; out 0x80, al`
const TRIAL_CODE: [u8; 19] = [
    0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0, 0x48, 0x89, 0x04, 0x25, 0x00, 0x20, 0x00,
    0x00, 0xe6, 0x80,
];
const CODE_ADDRESS: u64 = 0x1000;
const RESULT_ADDRESS: u64 = 0x2000;
/// Far above any real counter: 2^60 cycles are decades.
const TRIAL_COUNTER: u64 = 1 << 60;

/// Runs user-mode code (that is what may run natively) which reads the counter of a vCPU whose counter has
/// been set far off the host's.
fn try_counter(system: &System) -> Result<Counter, KvmError> {
    let memory = Memory::allocate(2, Backing::Anonymous).map_err(|error| KvmError::Call {
        call: "allocate memory for a trial VM".into(),
        source: std::io::Error::other(error),
    })?;
    let vm = system.create_vm()?;
    memory.attach(&vm, false)?;
    let handle = VcpuHandle::new(&vm, 0, memory.ram().clone())?;
    write_trial(&memory)?;
    let mut fd = handle.lock();
    enter_user_mode(&fd)?;
    let counter = kvm_msr_entry {
        index: MSR_TSC,
        data: TRIAL_COUNTER,
        ..Default::default()
    };
    if let Ok(msrs) = Msrs::from_entries(&[counter]) {
        fd.set_msrs(&msrs)
            .map_err(KvmError::call("set a time-stamp counter"))?;
    }
    loop {
        match fd.run() {
            Ok(VcpuExit::IoOut(0x80, _)) => break,
            // A signal meant for somebody else.
            Err(error) if error.errno() == libc::EINTR => {}
            // Whoever cannot even run this will say so when the guest runs; ordinary KVM is the best guess.
            other => {
                tracing::warn!("trial of the time-stamp counter ended with {other:?}");
                return Ok(Counter::Own);
            }
        }
    }
    let seen: u64 = memory
        .ram()
        .read_obj(GuestAddress(RESULT_ADDRESS))
        .map_err(write_error)?;
    Ok(if seen >= TRIAL_COUNTER {
        Counter::Own
    } else {
        Counter::Host
    })
}

fn write_error(error: vm_memory::GuestMemoryError) -> KvmError {
    KvmError::Call {
        call: "prepare a trial VM's memory".into(),
        source: std::io::Error::other(error),
    }
}

/// Code, and page tables that map the first 2 MiB for user mode.
fn write_trial(memory: &Memory) -> Result<(), KvmError> {
    const USER_WRITABLE: u64 = 7;
    const LARGE: u64 = 1 << 7;
    let ram = memory.ram();
    ram.write_slice(&TRIAL_CODE, GuestAddress(CODE_ADDRESS))
        .and_then(|()| ram.write_obj(0xa000 | USER_WRITABLE, GuestAddress(0x9000)))
        .and_then(|()| ram.write_obj(0xb000 | USER_WRITABLE, GuestAddress(0xa000)))
        .and_then(|()| ram.write_obj(LARGE | USER_WRITABLE, GuestAddress(0xb000)))
        .map_err(write_error)
}

fn enter_user_mode(fd: &VcpuFd) -> Result<(), KvmError> {
    const IOPL_3: u64 = 3 << 12;
    let user = |selector, type_, code: bool| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 3,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    };
    let reset = fd.get_sregs().map_err(KvmError::call("read registers"))?;
    let mut sregs = crate::boot::initial_sregs(reset);
    sregs.cs = user(0x2b, 0b1011, true);
    let data = user(0x33, 0b0011, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    fd.set_sregs(&sregs)
        .map_err(KvmError::call("write registers"))?;
    fd.set_regs(&kvm_regs {
        rip: CODE_ADDRESS,
        rsp: RESULT_ADDRESS,
        rflags: IOPL_3 | 2,
        ..Default::default()
    })
    .map_err(KvmError::call("write registers"))
}
