//! A machine's saved state.
#![no_main]

use libfuzzer_sys::fuzz_target;
use understudy_vmm::machine::MachineState;

fuzz_target!(|bytes: &[u8]| {
    let _ = MachineState::decode(bytes);
});
