//! ACPI tables: where a Linux guest finds vCPUs, interrupt controller and devices, and how it ends itself.
//!
//! This is hardware-reduced ACPI (6.5): the only fixed hardware is the sleep and reset registers. The tables lie
//! below 1 MiB, in the place of a PC's BIOS. The root pointer comes first.
//!
//! | table | says |
//! | --- | --- |
//! | RSDP, XSDT | where the others are |
//! | FADT | how to power off and reset; what of a PC is missing |
//! | MADT | vCPUs, IOAPIC |
//! | WDAT | how to drive the watchdog (`wdat.rs`) |
//! | DSDT | virtio-mmio devices (`LNRO0005`), serial port (`PNP0501`), panic port (`QEMU0001`), power button (`PNP0C0C`, told of by the event device `ACPI0013`), power-off (`_S5`) |
//!
//! What must not be done here: know more of a device than where it is.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO,
    If, Interrupt, Memory32Fixed, Method, Name, Notify, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress};

use super::table::{Encoded, OEM_ID, OEM_REVISION, OEM_TABLE_ID, encode};
use super::wdat::{self, Watchdog};
use super::{BootError, bios};
use crate::memory::GuestRam;

/// Where the tables begin, with the root pointer. Linux looks here even if nobody tells it to.
pub(super) const TABLES_START: u64 = 0xe_0000;
/// The tables end before this.
pub(super) const TABLES_END: u64 = bios::RESET_VECTOR;
/// Alignment of each table.
const ALIGNMENT_BYTES: usize = 16;

const DSDT_REVISION: u8 = 6;

/// Where KVM puts the interrupt controllers.
const LAPIC_ADDRESS: u32 = 0xfee0_0000;
const IOAPIC_ADDRESS: u32 = 0xfec0_0000;

/// Bits of the FADT's IA-PC boot flags.
const VGA_NOT_PRESENT: u16 = 1 << 2;
const MSI_NOT_SUPPORTED: u16 = 1 << 3;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// The notification for a pressed button (ACPI 6.5, 4.8.2.2.1.2).
const BUTTON_PRESSED: u8 = 0x80;

/// What the tables describe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hardware {
    /// Number of vCPUs; APIC numbers start at 0.
    pub vcpus: u8,
    /// virtio-mmio devices.
    pub virtio_mmio: Vec<MmioDevice>,
    /// The serial console.
    pub serial: PortDevice,
    /// The power button.
    pub button: ButtonRegister,
    /// The port to which a guest reports a panic.
    pub panic_port: u16,
    /// The watchdog, if there is one.
    pub watchdog: Option<Watchdog>,
    /// First of the two sleep registers (control, status).
    pub sleep_port: u16,
    /// The type of sleep that is soft off.
    pub sleep_type_off: u8,
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

/// How the guest learns that its power button was pressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ButtonRegister {
    /// The register; reading clears it.
    pub port: u16,
    /// Its bit for the button.
    pub pressed: u8,
    /// Raised when there is something to read, edge-triggered.
    pub gsi: u32,
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
    let fadt = append(&fadt(hardware, dsdt));
    let madt = append(&madt(hardware.vcpus));
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

fn fadt(hardware: &Hardware, dsdt: u64) -> impl Aml + use<> {
    let port = |port: u16| {
        let byte = AccessSize::ByteAccess;
        GAS::new(AddressSpace::SystemIo, 8, 0, byte, port.into())
    };
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // The flags say that neither button is fixed hardware.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | MSI_NOT_SUPPORTED | CMOS_RTC_NOT_PRESENT).into();
    fadt.sleep_control_reg = port(hardware.sleep_port);
    fadt.sleep_status_reg = port(hardware.sleep_port + 1);
    let (reset_port, reset_value) = hardware.reset;
    fadt.reset_reg = port(reset_port.into());
    fadt.reset_value = reset_value;
    fadt.finalize()
}

fn madt(vcpus: u8) -> MADT {
    let lapic = LocalInterruptController::Address(LAPIC_ADDRESS);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for vcpu in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(vcpu, vcpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC_ADDRESS, 0));
    madt
}

fn dsdt(hardware: &Hardware) -> Encoded {
    let mut devices = Vec::new();
    for (number, device) in hardware.virtio_mmio.iter().enumerate() {
        virtio_mmio(number as u8, device, &mut devices);
    }
    serial(&hardware.serial, &mut devices);
    panic_port(hardware.panic_port, &mut devices);
    power_button(&hardware.button, &mut devices);
    let mut aml = Scope::raw(Path::new("\\_SB_"), devices);
    let off = Package::new(vec![&hardware.sleep_type_off, &0u8]);
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

/// The button, and the event device, which reads the register after an interrupt and notifies the button.
fn power_button(button: &ButtonRegister, into: &mut Vec<u8>) {
    let hid = EISAName::new("PNP0C0C");
    Device::new(Path::new("PWRB"), vec![&Name::new(Path::new("_HID"), &hid)]).to_aml_bytes(into);
    let interrupt = edge(button.gsi);
    Device::new(
        Path::new("GED_"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt])),
            &OpRegion::new(
                Path::new("EVTR"),
                OpRegionSpace::SystemIO,
                &button.port,
                &1u8,
            ),
            &Field::new(
                Path::new("EVTR"),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::Preserve,
                vec![FieldEntry::Named(*b"EVTS", 8)],
            ),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![&If::new(
                    &And::new(&ZERO, &Path::new("EVTS"), &button.pressed),
                    vec![&Notify::new(&Path::new("\\_SB_.PWRB"), &BUTTON_PRESSED)],
                )],
            ),
        ],
    )
    .to_aml_bytes(into);
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
            button: ButtonRegister {
                port: 0x604,
                pressed: 1,
                gsi: 3,
            },
            panic_port: 0x505,
            watchdog: Some(Watchdog {
                stop_port: 0x441,
                count_port: 0x444,
                run_port: 0x445,
                tick_ms: 500,
                ticks_max: 240,
            }),
            sleep_port: 0x600,
            sleep_type_off: 5,
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
            assert_eq!(address % 16, 0);
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
            tables.find(1, b"APIC");
            tables.find(2, b"WDAT");
        }
    }

    /// Offsets as in ACPI 6.5, 5.2.9.
    #[test]
    fn the_fadt_says_how_to_end() {
        let tables = Tables(tables(&hardware(1, 1)));
        let fadt = tables.find(0, b"FACP");
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_ne!(flags & 1 << 20, 0, "hardware-reduced");
        assert_ne!(flags & 1 << 10, 0, "reset register");
        let port = |at: usize| (fadt[at], fadt[at + 1], fadt[at + 4], fadt[at + 5]);
        assert_eq!(port(116), (1, 8, 0x64, 0));
        assert_eq!(fadt[128], 0xfe);
        assert_eq!(port(244), (1, 8, 0x00, 6));
        assert_eq!(port(256), (1, 8, 0x01, 6));
    }

    #[test]
    fn the_madt_has_every_vcpu_and_the_ioapic() {
        let tables = Tables(tables(&hardware(3, 0)));
        let entries = &tables.find(1, b"APIC")[44..];
        for vcpu in 0..3u8 {
            let at = usize::from(vcpu) * 8;
            assert_eq!(entries[at..at + 8], [0, 8, vcpu, vcpu, 1, 0, 0, 0]);
        }
        assert_eq!(entries[24..], [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
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
        // The button, and the event device: interrupt 3, a byte at port 0x604, and what it does.
        assert!(contains(dsdt, b"PWRB\x08_HID\x0c\x41\xd0\x0c\x0c"));
        assert!(contains(dsdt, b"ACPI0013"));
        assert!(contains(dsdt, &[0x89, 6, 0, 0b0011, 1, 3, 0, 0, 0]));
        assert!(contains(dsdt, b"\x5b\x80EVTR\x01\x0b\x04\x06\x01"));
        assert!(contains(dsdt, b"\x5b\x81\x0bEVTR\x01EVTS\x08"));
        let body = b"\x14\x1c_EVT\x09\xa0\x15\x7bEVTS\x01\x00\x86\x5c\x2e_SB_PWRB\x0a\x80";
        assert!(contains(dsdt, body));
    }
}
