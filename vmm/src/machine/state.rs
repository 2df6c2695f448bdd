//! The machine's saved state: one versioned blob, and the order of saving and restoring.
//!
//! Layout: the version, then a `postcard` encoding of [`MachineState`]. The bytes come from another
//! host, so they are checked before anything is touched. Left-over bytes, unknown or missing
//! devices and a different number of vCPUs are errors that name the thing. What must not be done
//! here: guest memory.

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{
    KVM_CLOCK_TSC_STABLE, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use super::past::Past;
use super::{Machine, MachineEvent};
use crate::devices::{DeviceError, DeviceState, lock};
use crate::kvm::{KvmError, VcpuHandle};
use crate::vcpu::{CpuError, CpuModel, GuestClock, MsrList, VcpuError, VcpuState, exact};

/// Version of the blob's layout and of what devices put into it. Equal on both hosts of a pair.
pub(super) const VERSION: u16 = 7;

/// The interrupt controllers of a PC, in the order in which they are saved.
const IRQCHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];

/// Why a state cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another program wrote it.
    #[error("machine state has version {found}, this program knows version {VERSION}")]
    Version {
        /// The state's version.
        found: u16,
    },
    /// It cannot be encoded or decoded.
    #[error("machine state of {bytes} bytes is malformed")]
    Malformed {
        /// How long it is.
        bytes: usize,
        /// What the decoder says.
        #[source]
        source: postcard::Error,
    },
    /// There are bytes after its end.
    #[error("machine state of {bytes} bytes has {left_over} left over")]
    LeftOver {
        /// How long it is.
        bytes: usize,
        /// How many bytes are too many.
        left_over: usize,
    },
    /// It has a different number of vCPUs.
    #[error("the state is of a machine with {found} vCPUs, this one has {here}")]
    Vcpus {
        /// In the state.
        found: usize,
        /// In this machine.
        here: usize,
    },
    /// It has a device that this machine lacks.
    #[error("the state has device {name}, this machine does not")]
    UnknownDevice {
        /// The device's name.
        name: String,
    },
    /// It lacks a device that this machine has.
    #[error("this machine has device {name}, the state does not")]
    MissingDevice {
        /// The device's name.
        name: String,
    },
    /// It has a device twice.
    #[error("the state has device {name} twice")]
    DoubleDevice {
        /// The device's name.
        name: String,
    },
    /// A device's part cannot be saved or restored.
    #[error("device state")]
    Device(#[from] DeviceError),
    /// A vCPU's part cannot be saved or restored.
    #[error("vCPU state")]
    Vcpu(#[from] VcpuError),
    /// This host cannot be the CPU that the guest knows.
    #[error("the guest's CPU")]
    Cpu(#[from] CpuError),
    /// KVM refuses some of the VM's part.
    #[error("interrupt controllers, timer and clock")]
    Kvm(#[from] KvmError),
}

/// Everything but memory and disks.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    devices: Vec<DeviceState>,
    vm: VmState,
    cpu: CpuModel,
    vcpus: Vec<VcpuState>,
    /// How long ago another machine broke under this guest, in milliseconds.
    broke_ago_ms: Option<u64>,
}

/// What of a machine is saved beside its devices and vCPUs, and how vCPUs are read.
pub(super) struct Source<'a> {
    pub(super) vm: &'a VmFd,
    pub(super) cpu: &'a CpuModel,
    pub(super) msrs: &'a MsrList,
    pub(super) clock: GuestClock,
    pub(super) past: &'a Past,
}

/// What belongs to the VM as a whole.
#[derive(Debug, Serialize, Deserialize)]
struct VmState {
    #[serde(with = "exact")]
    pic_master: kvm_irqchip,
    #[serde(with = "exact")]
    pic_slave: kvm_irqchip,
    #[serde(with = "exact")]
    ioapic: kvm_irqchip,
    #[serde(with = "exact")]
    pit: kvm_pit_state2,
    /// Nanoseconds of kvmclock.
    clock_ns: u64,
    /// Whether all vCPUs read the same kvmclock at any moment.
    clock_is_stable: bool,
    /// Speed of the vCPUs' time-stamp counters; 0 if the host does not tell.
    tsc_khz: u32,
}

/// The state KVM gave a machine before it first ran: a reset restores it. Devices reset themselves.
#[derive(Debug)]
pub(super) struct Initial {
    vm: VmState,
    vcpus: Vec<VcpuState>,
}

impl Initial {
    /// Reads the state of vCPUs that have never run.
    pub(super) fn save(
        vm: &VmFd,
        vcpus: &[Arc<VcpuHandle>],
        msrs: &MsrList,
        clock: GuestClock,
    ) -> Result<Self, StateError> {
        Ok(Self {
            vm: VmState::save(vm, clock)?,
            vcpus: vcpus
                .iter()
                .map(|handle| {
                    let state = VcpuState::save(handle, msrs, clock.counter)?;
                    Ok(state.without_counter())
                })
                .collect::<Result<_, StateError>>()?,
        })
    }

    /// Writes it into the machine it came from, in the order of [`MachineState::restore`]. The
    /// clocks continue: time in the guest does not start over, and peers never see it go backwards.
    pub(super) fn restore<'a>(
        &self,
        vm: &VmFd,
        vcpus: impl Iterator<Item = &'a VcpuHandle>,
        clock: GuestClock,
    ) -> Result<(), StateError> {
        self.vm.restore_chips(vm)?;
        for (handle, state) in vcpus.zip(&self.vcpus) {
            state.restore(handle, clock, None)?;
        }
        Ok(())
    }
}

/// Saves a machine that stands still, and says whether all of its vCPUs are idle.
///
/// The order: devices, then the VM, then vCPUs. Devices raise interrupts into the VM's controllers,
/// and those into the vCPUs' LAPICs. If something moves along that path while we read (work that
/// the kernel does later, in its own threads), it is seen downstream rather than lost upstream. If
/// an interrupt is lost anyway, its device raises it again after a restore. The clock is read with
/// the VM, right before the vCPUs' counters, to which it belongs.
pub(super) fn save<'a>(
    devices: impl Iterator<Item = Result<DeviceState, DeviceError>>,
    vcpus: impl Iterator<Item = &'a VcpuHandle>,
    source: &Source<'_>,
    into: &mut Vec<u8>,
) -> Result<bool, StateError> {
    let broke_ago = source.past.machine_broke_ago();
    let broke_ago = broke_ago.map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX));
    let devices = devices.collect::<Result<Vec<_>, _>>()?;
    let vm = VmState::save(source.vm, source.clock)?;
    let vcpus = vcpus
        .map(|handle| VcpuState::save(handle, source.msrs, source.clock.counter))
        .collect::<Result<Vec<_>, _>>()?;
    // The fields of `MachineState` in their order, which is how `postcard` encodes a structure, without a copy of the
    // CPU's description: making one takes longer than encoding all the rest.
    append(&(VERSION, devices, vm, source.cpu, &vcpus, broke_ago), into)?;
    Ok(vcpus.iter().all(VcpuState::is_idle))
}

fn append(state: &impl Serialize, into: &mut Vec<u8>) -> Result<(), StateError> {
    let before = into.len();
    let bytes = postcard::to_extend(state, std::mem::take(into));
    *into = bytes.map_err(|source| StateError::Malformed {
        bytes: before,
        source,
    })?;
    Ok(())
}

impl VmState {
    fn save(vm: &VmFd, clock: GuestClock) -> Result<Self, KvmError> {
        let chip = |chip_id| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            vm.get_irqchip(&mut chip)
                .map_err(KvmError::call("read an interrupt controller"))?;
            Ok::<_, KvmError>(chip)
        };
        let kvmclock = vm
            .get_clock()
            .map_err(KvmError::call("read the clock (KVM_GET_CLOCK)"))?;
        Ok(Self {
            pic_master: chip(IRQCHIPS[0])?,
            pic_slave: chip(IRQCHIPS[1])?,
            ioapic: chip(IRQCHIPS[2])?,
            pit: vm
                .get_pit2()
                .map_err(KvmError::call("read the timer (KVM_GET_PIT2)"))?,
            clock_ns: kvmclock.clock,
            clock_is_stable: kvmclock.flags & KVM_CLOCK_TSC_STABLE != 0,
            tsc_khz: clock.speed_khz,
        })
    }

    fn restore_chips(&self, vm: &VmFd) -> Result<(), KvmError> {
        for (chip, id) in [&self.pic_master, &self.pic_slave, &self.ioapic]
            .into_iter()
            .zip(IRQCHIPS)
        {
            // The number says which member of a union the rest is, so we must supply it.
            let mut chip = *chip;
            chip.chip_id = id;
            vm.set_irqchip(&chip)
                .map_err(KvmError::call(format!("write interrupt controller {id}")))?;
        }
        vm.set_pit2(&self.pit)
            .map_err(KvmError::call("write the timer (KVM_SET_PIT2)"))
    }

    fn restore_clock(&self, vm: &VmFd) -> Result<(), KvmError> {
        // No flags: the clock continues from the checkpoint, not from the wall clock. For the
        // guest, the time in between did not happen.
        let clock = kvm_clock_data {
            clock: self.clock_ns,
            ..Default::default()
        };
        vm.set_clock(&clock)
            .map_err(KvmError::call("write the clock (KVM_SET_CLOCK)"))?;
        let now = vm
            .get_clock()
            .map_err(KvmError::call("read the clock (KVM_GET_CLOCK)"))?;
        if self.clock_is_stable && now.flags & KVM_CLOCK_TSC_STABLE == 0 {
            tracing::warn!(
                "this host's KVM does not keep the guest's clock equal on all of its vCPUs, as the old host's did: the \
                 guest reads it more slowly"
            );
        }
        Ok(())
    }
}

impl MachineState {
    #[cfg(test)]
    pub(super) fn encode(&self, into: &mut Vec<u8>) -> Result<(), StateError> {
        append(&(VERSION, self), into)
    }

    /// Makes the state of vCPU number `number` another's.
    #[cfg(test)]
    pub(super) fn set_vcpu_id(&mut self, number: usize, id: u8) {
        self.vcpus[number].id = id;
    }

    /// Changes an MSR of vCPU 0.
    #[cfg(test)]
    pub(super) fn set_msr(&mut self, index: u32, data: u64) {
        self.vcpus[0].set_msr(index, data);
    }

    /// Decodes a state and checks its shape.
    ///
    /// # Errors
    /// If it is not exactly one.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let malformed = |source| StateError::Malformed {
            bytes: bytes.len(),
            source,
        };
        let (version, rest) = postcard::take_from_bytes::<u16>(bytes).map_err(malformed)?;
        if version != VERSION {
            return Err(StateError::Version { found: version });
        }
        let (state, rest) = postcard::take_from_bytes::<Self>(rest).map_err(malformed)?;
        if !rest.is_empty() {
            return Err(StateError::LeftOver {
                bytes: bytes.len(),
                left_over: rest.len(),
            });
        }
        Ok(state)
    }

    /// Checks that the state is one of a machine like this.
    fn check(&self, machine: &Machine) -> Result<(), StateError> {
        if self.vcpus.len() != machine.vcpus.len() {
            return Err(StateError::Vcpus {
                found: self.vcpus.len(),
                here: machine.vcpus.len(),
            });
        }
        self.cpu.check(&machine.host_cpu)?;
        let shorten = |name: &str| name.chars().take(64).collect();
        for (number, state) in self.devices.iter().enumerate() {
            if !machine.devices.iter().any(|here| here.name == state.name) {
                return Err(StateError::UnknownDevice {
                    name: shorten(&state.name),
                });
            }
            if self.devices[..number]
                .iter()
                .any(|other| other.name == state.name)
            {
                return Err(StateError::DoubleDevice {
                    name: shorten(&state.name),
                });
            }
        }
        for here in &machine.devices {
            if !self.devices.iter().any(|state| state.name == here.name) {
                return Err(StateError::MissingDevice {
                    name: here.name.clone(),
                });
            }
        }
        Ok(())
    }

    /// What the guest brings along from its old host.
    pub(super) fn into_cpu(self) -> Result<(CpuModel, MsrList), StateError> {
        let first = self
            .vcpus
            .first()
            .ok_or(StateError::Vcpus { found: 0, here: 1 })?;
        let msrs = MsrList::of(first.id, first.msr_indices())?;
        Ok((self.cpu, msrs))
    }

    /// Loads the state into a machine that has never run.
    pub(super) fn restore(&self, machine: &Machine) -> Result<(), StateError> {
        self.load(machine)?;
        // The clock after the vCPUs: writing their time-stamp counters may move the point from which KVM
        // counts it.
        self.vm.restore_clock(&machine.vm)?;
        if let (Some(vcpu), Some(state)) = (machine.vcpus.first(), self.vcpus.first()) {
            state.renew_wall_clock(vcpu.handle())?;
        }
        if let Some(ms) = self.broke_ago_ms {
            let ago = Duration::from_millis(ms);
            machine.events.past.machine_broke(ago);
            machine.events.tell(&MachineEvent::BrokeBefore { ago });
        }
        for vcpu in machine.vcpus.iter() {
            // Tells the guest's watchdogs that it was stopped. Refused if the guest does not use kvmclock,
            // and then not needed.
            if let Err(error) = vcpu.handle().lock().kvmclock_ctrl() {
                tracing::debug!("vCPU {} has no kvmclock: {error}", vcpu.handle().id());
            }
        }
        Ok(())
    }

    /// Loads the state into a machine that has never run, but for its clocks: see [`Machine::try_load`].
    pub(super) fn restore_on_trial(self, machine: &Machine) -> Result<(), StateError> {
        let vcpus = self.vcpus.into_iter().map(VcpuState::for_trial).collect();
        Self { vcpus, ..self }.load(machine)
    }

    /// All but the machine's clock.
    fn load(&self, machine: &Machine) -> Result<(), StateError> {
        self.check(machine)?;
        // CPUID before everything else, and before the vCPUs ever run: KVM checks registers against
        // it.
        let vcpus = machine.vcpus.len() as u8;
        for vcpu in machine.vcpus.iter() {
            self.cpu
                .give_to(vcpu.handle(), vcpus)
                .map_err(CpuError::from)?;
        }
        // Then devices: they can still refuse, and they touch neither memory nor interrupts until they
        // are started.
        for here in &machine.devices {
            for state in self.devices.iter().filter(|state| state.name == here.name) {
                lock(&here.device).restore(state)?;
            }
        }
        // The VM's interrupt controllers before the vCPUs: writing them passes pending interrupts on to the
        // LAPICs at once. Those are in the saved LAPICs already; written second, these are exact again.
        self.vm.restore_chips(&machine.vm)?;
        let clock = GuestClock {
            speed_khz: self.vm.tsc_khz,
            ..machine.clock
        };
        let mut vcpus = machine.vcpus.iter().zip(&self.vcpus);
        let moves = vcpus.next().map_or(Ok(None), |(vcpu, state)| {
            state.counter_move(vcpu.handle(), clock)
        })?;
        for (vcpu, state) in machine.vcpus.iter().zip(&self.vcpus) {
            state.restore(vcpu.handle(), clock, moves)?;
        }
        Ok(())
    }
}
