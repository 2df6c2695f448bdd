//! How a guest is told about its virtio devices.

use super::*;

#[test]
fn devices_are_told_by_acpi_or_by_the_command_line_and_never_by_both() {
    for (discovery, by_acpi) in [(Discovery::Acpi, true), (Discovery::CommandLine, false)] {
        let machine = Machine::build(MachineConfig {
            discovery,
            rng: true,
            ..config(COUNTING)
        })
        .unwrap();
        let in_tables = machine.hardware().virtio_mmio.len();
        let words = machine.cmdline().matches("virtio_mmio.device=").count();
        let expected = if by_acpi { (1, 0) } else { (0, 1) };
        assert_eq!((in_tables, words), expected, "{discovery:?}");
    }
}
