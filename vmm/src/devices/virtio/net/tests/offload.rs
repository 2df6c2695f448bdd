//! Devices whose backend takes over checksums and segmentation.

use super::*;

/// Every feature of offload.
const OFFLOAD: u64 = 0b11_1011_1000_0011;

fn with_headers() -> Cable {
    Cable {
        framing: Framing::Headers,
        ..Cable::new()
    }
}

/// The header of TCP over IPv4 that is still to be cut into segments.
fn unsegmented() -> [u8; 12] {
    [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]
}

#[test]
fn large_frames_keep_their_header_through_gate_epoch_and_repetition() {
    let (memory, cable) = (ram(), with_headers());
    let (mut device, gate) = device(&memory, &cable);
    device.start();
    let (rx, mut tx) = (Ring::new(&memory, RX_RING), Ring::new(&memory, TX_RING));
    let features = VERSION_1 | OFFLOAD;
    assert_eq!(initialise(&mut device, features, &[&rx, &tx]), READY);
    gate.hold();
    let mut large = frame(1);
    large.resize(65_535 + 14, 7);
    let packet = [&unsegmented()[..], &large].concat();
    memory.write_slice(&packet, GuestAddress(TX_DATA)).unwrap();
    // Header, Ethernet's and the rest by themselves, as drivers cut them.
    let rest = packet.len() as u32 - 26;
    tx.offer(&[
        (TX_DATA, 12, false),
        (TX_DATA + 12, 14, false),
        (TX_DATA + 26, rest, false),
    ]);
    device.handle_event(TX_KICK);
    let sealed = gate.seal(EpochId(1));
    assert_eq!(sealed.frames.len(), 1);
    assert!(sealed.frames[0].bytes == packet);
    gate.release(EpochId(1), far());
    assert!(cable.sent() == [packet.clone()]);
    // And once more, from the host that takes over.
    let (cable, memory) = (with_headers(), ram());
    let (_device, gate) = self::device(&memory, &cable);
    gate.repeat(&sealed);
    assert!(cable.sent() == [packet]);
}

#[test]
fn offload_is_offered_by_backends_that_have_it() {
    let memory = ram();
    for (cable, offered) in [(Cable::new(), 0), (with_headers(), OFFLOAD as u32)] {
        let (mut device, _gate) = device(&memory, &cable);
        write(&mut device, reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        let features = read(&mut device, reg::VIRTIO_MMIO_DEVICE_FEATURES);
        assert_eq!(features & OFFLOAD as u32, offered);
    }
}

#[test]
fn the_backend_knows_what_the_driver_takes_upon_itself() {
    let (memory, cable) = (ram(), with_headers());
    let (mut device, _gate) = device(&memory, &cable);
    device.start();
    let receives = |cable: &Cable| *cable.receives.lock().unwrap();
    let (rx, tx) = (Ring::new(&memory, RX_RING), Ring::new(&memory, TX_RING));
    let some = VERSION_1 | 1 << 1 | 1 << 7;
    assert_eq!(initialise(&mut device, some, &[&rx, &tx]), READY);
    let wanted = Receives {
        checksums: true,
        tso4: true,
        ..Receives::default()
    };
    assert_eq!(receives(&cable), wanted);
    // Another host's backend is told when the state arrives there.
    let there = with_headers();
    let (mut standby, _gate) = self::device(&memory, &there);
    assert_eq!(receives(&there), Receives::default());
    let state = device.save().unwrap();
    standby.restore(&state).unwrap();
    assert_eq!(receives(&there), wanted);
    assert_eq!(standby.save().unwrap(), state);
    write(&mut standby, reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(receives(&there), Receives::default());
    // A host without offload could not send the frames of this guest.
    let (mut other, _gate) = self::device(&memory, &Cable::new());
    let error = other.restore(&state).unwrap_err();
    assert!(matches!(error, DeviceError::Invalid { .. }), "{error}");
    let driverless = self::device(&memory, &with_headers()).0.save().unwrap();
    let error = other.restore(&driverless).unwrap_err().to_string();
    assert!(error.contains("offload is: none"), "{error}");
}

#[test]
fn what_a_guest_was_given_elsewhere_keeps_its_header() {
    let mut arrivals = Vec::new();
    for gave in [true, false] {
        let (memory, cable) = (ram(), with_headers());
        let (mut device, gate) = device(&memory, &cable);
        device.start();
        let (mut rx, tx) = (Ring::new(&memory, RX_RING), Ring::new(&memory, TX_RING));
        assert_eq!(
            initialise(&mut device, VERSION_1 | OFFLOAD, &[&rx, &tx]),
            READY
        );
        rx.offer(&[(RX_DATA, 2048, true)]);
        if gave {
            gate.follow_arrivals();
            cable.arrive(&[&unsegmented()[..], &clients_frame(1)].concat());
        } else {
            gate.deliver(&std::mem::take(&mut arrivals));
        }
        device.handle_event(BACKEND);
        let mut header = unsegmented();
        header[10] = 1;
        assert_eq!(rx.used().len(), 1);
        assert_eq!(
            bytes_at(&memory, RX_DATA, 72),
            [&header[..], &clients_frame(1)].concat()
        );
        arrivals = gate.take_arrivals();
        assert_eq!(arrivals.len(), usize::from(gave));
    }
}

#[test]
fn guests_get_only_what_they_understand() {
    let (memory, cable) = (ram(), with_headers());
    let (mut device, _gate) = device(&memory, &cable);
    device.start();
    for (features, understood) in [(VERSION_1 | OFFLOAD, true), (VERSION_1, false)] {
        let (mut rx, tx) = (Ring::new(&memory, RX_RING), Ring::new(&memory, TX_RING));
        for index in [
            &rx.avail.idx(),
            &rx.used.idx(),
            &tx.avail.idx(),
            &tx.used.idx(),
        ] {
            index.store(0);
        }
        assert_eq!(initialise(&mut device, features, &[&rx, &tx]), READY);
        rx.offer(&[(RX_DATA, 2048, true)]);
        rx.offer(&[(RX_DATA + 2048, 2048, true)]);
        cable.arrive(&[&unsegmented()[..], &frame(1)].concat());
        cable.arrive(&[&[0; 12][..], &frame(2)].concat());
        device.handle_event(BACKEND);
        let mut header = unsegmented();
        header[10] = 1;
        let large = [&header[..], &frame(1)].concat();
        let plain = [&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0][..], &frame(2)].concat();
        if understood {
            assert_eq!(rx.used().len(), 2);
            assert_eq!(bytes_at(&memory, RX_DATA, 72), large);
            assert_eq!(bytes_at(&memory, RX_DATA + 2048, 72), plain);
        } else {
            assert_eq!(rx.used().len(), 1);
            assert_eq!(bytes_at(&memory, RX_DATA, 72), plain);
            assert_eq!(device.device().counters().rx_dropped, 1);
        }
    }
}

#[test]
fn headers_that_were_not_negotiated_cost_the_frame() {
    let (memory, cable) = (ram(), with_headers());
    let (mut device, _gate, _rx, mut tx) = running(&memory, &cable);
    let packet = [&unsegmented()[..], &frame(1)].concat();
    memory.write_slice(&packet, GuestAddress(TX_DATA)).unwrap();
    tx.offer(&[(TX_DATA, packet.len() as u32, false)]);
    offer_frame(&memory, &mut tx, TX_DATA + 0x1000, &frame(2));
    device.handle_event(TX_KICK);
    assert_eq!(cable.sent(), [[&[0; 12][..], &frame(2)].concat()]);
    assert_eq!(device.device().counters().malformed_chains, 1);
    // What the VMM itself says has a header too.
    device.device_mut().announce().unwrap();
    let own = rarp(Station::untagged(MAC));
    assert_eq!(cable.sent(), [[&[0; 12][..], &own].concat()]);
}
