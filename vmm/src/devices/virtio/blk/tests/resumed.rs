//! States with requests in flight: they are done again on the side that goes on, and only there.

use virtio_bindings::virtio_mmio as reg;

use super::*;
use crate::devices::DeviceState;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::blk::request::QUEUE_SIZE;
use crate::devices::virtio::blk::state::{BlkState, VERSION};
use crate::devices::virtio::state::MmioState;

const READ_INTO: u64 = DATA + 0x2000;

/// A write, a read and a flush that hang.
fn in_flight<'a>(memory: &'a GuestRam, platter: &Platter) -> Bench<'a> {
    let mut bench = Bench::new(memory, platter, false);
    platter.hang(&["write", "read", "flush"]);
    memory
        .write_slice(&[0xaa; 512], GuestAddress(DATA))
        .unwrap();
    bench.offer_as(0, OUT, 3, &[(DATA, 512, false)]);
    bench.offer_as(1, IN, 5, &[(READ_INTO, 512, true)]);
    bench.offer_as(2, FLUSH, 0, &[]);
    bench.device.handle_event(KICK);
    assert_eq!(bench.counters().in_flight, 3);
    bench
}

/// A copy of the guest's memory, as another host has it.
fn copied(memory: &GuestRam) -> GuestRam {
    let copy = ram();
    let all = bytes_at(memory, 0, RAM_BYTES);
    copy.write_slice(&all, GuestAddress(0)).unwrap();
    copy
}

/// A host with this memory and storage that continues from `state`.
fn continued<'a>(memory: &'a GuestRam, platter: &Platter, state: &DeviceState) -> Bench<'a> {
    let medium = Medium::plain(platter.clone());
    let (mut device, alarms) = device(memory, medium, SECTORS, false);
    device.restore(state).unwrap();
    assert_eq!(device.save().unwrap(), *state);
    assert_eq!(platter.calls(), [] as [&str; 0], "it does not run yet");
    // The driver's rings are as they were; a new one here would begin at 0.
    let indices = [RING + 0x402, RING + 0x802].map(GuestAddress);
    let before = indices.map(|at| memory.read_obj::<u16>(at).unwrap());
    let ring = Ring::new(memory, RING);
    for (at, index) in indices.into_iter().zip(before) {
        memory.write_obj(index, at).unwrap();
    }
    device.start();
    Bench {
        memory,
        device,
        ring,
        alarms,
    }
}

#[test]
fn requests_in_flight_are_done_again_where_the_state_goes_on() {
    let (memory, platter) = (ram(), Platter::new());
    let mut old = in_flight(&memory, &platter);
    // One that was answered is not in flight any more.
    old.offer_as(3, GET_ID, 0, &[(DATA + 0x4000, 20, true)]);
    old.device.handle_event(KICK);
    assert_eq!(old.ring.used().len(), 1);
    let state = old.device.save().unwrap();
    let (elsewhere, storage) = (copied(&memory), Platter::new());
    let mut new = continued(&elsewhere, &storage, &state);
    let mut used = new.await_used(4);
    used.sort_unstable();
    assert_eq!(used, [(0, 1), (3, 513), (6, 1), (8, 21)]);
    assert_eq!([0, 1, 2].map(|slot| new.status_of(slot)), [OK; 3]);
    assert_eq!(storage.sector(3), [0xaa; 512]);
    assert_eq!(bytes_at(&elsewhere, READ_INTO, 512), storage.sector(5));
    let mut calls = storage.calls();
    calls.sort_unstable();
    assert_eq!(calls, ["flush", "read", "write"], "each once");
    // And it goes on.
    let sixteen = [(DATA, 512, true)];
    assert_eq!(new.request(IN, 3, &sixteen), (OK, 513));

    // The side that saved it knows nothing of that, and answers its own.
    assert_eq!(old.ring.used(), []);
    assert_eq!(old.status_of(0), UNTOUCHED);
    platter.hang(&[]);
    old.await_used(3);
    let mut calls = platter.calls();
    calls.sort_unstable();
    assert_eq!(calls, ["flush", "read", "write"], "each once");
}

#[test]
fn what_is_done_again_can_go_on_elsewhere_once_more() {
    let (memory, platter) = (ram(), Platter::new());
    let old = in_flight(&memory, &platter);
    let first = old.device.save().unwrap();
    let (second_memory, hanging) = (copied(&memory), Platter::new());
    hanging.hang(&["write", "read", "flush"]);
    let second = continued(&second_memory, &hanging, &first);
    let state = second.device.save().unwrap();
    assert_eq!(state, first);
    let (third_memory, storage) = (copied(&second_memory), Platter::new());
    let mut third = continued(&third_memory, &storage, &state);
    assert_eq!(third.await_used(3).len(), 3);
    assert_eq!(storage.sector(3), [0xaa; 512]);
}

#[test]
fn a_driver_without_flushes_gets_a_safe_write_elsewhere_too() {
    let (memory, platter) = (ram(), Platter::new());
    let mut old = Bench::with_features(&memory, &platter, false, VERSION_1);
    platter.hang(&["flush"]);
    old.offer(OUT, 0, &[(DATA, 512, false)]);
    old.device.handle_event(KICK);
    let state = old.device.save().unwrap();
    let (elsewhere, storage) = (copied(&memory), Platter::new());
    let mut new = continued(&elsewhere, &storage, &state);
    new.await_used(1);
    assert_eq!(storage.calls(), ["write", "flush"]);
}

/// A standby is given a state over and over, and may be given one while its storage is still at an older one.
#[test]
fn another_state_takes_the_place_of_the_first() {
    let (memory, platter) = (ram(), Platter::new());
    let bench = Bench::new(&memory, &platter, false);
    let idle = bench.device.save().unwrap();
    drop(bench);
    let busy = in_flight(&memory, &platter).device.save().unwrap();
    platter.hang(&[]);
    let storage = Platter::new();
    let (mut standby, _) = device(&memory, Medium::plain(storage.clone()), SECTORS, false);
    for state in [&busy, &idle, &busy, &idle] {
        standby.restore(state).unwrap();
        assert_eq!(standby.save().unwrap(), *state);
    }
    standby.start();
    assert_eq!(
        standby.device().counters().in_flight,
        3,
        "offered, and not taken"
    );
}

#[test]
fn without_a_driver_nobody_waits() {
    let (memory, platter) = (ram(), Platter::new());
    let mut old = in_flight(&memory, &platter);
    // Its queue is taken back; the state still names what was in flight.
    write(&mut old.device, reg::VIRTIO_MMIO_QUEUE_SEL, 0);
    write(&mut old.device, reg::VIRTIO_MMIO_QUEUE_READY, 0);
    let state = old.device.save().unwrap();
    let storage = Platter::new();
    let new = continued(&memory, &storage, &state);
    assert_eq!(new.counters().in_flight, 0);
    assert_eq!(storage.calls(), [] as [&str; 0]);
    platter.hang(&[]);
}

fn with_heads(heads: &[u16]) -> DeviceState {
    let state = BlkState {
        capacity_sectors: SECTORS,
        read_only: false,
        in_flight: heads.to_vec(),
    };
    DeviceState::encode("disk0", VERSION, &state).unwrap()
}

#[test]
fn impossible_heads_are_refused() {
    let medium = || Medium::plain(Platter::new());
    let mut device = BlkDevice::new("disk0", medium(), SECTORS, false, Box::new(drop)).unwrap();
    let all: Vec<u16> = (0..QUEUE_SIZE).collect();
    device.restore(&with_heads(&all)).unwrap();
    let too_many: Vec<u16> = (0..=QUEUE_SIZE).collect();
    let bad: [&[u16]; 4] = [&[QUEUE_SIZE], &[u16::MAX], &[3, 4, 3], &too_many];
    for heads in bad {
        let error = device.restore(&with_heads(heads)).unwrap_err();
        assert!(matches!(error, DeviceError::Invalid { .. }), "{error}");
        assert_eq!(device.save().unwrap(), with_heads(&all), "{heads:?}");
    }
}

#[test]
fn an_older_state_is_refused_by_its_version() {
    let (memory, platter) = (ram(), Platter::new());
    let (mut device, _) = device(&memory, Medium::plain(platter), SECTORS, false);
    let saved = device.save().unwrap();
    let mut state: MmioState = postcard::from_bytes(&saved.body).unwrap();
    state.device.version = 1;
    let old = DeviceState::encode("disk0", saved.version, &state).unwrap();
    let error = device.restore(&old).unwrap_err();
    assert!(
        matches!(error, DeviceError::WrongVersion { found: 1, .. }),
        "{error}"
    );
}

proptest! {
    #[test]
    fn any_heads_and_chains_are_survived(
        descriptors in proptest::collection::vec(
            (0..RAM_BYTES as u64 * 5 / 4, 0..100_000_u32, 0..8_u16, 0..RING_SIZE + 2),
            RING_SIZE as usize,
        ),
        header in proptest::array::uniform16(0..16_u8),
        heads in proptest::collection::btree_set(0..RING_SIZE * 2, 0..20),
    ) {
        use virtio_queue::desc::{RawDescriptor, split::Descriptor};
        let (memory, platter) = (ram(), Platter::new());
        let bench = Bench::new(&memory, &platter, false);
        for (index, (address, len, flags, next)) in descriptors.iter().enumerate() {
            memory.write_slice(&header, GuestAddress(address % 0xf_0000)).unwrap();
            let raw = RawDescriptor::from(Descriptor::new(*address, *len, *flags, *next));
            bench.ring.descriptors.store(index as u16, raw).unwrap();
        }
        let saved = bench.device.save().unwrap();
        let mut state: MmioState = postcard::from_bytes(&saved.body).unwrap();
        let heads: Vec<u16> = heads.into_iter().collect();
        state.device = with_heads(&heads);
        let state = DeviceState::encode("disk0", saved.version, &state).unwrap();
        let storage = Platter::new();
        let (mut other, alarms) = device(&memory, Medium::plain(storage.clone()), SECTORS, false);
        other.restore(&state).unwrap();
        other.start();
        for _ in 0..=RING_SIZE {
            serve(&mut other);
        }
        prop_assert_eq!(storage.bytes.lock().unwrap().len() as u64, SECTORS * SECTOR_BYTES);
        // A reset cures everything.
        let mut bench = Bench { memory: &memory, device: other, ring: Ring::new(&memory, RING), alarms };
        bench.ring.avail.idx().store(0);
        bench.ring.used.idx().store(0);
        prop_assert_eq!(initialise(&mut bench.device, VERSION_1, &[&bench.ring]), READY);
        prop_assert_eq!(bench.request(FLUSH, 0, &[]).0, OK);
    }
}
