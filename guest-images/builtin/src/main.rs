#![no_std]
#![no_main]
//! The built-in guest.

mod machine;

use machine::{apic, boot::BootParams, clock};

#[unsafe(no_mangle)]
extern "C" fn guest_main(boot_params: usize, vcpu: usize) -> ! {
    apic::enable();
    if vcpu != 0 {
        log!("vcpu {vcpu} up, now={}", clock::now_ns(vcpu));
        loop {
            machine::wait_for_interrupt();
            machine::take_pending(vcpu);
        }
    }
    // SAFETY: entry.s passes on what the machine was entered with.
    let boot = unsafe { BootParams::new(boot_params) };
    log!("understudy guest {} command line: {}", env!("CARGO_PKG_VERSION"), boot.command_line());
    log!("ram end {:#x} kvmclock {}", boot.ram_end(0x200000), clock::is_present(0));
    apic::start(1);
    for _ in 0..2000 {
        apic::set_timer(Some(1_000_000));
        machine::wait_for_interrupt();
        let p = machine::take_pending(0);
        let now = clock::now_ns(0);
        if now % 200_000_000 < 2_000_000 { log!("pending {p:#x} now {}", now); }
    }
    machine::shut_down()
}
