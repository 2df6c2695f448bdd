//! A whole VMM that survives the loss of its host, to show what embedding takes.
//!
//! Start `tiny_vmm standby DIRECTORY`, then `tiny_vmm primary DIRECTORY`, and kill either of them. The guest counts in real mode, and the host writes what it says into `DIRECTORY/output`. Both hosts
//! are processes here, so the arbiter, the link and the console are in the same directory.

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_regs, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use parking_lot::{Mutex, MutexGuard};
use understudy_replication::arbiter::FileArbiter;
use understudy_replication::ids::Page;
use understudy_replication::output::{ConsolePort, ConsoleSink, OutputGate};
use understudy_replication::ports::{Machine, MachineError, PageMemory, PausedMachine};
use understudy_replication::runtime::{EventKind, Origin, Outcome, Primary, Standby};
use understudy_replication::{MemoryLayout, PAGE_BYTES, PageIndex, PageSet, Region};
use understudy_transport::Endpoint;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const PAGES: u64 = 16;
const BYTES: usize = PAGES as usize * PAGE_BYTES;
const CODE_AT: u64 = 0x1000;
/// `again: inc dword [0x2000]; mov eax, [0x2000]; out 0x10, eax; jmp again`, in real mode.
const CODE: [u8; 14] = [
    0x66, 0xff, 0x06, 0x00, 0x20, 0x66, 0xa1, 0x00, 0x20, 0x66, 0xe7, 0x10, 0xeb, 0xf2,
];
const STEP: Duration = Duration::from_micros(500);

/// Guest RAM.
struct Memory(MemoryLayout, GuestMemoryMmap);

type Checked<T> = Result<T, MachineError>;

fn checked<T>(what: &str, result: Result<T, impl Error + Send + Sync + 'static>) -> Checked<T> {
    result.map_err(|error| MachineError::caused(format!("cannot {what}"), error))
}

fn address(page: PageIndex) -> GuestAddress {
    GuestAddress(page.0.saturating_mul(PAGE_BYTES as u64))
}

impl PageMemory for Memory {
    fn layout(&self) -> &MemoryLayout {
        &self.0
    }

    fn read_page(&self, page: PageIndex, into: &mut Page) -> Result<(), MachineError> {
        checked("read memory", self.1.read_slice(into, address(page)))
    }

    fn write_page(&self, page: PageIndex, from: &Page) -> Result<(), MachineError> {
        checked("write memory", self.1.write_slice(from, address(page)))
    }
}

/// The console: a file that both hosts reach, so that it knows what it has got already.
struct Output(File);

impl ConsoleSink for Output {
    fn position(&mut self) -> io::Result<Option<u64>> {
        Ok(Some(self.0.metadata()?.len()))
    }

    fn append(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, position)
    }
}

/// The machine: one vCPU, some memory, a port that says numbers.
pub(crate) struct Vm {
    memory: Arc<Memory>,
    vm: VmFd,
    /// Whoever has it has the guest standing still, between two instructions.
    vcpu: Arc<Mutex<VcpuFd>>,
    gate: OutputGate,
    console: ConsolePort,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Vm {
    pub(crate) fn new(output: File) -> Result<Self, Box<dyn Error>> {
        let (first, pages) = (PageIndex(0), PAGES);
        let layout = MemoryLayout::new(vec![Region { first, pages }]);
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), BYTES)])?;
        ram.write_slice(&CODE, GuestAddress(CODE_AT))?;
        let vm = Kvm::new()?.create_vm()?;
        let vcpu = vm.create_vcpu(0)?;
        let (mut regs, mut sregs) = (vcpu.get_regs()?, vcpu.get_sregs()?);
        (regs.rip, sregs.cs.base, sregs.cs.selector) = (CODE_AT, 0, 0);
        vcpu.set_sregs(&sregs)?;
        vcpu.set_regs(&regs)?;
        let gate = OutputGate::default();
        let machine = Self {
            memory: Arc::new(Memory(layout, ram)),
            vm,
            vcpu: Arc::new(Mutex::new(vcpu)),
            console: gate.add_console(Box::new(Output(output)), || ())?,
            gate,
            stop: Arc::default(),
            thread: None,
        };
        machine.map_memory(0)?;
        Ok(machine)
    }

    fn map_memory(&self, flags: u32) -> Result<(), MachineError> {
        let host = self.memory.1.get_host_address(GuestAddress(0));
        let region = kvm_userspace_memory_region {
            flags,
            memory_size: BYTES as u64,
            userspace_addr: checked("find memory", host)? as u64,
            ..Default::default()
        };
        // SAFETY: the address and size are of the one mapping of `ram`, which lives in `self.memory` for
        // as long as `self.vm` does; Rust code reaches it through volatile copies only.
        let mapped = unsafe { self.vm.set_user_memory_region(region) };
        checked("map memory", mapped)
    }

    fn dirty(&self, into: &mut PageSet) -> Result<(), MachineError> {
        let log = checked("read the dirty log", self.vm.get_dirty_log(0, BYTES))?;
        let words = into.region_words_mut(0).iter_mut().zip(log);
        words.for_each(|(word, dirty)| *word |= dirty);
        Ok(())
    }
}

/// Runs the guest to its next word, and says it. The instruction is completed before anybody looks.
fn step(vcpu: &mut VcpuFd, console: &ConsolePort) -> Result<(), kvm_ioctls::Error> {
    if let VcpuExit::IoOut(_, &[a, b, c, d]) = vcpu.run()? {
        let line = format!("{}\n", u32::from_le_bytes([a, b, c, d]));
        // A pause would wait for ever for a gate that is full; it never is: see `has_room`.
        assert!(console.write(line.as_bytes()).is_ok());
    }
    vcpu.set_kvm_immediate_exit(1);
    let completed = vcpu.run().map(drop);
    vcpu.set_kvm_immediate_exit(0);
    completed.or_else(|error| (error.errno() == libc::EINTR).then_some(()).ok_or(error))
}

impl Machine for Vm {
    fn memory(&self) -> Arc<dyn PageMemory> {
        self.memory.clone()
    }

    fn gate(&self) -> OutputGate {
        self.gate.clone()
    }

    fn start_tracking(&mut self) -> Result<(), MachineError> {
        self.map_memory(KVM_MEM_LOG_DIRTY_PAGES)
    }

    fn stop_tracking(&mut self) -> Result<(), MachineError> {
        self.map_memory(0)
    }

    fn harvest_running(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        self.dirty(into)
    }

    fn pause(&mut self) -> Result<Box<dyn PausedMachine + '_>, MachineError> {
        Ok(Box::new(Paused(self, self.vcpu.lock())))
    }

    // Registers have no effect before the vCPU runs.
    fn try_restore(&mut self, state: &[u8]) -> Result<(), MachineError> {
        self.restore(state)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), MachineError> {
        let (regs, sregs, position): (kvm_regs, kvm_sregs, u64) =
            checked("read the state", postcard::from_bytes(state))?;
        self.console.set_position(position);
        checked("set the registers", self.vcpu.lock().set_sregs(&sregs))?;
        checked("set the registers", self.vcpu.lock().set_regs(&regs))
    }

    fn run(&mut self) -> Result<(), MachineError> {
        let (vcpu, stop, console) = (self.vcpu.clone(), self.stop.clone(), self.console.clone());
        self.thread = Some(std::thread::spawn(move || {
            while !stop.load(Ordering::Acquire) {
                std::thread::sleep(STEP);
                if console.has_room() {
                    step(&mut vcpu.lock(), &console).expect("the guest runs");
                }
            }
        }));
        Ok(())
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.thread.take().map(JoinHandle::join);
    }
}

struct Paused<'a>(&'a Vm, MutexGuard<'a, VcpuFd>);

impl PausedMachine for Paused<'_> {
    fn harvest(&mut self, into: &mut PageSet) -> Result<(), MachineError> {
        self.0.dirty(into)
    }

    fn save(&mut self, into: &mut Vec<u8>) -> Result<(), MachineError> {
        let regs = checked("read the registers", self.1.get_regs())?;
        let sregs = checked("read the registers", self.1.get_sregs())?;
        let state = (regs, sregs, self.0.console.position());
        into.extend(checked("write the state", postcard::to_stdvec(&state))?);
        Ok(())
    }
}

/// Does one host's work in `directory` until the guest ends there, and tells what happens.
pub(crate) fn host(role: &str, directory: &Path) -> Result<(), Box<dyn Error>> {
    let mut options = File::options();
    options.create(true).truncate(false).write(true);
    let machine = Vm::new(options.open(directory.join("output"))?)?;
    let arbiter = Arc::new(FileArbiter::open(directory.join("arbiter"))?);
    let link = Endpoint::Unix(directory.join("link"));
    let primary = if role == "primary" {
        let fresh = Origin::Fresh(machine);
        Primary::attach(fresh).arbiter(arbiter).backup(link)
    } else {
        let standby = Standby::builder(machine).arbiter(arbiter).listen(link);
        match standby.start()?.await_promotion()? {
            Outcome::Promoted(promoted) => Primary::attach(Origin::Promoted(promoted)),
            _ => return Ok(()),
        }
    };
    let protection = primary.protect()?;
    let mut events = protection.handle().subscribe();
    let kinds = std::iter::from_fn(|| Some(events.blocking_recv()?.kind));
    for kind in kinds.take_while(|kind| *kind != EventKind::Ended) {
        println!("{kind:?}");
    }
    protection.wait().map(drop).map_err(Into::into)
}

#[allow(dead_code, reason = "the test that kills it calls `host` itself")]
fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: tiny_vmm primary|standby DIRECTORY";
    let argument = |number| std::env::args().nth(number).ok_or(usage);
    host(&argument(1)?, argument(2)?.as_ref())
}
