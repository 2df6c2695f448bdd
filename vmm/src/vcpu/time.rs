//! Time in the guest: whose time-stamp counter it reads, and how that counter continues after a
//! restore.
//!
//! kvmclock gives the guest a base (set by `KVM_SET_CLOCK`) and a rule: base plus how far the
//! time-stamp counter has advanced since. It works only if KVM and the guest's `rdtsc` agree about
//! the counter.
//!
//! - Normally KVM gives each vCPU its own counter ([`Counter::Own`]): the host's plus an offset.
//!   Then the counter is state: it is saved and restored, and continues where it was. It is restored
//!   by its offset. Writing the counter itself would not do: before Linux 6.7, KVM takes a value
//!   within a second of what it expects for an attempt to synchronise vCPUs, and keeps the offset.
//!   All offsets move by the same amount ([`CounterMove`]), so that vCPUs whose counters agreed still
//!   do.
//! - Some KVMs run guest code natively and do not offset what its `rdtsc` reads
//!   ([`Counter::Host`]). There, KVM is told that the offset is 0, so that whatever it computes
//!   with an offset agrees with what the guest reads, and the counter is not restored. The counter
//!   jumps at a failover, kvmclock does not. A timer deadline, which is in counter units, is moved
//!   by the same amount.
//!
//! A trial determines once which of the two applies ([`guest_counter`]). What must not be done
//! here: assume it.

use std::sync::OnceLock;

use kvm_ioctls::VcpuFd;
use understudy_replication::Fingerprint;

use super::msr::{MSR_TSC, Msr};
use super::trial::Trial;
use crate::kvm::{KvmError, System, VcpuHandle, counter_offset};

const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// Counters whose speeds differ by less count as equal: clock correction handles that much anyway.
const SPEED_TOLERANCE_PPM: u64 = 250;
/// Where the processor cannot scale counters, a guest may continue with a counter whose speed is
/// off by up to this much: measurements on hosts of one model differ that much. More would not do:
/// a guest that sees an invariant counter trusts it before kvmclock, and its clock would run wrong.
const SPEED_ENDURED_PPM: u64 = 300;

/// The name of the counter's speed in fingerprints.
const SPEED_KEY: &str = "cpu.tsc_khz";

/// Whose time-stamp counter the guest's `rdtsc` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// The vCPU's own: the host's plus an offset that KVM chooses.
    Own,
    /// The host's, whatever offset KVM assumes.
    Host,
}

/// How the guest's time-stamp counter behaves; the same for all vCPUs of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestClock {
    /// Whose counter it is.
    pub counter: Counter,
    /// Its speed; 0 if the host does not report it.
    pub speed_khz: u32,
}

/// How far a guest's counter offsets move from the old host to this one; the same for all vCPUs.
#[derive(Debug, Clone, Copy)]
pub struct CounterMove(u64);

impl GuestClock {
    /// Reads the counter's behaviour from a vCPU.
    #[must_use]
    pub fn of(handle: &VcpuHandle, counter: Counter) -> Self {
        Self {
            counter,
            speed_khz: handle.lock().get_tsc_khz().unwrap_or(0),
        }
    }

    /// Adds the counter to a fingerprint, with how far off another host's speed may be. That
    /// depends on whether this host `can_scale` its guests' counters: without scaling, only a small
    /// difference is acceptable.
    pub fn describe(self, can_scale: bool, into: &mut Fingerprint) {
        into.set("cpu.tsc", self.counter.as_str());
        if self.speed_khz == 0 {
            return;
        }
        into.measure(SPEED_KEY, self.speed_khz.into());
        if self.counter == Counter::Own && !can_scale {
            into.endure(SPEED_KEY, SPEED_ENDURED_PPM);
        }
    }
}

impl Counter {
    /// The word for it in fingerprints: both hosts must behave alike.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Host => "host",
        }
    }

    /// How far offsets have to move so that a counter that was `saved` with the offset
    /// `saved_offset` goes on from there on this vCPU, whose speed matches already. `None` if
    /// counters are not restored by offset: the guest reads the host's, or KVM does not know how.
    pub(super) fn moves(
        self,
        fd: &VcpuFd,
        saved: Option<u64>,
        saved_offset: Option<u64>,
    ) -> Result<Option<CounterMove>, KvmError> {
        let (Self::Own, Some(saved), Some(saved_offset)) = (self, saved, saved_offset) else {
            return Ok(None);
        };
        let Some(offset) = counter_offset(fd) else {
            return Ok(None);
        };
        // Whatever the host's counter is and however it is scaled: the guest's is that plus the offset.
        let now = super::msr::read_one(fd, MSR_TSC)?;
        let goes_on = offset.wrapping_add(saved.wrapping_sub(now));
        Ok(Some(CounterMove(goes_on.wrapping_sub(saved_offset))))
    }

    /// Makes the vCPU's counter run as fast as the one its state was saved with.
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
        let set = fd.set_tsc_khz(saved_khz);
        if set.is_err() && apart * 1_000_000 <= u64::from(saved_khz) * SPEED_ENDURED_PPM {
            tracing::warn!(
                saved_khz,
                here_khz,
                "this processor cannot slow the guest's time-stamp counter down: it runs as fast as the host's"
            );
            return Ok(());
        }
        set.map_err(KvmError::call(format!(
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
            // Writing the counter would set an offset that the guest does not see. But a deadline
            // in the old host's counter means a different moment here, so it is moved.
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

impl CounterMove {
    /// Gives a vCPU the counter that was saved with this offset.
    pub(super) fn apply(self, fd: &VcpuFd, saved_offset: u64) -> Result<(), KvmError> {
        let offset = saved_offset.wrapping_add(self.0);
        crate::kvm::set_counter_offset(fd, offset)?;
        match counter_offset(fd) == Some(offset) {
            true => Ok(()),
            false => Err(KvmError::Missing(
                "it ignores a vCPU's time-stamp counter offset (KVM_VCPU_TSC_OFFSET)".into(),
            )),
        }
    }
}

/// The host's time-stamp counter.
fn host_counter() -> u64 {
    // SAFETY: `rdtsc` has no preconditions in 64-bit user space unless the process has disabled it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Tells KVM that the vCPU's counter is the host's, offset 0. For [`Counter::Host`], before the
/// first run.
///
/// # Errors
/// If KVM refuses; kvmclock would then be wrong.
pub fn use_host_counter(handle: &VcpuHandle) -> Result<(), KvmError> {
    crate::kvm::set_counter_offset(&handle.lock(), 0)
}

/// Finds out by trial whose counter guests read here. The answer is kept for the life of the
/// process.
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
/// Far above any real counter: 2^60 cycles are decades.
const TRIAL_COUNTER: u64 = 1 << 60;

/// Runs user-mode code (the kind that may run natively) that reads the counter of a vCPU whose
/// counter was set far off the host's.
fn try_counter(system: &System) -> Result<Counter, KvmError> {
    let trial = Trial::new(system, &TRIAL_CODE)?;
    trial.write_msr(MSR_TSC, TRIAL_COUNTER)?;
    Ok(match trial.run_user()? {
        Some(seen) if seen < TRIAL_COUNTER => Counter::Host,
        Some(_) => Counter::Own,
        None => {
            // If even this cannot run, that shows when the guest runs; ordinary KVM is the best
            // guess.
            tracing::warn!("the trial of the time-stamp counter did not finish");
            Counter::Own
        }
    })
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_clock_data;
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    #[test]
    fn a_host_that_is_a_little_faster_takes_the_guest_whether_it_can_scale_counters_or_not() {
        let system = System::open().unwrap();
        let trial = Trial::new(&system, &TRIAL_CODE).unwrap();
        let fd = trial.handle.lock();
        let here_khz = fd.get_tsc_khz().unwrap();
        Counter::Own
            .match_speed(&fd, here_khz - here_khz / 3500)
            .unwrap();
        // Neither half the speed is a measurement error, nor what would be a minute and a half a day.
        let can_scale = system.has(kvm_ioctls::Cap::TscControl);
        for saved_khz in [here_khz / 2, here_khz - here_khz / 1000] {
            let other = Counter::Own.match_speed(&fd, saved_khz);
            assert_eq!(other.is_ok(), can_scale, "{saved_khz} {here_khz} {other:?}");
        }
    }

    /// As far as KVM knows them, which is what its timers and kvmclock go by.
    #[test]
    fn counters_go_on_by_their_offsets_and_stay_as_far_apart_as_they_were() {
        let system = System::open().expect("these tests need a usable /dev/kvm");
        let trial = || Trial::new(&system, &TRIAL_CODE).unwrap();
        let (first, second) = (trial(), trial());
        let (first, second) = (first.handle.lock(), second.handle.lock());
        let read = |fd: &VcpuFd| super::super::msr::read_one(fd, MSR_TSC).unwrap();
        let second_of_ticks = u64::from(first.get_tsc_khz().unwrap()) * 1000;
        // Half a second ahead of what KVM expects: before Linux 6.7, writing the counter would not
        // have moved it. And far from it, also backwards.
        for saved in [
            read(&first) + second_of_ticks / 2,
            TRIAL_COUNTER,
            second_of_ticks,
        ] {
            let saved_offset = 12_345_u64;
            let moves = Counter::Own.moves(&first, Some(saved), Some(saved_offset));
            let moves = moves
                .unwrap()
                .expect("this KVM restores counters by offset");
            let applied = moves.apply(&first, saved_offset);
            if guest_counter(&system).unwrap() == Counter::Host {
                // Nor may it seem to have worked.
                assert!(
                    applied.is_err(),
                    "this KVM ignores offsets, as far as its guests see"
                );
                return;
            }
            applied.unwrap();
            moves
                .apply(&second, saved_offset.wrapping_sub(1000))
                .unwrap();
            let now = read(&first);
            let limit = saved + 60 * second_of_ticks;
            assert!((saved..limit).contains(&now), "{saved} {now}");
            let [one, other] = [&first, &second].map(|fd| counter_offset(fd).unwrap());
            assert_eq!(one.wrapping_sub(other), 1000);
        }
        let none = Counter::Host.moves(&first, Some(1), Some(1)).unwrap();
        assert!(none.is_none(), "that is the host's counter");
        let none = Counter::Own.moves(&first, Some(1), None).unwrap();
        assert!(none.is_none(), "the old host did not tell");
    }

    const MSR_KVM_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
    const CLOCK_ADDRESS: u64 = 0x3000;
    const HOUR_NS: u64 = 3600 * 1_000_000_000;

    /// kvmclock as the guest computes it from its page and the counter value it read.
    fn guest_clock_ns(trial: &Trial) -> u64 {
        let counter = trial
            .run_user()
            .unwrap()
            .expect("the trial runs to its end");
        let u32_at = |at| {
            trial
                .memory
                .ram()
                .read_obj::<u32>(GuestAddress(CLOCK_ADDRESS + at))
                .unwrap()
        };
        let u64_at = |at| {
            trial
                .memory
                .ram()
                .read_obj::<u64>(GuestAddress(CLOCK_ADDRESS + at))
                .unwrap()
        };
        assert_ne!(u32_at(0), 0, "KVM has filled the clock page");
        let since = counter.wrapping_sub(u64_at(8));
        let shift = u32_at(28) as u8 as i8;
        let shifted = if shift < 0 {
            since >> -shift
        } else {
            since << shift
        };
        let ns = (u128::from(shifted) * u128::from(u32_at(24))) >> 32;
        u64_at(16).wrapping_add(ns as u64)
    }

    fn with_clock(system: &System, counter: Counter) -> Trial {
        let trial = Trial::new(system, &TRIAL_CODE).unwrap();
        if counter == Counter::Host {
            use_host_counter(&trial.handle).unwrap();
        }
        let model = crate::vcpu::CpuModel::of_host(system).unwrap();
        model.give_to(&trial.handle, 1).unwrap();
        trial
            .write_msr(MSR_KVM_SYSTEM_TIME_NEW, CLOCK_ADDRESS | 1)
            .unwrap();
        trial
    }

    fn vm_clock_ns(trial: &Trial) -> u64 {
        trial.vm.get_clock().unwrap().clock
    }

    /// The guest's own reading of kvmclock is the VM's clock, initially and after it has been set.
    #[test]
    fn the_guests_clock_is_the_vms_clock_and_goes_on_in_another_vm() {
        let system = System::open().expect("these tests need a usable /dev/kvm");
        let counter = guest_counter(&system).unwrap();
        println!(
            "whose time-stamp counter guests read here: {}",
            counter.as_str()
        );
        let first = with_clock(&system, counter);
        let before = vm_clock_ns(&first);
        let guest = guest_clock_ns(&first);
        let after = vm_clock_ns(&first);
        assert!(
            before <= guest && guest <= after,
            "{before} {guest} {after} ({counter:?})"
        );

        let second = with_clock(&system, counter);
        if counter == Counter::Own {
            // As a restore does.
            second.write_msr(MSR_TSC, TRIAL_COUNTER).unwrap();
        }
        let saved = kvm_clock_data {
            clock: after + HOUR_NS,
            ..Default::default()
        };
        second.vm.set_clock(&saved).unwrap();
        let guest = guest_clock_ns(&second);
        let now = vm_clock_ns(&second);
        assert!(
            saved.clock <= guest && guest <= now,
            "{} {guest} {now}",
            saved.clock
        );
        assert!(now < saved.clock + HOUR_NS);
    }

    #[test]
    fn a_deadline_moves_along_with_a_counter_that_is_the_hosts() {
        let saved = [
            Msr {
                index: MSR_TSC,
                data: 1000,
            },
            Msr {
                index: 0x174,
                data: 7,
            },
            Msr {
                index: MSR_TSC_DEADLINE,
                data: 1500,
            },
        ];
        let (first, last) = Counter::Own.split(&saved);
        assert_eq!(
            (first.as_slice(), last.as_slice()),
            (&saved[..2], &saved[2..])
        );
        let before = host_counter();
        let (first, last) = Counter::Host.split(&saved);
        let after = host_counter();
        assert_eq!(first, [saved[1]]);
        assert!((before + 500..=after + 500).contains(&last[0].data));
        let unarmed = [
            saved[0],
            Msr {
                index: MSR_TSC_DEADLINE,
                data: 0,
            },
        ];
        assert_eq!(Counter::Host.split(&unarmed).1, [unarmed[1]]);
    }
}
