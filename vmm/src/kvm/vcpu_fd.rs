//! One vCPU's file descriptor, and the byte with which other threads make it leave the guest.
//!
//! What must not be done here: run loops, states or formats; they belong to `vcpu`.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr, kvm_run, kvm_xsave, kvm_xsave2,
};
use kvm_ioctls::{VcpuFd, VmFd};
use parking_lot::{Mutex, MutexGuard};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::{errno, ioctl_iow_nr};

use super::KvmError;
use crate::memory::GuestRam;

// `kvm-ioctls` offers these for vCPUs on other architectures only.
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// The `immediate_exit` byte in the page that KVM shares with us for one vCPU. While it is 1,
/// `KVM_RUN` completes what is pending and returns `EINTR` without entering the guest.
///
/// Setting it *before* sending the signal closes the gap between the moment a vCPU thread checks
/// its orders and the moment it enters `KVM_RUN`: either the signal interrupts `KVM_RUN`, or the
/// byte stops it before it enters the guest.
///
/// The page is mapped a second time for this: `kvm-ioctls` holds a `&mut` to its own mapping while
/// the vCPU runs, and nobody else may write through that mapping.
#[derive(Debug)]
pub struct ExitPage {
    page: NonNull<u8>,
}

// SAFETY: `page` is a mapping that this `ExitPage` alone owns. It belongs to no thread, and only
// one byte of it is accessed, atomically.
unsafe impl Send for ExitPage {}
// SAFETY: as above; all access is through an atomic.
unsafe impl Sync for ExitPage {}

impl ExitPage {
    /// The mapping of the page in which `kvm_run` begins.
    const BYTES: usize = 4096;

    fn map(fd: &VcpuFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address chosen by the kernel touches no memory of this
        // program.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(page.cast())
            .map(|page| Self { page })
            .ok_or_else(|| io::Error::other("mapped at address 0"))
    }

    fn byte(&self) -> &AtomicU8 {
        const AT: usize = std::mem::offset_of!(kvm_run, immediate_exit);
        const { assert!(AT < Self::BYTES) };
        // SAFETY: the byte lies in the page that `self` has mapped readable and writable and keeps
        // mapped as long as `&self` lives; an `AtomicU8` needs no alignment. This is the only
        // reference ever made through this mapping. The kernel and `kvm-ioctls` access the same
        // physical page through mappings of their own, and neither writes this byte
        // (`set_kvm_immediate_exit` is never called).
        unsafe { AtomicU8::from_ptr(self.page.as_ptr().add(AT)) }
    }

    /// Makes the next `KVM_RUN` (or the current one, once signalled) return without entering the
    /// guest.
    pub fn request(&self) {
        self.byte().store(1, Ordering::SeqCst);
    }

    /// Whether the vCPU was asked to exit.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.byte().load(Ordering::SeqCst) != 0
    }

    /// Lets `KVM_RUN` enter the guest again.
    pub fn clear(&self) {
        self.byte().store(0, Ordering::SeqCst);
    }
}

impl Drop for ExitPage {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `map`, which nobody else uses. References into it
        // borrow `self`, so none is left.
        unsafe { libc::munmap(self.page.as_ptr().cast(), Self::BYTES) };
    }
}

/// One vCPU: its descriptor behind a lock (held by its thread while it runs), and its exit byte
/// outside it.
#[derive(Debug)]
pub struct VcpuHandle {
    // Fields drop in this order, so that the guest cannot still be running when its memory goes
    // away.
    exit: ExitPage,
    fd: Mutex<VcpuFd>,
    id: u8,
    _ram: GuestRam,
}

impl VcpuHandle {
    /// Creates vCPU number `id` of `vm`. The handle keeps `ram` mapped: a guest can write to RAM
    /// only through a vCPU, so RAM stays mapped as long as the guest can run.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new(vm: &VmFd, id: u8, ram: GuestRam) -> Result<Arc<Self>, KvmError> {
        let fd = vm
            .create_vcpu(u64::from(id))
            .map_err(KvmError::call(format!("create vCPU {id}")))?;
        let exit = ExitPage::map(&fd).map_err(|source| KvmError::Call {
            call: format!("map the run page of vCPU {id}"),
            source,
        })?;
        Ok(Arc::new(Self {
            exit,
            fd: Mutex::new(fd),
            id,
            _ram: ram,
        }))
    }

    /// The vCPU's number.
    #[must_use]
    pub fn id(&self) -> u8 {
        self.id
    }

    /// The byte that keeps the vCPU out of the guest.
    #[must_use]
    pub fn exit(&self) -> &ExitPage {
        &self.exit
    }

    /// The descriptor. Blocks while the vCPU runs, so stop it first. A panic of another holder does
    /// not matter: the state is the kernel's, and each call either takes effect completely or not
    /// at all.
    pub fn lock(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock()
    }
}

/// Reads the extended processor state (FPU and vector registers).
///
/// # Errors
/// If the kernel refuses, or if the guest may use more than 4 KiB of state (AMX). The latter cannot
/// happen, as this process never asks the kernel for that permission.
pub fn get_xsave(fd: &VcpuFd) -> Result<kvm_xsave, KvmError> {
    fd.get_xsave()
        .map_err(KvmError::call("read vector registers (KVM_GET_XSAVE)"))
}

/// Writes the extended processor state.
///
/// # Errors
/// If the kernel refuses, for example because the state uses features that the guest's CPUID lacks.
pub fn set_xsave(fd: &VcpuFd, xsave: &kvm_xsave) -> Result<(), KvmError> {
    const { assert!(size_of::<kvm_xsave>() == 4096 && size_of::<kvm_xsave2>() >= 4096) };
    // SAFETY: KVM_SET_XSAVE reads 4096 bytes, the size of `kvm_xsave`, unless the process has
    // requested dynamic features with `arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM)`. Nothing in this
    // program does.
    unsafe { fd.set_xsave(xsave) }.map_err(KvmError::call("write vector registers (KVM_SET_XSAVE)"))
}

/// Tells KVM how far the vCPU's time-stamp counter is ahead of the host's.
///
/// # Errors
/// If this KVM lacks `KVM_VCPU_TSC_OFFSET` (available since Linux 5.16).
pub fn set_counter_offset(fd: &VcpuFd, offset: u64) -> Result<(), KvmError> {
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: std::ptr::from_ref(&offset) as u64,
        flags: 0,
    };
    // SAFETY: the ioctl gets the structure it is defined for. For this attribute the kernel reads 8
    // bytes at `addr`, which is a live `u64` on this function's stack, and writes nothing.
    let result = unsafe { ioctl_with_ref(fd, KVM_SET_DEVICE_ATTR(), &attribute) };
    if result < 0 {
        return Err(KvmError::call(
            "set a vCPU's time-stamp counter offset (KVM_VCPU_TSC_OFFSET)",
        )(errno::Error::last()));
    }
    Ok(())
}

/// How far the vCPU's time-stamp counter is ahead of the host's; `None` if this KVM does not tell.
#[must_use]
pub fn counter_offset(fd: &VcpuFd) -> Option<u64> {
    let mut offset = 0_u64;
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: std::ptr::from_mut(&mut offset) as u64,
        flags: 0,
    };
    // SAFETY: the ioctl gets the structure it is defined for. For this attribute the kernel writes 8
    // bytes at `addr`, which is a live `u64` on this function's stack that nothing else refers to.
    let result = unsafe { ioctl_with_ref(fd, KVM_GET_DEVICE_ATTR(), &attribute) };
    (result == 0).then_some(offset)
}

/// The kind of KVM's internal error, right after `KVM_RUN` returned with one, as one of the
/// kernel's `KVM_INTERNAL_ERROR_*` numbers.
#[must_use]
pub fn internal_error_kind(fd: &mut VcpuFd) -> u32 {
    let run = fd.get_kvm_run();
    if run.exit_reason != kvm_bindings::KVM_EXIT_INTERNAL_ERROR {
        return 0;
    }
    // SAFETY: the exit reason, just checked, says that the kernel filled this member of the union.
    // All members are plain integers, for which any bits are valid.
    unsafe { run.__bindgen_anon_1.internal.suberror }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::System;
    use crate::memory::{Backing, Memory};

    #[test]
    fn a_requested_exit_keeps_the_vcpu_out_of_the_guest() {
        let system = System::open().expect("these tests need a usable /dev/kvm");
        let memory = Memory::allocate(2, Backing::Anonymous).unwrap();
        let vm = system.create_vm().unwrap();
        memory.attach(&vm, false).unwrap();
        let handle = VcpuHandle::new(&vm, 0, memory.ram().clone()).unwrap();
        let start = handle.lock().get_regs().unwrap().rip;
        handle.exit().request();
        // Without the request, it would find no code at its reset address, which causes an exit.
        let interrupted = handle.lock().run().unwrap_err();
        assert_eq!(interrupted.errno(), libc::EINTR);
        assert_eq!(handle.lock().get_regs().unwrap().rip, start);
        handle.exit().clear();
        assert!(handle.lock().run().is_ok());
    }
}
