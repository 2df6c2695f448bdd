//! KVM's dirty log: which pages the vCPUs have written, one bit per page (step ②).
//!
//! `kvm-ioctls` has no `KVM_CLEAR_DIRTY_LOG`, and its `KVM_GET_DIRTY_LOG` allocates on each call.
//! What must not be done here: keep or merge bits; that is `dirty`'s business.

use std::io;
use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1, kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{errno, ioctl_iow_nr, ioctl_iowr_nr};

use super::{Capabilities, KvmError};

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

/// Access to a dirty log, slot by slot. It is a trait so that tests can make it fail.
pub trait DirtyLog: Send {
    /// Whether [`DirtyLog::get`] leaves the bits set until [`DirtyLog::clear`]. Otherwise `get`
    /// clears them.
    fn is_manual(&self) -> bool;

    /// Whether all bits of a slot are set when logging starts.
    fn is_initially_set(&self) -> bool;

    /// Overwrites `words` with the bits of `slot`; bit 0 of word 0 is the slot's first page.
    ///
    /// # Errors
    /// If the kernel refuses; no bit is cleared then.
    fn get(&mut self, slot: u32, words: &mut [u64]) -> io::Result<()>;

    /// Clears exactly those bits of `slot` that are set in `words`, which begins at page
    /// `first_page` (a multiple of 64) and covers `pages` pages (a multiple of 64, or up to the
    /// slot's end).
    ///
    /// # Errors
    /// If the kernel refuses; some of the bits may then be cleared.
    fn clear(&mut self, slot: u32, first_page: u64, pages: u32, words: &[u64]) -> io::Result<()>;
}

/// The dirty log of a KVM VM.
#[derive(Debug)]
pub struct KvmDirtyLog {
    vm: Arc<VmFd>,
    slot_pages: Vec<u64>,
    is_manual: bool,
    is_initially_set: bool,
}

impl KvmDirtyLog {
    /// Chooses the best kind of log that KVM has. `slot_pages` are the sizes of the slots. The
    /// kernel requires this to be called before logging starts on any slot.
    ///
    /// # Errors
    /// If the kernel refuses something it says it supports.
    pub fn new(
        vm: Arc<VmFd>,
        slot_pages: Vec<u64>,
        capabilities: &Capabilities,
    ) -> Result<Self, KvmError> {
        let flags = capabilities.manual_dirty_log_flags;
        let is_manual = flags != 0;
        if is_manual {
            let mut enable = kvm_enable_cap {
                cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
                ..Default::default()
            };
            enable.args[0] = flags;
            vm.enable_cap(&enable).map_err(KvmError::call(format!(
                "enable manual dirty log protection with flags {flags:#x}"
            )))?;
        } else {
            tracing::warn!(
                "KVM has no manual dirty log protection: using the plain log, pauses will be longer"
            );
        }
        Ok(Self {
            vm,
            slot_pages,
            is_manual,
            is_initially_set: flags & u64::from(kvm_bindings::KVM_DIRTY_LOG_INITIALLY_SET) != 0,
        })
    }

    fn slot_pages(&self, slot: u32) -> io::Result<u64> {
        self.slot_pages.get(slot as usize).copied().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("there is no memory slot {slot}"),
            )
        })
    }
}

fn too_short(slot: u32, words: usize) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("a bitmap of {words} words is too short for memory slot {slot}"),
    )
}

impl DirtyLog for KvmDirtyLog {
    fn is_manual(&self) -> bool {
        self.is_manual
    }

    fn is_initially_set(&self) -> bool {
        self.is_initially_set
    }

    fn get(&mut self, slot: u32, words: &mut [u64]) -> io::Result<()> {
        if (words.len() as u64) < self.slot_pages(slot)?.div_ceil(64) {
            return Err(too_short(slot, words.len()));
        }
        let mut log = kvm_dirty_log {
            slot,
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
                dirty_bitmap: words.as_mut_ptr().cast(),
            },
        };
        // SAFETY: the ioctl gets the structure it is defined for. The kernel writes one bit for
        // each page of the slot, rounded up to whole words, at `dirty_bitmap`. `words` is at least
        // that long (checked above against the slot's size, which never changes) and exclusively
        // borrowed.
        let result = unsafe { ioctl_with_mut_ref(&*self.vm, KVM_GET_DIRTY_LOG(), &mut log) };
        if result < 0 {
            return Err(errno::Error::last().into());
        }
        Ok(())
    }

    fn clear(&mut self, slot: u32, first_page: u64, pages: u32, words: &[u64]) -> io::Result<()> {
        if (words.len() as u64) < u64::from(pages).div_ceil(64) {
            return Err(too_short(slot, words.len()));
        }
        let log = kvm_clear_dirty_log {
            slot,
            num_pages: pages,
            first_page,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                dirty_bitmap: words.as_ptr().cast_mut().cast(),
            },
        };
        // SAFETY: the ioctl gets the structure it is defined for. The kernel reads, and never
        // writes, one bit for each of `pages` pages at `dirty_bitmap`, rounded up to whole words.
        // `words` is at least that long (checked above) and borrowed during the call.
        let result = unsafe { ioctl_with_ref(&*self.vm, KVM_CLEAR_DIRTY_LOG(), &log) };
        if result < 0 {
            return Err(errno::Error::last().into());
        }
        Ok(())
    }
}
