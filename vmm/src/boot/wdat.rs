//! The ACPI table `WDAT`. It lists the port accesses for each action, so that a generic driver can drive the
//! watchdog (Microsoft's "Hardware Watchdog Timers Design Specification", to which ACPI refers).
//!
//! What must not be done here: know more of the watchdog than its ports.

use acpi_tables::Aml;
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::table::{Encoded, encode};

const REVISION: u8 = 1;
/// Size of the watchdog's own header, behind the table's.
const WATCHDOG_HEADER_BYTES: u32 = 32;
/// "Not on a PCI bus", in each field of a PCI address. Linux expects exactly this in the 16-bit field, too.
const NOT_ON_PCI: u8 = 0xff;
const ENABLED: u8 = 1;
const TICKS_MIN: u32 = 1;
const WHOLE_REGISTER: u32 = 0xff;

/// What a driver can do with the watchdog.
#[derive(Debug, Clone, Copy)]
enum Action {
    Feed = 1,
    GetTicksLeft = 4,
    SetTicks = 6,
    IsRunning = 8,
    Start = 9,
    IsStopped = 10,
    Stop = 11,
}

/// What an access does.
#[derive(Debug, Clone, Copy)]
enum Instruction {
    /// Reads the port and compares with the value.
    ReadValue = 0,
    ReadCount = 1,
    WriteValue = 2,
    WriteCount = 3,
}

/// A watchdog at I/O ports, each a byte wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watchdog {
    /// Writing stops it.
    pub stop_port: u16,
    /// Written: the ticks after a start. Read: the ticks left.
    pub count_port: u16,
    /// Writing 1 starts or restarts it; reads as 1 while it runs.
    pub run_port: u16,
    /// A tick, in milliseconds.
    pub tick_ms: u16,
    /// Most ticks.
    pub ticks_max: u8,
}

/// The table.
pub(super) fn table(watchdog: &Watchdog) -> Encoded {
    let (stop, count, run) = (watchdog.stop_port, watchdog.count_port, watchdog.run_port);
    let entries = [
        (Action::Start, Instruction::WriteValue, run, 1),
        (Action::Stop, Instruction::WriteValue, stop, 0),
        (Action::Feed, Instruction::WriteValue, run, 1),
        (Action::SetTicks, Instruction::WriteCount, count, 0),
        (Action::GetTicksLeft, Instruction::ReadCount, count, 0),
        (Action::IsRunning, Instruction::ReadValue, run, 1),
        (Action::IsStopped, Instruction::ReadValue, run, 0),
    ];
    let mut bytes = Vec::new();
    bytes.extend(WATCHDOG_HEADER_BYTES.to_le_bytes());
    // PCI segment, bus, device, function; reserved.
    bytes.extend(u16::from(NOT_ON_PCI).to_le_bytes());
    bytes.extend([NOT_ON_PCI, NOT_ON_PCI, NOT_ON_PCI, 0, 0, 0]);
    bytes.extend(u32::from(watchdog.tick_ms).to_le_bytes());
    bytes.extend(u32::from(watchdog.ticks_max).to_le_bytes());
    bytes.extend(TICKS_MIN.to_le_bytes());
    bytes.extend([ENABLED, 0, 0, 0]);
    bytes.extend((entries.len() as u32).to_le_bytes());
    for (action, instruction, port, value) in entries {
        bytes.extend([action as u8, instruction as u8, 0, 0]);
        let byte = AccessSize::ByteAccess;
        GAS::new(AddressSpace::SystemIo, 8, 0, byte, port.into()).to_aml_bytes(&mut bytes);
        bytes.extend(u32::to_le_bytes(value));
        bytes.extend(WHOLE_REGISTER.to_le_bytes());
    }
    encode(*b"WDAT", REVISION, &bytes)
}
