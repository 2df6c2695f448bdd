//! What fails on a primary's host from outside: memory that KVM cannot reach any more, and a vCPU that does not stop.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use understudy_vmm::local_cluster::VmmProcess;

use crate::support::{DEADLINE, TestCluster, await_code, turn, wait_for};
use crate::tracing::{Stopped, thread_named};

const PAGE_BYTES: usize = 4096;

/// What the kernel would do with the pages of the guest's code after its memory has failed: they are there no more. KVM
/// answers `EFAULT` as soon as the guest runs; nobody else reads or writes them.
fn take_code_of_guest(host: &VmmProcess) {
    let code = code_of_guest();
    let address = wait_for("the guest's code in memory", || find(host, &code)) as u64;
    let mut thread = Stopped::new(thread_named(host, "vmm"));
    let result = thread.call(
        nix::libc::SYS_mprotect,
        [
            address,
            code.len().next_multiple_of(PAGE_BYTES) as u64,
            nix::libc::PROT_NONE as u64,
        ],
    );
    assert_eq!(result, 0, "mprotect");
}

/// The segment of the built-in guest that is executed and not written.
fn code_of_guest() -> Vec<u8> {
    const READ_EXECUTE: u32 = 5;
    let image = understudy_guest_images::BUILTIN;
    let field = |at: usize, bytes: usize| {
        let value = image[at..at + bytes].iter().rev();
        value.fold(0, |value, byte| value << 8 | usize::from(*byte))
    };
    // ELF64: the header says where the program headers are, their size and number.
    let (first, size, number) = (field(32, 8), field(54, 2), field(56, 2));
    let mut headers = (0..number).map(|number| first + number * size);
    let header = headers.find(|at| field(at + 4, 4) == READ_EXECUTE as usize);
    let header = header.expect("the guest has code");
    let (offset, bytes) = (field(header + 8, 8), field(header + 32, 8));
    image[offset..offset + bytes].to_vec()
}

/// Where the pages `wanted` are in memory that the process has from nobody else.
fn find(host: &VmmProcess, wanted: &[u8]) -> Option<usize> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", host.pid())).unwrap();
    let memory = File::open(format!("/proc/{}/mem", host.pid())).unwrap();
    let mut page = vec![0; PAGE_BYTES];
    let mut whole = vec![0; wanted.len()];
    maps.lines()
        .filter(|line| line.contains(" 00:00 0"))
        .find_map(|line| {
            let (range, _) = line.split_once(' ')?;
            let (begin, end) = range.split_once('-')?;
            let [begin, end] = [begin, end].map(|at| usize::from_str_radix(at, 16).unwrap());
            (begin..end).step_by(PAGE_BYTES).find(|at| {
                let is_at = |found: &mut Vec<u8>| {
                    memory.read_exact_at(found, *at as u64).is_ok() && wanted.starts_with(found)
                };
                is_at(&mut page) && is_at(&mut whole)
            })
        })
}

#[test]
fn a_guest_that_kvm_cannot_run_any_more_goes_on_at_the_standby_and_ends_if_it_happens_there_too() {
    let _turn = turn();
    let mut cluster = TestCluster::start();
    take_code_of_guest(&cluster.local.primary);
    let log = await_code(&mut cluster.local.primary, 3);
    assert!(log.contains("KVM_RUN: Bad address"), "{log}");
    cluster.local.await_promotion(DEADLINE).unwrap();
    cluster.await_progress("clients of the guest whose machine broke");
    cluster.assert_exact();

    take_code_of_guest(&cluster.local.standby);
    let log = await_code(&mut cluster.local.standby, 1);
    assert!(log.contains("it is the guest that breaks them"), "{log}");
}

#[test]
fn a_guest_whose_vcpu_does_not_stop_any_more_goes_on_at_the_standby() {
    let _turn = turn();
    let mut cluster = TestCluster::start();
    let mut vcpu = Stopped::new(thread_named(&cluster.local.primary, "vcpu0"));
    // It is left behind, and goes with its process.
    wait_for("the end of the primary", || {
        vcpu.is_gone();
        cluster.local.primary.await_exit(Duration::ZERO).ok()
    });
    let log = await_code(&mut cluster.local.primary, 3);
    let told = "has not let the guest be captured";
    assert!(log.contains(told), "{log}");
    cluster.local.await_promotion(DEADLINE).unwrap();
    cluster.await_progress("clients of the guest whose machine hung");
    cluster.assert_exact();
}
