//! Putting a machine together.
//!
//! The order matters to KVM: interrupt controllers before vCPUs (which then get LAPICs), CPUID before any
//! other vCPU state, memory slots and the kind of dirty log before logging starts. What must not be done
//! here: run anything.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, VmFd};
use understudy_replication::Fingerprint;
use understudy_replication::disk::DiskSet;
use understudy_replication::output::OutputGate;

use super::attach::{Attached, Attachment, Wiring};
use super::config::{ConfigError, Discovery, Kernel, MachineConfig, VCPUS_MAX};
use super::event_loop::{EventLoop, EventLoopError};
use super::events::{Events, MachineEvent};
use super::hang::Watch;
use super::state::Initial;
use super::throttle::Throttle;
use super::{Blocks, Machine, MachineFault, Networks, Phase};
use crate::boot::{self, Cmdline, Payload};
use crate::devices::switch::PowerSwitch;
use crate::devices::virtio::blk::FailedRequests;
use crate::devices::{Bus, Device, PowerButton, SerialInput, lock, switch};
use crate::dirty::DirtyTracker;
use crate::kvm::{KvmDirtyLog, KvmError, System, VcpuHandle};
use crate::memory::{Memory, low_ram_end};
use crate::vcpu::{
    Buses, Counter, CpuModel, CpuTemplate, Ending, GuestClock, MsrList, OnEnd, VcpuThread,
    fault_cost, guest_counter, use_host_counter,
};

/// Three pages that Intel processors need for real mode, right below the BIOS of a PC: inside the hole.
const TSS_ADDRESS: usize = 0xfffb_d000;
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// A machine being built: create it, attach devices, finish it.
pub struct MachineBuilder {
    vcpus: u8,
    template: CpuTemplate,
    cmdline: String,
    discovery: Discovery,
    payload: Option<Payload>,
    system: System,
    vm: Arc<VmFd>,
    memory: Memory,
    gate: OutputGate,
    pub(super) events: Arc<Events>,
    ports: Bus,
    mmio: Bus,
    virtio_slots: u32,
    devices: Vec<Attached>,
    networks: Networks,
    pub(super) blocks: Blocks,
    pub(super) failed_requests: BTreeMap<String, FailedRequests>,
    disks: DiskSet,
    console_input: Option<SerialInput>,
    power_button: Option<PowerButton>,
    power_switch: Option<PowerSwitch>,
}

impl MachineBuilder {
    /// Checks `config`, creates the VM with its memory and interrupt controllers, and attaches the devices
    /// that `config` asks for. More can be attached afterwards.
    ///
    /// # Errors
    /// If the configuration makes no sense or the host cannot.
    pub fn new(config: MachineConfig) -> Result<Self, MachineFault> {
        let system = System::open()?;
        let max = system.max_vcpus().min(usize::from(VCPUS_MAX));
        if config.vcpus == 0 || usize::from(config.vcpus) > max {
            return Err(ConfigError::Vcpus {
                vcpus: config.vcpus,
                max,
            }
            .into());
        }
        let payload = read_payload(&config)?;
        let memory = Memory::allocate(config.memory_mib, config.backing)?;
        if let Some(payload) = &payload {
            // Report a bad image now, although the kernel is loaded only when the guest first runs:
            // a standby's memory must stay zero until then.
            boot::plan(payload, low_ram_end(memory.ram())).map_err(|source| {
                match config.kernel.clone() {
                    Some(Kernel::Path(path)) => ConfigError::Kernel { path, source }.into(),
                    _ => MachineFault::from(source),
                }
            })?;
        }
        let vm = create_vm(&system)?;
        memory.attach(&vm, false)?;
        let events = Arc::new(Events::default());
        let mut builder = Self {
            gate: OutputGate::new(config.gate),
            payload,
            vcpus: config.vcpus,
            template: config.cpu_template,
            cmdline: config.cmdline,
            discovery: config.discovery,
            system,
            vm: Arc::new(vm),
            memory,
            events,
            ports: Bus::new(),
            mmio: Bus::new(),
            virtio_slots: 0,
            devices: Vec::new(),
            networks: Vec::new(),
            blocks: Vec::new(),
            failed_requests: BTreeMap::new(),
            disks: DiskSet::empty(),
            console_input: None,
            power_button: None,
            power_switch: None,
        };
        builder.power_switch = Some(builder.attach_switches()?);
        builder.power_button = Some(builder.attach_button()?);
        builder.attach_panic_port(config.on_panic)?;
        if let Some(action) = config.watchdog {
            builder.attach_watchdog(action)?;
        }
        builder.console_input = Some(builder.attach_console(config.console, config.start)?);
        builder.networks = builder.attach_networks(config.net)?;
        builder.disks = builder.attach_drives(
            config.drives,
            config.disk_journal,
            config.disk_limits,
            config.start,
        )?;
        if config.rng {
            builder.attach_rng()?;
        }
        Ok(builder)
    }

    /// The machine's output gate, for devices to be attached.
    #[must_use]
    pub fn gate(&self) -> &OutputGate {
        &self.gate
    }

    /// Guest memory, for devices to be attached.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Attaches a device. The order of attaching is the order of saving.
    ///
    /// # Errors
    /// If its name, addresses or interrupt are taken.
    pub fn attach<D: Device + 'static>(
        &mut self,
        attachment: Attachment<D>,
    ) -> Result<(), MachineFault> {
        let mut wiring = Wiring {
            vm: &self.vm,
            ports: std::mem::take(&mut self.ports),
            mmio: std::mem::take(&mut self.mmio),
            virtio_slots: self.virtio_slots,
        };
        let attached = wiring.attach(attachment);
        self.virtio_slots = wiring.virtio_slots;
        self.ports = wiring.ports;
        self.mmio = wiring.mmio;
        let attached = attached?;
        if self.devices.iter().any(|other| other.name == attached.name) {
            return Err(ConfigError::SameName(attached.name).into());
        }
        self.devices.push(attached);
        Ok(())
    }

    /// Creates the vCPUs and starts all threads; the guest does not run yet.
    ///
    /// # Errors
    /// If the host cannot.
    pub fn build(mut self) -> Result<Machine, MachineFault> {
        let cmdline = self.cmdline()?;
        if let Some(payload) = &self.payload {
            boot::plan(payload, low_ram_end(self.memory.ram()))?.check_cmdline(&cmdline)?;
        }
        let counter = guest_counter(&self.system)?;
        let mut host = CpuModel::of_host(&self.system)?;
        if counter == Counter::Host {
            // It jumps at a failover, so no guest may take it for a clock.
            host.hide("invariant_tsc");
        }
        let cpu = self.template.cut(&host)?;
        let handles = self.create_vcpus(&host, counter)?;
        let msrs = MsrList::probe(&handles[0], &self.system.msr_indices()?)?;
        let clock = GuestClock::of(&handles[0], counter);
        // Reduced to the template only now, so that the host's abilities were probed with all its
        // features.
        for handle in &handles {
            cpu.give_to(handle, self.vcpus)?;
        }
        let mut fingerprint = self.fingerprint();
        clock.describe(self.system.has(Cap::TscControl), &mut fingerprint);
        cpu.describe(&host, &mut fingerprint);
        msrs.describe(&msrs, &mut fingerprint);
        for network in &self.networks {
            lock(network).device().describe(&mut fingerprint);
        }
        let slot_pages = self.memory.slot_pages();
        let log = KvmDirtyLog::new(self.vm.clone(), slot_pages, self.system.capabilities())?;
        let tracker = DirtyTracker::new(
            Box::new(log),
            self.memory.ram().clone(),
            self.memory.layout().clone(),
        );
        let initial = Initial::save(&self.vm, &handles, &msrs, clock)?;
        let event_loop = EventLoop::spawn(&mut self.devices, &self.events)?;
        let watch = Watch::start(&self.events).map_err(EventLoopError::Thread)?;
        let buses = Buses {
            ports: Arc::new(self.ports),
            mmio: Arc::new(self.mmio),
            halted: self.events.halted.clone(),
        };
        let on_end = report_endings(self.events.clone(), buses.ports.clone());
        let vcpus = handles
            .into_iter()
            .map(|handle| VcpuThread::spawn(handle, buses.clone(), on_end.clone()))
            .collect::<Result<Arc<[_]>, _>>()?;
        let throttle = Throttle::start(vcpus.clone()).map_err(EventLoopError::Thread)?;
        Ok(Machine {
            vcpus,
            throttle,
            event_loop,
            watch,
            devices: self.devices,
            tracker,
            fault: fault_cost(&self.system),
            memory: self.memory,
            vm: self.vm,
            cpu,
            host_cpu: host,
            msrs,
            clock,
            gate: self.gate,
            events: self.events,
            fingerprint,
            networks: self.networks,
            blocks: self.blocks,
            disks: self.disks,
            console_input: self.console_input,
            power_button: self.power_button,
            power_switch: self.power_switch,
            failed_requests: self.failed_requests,
            initial: Arc::new(initial),
            payload: self.payload.map(Arc::new),
            cmdline,
            discovery: self.discovery,
            phase: Phase::Built,
        })
    }

    fn cmdline(&self) -> Result<Cmdline, MachineFault> {
        let devices = self.devices.iter();
        let devices = devices.filter(|_| self.discovery == Discovery::CommandLine);
        let devices = devices.filter_map(Attached::cmdline);
        let words = std::iter::once(self.cmdline.clone())
            .chain(devices)
            .chain([format!("nr_cpus={}", self.vcpus)]);
        Ok(Cmdline::new(words)?)
    }

    fn create_vcpus(
        &self,
        cpu: &CpuModel,
        counter: Counter,
    ) -> Result<Vec<Arc<VcpuHandle>>, MachineFault> {
        let mut handles = Vec::new();
        for id in 0..self.vcpus {
            let handle = VcpuHandle::new(&self.vm, id, self.memory.ram().clone())?;
            cpu.give_to(&handle, self.vcpus)?;
            if counter == Counter::Host {
                use_host_counter(&handle)?;
            }
            handles.push(handle);
        }
        Ok(handles)
    }

    /// What must be equal on both hosts, except memory and the CPU.
    fn fingerprint(&self) -> Fingerprint {
        let mut print = Fingerprint::new();
        // A standby must find out before it is needed that it cannot read the state.
        print.set("state_version", super::state::VERSION);
        print.set("vcpus", self.vcpus);
        for (number, device) in self.devices.iter().enumerate() {
            let name = &device.name;
            print.set(format!("device.{name}.number"), number);
            print.set(
                format!("device.{name}.place"),
                match device.gsi {
                    Some(gsi) => format!("{:#x}, interrupt {gsi}", device.base),
                    None => format!("{:#x}", device.base),
                },
            );
            for (key, value) in &device.description {
                print.set(format!("device.{name}.{key}"), value);
            }
        }
        print
    }
}

fn read_payload(config: &MachineConfig) -> Result<Option<Payload>, ConfigError> {
    let Some(kernel) = &config.kernel else {
        return Ok(None);
    };
    let kernel = match kernel {
        Kernel::Bytes(bytes) => bytes.clone(),
        Kernel::Path(path) => read("kernel image", path)?,
    };
    let initrd = config.initrd.as_deref();
    let initrd = initrd.map(|path| read("initramfs", path)).transpose()?;
    let protocol = config.boot_protocol;
    Ok(Some(Payload {
        protocol,
        kernel,
        initrd,
    }))
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::File {
        what,
        path: path.into(),
        source,
    })
}

fn create_vm(system: &System) -> Result<VmFd, KvmError> {
    let vm = system.create_vm()?;
    vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
        .map_err(KvmError::call("place the identity map"))?;
    vm.set_tss_address(TSS_ADDRESS)
        .map_err(KvmError::call("place the task state segment"))?;
    vm.create_irq_chip()
        .map_err(KvmError::call("create interrupt controllers"))?;
    let pit = kvm_pit_config {
        flags: KVM_PIT_SPEAKER_DUMMY,
        ..Default::default()
    };
    vm.create_pit2(pit)
        .map_err(KvmError::call("create a timer"))?;
    Ok(vm)
}

/// Reports the end of a vCPU as an event.
fn report_endings(events: Arc<Events>, ports: Arc<Bus>) -> OnEnd {
    Arc::new(move |vcpu, ending| match ending {
        Ending::TripleFault => {
            events.halt(&MachineEvent::GuestCrashed {
                what: "a fault while handling a fault while handling a fault (triple fault)".into(),
            });
            // The guest already stands still; this makes the request for a reset part of its state.
            ports.write(switch::RESET_PORT.into(), &[switch::RESET_COMMAND]);
        }
        Ending::Shutdown { what } => events.tell(&MachineEvent::GuestShutdown { what }),
        Ending::HostFailed { what } => {
            events.break_machine(format!("vCPU {vcpu} cannot go on: {what}"));
        }
    })
}
