//! What the network and the guest are told after the guest has come to this host.

use nix::poll::{PollFd, PollFlags, poll};

use super::*;
use crate::devices::DeviceState;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::net::state::{NetState, VERSION};

/// Status, control queue and the guest's own announcements.
pub(super) const FEATURES: u64 = VERSION_1 | 1 << 16 | 1 << 17 | 1 << 21;
const ANNOUNCE: u8 = 2;
const COMMAND: u64 = 0x8_0000;
const ANSWER: u64 = 0x8_1000;
/// Class and command of the guest that has announced itself.
const ANNOUNCED: [u8; 2] = [3, 0];
const DONE: u8 = 0;
const REFUSED: u8 = 1;
/// Neither of the answers.
const NONE: u8 = 0xee;

/// Waits until it is time to announce again.
fn await_timer(device: &NetTransport) {
    let mut files = [PollFd::new(device.device().timer(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut files, 30_000_u16), Ok(1), "it is announced again");
}

/// A host that takes over what `from` has, before it runs.
fn taken_over(from: &NetTransport, memory: &GuestRam, cable: &Cable) -> (NetTransport, OutputGate) {
    let (mut device, gate) = device(memory, cable);
    device.restore(&from.save().unwrap()).unwrap();
    device.device_mut().announce().unwrap();
    (device, gate)
}

fn generation(device: &mut NetTransport) -> u32 {
    read(device, reg::VIRTIO_MMIO_CONFIG_GENERATION)
}

/// Gives the device a command; its answer.
fn command(device: &mut NetTransport, memory: &GuestRam, ring: &mut Ring<'_>, bytes: &[u8]) -> u8 {
    memory.write_slice(bytes, GuestAddress(COMMAND)).unwrap();
    memory.write_obj(NONE, GuestAddress(ANSWER)).unwrap();
    let head = ring.offer(&[
        (COMMAND, 1, false),
        (COMMAND + 1, bytes.len() as u32 - 1, false),
        (ANSWER, 1, true),
    ]);
    device.handle_event(CONTROL_KICK);
    assert_eq!(ring.used(), [(head, 1)]);
    memory.read_obj(GuestAddress(ANSWER)).unwrap()
}

#[test]
fn a_promoted_device_announces_what_it_learned() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut device, gate, mut rx, mut tx) = running(&memory, &cable);
    let own = rarp(Station::untagged(MAC));
    device.device_mut().announce().unwrap();
    assert_eq!(cable.sent(), std::slice::from_ref(&own));
    for last in [2, 3] {
        offer_frame(&memory, &mut tx, TX_DATA, &arp(last));
        device.handle_event(TX_KICK);
    }
    cable.sent();
    gate.hold();
    device.device_mut().announce().unwrap();
    assert_eq!(cable.sent(), [own.clone(), arp(2), arp(3)]);
    // What another one has now is not taken from it.
    let other = Station::untagged([2; 6]);
    cable.arrive(&gratuitous_arp(other, Ipv4Addr::new(10, 77, 0, 2)));
    rx.offer(&[(RX_DATA, 2048, true)]);
    device.handle_event(BACKEND);
    device.device_mut().announce().unwrap();
    assert_eq!(cable.sent(), [own, arp(3)]);
}

#[test]
fn what_is_announced_again_waits_for_its_epoch_like_other_output() {
    let (memory, cable) = (ram(), Cable::new());
    let (first, ..) = running(&memory, &cable);
    let (mut device, gate) = taken_over(&first, &memory, &cable);
    let own = rarp(Station::untagged(MAC));
    assert_eq!(cable.sent(), std::slice::from_ref(&own));
    // Nobody protects it yet.
    device.start();
    await_timer(&device);
    device.handle_event(TIMER);
    assert_eq!(cable.sent(), std::slice::from_ref(&own));
    // Now there is a standby, which may be granted the guest.
    gate.hold();
    await_timer(&device);
    device.handle_event(TIMER);
    assert_eq!(cable.sent(), [[0; 0]; 0]);
    gate.seal(EpochId(1));
    gate.release(EpochId(1), far());
    assert_eq!(cable.sent(), [own]);
    // Once another one has it, nothing is said any more.
    gate.shut();
    await_timer(&device);
    device.handle_event(TIMER);
    assert_eq!(cable.sent(), [[0; 0]; 0]);
    // Too early, or somebody was quicker.
    device.handle_event(TIMER);
}

#[test]
fn a_guest_that_can_is_asked_to_announce_itself_until_it_has_done_so() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut first, ..) = running(&memory, &cable);
    let rings = [RX_RING, TX_RING, CONTROL_RING].map(|at| Ring::new(&memory, at));
    let [rx, tx, mut control] = rings;
    assert_eq!(
        initialise(&mut first, FEATURES, &[&rx, &tx, &control]),
        READY
    );
    assert_eq!(link_status(&mut first), LINK_UP, "it is where it was");
    let before = generation(&mut first);
    let answer = command(&mut first, &memory, &mut control, &ANNOUNCED);
    assert_eq!(answer, REFUSED, "nobody has asked");

    let (mut second, _gate) = taken_over(&first, &memory, &cable);
    assert_eq!(link_status(&mut second), LINK_UP, "it does not run yet");
    second.start();
    assert_eq!(link_status(&mut second), LINK_UP | ANNOUNCE);
    assert_eq!(generation(&mut second), before + 1);
    assert!(raised(second.irq().event()));
    // What is asked is part of the state, and asked again with each announcement.
    let (mut third, _gate) = device(&memory, &cable);
    third.restore(&second.save().unwrap()).unwrap();
    assert_eq!(link_status(&mut third), LINK_UP | ANNOUNCE);
    await_timer(&second);
    second.handle_event(TIMER);
    assert_eq!(generation(&mut second), before + 2);

    for unknown in [[3, 1], [0, 0], [2, 0]] {
        let answer = command(&mut second, &memory, &mut control, &unknown);
        assert_eq!(answer, REFUSED, "{unknown:?}");
    }
    assert_eq!(link_status(&mut second), LINK_UP | ANNOUNCE);
    let answer = command(&mut second, &memory, &mut control, &ANNOUNCED);
    assert_eq!(answer, DONE);
    assert_eq!(link_status(&mut second), LINK_UP);
    // The next driver is asked nothing that the last one was asked.
    await_timer(&second);
    second.handle_event(TIMER);
    write(&mut second, reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(link_status(&mut second), LINK_UP);
}

#[test]
fn a_guest_that_cannot_is_left_alone() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut first, ..) = running(&memory, &cable);
    let (rx, tx) = (Ring::new(&memory, RX_RING), Ring::new(&memory, TX_RING));
    for features in [VERSION_1, VERSION_1 | 1 << 16, FEATURES & !(1 << 17)] {
        assert_eq!(initialise(&mut first, features, &[&rx, &tx]), READY);
        let before = generation(&mut first);
        let (mut second, _gate) = taken_over(&first, &memory, &cable);
        second.start();
        await_timer(&second);
        second.handle_event(TIMER);
        assert_eq!(link_status(&mut second), LINK_UP);
        assert_eq!(generation(&mut second), before);
    }
}

#[test]
fn malformed_commands_are_skipped() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut first, ..) = running(&memory, &cable);
    let rings = [RX_RING, TX_RING, CONTROL_RING].map(|at| Ring::new(&memory, at));
    let [rx, tx, mut control] = rings;
    assert_eq!(
        initialise(&mut first, FEATURES, &[&rx, &tx, &control]),
        READY
    );
    let (mut device, _gate) = taken_over(&first, &memory, &cable);
    device.start();
    memory
        .write_slice(&ANNOUNCED, GuestAddress(COMMAND))
        .unwrap();
    let end = RAM_BYTES as u64;
    let bad = [
        control.offer(&[(COMMAND, 2, false)]),
        control.offer(&[(COMMAND, 2, false), (ANSWER, 0, true)]),
        control.offer(&[(COMMAND, 1, false), (ANSWER, 1, true)]),
        control.offer(&[(ANSWER, 1, true), (COMMAND, 2, false)]),
        control.offer(&[(COMMAND, 2, false), (end, 1, true)]),
        control.offer(&[(end - 1, 2, false), (ANSWER, 1, true)]),
    ];
    device.handle_event(CONTROL_KICK);
    assert_eq!(control.used(), bad.map(|head| (head, 0)));
    assert_eq!(device.device().counters().malformed_chains, 6);
    assert_eq!(link_status(&mut device), LINK_UP | ANNOUNCE);
    assert_eq!(read(&mut device, reg::VIRTIO_MMIO_STATUS), READY);
}

#[test]
fn a_state_with_more_addresses_than_are_kept_is_refused() {
    let (memory, cable) = (ram(), Cable::new());
    let (mut device, _gate) = device(&memory, &cable);
    for (stations, is_possible) in [(64, true), (65, false)] {
        // Each a MAC address, two tags of two numbers, and no router.
        let one = [2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0];
        let list = one.repeat(stations);
        let bytes = [&MAC[..], &[stations as u8], &list, &[0]].concat();
        let state = NetState {
            headers: false,
            mtu_bytes: None,
            link_up: true,
            guest_is_asked: false,
            addresses: postcard::from_bytes(&bytes).unwrap(),
        };
        let state = DeviceState::encode("net0", VERSION, &state).unwrap();
        let restored = VirtioDevice::restore(device.device_mut(), &state);
        assert_eq!(restored.is_ok(), is_possible, "{restored:?}");
    }
}
