//! Model-specific registers: which of them are a vCPU's state, and reading and writing them.
//!
//! A guest's list is made on the host where it boots, and travels with it. A host whose KVM does
//! not know one of these MSRs cannot take over; a host that knows more leaves the others as they
//! are after a reset. What must not be done here: decide in which order they are written.

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use understudy_replication::Fingerprint;

use super::VcpuError;
use crate::kvm::{KvmError, VcpuHandle};

/// The time-stamp counter.
pub(super) const MSR_TSC: u32 = 0x10;

/// Where the guest wants to read the wall clock time at which its kvmclock was 0, by its old and its new number.
/// Writing it has KVM compute that time anew.
pub(super) const MSR_KVM_WALL_CLOCK: [u32; 2] = [0x11, 0x4b56_4d00];

/// Where KVM keeps the kvmclock of a vCPU for the guest, by its old and its new number.
pub(super) const MSR_KVM_SYSTEM_TIME: [u32; 2] = [0x12, 0x4b56_4d01];

/// The part of a fingerprint that lists MSRs.
const PART: &str = "KVM";

/// One model-specific register.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Msr {
    /// Its number.
    pub index: u32,
    /// Its value.
    pub data: u64,
}

/// The list of MSRs to save.
#[derive(Debug, Clone)]
pub struct MsrList {
    template: Msrs,
}

/// Memory types, which older kernels leave out of their list.
const MTRRS: [u32; 13] = [
    0x2ff, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x277,
];

/// MSRs of features that no guest is offered. Whether KVM lists them depends on the host's
/// microcode, firmware and kernel, not on what the guest could use.
fn is_of_no_use(index: u32) -> bool {
    matches!(
        index,
        // Performance counters: Intel's general and fixed ones, their controls and their buffers.
        0xc1..=0xc8 | 0x186..=0x18d | 0x309..=0x312 | 0x329 | 0x345 | 0x38d..=0x390 | 0x3f1 | 0x3f2 | 0x600
        | 0x4c1..=0x4c8
        // AMD's.
        | 0xc001_0000..=0xc001_0007 | 0xc001_0200..=0xc001_020b | 0xc000_0300..=0xc000_0302
        // Branch records and traces.
        | 0x14ce | 0x14cf | 0x1500..=0x15ff | 0x570 | 0x571 | 0x560 | 0x561 | 0x572 | 0x580..=0x587
        // Nested virtualisation's capabilities, and enclaves' keys.
        | 0x480..=0x493 | 0x8c..=0x8f
        // Hyper-V's interface, and its debugger.
        | 0x4000_0000..=0x4000_0fff
        // Shadow stacks, features whose state is too large, and other forms of event delivery.
        | 0x6a0 | 0x6a2 | 0x6a4..=0x6a8 | 0x1c4 | 0x1c5 | 0x1cc..=0x1d8
        // The microcode's revision, which describes the host.
        | 0x8b
    )
}

impl MsrList {
    /// The list of a guest that boots here: the MSRs KVM lists, without those it then refuses to
    /// read or write. Tries each of `indices` on a fresh vCPU.
    ///
    /// # Errors
    /// If KVM lists more MSRs than one call can carry.
    pub fn probe(handle: &VcpuHandle, indices: &[u32]) -> Result<Self, VcpuError> {
        let fd = handle.lock();
        let mut all: Vec<u32> = indices.iter().chain(&MTRRS).copied().collect();
        all.sort_unstable();
        all.dedup();
        all.retain(|index| !is_of_no_use(*index) && Self::works(&fd, *index));
        Self::of(handle.id(), all.into_iter())
    }

    /// The list of a guest that continues here: the one it brought along.
    ///
    /// # Errors
    /// If it has more MSRs than one KVM call can carry.
    pub fn of(vcpu: u8, indices: impl ExactSizeIterator<Item = u32>) -> Result<Self, VcpuError> {
        let template = messages(vcpu, indices.map(|index| Msr { index, data: 0 }))?;
        Ok(Self { template })
    }

    fn works(fd: &VcpuFd, index: u32) -> bool {
        let entry = kvm_msr_entry {
            index,
            ..Default::default()
        };
        let Ok(mut one) = Msrs::from_entries(&[entry]) else {
            return false;
        };
        if !matches!(fd.get_msrs(&mut one), Ok(1)) {
            return false;
        }
        // Writing the counter would move it; KVM can write it wherever it can read it.
        index == MSR_TSC || matches!(fd.set_msrs(&one), Ok(1))
    }

    /// The MSRs.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.template.as_slice().iter().map(|entry| entry.index)
    }

    /// Adds what another host's KVM must know for this guest, and what this host's KVM knows
    /// (`host`).
    pub fn describe(&self, host: &Self, into: &mut Fingerprint) {
        into.need_nothing(PART);
        let name = |index| format!("MSR {index:#x}");
        self.indices()
            .for_each(|index| into.need(PART, name(index)));
        host.indices()
            .for_each(|index| into.have(PART, name(index)));
    }
}

fn messages(vcpu: u8, msrs: impl ExactSizeIterator<Item = Msr>) -> Result<Msrs, VcpuError> {
    let count = msrs.len();
    let entries: Vec<kvm_msr_entry> = msrs
        .map(|msr| kvm_msr_entry {
            index: msr.index,
            data: msr.data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).map_err(|_| VcpuError::TooManyMsrs {
        vcpu,
        count,
        limit: KVM_MAX_MSR_ENTRIES,
    })
}

/// Reads the MSRs of `list`.
pub(super) fn read(vcpu: u8, fd: &VcpuFd, list: &MsrList) -> Result<Vec<Msr>, VcpuError> {
    let mut msrs = list.template.clone();
    let count = fd
        .get_msrs(&mut msrs)
        .map_err(|error| VcpuError::kvm(vcpu)(KvmError::call("read KVM_GET_MSRS")(error)))?;
    if let Some(failed) = msrs.as_slice().get(count) {
        return Err(VcpuError::Msr {
            vcpu,
            index: failed.index,
            verb: "read",
        });
    }
    Ok(msrs
        .as_slice()
        .iter()
        .map(|entry| Msr {
            index: entry.index,
            data: entry.data,
        })
        .collect())
}

/// Reads one MSR that KVM knows.
pub(super) fn read_one(fd: &VcpuFd, index: u32) -> Result<u64, KvmError> {
    let entry = kvm_msr_entry {
        index,
        ..Default::default()
    };
    let mut one = Msrs::from_entries(&[entry]).expect("one MSR is not too many");
    fd.get_msrs(&mut one)
        .map_err(KvmError::call(format!("read MSR {index:#x}")))?;
    Ok(one.as_slice().first().map_or(0, |entry| entry.data))
}

/// Writes `msrs`, in their order.
pub(super) fn write(vcpu: u8, fd: &VcpuFd, msrs: Vec<Msr>) -> Result<(), VcpuError> {
    let entries = messages(vcpu, msrs.into_iter())?;
    let count = fd
        .set_msrs(&entries)
        .map_err(|error| VcpuError::kvm(vcpu)(KvmError::call("write KVM_SET_MSRS")(error)))?;
    if let Some(failed) = entries.as_slice().get(count) {
        return Err(VcpuError::Msr {
            vcpu,
            index: failed.index,
            verb: "written",
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::System;
    use crate::memory::{Backing, Memory};

    fn list(indices: &[u32]) -> MsrList {
        MsrList::of(0, indices.iter().copied()).unwrap()
    }

    #[test]
    fn an_msr_that_a_standby_does_not_know_is_named() {
        let print = |indices: &[u32]| {
            let mut print = Fingerprint::new();
            list(indices).describe(&list(indices), &mut print);
            print
        };
        let (few, more) = (print(&[0x10, 0x174]), print(&[0x10, 0x48, 0x174]));
        assert_eq!(few.differences(&more), []);
        let lacking = more.differences(&few);
        assert_eq!(lacking.len(), 1);
        assert_eq!(lacking[0].to_string(), "the standby's KVM lacks MSR 0x48");
    }

    #[test]
    fn counters_and_what_else_no_guest_is_offered_are_not_saved() {
        let system = System::open().expect("these tests need a usable /dev/kvm");
        let memory = Memory::allocate(2, Backing::Anonymous).unwrap();
        let vm = system.create_vm().unwrap();
        memory.attach(&vm, false).unwrap();
        let handle = VcpuHandle::new(&vm, 0, memory.ram().clone()).unwrap();
        let mut wanted = system.msr_indices().unwrap();
        // The first counter, its control, nested virtualisation, Hyper-V's clock, the microcode's revision.
        let of_no_use = [0xc1, 0x186, 0x480, 0x4000_0020, 0x8b, 0xc001_0200];
        wanted.extend(of_no_use);
        let list = MsrList::probe(&handle, &wanted).unwrap();
        let saved: Vec<u32> = list.indices().collect();
        assert!(saved.is_sorted() && !saved.is_empty());
        assert!(
            !of_no_use.iter().any(|index| saved.contains(index)),
            "{saved:x?}"
        );
        // The time-stamp counter, and where system calls go.
        assert!(
            saved.contains(&MSR_TSC) && saved.contains(&0xc000_0082),
            "{saved:x?}"
        );
    }

    #[test]
    fn a_list_has_a_limit() {
        let many: Vec<u32> = (0..=KVM_MAX_MSR_ENTRIES as u32).collect();
        let error = MsrList::of(3, many.into_iter()).unwrap_err();
        assert!(
            matches!(error, VcpuError::TooManyMsrs { vcpu: 3, .. }),
            "{error}"
        );
    }
}
