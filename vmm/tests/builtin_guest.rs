//! The built-in guest on real KVM: booted, copied while it runs, and gone on with in another machine.
//!
//! Without a usable `/dev/kvm` these tests fail; there is nothing to be had instead.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use understudy_replication::ids::Page;
use understudy_replication::output::ConsoleSink;
use understudy_replication::ports::{Machine as _, PageMemory};
use understudy_replication::{PAGE_BYTES, PageSet};
use understudy_vmm::boot::BootProtocol;
use understudy_vmm::devices::virtio::net::backend::socket;
use understudy_vmm::machine::{
    Console, Discovery, DriveConfig, DriveKind, Kernel, Machine, MachineConfig, MachineEvent,
    NetBackend, NetConfig, OnError, Opened,
};
use understudy_vmm::memory::Memory;
use understudy_workload::disk::{self, BLOCK_BYTES, BadBlock};

/// How long a test waits for what must come. Only a broken machine makes it wait that long.
const DEADLINE: Duration = Duration::from_secs(60);

/// Hands out a console line by line.
struct Lines {
    rest: Vec<u8>,
    position: u64,
    out: Sender<String>,
}

impl ConsoleSink for Lines {
    fn position(&mut self) -> std::io::Result<Option<u64>> {
        Ok(None)
    }

    fn append(&mut self, position: u64, bytes: &[u8]) -> std::io::Result<()> {
        if self.position != 0 {
            assert_eq!(position, self.position, "console bytes are in one piece");
        }
        self.position = position + bytes.len() as u64;
        for byte in bytes {
            if *byte == b'\n' {
                let line = String::from_utf8_lossy(&self.rest).trim_end().to_owned();
                self.rest.clear();
                // The test may be over already.
                let _ = self.out.send(line);
            } else {
                self.rest.push(*byte);
            }
        }
        Ok(())
    }
}

fn console() -> (Console, Receiver<String>) {
    let (out, lines) = channel();
    let sink = Lines {
        rest: Vec::new(),
        position: 0,
        out,
    };
    (Console::Open(Opened::new(Box::new(sink))), lines)
}

fn await_line(lines: &Receiver<String>, part: &str) -> String {
    let started = Instant::now();
    loop {
        let left = DEADLINE.saturating_sub(started.elapsed());
        let line = lines
            .recv_timeout(left)
            .unwrap_or_else(|_| panic!("the guest never says {part:?}"));
        if line.contains(part) {
            return line;
        }
        for bad in ["fatal", "panic", "BAD"] {
            assert!(!line.contains(bad), "{line}");
        }
    }
}

fn config(vcpus: u8, memory_mib: u64, cmdline: &str) -> MachineConfig {
    MachineConfig {
        vcpus,
        memory_mib,
        kernel: Some(Kernel::Bytes(understudy_guest_images::BUILTIN.to_vec())),
        cmdline: cmdline.into(),
        discovery: Discovery::CommandLine,
        ..Default::default()
    }
}

/// The machine's events from now on.
fn events_of(machine: &Machine) -> Receiver<MachineEvent> {
    let (sender, events) = channel();
    machine.on_event(move |event| {
        // The test may have seen enough.
        let _ = sender.send(event.clone());
    });
    events
}

/// A network device whose other end is in the test's hands.
fn network() -> (Vec<NetConfig>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    let net = NetConfig {
        id: "net0".into(),
        mac: [0x52, 0x54, 0, 0, 0, 2],
        backend: NetBackend::Open(Opened::new(socket::from_stream(theirs).unwrap())),
    };
    (vec![net], ours)
}

/// Asks the guest's network card who has 10.77.0.2, and waits for its answer.
fn arp(wire: &mut UnixStream) {
    let mut request = Vec::new();
    request.extend_from_slice(&[0xff; 6]);
    request.extend_from_slice(&[0x52, 0x54, 0, 0, 0, 1]);
    request.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend_from_slice(&[0x52, 0x54, 0, 0, 0, 1, 10, 77, 0, 1]);
    request.extend_from_slice(&[0, 0, 0, 0, 0, 0, 10, 77, 0, 2]);
    request.resize(60, 0);
    wire.write_all(&(request.len() as u32).to_be_bytes())
        .unwrap();
    wire.write_all(&request).unwrap();
    loop {
        let mut length = [0; 4];
        wire.read_exact(&mut length).expect("the guest answers");
        let mut frame = vec![0; u32::from_be_bytes(length) as usize];
        wire.read_exact(&mut frame).expect("the guest answers");
        // An ARP reply from 10.77.0.2; the guest may have other things to say.
        if frame[12..14] == [8, 6] && frame[21] == 2 && frame[28..32] == [10, 77, 0, 2] {
            return;
        }
    }
}

fn copy_memory(from: &Memory, to: &Memory, which: &PageSet) {
    let mut page: Page = [0; PAGE_BYTES];
    for index in which.iter() {
        from.pages().read_page(index, &mut page).unwrap();
        to.pages().write_page(index, &page).unwrap();
    }
}

/// Hands a running guest over to `second` and lets it run there.
fn hand_over(first: &mut Machine, second: &mut Machine) {
    let memory = first.guest_memory().clone();
    let mut state = Vec::new();
    let mut paused = first.pause_guest().unwrap();
    paused.save_state(&mut state).unwrap();
    paused.stay();
    drop(paused);
    let all = PageSet::full(memory.layout());
    copy_memory(&memory, second.guest_memory(), &all);
    assert_eq!(first.fingerprint().differences(&second.fingerprint()), []);
    second.restore(&state).unwrap();
    second.run().unwrap();
}

/// The number of a vCPU and of its iterations, from the guest's words.
fn progress(line: &str) -> (usize, u64) {
    let number = |key: &str| {
        let (_, after) = line.split_once(key).unwrap();
        after.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    (number("vcpu=") as usize, number("iterations="))
}

#[test]
fn four_vcpus_go_on_in_another_machine() {
    let cmdline = "workload=dirty dirty.pages=100 dirty.rate=50";
    let (sink, mut lines) = console();
    let mut first = Machine::build(MachineConfig {
        console: sink,
        ..config(4, 128, cmdline)
    })
    .unwrap();
    first.run().unwrap();
    // In whichever order they get ready.
    for _ in 0..4 {
        await_line(&lines, "ready: dirty vcpu=");
    }
    let mut reached = [0; 4];
    for _ in 0..3 {
        let (sink, further) = console();
        let mut second = Machine::build(MachineConfig {
            console: sink,
            kernel: None,
            ..config(4, 128, "")
        })
        .unwrap();
        let events = events_of(&second);
        hand_over(&mut first, &mut second);
        // Every vCPU works on, and none has done less than before.
        let mut heard = [false; 4];
        while heard != [true; 4] {
            let (vcpu, done) = progress(&await_line(&further, "iterations="));
            assert!(
                done > reached[vcpu],
                "vCPU {vcpu}: {done} after {}",
                reached[vcpu]
            );
            reached[vcpu] = done;
            heard[vcpu] = true;
        }
        assert!(events.try_recv().is_err(), "nothing went wrong");
        (first, lines) = (second, further);
    }
    drop(lines);
}

#[test]
fn other_machines_may_boot_the_guest_by_pvh() {
    let (sink, lines) = console();
    let mut machine = Machine::build(MachineConfig {
        console: sink,
        boot_protocol: BootProtocol::Pvh,
        ..config(2, 128, "workload=dirty dirty.pages=100 dirty.rate=50")
    })
    .unwrap();
    machine.run().unwrap();
    for _ in 0..2 {
        await_line(&lines, "ready: dirty vcpu=");
    }
}

#[test]
fn a_guest_is_reached_over_its_network_before_and_after() {
    let (sink, lines) = console();
    let (net, mut wire) = network();
    let mut first = Machine::build(MachineConfig {
        console: sink,
        net,
        ..config(1, 64, "workload=echo ip=10.77.0.2/24")
    })
    .unwrap();
    first.run().unwrap();
    await_line(&lines, "ready");
    (0..20).for_each(|_| arp(&mut wire));
    for _ in 0..3 {
        let (net, mut new_wire) = network();
        let mut second = Machine::build(MachineConfig {
            net,
            kernel: None,
            ..config(1, 64, "")
        })
        .unwrap();
        hand_over(&mut first, &mut second);
        (0..20).for_each(|_| arp(&mut new_wire));
        second.announce();
        // RARP, and ARP for the address that the guest's frames have told.
        let mut frame = [0; 64];
        new_wire.read_exact(&mut frame[..4]).unwrap();
        let length = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
        new_wire.read_exact(&mut frame[..length]).unwrap();
        assert_eq!(frame[12..14], [0x80, 0x35]);
        first = second;
    }
}

#[test]
fn losing_the_network_process_is_told() {
    let (net, wire) = network();
    let mut machine = Machine::build(MachineConfig {
        net,
        ..config(1, 64, "workload=echo ip=10.77.0.2/24")
    })
    .unwrap();
    let events = events_of(&machine);
    machine.run().unwrap();
    drop(wire);
    let event = events.recv_timeout(DEADLINE).unwrap();
    assert!(format!("{event:?}").contains("net0"), "{event:?}");
}

/// Steps ② and ③ against the truth, with all who write memory at work: two vCPUs, and a network card that
/// receives and sends.
#[test]
fn harvests_make_an_exact_copy_of_a_busy_guest() {
    for cmdline in [
        "workload=dirty,echo dirty.pages=300 ip=10.77.0.2/24",
        "workload=dirty,echo dirty.pages=3000 dirty.mode=word dirty.pattern=hotcold ip=10.77.0.2/24",
    ] {
        let (sink, lines) = console();
        let (net, mut wire) = network();
        let mut machine = Machine::build(MachineConfig {
            console: sink,
            net,
            ..config(2, 96, cmdline)
        })
        .unwrap();
        machine.run().unwrap();
        await_line(&lines, "ready: dirty vcpu=1");
        arp(&mut wire);
        let memory = machine.guest_memory().clone();
        let copy = Memory::allocate(96, Default::default()).unwrap();
        machine.start_tracking().unwrap();
        copy_memory(&memory, &copy, &PageSet::full(memory.layout()));
        for epoch in 0..12 {
            let mut dirty = PageSet::empty(memory.layout());
            // Part of the work with the guest running, as the initial synchronisation does it.
            machine.harvest_running(&mut dirty).unwrap();
            arp(&mut wire);
            let mut paused = machine.pause_guest().unwrap();
            paused.harvest_pages(&mut dirty).unwrap();
            copy_memory(&memory, &copy, &dirty);
            let mut state = Vec::new();
            paused.save_state(&mut state).unwrap();
            let different: Vec<_> = PageSet::full(memory.layout())
                .iter()
                .filter(|index| {
                    let (mut a, mut b): (Page, Page) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
                    memory.pages().read_page(*index, &mut a).unwrap();
                    copy.pages().read_page(*index, &mut b).unwrap();
                    a != b
                })
                .collect();
            assert_eq!(different, [], "epoch {epoch} of {cmdline}");
            assert!(!dirty.is_empty());
        }
    }
}

/// Blocks of the `disk` workload here.
const DISK_BLOCKS: u32 = 64;
const DISK_CMDLINE: &str = "workload=disk disk.blocks=64 disk.rate=0 disk.flush_every=8";

fn disk_image(path: &Path) {
    let image = File::create(path).unwrap();
    image
        .set_len(u64::from(DISK_BLOCKS) * BLOCK_BYTES as u64)
        .unwrap();
}

fn with_disk(path: &Path, read_only: bool, cmdline: &str) -> (MachineConfig, Receiver<String>) {
    let (console, lines) = console();
    let kind = if read_only {
        DriveKind::ReadOnly
    } else {
        DriveKind::Local
    };
    let drive = DriveConfig::new("disk0", path, kind);
    let config = MachineConfig {
        console,
        drives: vec![drive],
        ..config(1, 64, cmdline)
    };
    (config, lines)
}

/// The number behind `key` in the guest's words.
fn number(line: &str, key: &str) -> u64 {
    let (_, after) = line.split_once(key).unwrap();
    after.split(' ').next().unwrap().parse().unwrap()
}

/// Waits until the guest says that it has flushed more than `before`, and returns how much.
fn await_flushed(lines: &Receiver<String>, before: u64) -> u64 {
    loop {
        let flushed = number(&await_line(lines, "disk: writes="), "flushed=");
        if flushed > before {
            return flushed;
        }
    }
}

fn check_disk(path: &Path, flushed: u64) -> disk::ImageState {
    let image = File::open(path).unwrap();
    let read = |block: u32, bytes: &mut disk::Block| {
        let offset = u64::from(block) * BLOCK_BYTES as u64;
        image.read_exact_at(bytes, offset).unwrap();
        Ok::<(), (u32, BadBlock)>(())
    };
    disk::check_image(DISK_BLOCKS, flushed, read)
        .unwrap_or_else(|(block, bad)| panic!("block {block}: {bad}"))
}

#[test]
fn what_the_guest_has_flushed_is_on_its_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    disk_image(&path);

    let (config, lines) = with_disk(&path, false, DISK_CMDLINE);
    let mut first = Machine::build(config).unwrap();
    let events = events_of(&first);
    first.run().unwrap();
    let flushed = await_flushed(&lines, 0);

    // Goes on in another machine, from memory, state and disk of the same moment. It has nearly always a request in flight.
    let memory = first.guest_memory().clone();
    let mut state = Vec::new();
    let mut paused = first.pause_guest().unwrap();
    paused.save_state(&mut state).unwrap();
    paused.stay();
    drop(paused);
    let print = first.fingerprint();
    assert!(events.try_recv().is_err(), "no alarm");
    drop(first);
    assert!(check_disk(&path, flushed).highest >= flushed);
    let (config, lines) = with_disk(&path, false, "");
    let mut second = Machine::build(MachineConfig {
        kernel: None,
        ..config
    })
    .unwrap();
    copy_memory(
        &memory,
        second.guest_memory(),
        &PageSet::full(memory.layout()),
    );
    assert_eq!(print.differences(&second.fingerprint()), []);
    second.restore(&state).unwrap();
    second.run().unwrap();
    let flushed = await_flushed(&lines, flushed);
    drop(second);
    let report = check_disk(&path, flushed);
    assert_eq!(report.written_blocks, DISK_BLOCKS - 1);

    // A guest that boots anew goes on where the last one was.
    let (config, lines) = with_disk(&path, false, DISK_CMDLINE);
    let mut third = Machine::build(config).unwrap();
    third.run().unwrap();
    let line = await_line(&lines, "ready: disk");
    assert!(number(&line, "writes=") + 8 >= flushed, "{line}");
    let flushed = await_flushed(&lines, flushed);
    drop(third);
    check_disk(&path, flushed);
}

#[test]
fn a_guest_finds_what_is_wrong_on_its_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    disk_image(&path);
    let image = OpenOptions::new().write(true).open(&path).unwrap();
    image.write_all_at(b"x", 7 * BLOCK_BYTES as u64).unwrap();
    let (config, lines) = with_disk(&path, false, DISK_CMDLINE);
    let mut machine = Machine::build(config).unwrap();
    machine.run().unwrap();
    let line = await_line(&lines, "BAD");
    assert!(line.contains("BAD block 7:"), "{line}");
}

#[test]
fn a_guest_outlives_its_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    disk_image(&path);
    let (mut config, lines) = with_disk(&path, false, DISK_CMDLINE);
    // Nobody is there who could do better.
    config.drives[0].on_error = OnError::Report;
    let mut machine = Machine::build(config).unwrap();
    let events = events_of(&machine);
    machine.run().unwrap();
    await_line(&lines, "ready: disk");
    let image = OpenOptions::new().write(true).open(&path).unwrap();
    let started = Instant::now();
    let event = loop {
        // Writes make the file longer again; a read that comes before them fails.
        image.set_len(0).unwrap();
        if let Ok(event) = events.recv_timeout(Duration::from_millis(1)) {
            break event;
        }
        assert!(started.elapsed() < DEADLINE, "reads never fail");
    };
    let MachineEvent::DiskFailed { device, what } = event else {
        panic!("{event:?}");
    };
    assert_eq!(device, "disk0");
    assert!(what.contains("cannot read"), "{what}");
    // What it finds missing from its disk meanwhile is true, and no matter here.
    let await_word = |part: &str| {
        loop {
            let line = lines.recv_timeout(DEADLINE).unwrap();
            if line.contains(part) {
                return line;
            }
        }
    };
    assert_eq!(await_word("cannot read"), "disk: cannot read: status 1");
    // It is still there, and says how far it is.
    await_word("disk: writes=");
}

#[test]
fn fingerprints_tell_other_images_from_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let paths = ["a", "b", "c"].map(|name| directory.path().join(name));
    paths.iter().for_each(|path| disk_image(path));
    let other = OpenOptions::new().write(true).open(&paths[2]).unwrap();
    other.write_all_at(b"other", 100).unwrap();
    let print = |path: &Path, read_only| {
        let (config, _) = with_disk(path, read_only, "");
        Machine::build(config).unwrap().fingerprint()
    };
    let first = print(&paths[0], true);
    assert_eq!(first.differences(&print(&paths[1], true)), []);
    let keys = |differences: Vec<understudy_replication::fingerprint::Difference>| {
        let keys = differences
            .iter()
            .map(|difference| difference.key().to_owned());
        keys.collect::<Vec<_>>()
    };
    let differences = keys(first.differences(&print(&paths[2], true)));
    assert_eq!(differences, ["device.disk0.ends_crc32"]);
    // What the guest writes may differ when a standby is built.
    let writable = print(&paths[0], false);
    assert_eq!(writable.differences(&print(&paths[2], false)), []);
    assert!(keys(first.differences(&writable)).contains(&"device.disk0.read_only".to_owned()));
}
