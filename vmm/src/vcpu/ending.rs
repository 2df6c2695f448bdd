//! Why a vCPU stopped on its own, and whose doing that is.
//!
//! | what `KVM_RUN` returns, or what happens | whose doing | what follows |
//! | --- | --- | --- |
//! | `KVM_EXIT_SHUTDOWN`: a triple fault | the guest's | it is reset, or ends, as configured |
//! | `KVM_EXIT_SYSTEM_EVENT` | the guest's | it ends |
//! | `KVM_EXIT_HLT`: nothing could wake the vCPU | the guest's | it ends |
//! | `KVM_EXIT_INTERNAL_ERROR` | the host's | the machine has broken |
//! | `KVM_EXIT_FAIL_ENTRY`: the processor refuses the state | the host's | the same |
//! | `KVM_EXIT_MEMORY_FAULT`: memory of the host is gone | the host's | the same |
//! | an exit that this VMM does not know | the host's | the same |
//! | `EINTR`, `EAGAIN` | nobody's | the vCPU goes on |
//! | any other error: `EFAULT`, `EIO`, `EHWPOISON`, `ENOMEM` … | the host's | the same as above |
//! | the vCPU's thread panics | the host's: a bug in this VMM | the same |
//!
//! What counts as the host's may still be the guest's: it can have KVM meet an instruction that it cannot emulate. So the
//! standby goes on from the last epoch once. If the same happens there soon, it was the guest: see `node::core`.
//!
//! What must not be done here: deciding what follows.

use std::io;

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::kvm::internal_error_kind;

/// Why a vCPU stopped on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// A triple fault, which resets a PC. The vCPU lives on; the listener halts the guest.
    TripleFault,
    /// The vCPU asked to end the guest.
    Shutdown {
        /// In plain words.
        what: String,
    },
    /// Something of this host failed, and the vCPU cannot go on.
    HostFailed {
        /// In plain words.
        what: String,
    },
}

impl Ending {
    pub(super) fn of_exit(exit: &VcpuExit<'_>) -> Self {
        let what = match exit {
            VcpuExit::Shutdown => return Self::TripleFault,
            VcpuExit::SystemEvent(kind, _) => {
                let what = format!("system event {kind}");
                return Self::Shutdown { what };
            }
            VcpuExit::Hlt => {
                let what = "halt without an interrupt controller that could wake it".into();
                return Self::Shutdown { what };
            }
            VcpuExit::FailEntry(reason, cpu) => format!(
                "the processor refused to enter the guest on CPU {cpu}, reason {reason:#x}: its state is invalid"
            ),
            VcpuExit::MemoryFault { gpa, size, .. } => {
                format!("no memory behind guest address {gpa:#x} ({size:#x} bytes)")
            }
            other => format!("KVM gave up with {other:?}, which this VMM does not handle"),
        };
        Self::HostFailed { what }
    }

    pub(super) fn of_error(error: &io::Error) -> Self {
        let what = format!("KVM_RUN: {error}");
        Self::HostFailed { what }
    }

    pub(super) fn of_internal_error(fd: &mut VcpuFd) -> Self {
        let kind = internal_error_kind(fd);
        let words = match kind {
            1 => "it could not emulate an instruction",
            2 => "two events were to be injected at once",
            3 => "delivering an event caused an exit",
            4 => "an exit had an unexpected reason",
            _ => "unknown kind",
        };
        let place = fd.get_regs().map_or_else(
            |_| "an unknown address".into(),
            |regs| format!("{:#x}", regs.rip),
        );
        let what = format!("KVM internal error {kind} at instruction {place}: {words}");
        Self::HostFailed { what }
    }

    pub(super) fn of_panic() -> Self {
        let what = "its thread panicked, which is a bug in this VMM".into();
        Self::HostFailed { what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_the_hosts(ending: &Ending) -> bool {
        matches!(ending, Ending::HostFailed { .. })
    }

    #[test]
    fn each_ending_is_the_guests_doing_or_the_hosts() {
        for exit in [
            VcpuExit::Shutdown,
            VcpuExit::SystemEvent(3, &[]),
            VcpuExit::Hlt,
        ] {
            assert!(!is_the_hosts(&Ending::of_exit(&exit)), "{exit:?}");
        }
        for exit in [
            VcpuExit::FailEntry(0x8000_0021, 1),
            VcpuExit::Unknown,
            VcpuExit::Exception,
        ] {
            assert!(is_the_hosts(&Ending::of_exit(&exit)), "{exit:?}");
        }
        for errno in [libc::EFAULT, libc::EIO, libc::ENOMEM, libc::EHWPOISON] {
            let ending = Ending::of_error(&io::Error::from_raw_os_error(errno));
            assert!(is_the_hosts(&ending), "{ending:?}");
        }
        assert!(is_the_hosts(&Ending::of_panic()));
    }
}
