//! A VM of 2 MiB with one vCPU and a few instructions, to test how this host's KVM really behaves.
//!
//! What must not be done here: draw conclusions, or leave anything running.

use std::sync::Arc;

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use crate::kvm::{KvmError, System, VcpuHandle};
use crate::memory::{Backing, Memory};

const CODE_ADDRESS: u64 = 0x1000;
/// Where trial code may leave a number.
const RESULT_ADDRESS: u64 = 0x2000;
/// The port with which trial code says that it has finished.
const END_PORT: u16 = 0x80;

/// The VM.
pub(super) struct Trial {
    pub(super) handle: Arc<VcpuHandle>,
    pub(super) memory: Memory,
    pub(super) vm: Arc<VmFd>,
}

impl Trial {
    /// Creates a VM with `code` in its memory.
    pub(super) fn new(system: &System, code: &[u8]) -> Result<Self, KvmError> {
        let memory = Memory::allocate(2, Backing::Anonymous).map_err(|error| KvmError::Call {
            call: "allocate memory for a trial VM".into(),
            source: std::io::Error::other(error),
        })?;
        let vm = Arc::new(system.create_vm()?);
        memory.attach(&vm, false)?;
        let handle = VcpuHandle::new(&vm, 0, memory.ram().clone())?;
        write(&memory, code)?;
        Ok(Self { handle, memory, vm })
    }

    pub(super) fn write_msr(&self, index: u32, data: u64) -> Result<(), KvmError> {
        let entry = kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let msrs = Msrs::from_entries(&[entry]).expect("one MSR is not too many");
        self.handle
            .lock()
            .set_msrs(&msrs)
            .map_err(KvmError::call(format!("write MSR {index:#x}")))?;
        Ok(())
    }

    /// Runs the code from its beginning in user mode. Returns the number that it left, or `None` if
    /// it did not finish.
    pub(super) fn run_user(&self) -> Result<Option<u64>, KvmError> {
        const IOPL_3: u64 = 3 << 12;
        let mut fd = self.handle.lock();
        let reset = fd.get_sregs().map_err(KvmError::call("read registers"))?;
        let mut sregs = crate::boot::initial_sregs(reset);
        sregs.cs = user(0x2b, 0b1011, true);
        let data = user(0x33, 0b0011, false);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        fd.set_sregs(&sregs)
            .map_err(KvmError::call("write registers"))?;
        if !run(&mut fd, IOPL_3)? {
            return Ok(None);
        }
        let seen = self.memory.ram().read_obj(GuestAddress(RESULT_ADDRESS));
        seen.map(Some).map_err(write_error)
    }

    /// Runs the code from its beginning in kernel mode, with `cr4` set as well. Returns whether it
    /// finished.
    pub(super) fn run_kernel(&self, cr4: u64) -> Result<bool, KvmError> {
        let mut fd = self.handle.lock();
        let reset = fd.get_sregs().map_err(KvmError::call("read registers"))?;
        let mut sregs = crate::boot::initial_sregs(reset);
        sregs.cr4 |= cr4;
        fd.set_sregs(&sregs)
            .map_err(KvmError::call("write registers"))?;
        run(&mut fd, 0)
    }
}

fn run(fd: &mut VcpuFd, flags: u64) -> Result<bool, KvmError> {
    fd.set_regs(&kvm_regs {
        rip: CODE_ADDRESS,
        rsp: RESULT_ADDRESS,
        rflags: flags | 2,
        ..Default::default()
    })
    .map_err(KvmError::call("write registers"))?;
    loop {
        match fd.run() {
            Ok(VcpuExit::IoOut(END_PORT, _)) => return Ok(true),
            // A signal meant for someone else.
            Err(error) if error.errno() == libc::EINTR => {}
            _ => return Ok(false),
        }
    }
}

fn user(selector: u16, type_: u8, code: bool) -> kvm_segment {
    kvm_segment {
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
    }
}

fn write_error(error: vm_memory::GuestMemoryError) -> KvmError {
    KvmError::Call {
        call: "prepare a trial VM's memory".into(),
        source: std::io::Error::other(error),
    }
}

/// Code, and page tables that map the first 2 MiB for user and kernel mode.
fn write(memory: &Memory, code: &[u8]) -> Result<(), KvmError> {
    const USER_WRITABLE: u64 = 7;
    const LARGE: u64 = 1 << 7;
    let ram = memory.ram();
    ram.write_slice(code, GuestAddress(CODE_ADDRESS))
        .and_then(|()| ram.write_obj(0xa000 | USER_WRITABLE, GuestAddress(0x9000)))
        .and_then(|()| ram.write_obj(0xb000 | USER_WRITABLE, GuestAddress(0xa000)))
        .and_then(|()| ram.write_obj(LARGE | USER_WRITABLE, GuestAddress(0xb000)))
        .map_err(write_error)
}
