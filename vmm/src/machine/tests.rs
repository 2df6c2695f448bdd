//! Machines on real KVM, with tiny guests in machine code and one device that only tests have.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use understudy_replication::ids::Page;
use understudy_replication::ports::{Machine as _, PageMemory, PausedMachine};
use understudy_replication::{PAGE_BYTES, PageIndex, PageSet};
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::devices::{
    BusDevice, Device, DeviceError, DeviceState, EventSource, Irq, Snapshot, lock,
};

/// How long a test waits for what must come. Only a broken machine makes it wait that long.
const DEADLINE: Duration = Duration::from_secs(60);

/// A device that takes 32-bit numbers, 4 bytes at a time, and counts them.
struct Numbers {
    name: &'static str,
    count: u64,
    out: Sender<u32>,
    fail_save: bool,
    /// Called in the middle of each read.
    in_read: Option<Box<dyn FnMut() + Send>>,
}

impl BusDevice for Numbers {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        self.count += 1;
        if let Some(in_read) = &mut self.in_read {
            in_read();
        }
        data.copy_from_slice(&(self.count as u32).to_le_bytes());
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let number = u32::from_le_bytes(data.try_into().unwrap());
        // The test may be over already.
        let _ = self.out.send(number);
    }
}

impl Snapshot for Numbers {
    fn name(&self) -> &str {
        self.name
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        if self.fail_save {
            return Err(DeviceError::Invalid {
                device: self.name.into(),
                what: "as ordered".into(),
            });
        }
        DeviceState::encode(self.name, 1, &self.count)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        self.count = state.decode(self.name, 1)?;
        Ok(())
    }
}

impl Device for Numbers {
    fn start(&mut self) {}

    fn stop(&mut self) {}

    fn event_sources(&self) -> Vec<EventSource> {
        Vec::new()
    }

    fn handle_event(&mut self, _source: usize) {}
}

/// An ELF file with `code` at 1 MiB, which is also its entry point.
fn elf(code: &[u8]) -> Vec<u8> {
    let start = boot::KERNEL_START.to_le_bytes();
    let mut image = vec![0; 0x1000];
    image[..4].copy_from_slice(b"\x7fELF");
    (image[4], image[5], image[18]) = (2, 1, 62);
    image[24..32].copy_from_slice(&start);
    (image[32], image[54], image[56], image[64]) = (64, 56, 1, 1);
    image[72..80].copy_from_slice(&0x1000u64.to_le_bytes());
    image[80..88].copy_from_slice(&start);
    image[88..96].copy_from_slice(&start);
    for at in [96, 104] {
        image[at..at + 8].copy_from_slice(&(code.len() as u64).to_le_bytes());
    }
    image.extend_from_slice(code);
    image
}

/// Counts in memory at 0x101000 and says each number.
const COUNTING: &[u8] = &[
    0xba, 0xe8, 0x02, 0x00, 0x00, // mov edx, 0x2e8
    0x48, 0xc7, 0xc7, 0x00, 0x10, 0x10, 0x00, // mov rdi, 0x101000
    0xff, 0x07, // again: inc dword [rdi]
    0x8b, 0x07, // mov eax, [rdi]
    0xef, // out dx, eax
    0xb9, 0x40, 0x00, 0x00, 0x00, // mov ecx, 64
    0xff, 0xc9, // spin: dec ecx
    0x75, 0xfc, // jnz spin
    0xeb, 0xf0, // jmp again
];

/// Writes 0xfe to port 0x64, then does nothing for ever.
const RESETTING: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];

/// Loads an empty IDT and divides by zero.
const CRASHING: &[u8] = &[
    0x31, 0xc0, // xor eax, eax
    0x50, 0x50, // push rax, twice
    0x0f, 0x01, 0x1c, 0x24, // lidt [rsp]
    0x0f, 0x0b, // ud2
];

/// Adds 1 to one word of each of 256 pages from 2 MiB on, round and round, in steps of 7 pages.
const DIRTYING: &[u8] = &[
    0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi, 0x200000
    0x31, 0xc9, // xor ecx, ecx
    0x89, 0xc8, // again: mov eax, ecx
    0xc1, 0xe0, 0x0c, // shl eax, 12
    0xff, 0x04, 0x07, // inc dword [rdi + rax]
    0x83, 0xc1, 0x07, // add ecx, 7
    0x81, 0xe1, 0xff, 0x00, 0x00, 0x00, // and ecx, 255
    0xeb, 0xed, // jmp again
];

/// Reads numbers from port 0x2e8 and says them.
const READING_PORTS: &[u8] = &[
    0xba, 0xe8, 0x02, 0x00, 0x00, // mov edx, 0x2e8
    0xed, // again: in eax, dx
    0xef, // out dx, eax
    0xeb, 0xfc, // jmp again
];

/// Reads numbers from address 0xd0000000 and says them.
const READING_MMIO: &[u8] = &[
    0xba, 0xe8, 0x02, 0x00, 0x00, // mov edx, 0x2e8
    0xbb, 0x00, 0x00, 0x00, 0xd0, // mov ebx, 0xd0000000
    0x8b, 0x03, // again: mov eax, [rbx]
    0xef, // out dx, eax
    0xeb, 0xfb, // jmp again
];

struct Rig {
    machine: Machine,
    numbers: Receiver<u32>,
    read_from: Arc<Mutex<Numbers>>,
}

fn rig_with(config: MachineConfig, names: &[&'static str]) -> Rig {
    let mut builder = MachineBuilder::new(config).expect("these tests need a usable /dev/kvm");
    let (out, numbers) = channel();
    let mut first = None;
    for (number, name) in names.iter().enumerate() {
        let device = Arc::new(Mutex::new(Numbers {
            name,
            count: 0,
            out: out.clone(),
            fail_save: false,
            in_read: None,
        }));
        first.get_or_insert(device.clone());
        let place = Place::Ports {
            base: 0x2e8 - 0x10 * number as u16,
            count: 8,
            gsi: 3,
        };
        builder.attach(attachment(&device, place)).unwrap();
    }
    Rig {
        machine: builder.build().unwrap(),
        numbers,
        read_from: first.unwrap(),
    }
}

/// Two devices, one at ports and one in memory; `code` says which of both is read from.
fn rig_at(config: MachineConfig, code: &[u8]) -> Rig {
    let mut builder = MachineBuilder::new(config).expect("these tests need a usable /dev/kvm");
    let (out, numbers) = channel();
    let device = |name| {
        Arc::new(Mutex::new(Numbers {
            name,
            count: 0,
            out: out.clone(),
            fail_save: false,
            in_read: None,
        }))
    };
    let (at_ports, in_memory) = (device("ports"), device("memory"));
    let ports = Place::Ports {
        base: 0x2e8,
        count: 8,
        gsi: 3,
    };
    for (device, place) in [(&at_ports, ports), (&in_memory, Place::VirtioMmio)] {
        builder.attach(attachment(device, place)).unwrap();
    }
    let read_from = if code == READING_MMIO {
        in_memory
    } else {
        at_ports
    };
    Rig {
        machine: builder.build().unwrap(),
        numbers,
        read_from,
    }
}

fn attachment(device: &Arc<Mutex<Numbers>>, place: Place) -> Attachment<Numbers> {
    Attachment {
        device: device.clone(),
        place,
        irq: Irq::new().unwrap(),
        doorbells: Vec::new(),
        description: vec![("type".into(), "numbers".into())],
        health: None,
    }
}

fn config(code: &[u8]) -> MachineConfig {
    MachineConfig {
        memory_mib: 16,
        kernel: Some(Kernel::Bytes(elf(code))),
        ..Default::default()
    }
}

fn rig(code: &[u8]) -> Rig {
    rig_with(config(code), &["numbers"])
}

fn standby() -> Rig {
    let config = MachineConfig {
        kernel: None,
        ..config(COUNTING)
    };
    rig_with(config, &["numbers"])
}

impl Rig {
    fn next(&self) -> u32 {
        self.numbers
            .recv_timeout(DEADLINE)
            .expect("the guest goes on")
    }

    /// What has been said until now and not yet been heard.
    fn heard(&self) -> Vec<u32> {
        self.numbers.try_iter().collect()
    }

    fn await_number(&self, at_least: u32) {
        while self.next() < at_least {}
    }
}

fn copy_memory(from: &Memory, to: &Memory) {
    let mut page: Page = [0; PAGE_BYTES];
    for index in PageSet::full(from.layout()).iter() {
        from.pages().read_page(index, &mut page).unwrap();
        to.pages().write_page(index, &page).unwrap();
    }
}

#[test]
fn a_guest_boots_and_is_heard() {
    let mut rig = rig(COUNTING);
    rig.machine.start().unwrap();
    for number in 1..=100 {
        assert_eq!(rig.next(), number);
    }
}

#[test]
fn a_copy_goes_on_exactly_where_the_first_was_paused() {
    let mut first = rig(COUNTING);
    first.machine.start().unwrap();
    let mut last = 0;
    // A chain of copies: each goes on for a while, and is paused at a moment nobody chose.
    for round in 0..20u32 {
        first.await_number(last + 10 + round);
        let mut second = standby();
        let mut paused = first.machine.pause_guest().unwrap();
        let mut state = Vec::new();
        paused.save_state(&mut state).unwrap();
        paused.stay();
        drop(paused);
        last = match first.heard().last() {
            Some(last) => *last,
            None => first
                .machine
                .memory
                .ram()
                .read_obj(GuestAddress(0x10_1000))
                .unwrap(),
        };
        copy_memory(&first.machine.memory, &second.machine.memory);
        second.machine.load(&state).unwrap();
        second.machine.start().unwrap();
        // The guest may have counted one further without having said it.
        assert_eq!(second.next(), last + 1, "round {round}");
        assert_eq!(second.next(), last + 2);
        last += 2;
        first = second;
    }
}

/// A vCPU called out in the middle of a read must take up what it read before its state is saved: else the
/// copy reads once more, and what was read first is lost.
#[test]
fn an_access_under_way_is_completed_before_the_pause() {
    for code in [READING_PORTS, READING_MMIO] {
        let build = |kernel| {
            let config = MachineConfig {
                kernel,
                rng: false,
                ..config(code)
            };
            rig_at(config, code)
        };
        let mut first = build(Some(Kernel::Bytes(elf(code))));
        let (entered, in_read) = channel();
        let handle = first.machine.vcpus[0].handle().clone();
        let mut reads = 0;
        lock(&first.read_from).in_read = Some(Box::new(move || {
            reads += 1;
            if reads == 5 {
                entered.send(()).unwrap();
                let started = Instant::now();
                while !handle.exit().is_requested() {
                    assert!(started.elapsed() < DEADLINE, "nobody pauses");
                    std::thread::yield_now();
                }
            }
        }));
        first.machine.start().unwrap();
        in_read.recv_timeout(DEADLINE).unwrap();
        let mut state = Vec::new();
        let mut paused = first.machine.pause_guest().unwrap();
        paused.save_state(&mut state).unwrap();
        paused.stay();
        drop(paused);
        assert_eq!(first.heard(), [1, 2, 3, 4]);
        let mut second = build(None);
        copy_memory(&first.machine.memory, &second.machine.memory);
        second.machine.load(&state).unwrap();
        second.machine.start().unwrap();
        assert_eq!([second.next(), second.next(), second.next()], [5, 6, 7]);
    }
}

#[test]
fn a_paused_guest_stands_still_and_resumes_on_every_way_out() {
    let mut rig = rig(COUNTING);
    rig.machine.start().unwrap();
    rig.await_number(10);

    // Dropped.
    let paused = rig.machine.pause_guest().unwrap();
    rig.numbers.try_iter().for_each(drop);
    let quiet = rig.numbers.recv_timeout(Duration::from_millis(50));
    assert!(quiet.is_err(), "said {quiet:?} while paused");
    drop(paused);
    rig.next();

    // Early return.
    fn returns_early(machine: &mut Machine) -> Option<()> {
        let _paused = machine.pause_guest().unwrap();
        None
    }
    assert_eq!(returns_early(&mut rig.machine), None);
    rig.heard();
    rig.next();

    // An error in the middle of saving.
    lock(&rig.read_from).fail_save = true;
    fn fails(machine: &mut Machine) -> Result<(), understudy_replication::ports::MachineError> {
        machine.pause_guest()?.save(&mut Vec::new())
    }
    assert!(fails(&mut rig.machine).is_err());
    lock(&rig.read_from).fail_save = false;
    rig.heard();
    rig.next();

    // A panic, which must not spoil the devices for the vCPUs either.
    let machine = &mut rig.machine;
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _paused = machine.pause_guest().unwrap();
        panic!("ordered by the test");
    }));
    assert!(panicked.is_err());
    rig.heard();
    rig.next();
    rig.next();
    rig.machine
        .pause_guest()
        .unwrap()
        .save_state(&mut Vec::new())
        .unwrap();
    rig.heard();
    rig.next();

    // Unless it is to stay stopped.
    let mut paused = rig.machine.pause_guest().unwrap();
    paused.stay_stopped();
    drop(paused);
    rig.heard();
    assert!(rig.numbers.recv_timeout(Duration::from_millis(50)).is_err());
    let error = rig.machine.start().unwrap_err();
    assert_eq!(
        error.to_string(),
        "a machine that is stopped for good cannot be run"
    );
}

#[test]
fn the_guests_clock_goes_on_from_the_checkpoint() {
    const HOUR_NS: u64 = 3600 * 1_000_000_000;
    let mut first = rig(COUNTING);
    let hour = kvm_bindings::kvm_clock_data {
        clock: HOUR_NS,
        ..Default::default()
    };
    first.machine.vm.set_clock(&hour).unwrap();
    first.machine.start().unwrap();
    first.await_number(3);
    let mut state = Vec::new();
    let mut paused = first.machine.pause_guest().unwrap();
    paused.save_state(&mut state).unwrap();
    let mut second = standby();
    second.machine.load(&state).unwrap();
    let clock = second.machine.vm.get_clock().unwrap().clock;
    assert!((HOUR_NS..2 * HOUR_NS).contains(&clock), "{clock}");
}

#[test]
fn the_guests_end_is_told() {
    let mut rig = rig(RESETTING);
    let events = rig.machine.events();
    rig.machine.start().unwrap();
    assert_eq!(
        events.recv_timeout(DEADLINE).unwrap(),
        MachineEvent::GuestReset
    );

    let mut rig = rig_with(config(CRASHING), &["numbers"]);
    let events = rig.machine.events();
    rig.machine.start().unwrap();
    let event = events.recv_timeout(DEADLINE).unwrap();
    assert!(
        matches!(
            event,
            MachineEvent::GuestShutdown { .. } | MachineEvent::VcpuFailed { .. }
        ),
        "{event:?}"
    );
}

#[test]
fn a_machine_is_only_run_paused_and_restored_when_it_can_be() {
    let mut fresh = standby();
    let error = fresh.machine.start().unwrap_err();
    assert!(matches!(error, MachineFault::Config(ConfigError::NoKernel)));
    let Err(error) = fresh.machine.pause_guest().map(drop) else {
        panic!("paused what never ran");
    };
    assert_eq!(
        error.to_string(),
        "a machine that has never run cannot be paused"
    );
    let mut running = rig(COUNTING);
    running.machine.start().unwrap();
    let error = running.machine.load(&[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a machine that is running cannot be restored"
    );
    running.machine.shut_down();
    running.machine.shut_down();
}

/// Steps ② and ③ against the truth: what harvests tell to copy, epoch by epoch, makes the copy equal to
/// the guest's memory at each pause.
#[test]
fn copying_what_is_dirty_makes_an_exact_copy() {
    let mut rig = rig(DIRTYING);
    rig.machine.start().unwrap();
    let copy = Memory::allocate(16, Default::default()).unwrap();
    rig.machine.track().unwrap();
    copy_memory(&rig.machine.memory, &copy);
    let mut dirty_before = 0;
    for epoch in 0..30u64 {
        // Wait until the guest has done something in this epoch.
        let started = Instant::now();
        let mut dirty = PageSet::empty(copy.layout());
        while dirty.is_empty() {
            assert!(started.elapsed() < DEADLINE, "nothing gets dirty");
            rig.machine.harvest_running(&mut dirty).unwrap();
        }
        // A device writes, too.
        let ram = rig.machine.memory.ram().clone();
        ram.write_obj(epoch, GuestAddress(0x80_0000 + epoch * 4096))
            .unwrap();
        let mut page: Page = [0; PAGE_BYTES];
        let memory = rig.machine.memory.clone();
        let mut paused = rig.machine.pause_guest().unwrap();
        paused.harvest_pages(&mut dirty).unwrap();
        for index in dirty.iter() {
            memory.pages().read_page(index, &mut page).unwrap();
            copy.pages().write_page(index, &page).unwrap();
        }
        assert!(dirty.contains(PageIndex(0x800 + epoch)));
        let mut theirs: Page = [0; PAGE_BYTES];
        for index in PageSet::full(copy.layout()).iter() {
            memory.pages().read_page(index, &mut page).unwrap();
            copy.pages().read_page(index, &mut theirs).unwrap();
            assert!(page == theirs, "epoch {epoch}: {index} differs");
        }
        drop(paused);
        assert!(
            dirty.len() <= 256 + 1 + 8,
            "{} pages are dirty",
            dirty.len()
        );
        dirty_before += dirty.len();
    }
    assert!(dirty_before > 30);
    rig.machine.untrack().unwrap();
    let mut none = PageSet::empty(copy.layout());
    assert!(rig.machine.harvest_running(&mut none).is_err());
}

fn saved_state() -> Vec<u8> {
    let mut rig = rig(COUNTING);
    rig.machine.start().unwrap();
    rig.await_number(3);
    let mut state = Vec::new();
    rig.machine
        .pause_guest()
        .unwrap()
        .save_state(&mut state)
        .unwrap();
    state
}

#[test]
fn bad_states_are_refused_by_name() {
    let state = saved_state();
    let refuse = |bytes: &[u8], rig: &mut Rig| rig.machine.load(bytes).unwrap_err();

    let mut longer = state.clone();
    longer.push(0);
    assert!(matches!(
        refuse(&longer, &mut standby()),
        MachineFault::State(StateError::LeftOver { left_over: 1, .. })
    ));
    let mut newer = state.clone();
    newer[0] = 77;
    assert!(matches!(
        refuse(&newer, &mut standby()),
        MachineFault::State(StateError::Version { found: 77 })
    ));
    let two = MachineConfig {
        vcpus: 2,
        ..config(COUNTING)
    };
    assert!(matches!(
        refuse(&state, &mut rig_with(two, &["numbers"])),
        MachineFault::State(StateError::Vcpus { found: 1, here: 2 })
    ));
    let MachineFault::State(StateError::UnknownDevice { name }) =
        refuse(&state, &mut rig_with(config(COUNTING), &["other"]))
    else {
        panic!("restored into a machine with another device");
    };
    assert_eq!(name, "numbers");
    let MachineFault::State(StateError::MissingDevice { name }) = refuse(
        &state,
        &mut rig_with(config(COUNTING), &["numbers", "more"]),
    ) else {
        panic!("restored into a machine with one device more");
    };
    assert_eq!(name, "more");
    // After a failed restore the machine is of no use, and says so.
    let mut broken = standby();
    let mut wrong = MachineState::decode(&state).unwrap();
    wrong.set_vcpu_id(0, 9);
    let mut bytes = Vec::new();
    wrong.encode(&mut bytes).unwrap();
    assert!(broken.machine.load(&bytes).is_err());
    let error = broken.machine.start().unwrap_err();
    assert_eq!(
        error.to_string(),
        "a machine that was restored only in part cannot be run"
    );
}

#[test]
fn damaged_states_never_panic() {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    let state = saved_state();
    for cut in (0..state.len()).step_by(97) {
        assert!(MachineState::decode(&state[..cut]).is_err(), "cut at {cut}");
    }
    let mut random = StdRng::seed_from_u64(42);
    for _ in 0..150 {
        let mut damaged = state.clone();
        for _ in 0..random.random_range(1..20) {
            let at = random.random_range(0..damaged.len());
            damaged[at] = random.random();
        }
        // Most damage is in register contents, which KVM judges; some of it even makes a valid state.
        let result = standby().machine.load(&damaged);
        if let Err(error) = result {
            assert!(!error.to_string().is_empty());
        }
    }
    for _ in 0..200 {
        let noise: Vec<u8> = (0..random.random_range(0..6000))
            .map(|_| random.random())
            .collect();
        assert!(MachineState::decode(&noise).is_err());
    }
}

#[test]
fn fingerprints_name_what_differs() {
    let one = rig(COUNTING).machine.fingerprint();
    assert_eq!(one.differences(&standby().machine.fingerprint()), []);
    let bigger = MachineConfig {
        memory_mib: 32,
        vcpus: 2,
        ..config(COUNTING)
    };
    let other = rig_with(bigger, &["numbers", "more"]).machine.fingerprint();
    let keys: BTreeSet<String> = one
        .differences(&other)
        .into_iter()
        .map(|difference| difference.key)
        .collect();
    for key in [
        "memory.0",
        "vcpus",
        "device.more.number",
        "device.more.place",
    ] {
        assert!(keys.contains(key), "{key} is not in {keys:?}");
    }
    assert!(!keys.iter().any(|key| key.starts_with("device.numbers")));
}
