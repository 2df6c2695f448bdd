//! The only module that talks to the kernel's KVM: opening it, probing it, and typed wrappers
//! around the calls that `kvm-ioctls` lacks or marks unsafe.
//!
//! What must not be done here: decide anything about a guest. The order of saving and restoring,
//! policies and formats live in `vcpu`, `machine` and `dirty`. Nothing may assume a particular KVM
//! module: its abilities are probed, see [`Capabilities`].

mod capabilities;
mod dirty_log;
pub mod exit_signal;
mod permission;
mod vcpu_fd;

use std::io;

use kvm_ioctls::{Cap, VmFd};
use vmm_sys_util::errno;

pub use capabilities::{Capabilities, Capability};
pub use dirty_log::{DirtyLog, KvmDirtyLog};
pub use exit_signal::{AlarmTimer, Leaves};
pub use vcpu_fd::{
    ExitPage, VcpuHandle, counter_offset, get_xsave, internal_error_kind, set_counter_offset,
    set_xsave,
};

/// The only version of the KVM API since 2007; the kernel promises to keep it.
const KVM_API_VERSION: i32 = 12;

/// The KVM device.
const KVM_PATH: &str = "/dev/kvm";

/// What can go wrong between us and KVM.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// This host has no KVM.
    #[error(
        "{KVM_PATH} does not exist: this host has no KVM. Load the module (`modprobe kvm_intel` or \
         `modprobe kvm_amd`); if that fails, switch on virtualisation in the firmware, or nested \
         virtualisation if this host is itself a virtual machine"
    )]
    NoDevice,
    /// KVM exists, but this user may not use it.
    #[error("no permission to open {KVM_PATH}: {advice}")]
    Permission {
        /// What would help.
        advice: String,
    },
    /// KVM cannot be opened for another reason.
    #[error("cannot open {KVM_PATH}")]
    Open(#[source] io::Error),
    /// KVM has a different API version than this program needs.
    #[error("{KVM_PATH} speaks KVM API version {0}, this program needs version {KVM_API_VERSION}")]
    ApiVersion(i32),
    /// KVM lacks something this program cannot do without.
    #[error("this host's KVM lacks what is needed: {0}")]
    Missing(String),
    /// A KVM call failed.
    #[error("KVM call failed: {call}")]
    Call {
        /// What was asked of KVM, and on which object.
        call: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl KvmError {
    /// Returns the error of a failed call; `call` says what was asked.
    pub(crate) fn call(call: impl Into<String>) -> impl FnOnce(errno::Error) -> Self {
        let call = call.into();
        move |error| Self::Call {
            call,
            source: error.into(),
        }
    }
}

/// An open `/dev/kvm` that can do everything a machine needs.
#[derive(Debug)]
pub struct System {
    kvm: kvm_ioctls::Kvm,
    capabilities: Capabilities,
}

impl System {
    /// Opens KVM and probes its abilities.
    ///
    /// # Errors
    /// If KVM is missing, forbidden, too old, or lacks a required capability. The text says what to do.
    pub fn open() -> Result<Self, KvmError> {
        let system = Self::open_unchecked()?;
        let missing: Vec<&str> = system
            .capabilities
            .list()
            .iter()
            .filter(|capability| capability.required && !capability.have)
            .map(|capability| capability.name)
            .collect();
        if missing.is_empty() {
            Ok(system)
        } else {
            Err(KvmError::Missing(missing.join(", ")))
        }
    }

    /// Opens KVM, whatever it can do, to report on it.
    ///
    /// # Errors
    /// If KVM is missing, forbidden, or has a different API version.
    pub fn open_unchecked() -> Result<Self, KvmError> {
        let kvm = kvm_ioctls::Kvm::new().map_err(|error| match error.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::NoDevice,
            libc::EACCES | libc::EPERM => KvmError::Permission {
                advice: permission::advice(),
            },
            _ => KvmError::Open(error.into()),
        })?;
        let version = kvm.get_api_version();
        if version != KVM_API_VERSION {
            return Err(KvmError::ApiVersion(version));
        }
        let capabilities = Capabilities::probe(&kvm);
        Ok(Self { kvm, capabilities })
    }

    /// What this KVM can do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The largest number of vCPUs of a VM on this host.
    #[must_use]
    pub fn max_vcpus(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    /// Creates an empty VM without performance counters: AMD processors have some that CPUID cannot
    /// hide.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn create_vm(&self) -> Result<VmFd, KvmError> {
        let vm = self
            .kvm
            .create_vm()
            .map_err(KvmError::call("create a VM (KVM_CREATE_VM)"))?;
        if self.capabilities.has("KVM_CAP_PMU_CAPABILITY") {
            let mut disable = kvm_bindings::kvm_enable_cap {
                cap: kvm_bindings::KVM_CAP_PMU_CAPABILITY,
                ..Default::default()
            };
            disable.args[0] = kvm_bindings::KVM_PMU_CAP_DISABLE.into();
            vm.enable_cap(&disable).map_err(KvmError::call(
                "switch performance counters off (KVM_CAP_PMU_CAPABILITY)",
            ))?;
        }
        Ok(vm)
    }

    /// The CPUID leaves that this KVM can give a guest.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn supported_cpuid(&self) -> Result<kvm_bindings::CpuId, KvmError> {
        self.kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::call(
                "ask which CPUID leaves are supported (KVM_GET_SUPPORTED_CPUID)",
            ))
    }

    /// The MSRs that this KVM says belong to a vCPU's state.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn msr_indices(&self) -> Result<Vec<u32>, KvmError> {
        let list = self
            .kvm
            .get_msr_index_list()
            .map_err(KvmError::call("list MSRs (KVM_GET_MSR_INDEX_LIST)"))?;
        Ok(list.as_slice().to_vec())
    }

    /// Whether KVM has `capability`.
    #[must_use]
    pub fn has(&self, capability: Cap) -> bool {
        self.kvm.check_extension(capability)
    }
}

/// Gives `vm` a slot of guest memory.
///
/// # Errors
/// If the kernel refuses.
///
/// # Safety
/// `host_address` must point to `bytes` mapped bytes that stay mapped as long as a vCPU of `vm` can
/// run (see [`VcpuHandle::new`]). No Rust reference to them may ever be created, as the guest may
/// write there at any time.
pub(crate) unsafe fn set_memory_slot(
    vm: &VmFd,
    slot: u32,
    guest_address: u64,
    bytes: u64,
    host_address: u64,
    log_dirty_pages: bool,
) -> Result<(), KvmError> {
    let region = kvm_bindings::kvm_userspace_memory_region {
        slot,
        flags: if log_dirty_pages {
            kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES
        } else {
            0
        },
        guest_phys_addr: guest_address,
        memory_size: bytes,
        userspace_addr: host_address,
    };
    // SAFETY: the caller promises that the range is mapped for the VM's lifetime and never referenced.
    unsafe { vm.set_user_memory_region(region) }.map_err(KvmError::call(format!(
        "set memory slot {slot}: {bytes:#x} bytes at guest address {guest_address:#x}"
    )))
}
