//! Heartbeats over real UDP sockets on this host, and the packet against damage.

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use tokio::net::UdpSocket;
use understudy_transport::heartbeat::{
    HEARTBEAT_BYTES, Heartbeat, HeartbeatDrops, HeartbeatError, HeartbeatSocket, Sender, vm_hash,
};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

async fn next(socket: &mut HeartbeatSocket) -> Heartbeat {
    tokio::time::timeout(Duration::from_secs(60), socket.recv())
        .await
        .expect("no heartbeat came")
        .expect("the socket failed")
}

/// Made by hand from `docs/PROTOCOL.md` with another CRC32 and FNV-1a.
#[test]
fn packet_has_its_golden_bytes() {
    let heartbeat = Heartbeat {
        sender: Sender::Backup,
        generation: 7,
        session: 0x1112_1314_1516_1718,
        sequence: 0x0102_0304_0506_0708,
    };
    #[rustfmt::skip]
    let golden: [u8; HEARTBEAT_BYTES] = [
        0x55, 0x53, 0x48, 0x42, 0x02, 0x00, 0x02, 0x00,
        0x07, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11,
        0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01,
        0xf1, 0x1e, 0x72, 0x48, 0x19, 0xe1, 0xa0, 0x5e,
        0x00, 0x00, 0x00, 0x00, 0xe1, 0xa8, 0x18, 0x06,
    ];
    assert_eq!(heartbeat.encode(vm_hash("web")), golden);
    assert_eq!(Heartbeat::decode(&golden, vm_hash("web")), Ok(heartbeat));
    assert_eq!(
        Heartbeat::decode(&golden, vm_hash("wed")),
        Err(HeartbeatError::OtherVm)
    );
}

proptest! {
    #[test]
    fn damage_is_refused(
        generation: u64,
        session: u64,
        sequence: u64,
        vm: u64,
        at in 0..HEARTBEAT_BYTES,
        flip in 1u8..,
        len in 0..HEARTBEAT_BYTES,
    ) {
        let heartbeat = Heartbeat { sender: Sender::Primary, generation, session, sequence };
        let packet = heartbeat.encode(vm);
        prop_assert_eq!(Heartbeat::decode(&packet, vm), Ok(heartbeat));
        prop_assert!(Heartbeat::decode(&packet[..len], vm).is_err());
        let mut damaged = packet;
        damaged[at] ^= flip;
        prop_assert!(Heartbeat::decode(&damaged, vm).is_err());
    }

    #[test]
    fn garbage_is_refused(garbage in prop::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(Heartbeat::decode(&garbage, 1).is_err());
    }
}

#[tokio::test]
async fn heartbeats_go_both_ways_and_are_numbered() {
    let mut backup = HeartbeatSocket::bind(ANY, None, "web").await.unwrap();
    let backup_address = backup.local_address().unwrap();
    let mut primary = HeartbeatSocket::bind(ANY, Some(backup_address), "web")
        .await
        .unwrap();
    assert!(
        !backup.send(Sender::Backup, 1, 0).await.unwrap(),
        "no peer is known yet"
    );
    for sequence in 0..3 {
        assert!(primary.send(Sender::Primary, 5, 9).await.unwrap());
        let heartbeat = Heartbeat {
            sender: Sender::Primary,
            generation: 5,
            session: 9,
            sequence,
        };
        assert_eq!(next(&mut backup).await, heartbeat);
    }
    assert!(backup.send(Sender::Backup, 4, 9).await.unwrap());
    let heartbeat = Heartbeat {
        sender: Sender::Backup,
        generation: 4,
        session: 9,
        sequence: 0,
    };
    assert_eq!(next(&mut primary).await, heartbeat);
    assert_eq!(primary.drops(), HeartbeatDrops::default());
}

#[tokio::test]
async fn everything_else_is_dropped_and_counted() {
    let friend = UdpSocket::bind(ANY).await.unwrap();
    let stranger = UdpSocket::bind(ANY).await.unwrap();
    let peer = friend.local_addr().unwrap();
    let mut socket = HeartbeatSocket::bind(ANY, Some(peer), "web").await.unwrap();
    let address = socket.local_address().unwrap();
    let good = Heartbeat {
        sender: Sender::Primary,
        generation: 1,
        session: 3,
        sequence: 2,
    };
    let packet = good.encode(vm_hash("web"));
    let mut longer = packet.to_vec();
    longer.push(0);
    let mut newer = packet;
    newer[4] = 9;
    stranger.send_to(&packet, address).await.unwrap();
    for packet in [
        &b""[..],
        b"hello",
        &[0xff; 1400],
        &packet[..47],
        &longer,
        &newer,
        &good.encode(vm_hash("db")),
        &packet,
    ] {
        friend.send_to(packet, address).await.unwrap();
    }
    assert_eq!(next(&mut socket).await, good);
    assert_eq!(
        socket.drops(),
        HeartbeatDrops {
            malformed_packets: 5,
            version_packets: 1,
            other_vm_packets: 1,
            other_peer_packets: 1,
        }
    );
}
