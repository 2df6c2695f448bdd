//! The register file, tested with the random device behind it, which is the simplest one.

use proptest::prelude::*;
use virtio_bindings::virtio_mmio as reg;
use vm_memory::bitmap::Bitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::mmio::MmioTransport;
use super::rng::RngDevice;
use super::testing::*;
use crate::devices::{Device, DeviceError, DeviceState, Irq, Snapshot};
use crate::memory::GuestRam;

const RING: u64 = 0x1000;
const DATA: u64 = 0x8000;
const NEEDS_RESET: u32 = 0x40;

fn device(memory: &GuestRam) -> MmioTransport<RngDevice> {
    let irq = Irq::new().unwrap();
    MmioTransport::new(RngDevice::new("rng0"), memory.clone(), irq).unwrap()
}

fn running(memory: &GuestRam) -> (MmioTransport<RngDevice>, Ring<'_>) {
    let mut device = device(memory);
    device.start();
    let ring = Ring::new(memory, RING);
    assert_eq!(initialise(&mut device, VERSION_1, &[&ring]), READY);
    (device, ring)
}

#[test]
fn it_is_a_modern_device() {
    let memory = ram();
    let mut device = device(&memory);
    assert_eq!(read(&mut device, 0x0), u32::from_le_bytes(*b"virt"));
    assert_eq!(read(&mut device, 0x4), 2);
    assert_eq!(read(&mut device, 0x8), 4);
    assert_eq!(read(&mut device, reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 64);
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_SEL, 1);
    assert_eq!(read(&mut device, reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    let mut features = 0;
    for select in [0, 1, 2] {
        write(&mut device, reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
        let half = read(&mut device, reg::VIRTIO_MMIO_DEVICE_FEATURES);
        features |= u128::from(half) << (32 * select);
    }
    assert_eq!(features, u128::from(VERSION_1 | EVENT_IDX));
    // Registers are read whole or not at all.
    let mut data = [0xff; 2];
    crate::devices::BusDevice::read(&mut device, 0, &mut data);
    assert_eq!(data, [0, 0]);
}

#[test]
fn features_that_were_not_offered_or_no_version_1_are_refused() {
    let memory = ram();
    let mut device = device(&memory);
    for features in [0, EVENT_IDX, VERSION_1 | 1, VERSION_1 | 1 << 63] {
        assert_eq!(initialise(&mut device, features, &[]), 3, "{features:#x}");
    }
    assert_eq!(initialise(&mut device, VERSION_1 | EVENT_IDX, &[]), READY);
    assert_eq!(read(&mut device, reg::VIRTIO_MMIO_CONFIG_GENERATION), 0);
}

#[test]
fn a_driver_cannot_skip_or_take_back_steps() {
    let memory = ram();
    let mut device = device(&memory);
    for (written, status) in [(2, 0), (4, 0), (1, 1), (5, 1), (3, 3), (1, 3), (7, 3)] {
        write(&mut device, reg::VIRTIO_MMIO_STATUS, written);
        assert_eq!(
            read(&mut device, reg::VIRTIO_MMIO_STATUS),
            status,
            "{written}"
        );
    }
    // Queues cannot be set up before features are agreed upon, nor moved once the driver is ready.
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(read(&mut device, reg::VIRTIO_MMIO_QUEUE_READY), 0);
    let ring = Ring::new(&memory, RING);
    assert_eq!(initialise(&mut device, VERSION_1, &[&ring]), READY);
    let before = device.save().unwrap();
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_DESC_LOW, 0x5000);
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_NUM, 8);
    write(&mut device, reg::VIRTIO_MMIO_DRIVER_FEATURES, 0);
    assert_eq!(device.save().unwrap(), before);
}

#[test]
fn a_request_is_answered_with_tracked_writes_and_an_interrupt() {
    let memory = ram();
    let (mut device, mut ring) = running(&memory);
    let head = ring.offer(&[(DATA, 100, true), (DATA + 0x1000, 28, true)]);
    memory
        .iter()
        .for_each(|region| (**region).bitmap().take(|_, _| {}));
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(ring.used(), [(head, 128)]);
    assert_ne!(bytes_at(&memory, DATA, 100), [0; 100]);
    assert_eq!(bytes_at(&memory, DATA + 100, 28), [0; 28]);
    assert_ne!(bytes_at(&memory, DATA + 0x1000, 28), [0; 28]);
    // R3: what the device writes counts as dirty, data and ring.
    let region = &**memory.iter().next().unwrap();
    let dirty: Vec<_> = (0..16)
        .filter(|page| region.bitmap().dirty_at(page * 4096))
        .collect();
    assert_eq!(dirty, [1, 8, 9]);
    assert!(raised(device.irq().event()));
    assert_eq!(read(&mut device, reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    write(&mut device, reg::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(read(&mut device, reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_huge_request_gets_a_bounded_answer() {
    let memory = ram();
    let (mut device, mut ring) = running(&memory);
    let head = ring.offer(&[(DATA, 0x8_0000, true)]);
    let readable = ring.offer(&[(DATA, 16, false)]);
    let outside = ring.offer(&[(RAM_BYTES as u64 - 8, 16, true)]);
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(ring.used(), [(head, 4096), (readable, 0), (outside, 0)]);
    assert_eq!(device.device().malformed_chains(), 2);
    assert_eq!(read(&mut device, reg::VIRTIO_MMIO_STATUS), READY);
}

#[test]
fn a_driver_that_polls_is_not_interrupted() {
    let memory = ram();
    let (mut device, mut ring) = running(&memory);
    memory
        .write_obj(1_u16, GuestAddress(ring.avail_address()))
        .unwrap();
    ring.offer(&[(DATA, 8, true)]);
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(ring.used().len(), 1);
    assert!(!raised(device.irq().event()));
}

#[test]
fn on_standby_the_guest_is_not_touched() {
    let memory = ram();
    let mut device = device(&memory);
    let mut ring = Ring::new(&memory, RING);
    assert_eq!(initialise(&mut device, VERSION_1, &[&ring]), READY);
    ring.offer(&[(DATA, 8, true)]);
    device.handle_event(0);
    assert!(ring.used().is_empty());
    // Starting makes up for the kick.
    device.start();
    assert_eq!(ring.used().len(), 1);
    device.stop();
    ring.offer(&[(DATA, 8, true)]);
    device.handle_event(0);
    assert!(ring.used().is_empty());
}

#[test]
fn queues_outside_of_memory_need_a_reset() {
    let memory = ram();
    let mut device = device(&memory);
    device.start();
    let far = ram();
    let mut ring = Ring::new(&far, RING);
    write(&mut device, reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(initialise(&mut device, VERSION_1, &[&ring]), READY);
    write(&mut device, reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(initialise(&mut device, VERSION_1, &[]), READY);
    // Now with the used ring at the end of memory.
    initialise_without_driver_ok(&mut device);
    for (low, high) in [(0x80, 0), (0x90, 0), (0xa0, RAM_BYTES as u32 - 16)] {
        write(&mut device, low, high);
    }
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_READY, 1);
    write(&mut device, reg::VIRTIO_MMIO_STATUS, 0xf);
    assert_eq!(
        read(&mut device, reg::VIRTIO_MMIO_STATUS),
        READY | NEEDS_RESET
    );
    assert_eq!(read(&mut device, reg::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    ring.offer(&[(DATA, 8, true)]);
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(device.faults(), 1);
}

fn initialise_without_driver_ok(device: &mut MmioTransport<RngDevice>) {
    initialise(device, 0, &[]);
    write(device, reg::VIRTIO_MMIO_STATUS, 3);
    write(device, reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
    write(device, reg::VIRTIO_MMIO_DRIVER_FEATURES, 1);
    write(device, reg::VIRTIO_MMIO_STATUS, 0xb);
    assert_eq!(read(device, reg::VIRTIO_MMIO_STATUS), 0xb);
}

#[test]
fn a_broken_ring_needs_a_reset_and_is_cured_by_it() {
    let memory = ram();
    let (mut device, mut ring) = running(&memory);
    // More chains than the ring has room for.
    ring.avail.idx().store(RING_SIZE + 1);
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(
        read(&mut device, reg::VIRTIO_MMIO_STATUS),
        READY | NEEDS_RESET
    );
    assert_eq!(read(&mut device, reg::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
    assert!(raised(device.irq().event()));
    assert!(ring.used().is_empty());

    let mut ring = Ring::new(&memory, RING);
    assert_eq!(initialise(&mut device, VERSION_1, &[&ring]), READY);
    assert_eq!(read(&mut device, reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    ring.offer(&[(DATA, 8, true)]);
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(ring.used().len(), 1);
}

#[test]
fn snapshot_mutate_restore_compare() {
    let memory = ram();
    let (mut device, mut ring) = running(&memory);
    ring.offer(&[(DATA, 8, true)]);
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    let saved = device.save().unwrap();

    write(&mut device, reg::VIRTIO_MMIO_INTERRUPT_ACK, 3);
    ring.offer(&[(DATA, 8, true)]);
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    write(&mut device, reg::VIRTIO_MMIO_QUEUE_SEL, 3);
    assert_ne!(device.save().unwrap(), saved);
    device.restore(&saved).unwrap();
    assert_eq!(device.save().unwrap(), saved);
    write(&mut device, reg::VIRTIO_MMIO_STATUS, 0);
    assert_ne!(device.save().unwrap(), saved);
    device.restore(&saved).unwrap();
    assert_eq!(device.save().unwrap(), saved);
}

#[test]
fn a_restored_device_makes_up_for_lost_kicks_and_interrupts() {
    let memory = ram();
    let (mut old, mut ring) = running(&memory);
    ring.offer(&[(DATA, 8, true)]);
    write(&mut old, reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(ring.used().len(), 1);
    // The guest offers more; the kick and the first interrupt are lost with the host.
    let head = ring.offer(&[(DATA, 9, true)]);
    let saved = old.save().unwrap();
    drop(old);

    let mut new = device(&memory);
    new.restore(&saved).unwrap();
    assert!(!raised(new.irq().event()), "no interrupt before the start");
    assert!(
        ring.used().is_empty(),
        "no write to memory before the start"
    );
    // The guest suppresses interrupts for new chains, so that only the old one can be the cause.
    memory
        .write_obj(1_u16, GuestAddress(ring.avail_address()))
        .unwrap();
    new.start();
    assert_eq!(ring.used(), [(head, 9)]);
    assert!(raised(new.irq().event()));
}

#[test]
fn with_event_index_kicks_and_interrupts_come_when_asked_for() {
    let memory = ram();
    let mut device = device(&memory);
    device.start();
    let mut ring = Ring::new(&memory, RING);
    let features = VERSION_1 | EVENT_IDX;
    assert_eq!(initialise(&mut device, features, &[&ring]), READY);
    let used_event = GuestAddress(ring.avail_address() + 4 + 2 * u64::from(RING_SIZE));
    let avail_event = GuestAddress(ring.used_address() + 4 + 8 * u64::from(RING_SIZE));
    // "Interrupt me after the second."
    memory.write_obj(1_u16, used_event).unwrap();
    for (count, interrupt) in [(1_u16, false), (2, true), (3, false)] {
        ring.offer(&[(DATA, 8, true)]);
        write(&mut device, reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        assert_eq!(ring.used().len(), 1);
        assert_eq!(raised(device.irq().event()), interrupt, "{count}");
        assert_eq!(memory.read_obj::<u16>(avail_event).unwrap(), count);
    }
    // That it was negotiated survives a restore.
    let saved = device.save().unwrap();
    device.restore(&saved).unwrap();
    ring.offer(&[(DATA, 8, true)]);
    device.start();
    assert_eq!(memory.read_obj::<u16>(avail_event).unwrap(), 4);
}

/// Restores `state` with one change, which must be refused and must change nothing.
fn refused(
    device: &mut MmioTransport<RngDevice>,
    state: &DeviceState,
    change: impl FnOnce(&mut super::state::MmioState),
) -> DeviceError {
    let mut changed = state.decode("rng0", super::state::VERSION).unwrap();
    change(&mut changed);
    let bad = DeviceState::encode("rng0", super::state::VERSION, &changed).unwrap();
    let before = device.save().unwrap();
    let error = device.restore(&bad).unwrap_err();
    assert_eq!(device.save().unwrap(), before);
    error
}

#[test]
fn impossible_states_are_refused() {
    let memory = ram();
    let (device, _ring) = running(&memory);
    let good = device.save().unwrap();
    let mut fresh = self::device(&memory);
    let invalid = |error: DeviceError| match error {
        DeviceError::Invalid { what, .. } => what,
        other => panic!("{other}"),
    };
    let what = invalid(refused(&mut fresh, &good, |s| s.queues.clear()));
    assert_eq!(what, "0 queues, the device has 1");
    let what = invalid(refused(&mut fresh, &good, |s| s.registers.status = 0x4));
    assert_eq!(what, "status 0x4");
    let what = invalid(refused(&mut fresh, &good, |s| s.registers.status |= 0x100));
    assert_eq!(what, "status 0x10f");
    let what = invalid(refused(&mut fresh, &good, |s| s.interrupt_status = 4));
    assert_eq!(what, "interrupt status 0x4");
    let what = invalid(refused(&mut fresh, &good, |s| {
        s.registers.driver_features |= 1
    }));
    assert_eq!(what, "features 0x100000001, offered are 0x120000000");
    let error = refused(&mut fresh, &good, |s| s.device.name = "net0".to_owned());
    assert!(matches!(error, DeviceError::WrongDevice { .. }), "{error}");
    let error = refused(&mut fresh, &good, |s| s.device.version = 9);
    assert!(
        matches!(error, DeviceError::WrongVersion { found: 9, .. }),
        "{error}"
    );

    // The queue's fields, found in the encoding of a state that differs in them only.
    let small = GuestRam::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let what = invalid(self::device(&small).restore(&good).unwrap_err());
    assert_eq!(what, "queue 0 is not in guest memory");

    let mut left_over = good.clone();
    left_over.body.push(1);
    let error = fresh.restore(&left_over).unwrap_err();
    assert!(
        matches!(error, DeviceError::LeftOver { bytes: 1, .. }),
        "{error}"
    );
    for len in 0..good.body.len() {
        let mut short = good.clone();
        short.body.truncate(len);
        let error = fresh.restore(&short).unwrap_err();
        assert!(matches!(error, DeviceError::Malformed { .. }), "{error}");
    }
}

proptest! {
    #[test]
    fn any_access_is_survived(
        accesses in proptest::collection::vec((0..0x120_u64, 0..9_usize, any::<u64>(), any::<bool>()), 0..80),
        initialised: bool,
    ) {
        let memory = ram();
        let mut device = device(&memory);
        device.start();
        let ring = Ring::new(&memory, RING);
        if initialised {
            initialise(&mut device, VERSION_1, &[&ring]);
        }
        for (offset, len, value, is_write) in accesses {
            use crate::devices::BusDevice;
            // Mostly whole registers with small values, or nothing would be reached.
            let offset = if value % 8 != 0 { offset & !3 } else { offset };
            let len = if value % 16 != 0 { 4 } else { len };
            let value = if value % 3 != 0 { value >> 56 } else { value };
            let mut data = value.to_le_bytes();
            let data = &mut data[..len.min(8)];
            if is_write { device.write(offset, data) } else { device.read(offset, data) }
            device.handle_event(0);
        }
        // Whatever came of it can be saved and restored.
        let saved = device.save().unwrap();
        let mut other = self::device(&memory);
        other.restore(&saved).unwrap();
        prop_assert_eq!(other.save().unwrap(), saved);
    }

    #[test]
    fn any_state_is_survived(body in proptest::collection::vec(any::<u8>(), 0..80), at in 0..100_usize) {
        let memory = ram();
        let (device, _ring) = running(&memory);
        let mut state = device.save().unwrap();
        // Random from some byte on: the beginning is good.
        let at = at.min(state.body.len());
        state.body.truncate(at);
        state.body.extend(body);
        let mut fresh = self::device(&memory);
        let before = fresh.save().unwrap();
        match fresh.restore(&state) {
            Ok(()) => fresh.start(),
            Err(_) => prop_assert_eq!(fresh.save().unwrap(), before),
        }
    }

    #[test]
    fn any_ring_is_survived(
        content in proptest::collection::vec(any::<u8>(), 0x400),
        avail in any::<u16>(),
        heads in proptest::collection::vec(any::<u16>(), RING_SIZE as usize),
        near: bool,
    ) {
        let memory = ram();
        let (mut device, ring) = running(&memory);
        let table = GuestAddress(RING);
        memory.write_slice(&content[..16 * RING_SIZE as usize], table).unwrap();
        for (index, head) in heads.iter().enumerate() {
            let head = if near { head % RING_SIZE } else { *head };
            ring.avail.ring().ref_at(index).unwrap().store(head);
        }
        ring.avail.idx().store(if near { avail % (RING_SIZE + 1) } else { avail });
        device.handle_event(0);
        // The random device may have written anywhere, the rings included; a reset cures it.
        let mut ring = Ring::new(&memory, RING);
        prop_assert_eq!(initialise(&mut device, VERSION_1, &[&ring]), READY);
        let head = ring.offer(&[(DATA, 8, true)]);
        write(&mut device, reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        prop_assert_eq!(ring.used(), [(head, 8)]);
    }
}
