//! The smallest VMM is killed, and what its guest says goes on without loss or repetition.
//!
//! Each host is this test's own program, started once more with a role.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

#[path = "../examples/tiny_vmm.rs"]
mod tiny_vmm;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use understudy_replication::ports::PageMemory;
use understudy_replication::{PAGE_BYTES, PageIndex, conformance};

/// Only a failure waits that long.
const PATIENCE: Duration = Duration::from_secs(60);
const ROLE: &str = "TINY_VMM_ROLE";
const DIRECTORY: &str = "TINY_VMM_DIRECTORY";

struct Host(Child);

impl Host {
    fn start(role: &str, directory: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "is_a_host", "--nocapture"])
            .env(ROLE, role)
            .env(DIRECTORY, directory)
            .stdout(Stdio::piped())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SIGKILL: nothing is said, closed or written.
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Not a test of its own: the program of each host.
#[test]
fn is_a_host() {
    if let (Ok(role), Ok(directory)) = (std::env::var(ROLE), std::env::var(DIRECTORY)) {
        tiny_vmm::host(&role, directory.as_ref()).unwrap();
    }
}

/// Waits until the guest has said so many lines; all but one that is being written.
fn await_lines(directory: &Path, lines: usize) -> Vec<u32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read_to_string(directory.join("output")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let said: Vec<u32> = whole.lines().map(|line| line.parse().unwrap()).collect();
        if said.len() >= lines {
            return said;
        }
        assert!(Instant::now() < deadline, "only {} lines", said.len());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_smallest_machine_keeps_the_contract_of_the_ports() {
    let directory = tempfile::tempdir().unwrap();
    let new = || {
        let output = File::create(directory.path().join("output")).unwrap();
        tiny_vmm::Vm::new(output).unwrap()
    };
    let count = |memory: &dyn PageMemory| {
        let mut page = [0; PAGE_BYTES];
        memory.read_page(PageIndex(2), &mut page).unwrap();
        u64::from_le_bytes(page[..8].try_into().unwrap())
    };
    conformance::check(new, count).unwrap();
}

#[test]
fn what_the_guest_says_goes_on_exactly_after_its_host_was_killed() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let standby = Host::start("standby", directory);
    let deadline = Instant::now() + PATIENCE;
    while !directory.join("link").exists() {
        assert!(Instant::now() < deadline, "the standby does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut primary = Host::start("primary", directory);
    let stdout = BufReader::new(primary.0.stdout.take().unwrap());
    let protected = stdout
        .lines()
        .map_while(Result::ok)
        .any(|line| line.ends_with("Protected"));
    assert!(protected, "the primary ended");
    let said = await_lines(directory, 1).len();
    let before = await_lines(directory, said + 200).len();
    drop(primary);
    let said = await_lines(directory, before + 500);
    let expected: Vec<u32> = (1..=said.len() as u32).collect();
    assert_eq!(said, expected);
    drop(standby);
}
