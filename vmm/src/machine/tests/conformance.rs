//! A machine on real KVM keeps the contract of the ports.

use understudy_replication::conformance::check;

use super::*;

#[test]
fn a_machine_keeps_the_contract_of_the_ports() {
    // The first word that this guest writes counts its rounds.
    let rounds = |memory: &dyn PageMemory| {
        let mut page: Page = [0; PAGE_BYTES];
        memory.read_page(PageIndex(0x200), &mut page).unwrap();
        u64::from_le_bytes(page[..8].try_into().unwrap())
    };
    check(|| rig(DIRTYING).machine, rounds).unwrap();
}
