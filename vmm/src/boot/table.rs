//! Puts an ACPI header, with its names and checksum, in front of a table's body.
//!
//! What must not be done here: know what a table says.

use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

pub(super) const OEM_ID: [u8; 6] = *b"UNDSTD";
pub(super) const OEM_TABLE_ID: [u8; 8] = *b"UNDRSTDY";
pub(super) const OEM_REVISION: u32 = 1;
const HEADER_BYTES: u32 = 36;

/// A finished table.
pub(super) struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The table with `body` behind its header.
pub(super) fn encode(signature: [u8; 4], revision: u8, body: &[u8]) -> Encoded {
    let mut table = Sdt::new(
        signature,
        HEADER_BYTES,
        revision,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(body);
    Encoded(table.as_slice().to_vec())
}
