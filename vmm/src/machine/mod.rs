//! The machine: memory, vCPUs, devices and KVM put together, and what replication asks of it.
//!
//! ```text
//!  built ──run──► running ◄──► paused ──────stay──────► stopped
//!    │               ▲                                    ▲
//!    └─restore─► restored                       stop ─────┘
//! ```
//!
//! `builder` puts it together, `attach` wires devices, `event_loop` is the thread that serves them,
//! `pause` the guard (R7), `hang` notices that it does not come, `state` what is saved and in which order, `reset` restarts the guest in
//! place. Locks are taken in this order: the event thread's turn, the devices in configuration
//! order, vCPU descriptors. There is one exception: a vCPU's thread locks a device while it holds
//! its own descriptor. This is safe, because the code that paused the machine touches only
//! descriptors of parked vCPUs, and a parked thread holds nothing.
//!
//! What must not be done here: emulate anything, or decide when to checkpoint.

mod actions;
mod attach;
mod builder;
mod config;
mod configured_devices;
mod event_loop;
mod events;
mod hang;
mod past;
mod pause;
mod port;
mod reset;
mod state;
mod throttle;
mod trial;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kvm_ioctls::{Cap, VmFd};
use understudy_replication::Fingerprint;
use understudy_replication::disk::DiskSet;
use understudy_replication::output::OutputGate;

use crate::boot::{self, BootError, Cmdline, EntryPoint, Payload};
use crate::devices::switch::PowerSwitch;
use crate::devices::virtio::blk::{BlkDevice, FailedRequests};
use crate::devices::virtio::mmio::MmioTransport;
use crate::devices::virtio::net::NetDevice;
use crate::devices::{PowerButton, SerialInput, Snapshot};
use crate::dirty::{DirtyError, DirtyTracker};
use crate::kvm::{KvmError, VcpuHandle};
use crate::memory::{Memory, MemoryError};
use crate::vcpu::{CpuModel, GuestClock, MsrList, TemplateError, VcpuError, VcpuThread};

pub use actions::{OnError, OnPanic, OnReboot, OnWatchdog, UnknownAction};
pub use attach::{AttachError, Attachment, Health, Place};
pub use builder::MachineBuilder;
pub(crate) use config::beside;
pub use config::{
    ConfigError, Console, Discovery, DriveConfig, DriveKind, Kernel, MachineConfig, NetBackend,
    NetConfig, Opened, Start, VCPUS_MAX,
};
pub use event_loop::EventLoopError;
pub use events::{Breaker, MachineEvent};
pub use pause::Paused;
pub use state::{MachineState, StateError};

use attach::Attached;
use event_loop::EventLoop;
use events::Events;
use state::Initial;
use throttle::Throttle;

/// What can go wrong with a machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineFault {
    /// The configuration makes no sense.
    #[error("the machine's configuration")]
    Config(#[from] ConfigError),
    /// KVM refuses.
    #[error("KVM")]
    Kvm(#[from] KvmError),
    /// There is no memory.
    #[error("guest memory")]
    Memory(#[from] MemoryError),
    /// The guest cannot be booted.
    #[error("booting the guest")]
    Boot(#[from] BootError),
    /// A vCPU fails.
    #[error("vCPUs")]
    Vcpu(#[from] VcpuError),
    /// The host lacks features of the CPU template.
    #[error("vCPUs")]
    Template(#[from] TemplateError),
    /// Dirty pages cannot be tracked.
    #[error("tracking dirty pages")]
    Dirty(#[from] DirtyError),
    /// A device cannot be attached.
    #[error("attaching devices")]
    Attach(#[from] AttachError),
    /// Devices cannot be served.
    #[error("serving devices")]
    EventLoop(#[from] EventLoopError),
    /// State cannot be saved or restored.
    #[error("the machine's state")]
    State(#[from] StateError),
    /// Something of this host failed before.
    #[error("the machine has broken, and can neither be paused nor reset")]
    Broken,
    /// The machine is not in the phase for that.
    #[error("a machine that {is} cannot {cannot}")]
    Phase {
        /// What it is.
        is: &'static str,
        /// What it was asked to do.
        cannot: &'static str,
    },
}

impl MachineFault {
    /// In one line, with all its causes.
    #[must_use]
    pub fn with_causes(&self) -> String {
        let mut what = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            what = format!("{what}: {error}");
            cause = error.source();
        }
        what
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Built,
    Restored,
    Running,
    Stopped,
    /// A restore failed halfway.
    Broken,
}

impl Phase {
    fn cannot(self, cannot: &'static str) -> MachineFault {
        MachineFault::Phase {
            is: match self {
                Self::Built => "has never run",
                Self::Restored => "has been restored but does not run yet",
                Self::Running => "is running",
                Self::Stopped => "is stopped for good",
                Self::Broken => "was restored only in part",
            },
            cannot,
        }
    }
}

/// A virtio device of a machine, with its transport.
pub type VirtioHandle<D> = Arc<Mutex<MmioTransport<D>>>;
/// A machine's network devices, in configuration order.
pub type Networks = Vec<VirtioHandle<NetDevice>>;
/// A machine's disks, in configuration order.
pub type Blocks = Vec<VirtioHandle<BlkDevice>>;

/// A virtual machine. Built by [`MachineBuilder`]; replication handles it through
/// [`understudy_replication::ports::Machine`].
pub struct Machine {
    // vCPU threads end first when a machine is dropped, then the event thread, then what they used.
    vcpus: Arc<[VcpuThread]>,
    throttle: Throttle,
    event_loop: EventLoop,
    watch: hang::Watch,
    devices: Vec<Attached>,
    tracker: DirtyTracker,
    /// What the first write to a protected page costs the guest; zero if that is not known.
    fault: Duration,
    memory: Memory,
    vm: Arc<VmFd>,
    /// The CPU that the guest sees.
    cpu: CpuModel,
    /// All that this host could offer.
    host_cpu: CpuModel,
    msrs: MsrList,
    clock: GuestClock,
    gate: OutputGate,
    events: Arc<Events>,
    fingerprint: Fingerprint,
    networks: Networks,
    blocks: Blocks,
    failed_requests: BTreeMap<String, FailedRequests>,
    disks: DiskSet,
    console_input: Option<SerialInput>,
    power_button: Option<PowerButton>,
    power_switch: Option<PowerSwitch>,
    initial: Arc<Initial>,
    payload: Option<Arc<Payload>>,
    cmdline: Cmdline,
    discovery: Discovery,
    phase: Phase,
}

impl Machine {
    /// Builds the machine that `config` describes, ready to be run or restored.
    ///
    /// # Errors
    /// If the configuration makes no sense or the host cannot.
    pub fn build(config: MachineConfig) -> Result<Self, MachineFault> {
        MachineBuilder::new(config)?.build()
    }

    /// Has `listener` called for each event from now on (what the guest does to itself, and what fails), on the
    /// thread where it happens: it must not wait.
    pub fn on_event(&self, listener: impl Fn(&MachineEvent) + Send + 'static) {
        self.events.listen(Box::new(listener));
    }

    /// What has it count as broken.
    #[must_use]
    pub fn breaker(&self) -> Breaker {
        Breaker(self.events.clone())
    }

    /// The machine's output gate.
    #[must_use]
    pub fn output_gate(&self) -> &OutputGate {
        &self.gate
    }

    /// The machine's network devices, for their counters.
    #[must_use]
    pub fn networks(&self) -> &Networks {
        &self.networks
    }

    /// The machine's disks as the guest sees them, for their counters.
    #[must_use]
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// The requests that storage has failed and that are held, by the disk's name; of disks that hold any.
    #[must_use]
    pub fn failed_requests(&self) -> &BTreeMap<String, FailedRequests> {
        &self.failed_requests
    }

    /// The disks that have, or may get, a second copy.
    #[must_use]
    pub fn disk_set(&self) -> &DiskSet {
        &self.disks
    }

    /// Where input for the guest's console comes in.
    #[must_use]
    pub fn console_input(&self) -> Option<&SerialInput> {
        self.console_input.as_ref()
    }

    /// The guest's power button.
    #[must_use]
    pub fn power_button(&self) -> Option<&PowerButton> {
        self.power_button.as_ref()
    }

    /// The guest's power switch.
    #[must_use]
    pub fn power_switch(&self) -> Option<&PowerSwitch> {
        self.power_switch.as_ref()
    }

    /// The guest's command line, with what was appended.
    #[must_use]
    pub fn cmdline(&self) -> &str {
        self.cmdline.as_str()
    }

    /// The guest's memory.
    #[must_use]
    pub fn guest_memory(&self) -> &Memory {
        &self.memory
    }

    /// Runs the guest: boots it, or continues a restored one.
    ///
    /// # Errors
    /// If there is nothing to run, or the machine is not in the phase for it.
    pub fn start(&mut self) -> Result<(), MachineFault> {
        match self.phase {
            Phase::Built => self.boot()?,
            Phase::Restored => {}
            phase => return Err(phase.cannot("be run")),
        }
        // Devices before vCPUs: they look at the queues left to them and raise interrupts that were
        // lost on the way (see `Device::start`), as if no time had passed.
        for attached in &self.devices {
            crate::devices::lock(&attached.device).start();
        }
        self.phase = Phase::Running;
        self.vcpus.iter().for_each(VcpuThread::resume);
        Ok(())
    }

    fn boot(&mut self) -> Result<(), MachineFault> {
        let Some(payload) = &self.payload else {
            return Err(ConfigError::NoKernel.into());
        };
        let ram = self.memory.ram();
        let hardware = self.hardware();
        let entry = boot::load(ram, payload, &self.cmdline, &hardware)?;
        enter_kernel(self.vcpus[0].handle(), entry)
    }

    /// Pauses the guest; it runs on when the guard is dropped.
    ///
    /// # Errors
    /// If it does not run, has ended, or a vCPU does not stop. The guest then continues as before.
    pub fn pause_guest(&mut self) -> Result<Paused<'_>, MachineFault> {
        if self.phase != Phase::Running {
            return Err(self.phase.cannot("be paused"));
        }
        Paused::new(self)
    }

    /// Starts tracking dirty pages.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn track(&mut self) -> Result<(), MachineFault> {
        self.memory.attach(&self.vm, true)?;
        if let Err(error) = self.tracker.start(self.fault) {
            self.memory.attach(&self.vm, false)?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Stops tracking dirty pages.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn untrack(&mut self) -> Result<(), MachineFault> {
        self.tracker.stop();
        Ok(self.memory.attach(&self.vm, false)?)
    }

    /// Loads a saved state.
    ///
    /// # Errors
    /// If it is malformed or another machine's, or if this machine has run already.
    pub fn load(&mut self, bytes: &[u8]) -> Result<(), MachineFault> {
        if self.phase != Phase::Built {
            return Err(self.phase.cannot("be restored"));
        }
        let state = MachineState::decode(bytes)?;
        self.phase = Phase::Broken;
        state.restore(self)?;
        // The guest brought its CPU and its MSRs; another host must have them to take over from here.
        (self.cpu, self.msrs) = state.into_cpu()?;
        self.cpu.describe(&self.host_cpu, &mut self.fingerprint);
        self.msrs.describe(&self.msrs, &mut self.fingerprint);
        for network in &self.networks {
            let network = crate::devices::lock(network);
            network.device().describe(&mut self.fingerprint);
        }
        // The counters may now run as fast as those of the other host.
        self.clock = GuestClock::of(self.vcpus[0].handle(), self.clock.counter);
        let can_scale = self.vm.check_extension(Cap::TscControl);
        self.clock.describe(can_scale, &mut self.fingerprint);
        self.phase = Phase::Restored;
        Ok(())
    }

    /// Tells the network where the guest is now.
    fn announce_address(&self) {
        for network in &self.networks {
            let mut network = crate::devices::lock(network);
            if let Err(error) = network.device_mut().announce() {
                // Nothing is lost for good: the guest's own frames tell its address too, later.
                tracing::warn!("{} could not announce its address: {error}", network.name());
            }
        }
    }

    /// Stops the guest for good. Does nothing if it is stopped already.
    pub fn shut_down(&mut self) {
        self.vcpus.iter().for_each(VcpuThread::stop);
        self.throttle.stop();
        self.event_loop.stop();
        for attached in &self.devices {
            // Includes a machine that a panic left half-changed: this only lets go of the outside.
            let device = attached.device.lock();
            device.unwrap_or_else(PoisonError::into_inner).stop();
        }
        self.phase = Phase::Stopped;
    }
}

/// Puts vCPU 0, which is in its reset state, at the kernel's entry.
fn enter_kernel(vcpu: &VcpuHandle, entry: EntryPoint) -> Result<(), MachineFault> {
    let fd = vcpu.lock();
    let reset = fd
        .get_sregs()
        .map_err(KvmError::call("read vCPU 0's registers"))?;
    fd.set_sregs(&boot::entry_sregs(entry, reset))
        .map_err(KvmError::call("set vCPU 0's system registers"))?;
    fd.set_regs(&boot::initial_regs(entry))
        .map_err(KvmError::call("set vCPU 0's registers"))?;
    Ok(())
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.shut_down();
    }
}

#[cfg(test)]
pub(crate) mod tests;
