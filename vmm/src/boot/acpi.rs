//! ACPI tables: where a Linux guest finds vCPUs, interrupt controller and devices, and how it ends itself.
//!
//! Of ACPI's fixed hardware (6.5, 4.8) there is the least that a system must have, and the power button: PM1 event and
//! control registers, the system control interrupt, and a reset register. No timer, no general-purpose events. The
//! tables lie below 1 MiB, in the place of a PC's BIOS. The root pointer comes first.
//!
//! | table | says |
//! | --- | --- |
//! | RSDP, XSDT | where the others are |
//! | FADT | where the power button and power-off are, how to reset; what of a PC is missing |
//! | FACS | nothing: a lock between system and firmware, and there is no firmware |
//! | MADT | vCPUs, IOAPIC, what kind of interrupt the system control interrupt is |
//! | WDAT | how to drive the watchdog (`wdat.rs`) |
//! | DSDT | virtio-mmio devices (`LNRO0005`), serial port (`PNP0501`), panic port (`QEMU0001`), power-off (`_S5`) |
//!
//! What must not be done here: know more of a device than where it is.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{Immutable, IntoBytes};

use super::table::{Encoded, OEM_ID, OEM_REVISION, OEM_TABLE_ID, encode};
use super::wdat::{self, Watchdog};
use super::{BootError, bios};
use crate::memory::GuestRam;

/// Where the tables begin, with the root pointer. Linux looks here even if nobody tells it to.
pub(super) const TABLES_START: u64 = 0xe_0000;
/// The tables end before this.
pub(super) const TABLES_END: u64 = bios::RESET_VECTOR;
/// Alignment of each table: what the FACS needs.
const ALIGNMENT_BYTES: usize = 64;

const DSDT_REVISION: u8 = 6;

/// Where KVM puts the interrupt controllers.
const LAPIC_ADDRESS: u32 = 0xfee0_0000;
const IOAPIC_ADDRESS: u32 = 0xfec0_0000;

/// Bits of the FADT's IA-PC boot flags.
const VGA_NOT_PRESENT: u16 = 1 << 2;
const MSI_NOT_SUPPORTED: u16 = 1 << 3;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// Latencies that say that there are no such processor states (ACPI 6.5, 5.2.9).
const NO_C2_US: u16 = 101;
const NO_C3_US: u16 = 1001;

/// What the tables describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hardware {
    /// Number of vCPUs; APIC numbers start at 0.
    pub vcpus: u8,
    /// virtio-mmio devices.
    pub virtio_mmio: Vec<MmioDevice>,
    /// The serial console.
    pub serial: PortDevice,
    /// Power button and power-off.
    pub power: PowerRegisters,
    /// The port to which a guest reports a panic.
    pub panic_port: u16,
    /// The watchdog, if there is one.
    pub watchdog: Option<Watchdog>,
    /// Port and value that reset the machine.
    pub reset: (u8, u8),
}

/// A device in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// First address; below 4 GiB.
    pub base: u32,
    /// How many.
    pub bytes: u32,
    /// Its interrupt, edge-triggered.
    pub gsi: u32,
}

/// A device at I/O ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortDevice {
    /// First port.
    pub base: u16,
    /// How many.
    pub count: u8,
    /// Its interrupt, edge-triggered.
    pub gsi: u32,
}

/// ACPI's fixed hardware for power: how the guest learns that its button was pressed, and powers off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerRegisters {
    /// First port of the PM1 event registers (status, then enable).
    pub event_port: u16,
    /// How many ports they have.
    pub event_ports: u8,
    /// First port of the PM1 control register.
    pub control_port: u16,
    /// How many ports it has.
    pub control_ports: u8,
    /// The system control interrupt, level-triggered; one of the 16 of a PC.
    pub gsi: u32,
    /// The type of sleep that is soft off.
    pub sleep_type_off: u8,
}

/// An entry of the MADT: a PC's interrupt that is of another kind than its fellows (ACPI 6.5, 5.2.12.5).
#[repr(transparent)]
#[derive(Clone, IntoBytes, Immutable)]
struct SourceOverride([u8; 10]);

impl SourceOverride {
    const TYPE: u8 = 2;
    const ISA: u8 = 0;
    /// Active high, level-triggered.
    const LEVEL: u8 = 0b1101;

    /// Interrupt `gsi` of the IOAPIC is level-triggered, and that of the ISA bus with the same number.
    fn level(gsi: u32) -> Self {
        let [a, b, c, d] = gsi.to_le_bytes();
        Self([Self::TYPE, 10, Self::ISA, a, a, b, c, d, Self::LEVEL, 0])
    }
}

impl Aml for SourceOverride {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// Writes the tables; the root pointer is at [`TABLES_START`].
///
/// # Errors
/// If guest memory has no room for them.
pub(super) fn write(ram: &GuestRam, hardware: &Hardware) -> Result<(), BootError> {
    let bytes = tables(hardware);
    if bytes.len() as u64 > TABLES_END - TABLES_START {
        return Err(BootError::AcpiTooLong { bytes: bytes.len() });
    }
    ram.write_slice(&bytes, GuestAddress(TABLES_START))
        .map_err(|source| BootError::Write {
            what: "ACPI tables",
            source,
        })
}

/// All tables, to be placed at [`TABLES_START`].
fn tables(hardware: &Hardware) -> Vec<u8> {
    let mut bytes = vec![0; Rsdp::len().next_multiple_of(ALIGNMENT_BYTES)];
    let mut append = |table: &dyn Aml| {
        let at = TABLES_START + bytes.len() as u64;
        table.to_aml_bytes(&mut bytes);
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT_BYTES), 0);
        at
    };
    let dsdt = append(&dsdt(hardware));
    let facs = append(&FACS::new());
    let fadt = append(&fadt(hardware, dsdt, facs));
    let madt = append(&madt(hardware.vcpus, hardware.power.gsi));
    let wdat = (hardware.watchdog.as_ref()).map(|watchdog| append(&wdat::table(watchdog)));
    let mut root = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    root.add_entry(fadt);
    root.add_entry(madt);
    if let Some(wdat) = wdat {
        root.add_entry(wdat);
    }
    let root = append(&root);
    let mut pointer = Vec::new();
    Rsdp::new(OEM_ID, root).to_aml_bytes(&mut pointer);
    bytes[..pointer.len()].copy_from_slice(&pointer);
    bytes
}

fn fadt(hardware: &Hardware, dsdt: u64, facs: u64) -> impl Aml + use<> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_64(facs)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::ResetRegSup)
        // These two say what is no fixed hardware. That the power button is, is said by leaving its flag out.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc);
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | MSI_NOT_SUPPORTED | CMOS_RTC_NOT_PRESENT).into();
    // Without a port by which a system asks for it, ACPI is always on.
    fadt.smi_cmd = 0.into();
    let power = &hardware.power;
    fadt.sci_int = (power.gsi as u16).into();
    fadt.pm1a_evt_blk = u32::from(power.event_port).into();
    fadt.pm1_evt_len = power.event_ports;
    fadt.pm1a_cnt_blk = u32::from(power.control_port).into();
    fadt.pm1_cnt_len = power.control_ports;
    fadt.p_lvl2_lat = NO_C2_US.into();
    fadt.p_lvl3_lat = NO_C3_US.into();
    let (reset_port, reset_value) = hardware.reset;
    let byte = AccessSize::ByteAccess;
    fadt.reset_reg = GAS::new(AddressSpace::SystemIo, 8, 0, byte, reset_port.into());
    fadt.reset_value = reset_value;
    fadt.finalize()
}

fn madt(vcpus: u8, system_control_gsi: u32) -> MADT {
    let lapic = LocalInterruptController::Address(LAPIC_ADDRESS);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for vcpu in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(vcpu, vcpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC_ADDRESS, 0));
    madt.add_structure(SourceOverride::level(system_control_gsi));
    madt
}

fn dsdt(hardware: &Hardware) -> Encoded {
    let mut devices = Vec::new();
    for (number, device) in hardware.virtio_mmio.iter().enumerate() {
        virtio_mmio(number as u8, device, &mut devices);
    }
    serial(&hardware.serial, &mut devices);
    panic_port(hardware.panic_port, &mut devices);
    let mut aml = Scope::raw(Path::new("\\_SB_"), devices);
    let off = Package::new(vec![&hardware.power.sleep_type_off, &0u8]);
    Name::new(Path::new("\\_S5_"), &off).to_aml_bytes(&mut aml);
    encode(*b"DSDT", DSDT_REVISION, &aml)
}

fn virtio_mmio(number: u8, mmio: &MmioDevice, into: &mut Vec<u8>) {
    let uid = Name::new(Path::new("_UID"), &number);
    let coherent = Name::new(Path::new("_CCA"), &1u8);
    let memory = Memory32Fixed::new(true, mmio.base, mmio.bytes);
    let name = format!("VR{number:02X}");
    let further: [&dyn Aml; 2] = [&uid, &coherent];
    device(
        &name,
        &"LNRO0005",
        &further,
        vec![&memory, &edge(mmio.gsi)],
        into,
    );
}

fn serial(serial: &PortDevice, into: &mut Vec<u8>) {
    let uid = Name::new(Path::new("_UID"), &0u8);
    let ports = IO::new(serial.base, serial.base, 1, serial.count);
    let hid = EISAName::new("PNP0501");
    device("COM1", &hid, &[&uid], vec![&ports, &edge(serial.gsi)], into);
}

fn panic_port(port: u16, into: &mut Vec<u8>) {
    let present = Name::new(Path::new("_STA"), &0x0fu8);
    let port = IO::new(port, port, 1, 1);
    device("PVPN", &"QEMU0001", &[&present], vec![&port], into);
}

/// A device by its hardware ID, with further properties and the resources it uses.
fn device(
    name: &str,
    hid: &dyn Aml,
    further: &[&dyn Aml],
    resources: Vec<&dyn Aml>,
    into: &mut Vec<u8>,
) {
    let hid = Name::new(Path::new("_HID"), hid);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources));
    let mut content: Vec<&dyn Aml> = vec![&hid];
    content.extend(further);
    content.push(&resources);
    Device::new(Path::new(name), content).to_aml_bytes(into);
}

/// An edge-triggered interrupt, active high, not shared.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardware(vcpus: u8, devices: u32) -> Hardware {
        Hardware {
            vcpus,
            virtio_mmio: (0..devices)
                .map(|number| MmioDevice {
                    base: 0xd000_0000 + number * 0x1000,
                    bytes: 0x1000,
                    gsi: 5 + number,
                })
                .collect(),
            serial: PortDevice {
                base: 0x3f8,
                count: 8,
                gsi: 4,
            },
            power: PowerRegisters {
                event_port: 0x600,
                event_ports: 4,
                control_port: 0x604,
                control_ports: 2,
                gsi: 3,
                sleep_type_off: 5,
            },
            panic_port: 0x505,
            watchdog: Some(Watchdog {
                stop_port: 0x441,
                count_port: 0x444,
                run_port: 0x445,
                tick_ms: 500,
                ticks_max: 240,
            }),
            reset: (0x64, 0xfe),
        }
    }

    struct Tables(Vec<u8>);

    impl Tables {
        fn u32_at(&self, at: usize) -> u32 {
            u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
        }

        /// Where the table is to which the address at `at` points.
        fn pointer_at(&self, at: usize) -> usize {
            let address = u64::from_le_bytes(self.0[at..at + 8].try_into().unwrap());
            assert_eq!(address % 64, 0);
            usize::try_from(address - TABLES_START).unwrap()
        }

        /// The table at `at`, its signature and sum checked.
        fn table(&self, at: usize, signature: &[u8; 4]) -> &[u8] {
            let table = &self.0[at..at + self.u32_at(at + 4) as usize];
            assert_eq!(&table[..4], signature);
            assert_eq!(sum(table), 0, "{signature:?}");
            table
        }

        fn find(&self, number: usize, signature: &[u8; 4]) -> &[u8] {
            let root = self.pointer_at(24);
            let entries = (self.table(root, b"XSDT").len() - 36) / 8;
            assert_eq!(entries, 3);
            self.table(self.pointer_at(root + 36 + number * 8), signature)
        }
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes
            .iter()
            .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
    }

    fn contains(table: &[u8], bytes: &[u8]) -> bool {
        table.windows(bytes.len()).any(|window| window == bytes)
    }

    #[test]
    fn every_table_is_found_from_the_root_and_sums_to_zero() {
        for (vcpus, devices) in [(1, 0), (2, 2), (16, 19)] {
            let tables = Tables(tables(&hardware(vcpus, devices)));
            assert!((tables.0.len() as u64) < TABLES_END - TABLES_START);
            assert_eq!(&tables.0[..8], b"RSD PTR ");
            assert_eq!(sum(&tables.0[..20]), 0);
            assert_eq!(sum(&tables.0[..36]), 0);
            let fadt = tables.find(0, b"FACP").as_ptr() as usize - tables.0.as_ptr() as usize;
            tables.table(tables.pointer_at(fadt + 140), b"DSDT");
            // The one without a sum.
            let facs = tables.pointer_at(fadt + 132);
            assert_eq!(&tables.0[facs..facs + 8], b"FACS\x40\0\0\0");
            tables.find(1, b"APIC");
            tables.find(2, b"WDAT");
        }
    }

    /// Offsets as in ACPI 6.5, 5.2.9.
    #[test]
    fn the_fadt_says_where_the_power_button_is_and_how_to_end() {
        let tables = Tables(tables(&hardware(1, 1)));
        let fadt = tables.find(0, b"FACP");
        let number = |at: usize| u32::from_le_bytes(fadt[at..at + 4].try_into().unwrap());
        let flags = number(112);
        assert_eq!(flags & 1 << 20, 0, "not hardware-reduced");
        assert_eq!(flags & 1 << 4, 0, "the power button is fixed hardware");
        assert_ne!(flags & 1 << 5, 0, "a sleep button is not");
        assert_ne!(flags & 1 << 6, 0, "nor is the clock's alarm");
        assert_ne!(flags & 1 << 10, 0, "reset register");
        assert_eq!(fadt[46..48], [3, 0], "the interrupt");
        assert_eq!(number(48), 0, "ACPI is always on");
        assert_eq!((number(56), fadt[88]), (0x600, 4), "events");
        assert_eq!((number(64), fadt[89]), (0x604, 2), "control");
        assert_eq!((number(76), fadt[91]), (0, 0), "no timer");
        assert_eq!((number(80), number(84)), (0, 0), "no further events");
        assert_eq!(fadt[116..122], [1, 8, 0, 1, 0x64, 0]);
        assert_eq!(fadt[128], 0xfe);
    }

    #[test]
    fn the_madt_has_every_vcpu_the_ioapic_and_the_kind_of_the_control_interrupt() {
        let tables = Tables(tables(&hardware(3, 0)));
        let entries = &tables.find(1, b"APIC")[44..];
        for vcpu in 0..3u8 {
            let at = usize::from(vcpu) * 8;
            assert_eq!(entries[at..at + 8], [0, 8, vcpu, vcpu, 1, 0, 0, 0]);
        }
        let (ioapic, overrides) = entries[24..].split_at(12);
        assert_eq!(ioapic, [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
        // Interrupt 3 of the ISA bus is interrupt 3, level-triggered and active high.
        assert_eq!(overrides, [2, 10, 0, 3, 3, 0, 0, 0, 0b1101, 0]);
    }

    /// Offsets as in Microsoft's "Hardware Watchdog Timers Design Specification".
    #[test]
    fn the_wdat_says_how_to_drive_the_watchdog() {
        let tables = Tables(tables(&hardware(1, 0)));
        let wdat = tables.find(2, b"WDAT");
        let number = |at: usize| u32::from_le_bytes(wdat[at..at + 4].try_into().unwrap());
        assert_eq!(number(36), 32, "bytes of the header");
        assert_eq!(wdat[40..45], [0xff, 0, 0xff, 0xff, 0xff], "not on PCI");
        assert_eq!((number(48), number(52), number(56)), (500, 240, 1));
        assert_eq!(wdat[60], 1, "enabled");
        let entries: Vec<&[u8]> = wdat[68..].chunks(24).collect();
        assert_eq!(number(64) as usize, entries.len());
        // Action, instruction, port: start, stop, feed, set and get the count, whether it runs or not.
        let said: Vec<_> = entries.iter().map(|e| (e[0], e[1], e[8])).collect();
        let expected = [
            (9, 2, 0x45),
            (11, 2, 0x41),
            (1, 2, 0x45),
            (6, 3, 0x44),
            (4, 1, 0x44),
            (8, 0, 0x45),
            (10, 0, 0x45),
        ];
        assert_eq!(said, expected);
        for entry in entries {
            assert_eq!(entry[2..8], [0, 0, 1, 8, 0, 1], "a byte-wide port");
            assert_eq!(entry[20..], [0xff, 0, 0, 0], "all of it");
        }
    }

    /// Encodings as in ACPI 6.5, 6.4.
    #[test]
    fn the_dsdt_has_every_device() {
        let tables = Tables(tables(&hardware(1, 2)));
        let fadt = tables.find(0, b"FACP");
        let address = u64::from_le_bytes(fadt[140..148].try_into().unwrap());
        let dsdt = tables.table((address - TABLES_START) as usize, b"DSDT");
        for (name, base, gsi) in [(b"VR00", 0xd000_0000u32, 5), (b"VR01", 0xd000_1000, 6)] {
            assert!(contains(dsdt, name));
            let mut resources = vec![0x86, 9, 0, 1];
            resources.extend(base.to_le_bytes());
            resources.extend(0x1000u32.to_le_bytes());
            resources.extend([0x89, 6, 0, 0b0011, 1, gsi, 0, 0, 0]);
            assert!(contains(dsdt, &resources), "{name:?}");
        }
        assert!(contains(dsdt, b"LNRO0005"));
        let serial = [0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8, 0x89, 6, 0, 0b0011, 1, 4];
        assert!(contains(dsdt, &serial));
        assert!(contains(dsdt, b"_S5_\x12\x05\x02\x0a\x05\x00"));
        assert!(contains(dsdt, b"QEMU0001"));
        assert!(contains(dsdt, &[0x47, 1, 0x05, 5, 0x05, 5, 1, 1]));
        // The button is fixed hardware, not a device.
        assert!(!contains(dsdt, b"PWRB") && !contains(dsdt, b"ACPI0013"));
    }
}
