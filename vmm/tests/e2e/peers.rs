//! Peers that do not fit: of another version, or configured for something else. Both sides say what is
//! wrong and stay of use.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use understudy_transport::frame::{HEADER_BYTES, Limits};
use understudy_transport::{Frame, PROTOCOL_VERSION};

use crate::support::{DEADLINE, Quiet, await_log, turn};

/// A frame without a body of the next protocol version.
fn frame_of_the_next_version() -> [u8; HEADER_BYTES] {
    let mut header = Frame::default()
        .encode_header(0, Limits::default())
        .unwrap();
    header[4..6].copy_from_slice(&(PROTOCOL_VERSION + 1).to_le_bytes());
    header
}

/// What is said of it.
fn versions() -> String {
    let next = PROTOCOL_VERSION + 1;
    format!("the peer speaks protocol version {next}, this side {PROTOCOL_VERSION}")
}

#[test]
fn a_standby_of_another_version_leaves_the_guest_unprotected_and_running() {
    let _turn = turn();
    let hosts = Quiet::new();
    let listener = UnixListener::bind(hosts.channel()).unwrap();
    let mut primary = hosts.start_primary("primary", &[]);
    // Before it starts the guest for the first time, it asks what is known of it.
    let (mut asks, _) = listener.accept().unwrap();
    asks.write_all(&frame_of_the_next_version()).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut hello = [0; HEADER_BYTES];
    stream.read_exact(&mut hello).unwrap();
    assert_eq!(hello[4..6], PROTOCOL_VERSION.to_le_bytes());
    stream.write_all(&frame_of_the_next_version()).unwrap();
    await_log(&primary, &versions(), 1);
    let status = primary
        .await_status("alone", DEADLINE, |status| status.phase == "alone")
        .unwrap();
    assert!(!status.protected);
    assert_eq!(status.generation, 1);
    let alarm = status.alarm.unwrap();
    assert!(alarm.contains(&versions()), "{alarm}");
    assert!(alarm.contains("unprotected"), "{alarm}");

    // The same guest is protected as soon as a standby of this version is there.
    drop((stream, listener));
    std::fs::remove_file(hosts.channel()).unwrap();
    let _standby = hosts.start_standby("standby", &[]);
    primary
        .await_status("protected", DEADLINE, |status| status.protected)
        .unwrap();
}

#[test]
fn a_primary_of_another_version_is_told_so_and_the_standby_goes_on_listening() {
    let _turn = turn();
    let hosts = Quiet::new();
    let standby = hosts.start_standby("standby", &[]);
    let mut stream = UnixStream::connect(hosts.channel()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(&frame_of_the_next_version()).unwrap();
    await_log(&standby, &versions(), 1);
    // It answers in its own version, so that the other side can say so too, and closes the link.
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer[..4], *b"USTY");
    assert_eq!(answer[4..6], PROTOCOL_VERSION.to_le_bytes());
    let status = standby.status().unwrap();
    assert_eq!(status.phase, "listening");

    let mut primary = hosts.start_primary("primary", &[]);
    primary
        .await_status("protected", DEADLINE, |status| status.protected)
        .unwrap();
}

#[test]
fn strangers_fill_neither_the_port_nor_the_log() {
    let _turn = turn();
    let hosts = Quiet::new();
    let standby = hosts.start_standby("standby", &[]);
    let connect = || UnixStream::connect(hosts.channel()).unwrap();
    let _silent: Vec<_> = (0..15).map(|_| connect()).collect();
    let began = Instant::now();
    let nonsense = |connections: u64| {
        for number in 0..connections {
            let mut stream = connect();
            // It may be turned away before.
            let _ = match number % 2 {
                0 => stream.write_all(&frame_of_the_next_version()),
                _ => stream.write_all(b"GET / HTTP/1.1\r\n\r\n"),
            };
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| nonsense(500));
        }
        let mut primary = hosts.start_primary("primary", &[]);
        primary
            .await_status("protected", DEADLINE, |status| status.protected)
            .unwrap();
    });
    let strangers = standby.status().unwrap().strangers;
    assert!(strangers.connections > 4000, "{strangers:?}");
    // Of each kind one line a second.
    let lines = standby.log().lines().count() as u64;
    let lines_max = 20 + 8 * (began.elapsed().as_secs() + 1);
    assert!(lines <= lines_max, "{lines} lines\n{}", standby.log());
}

#[test]
fn machines_that_differ_are_refused_and_the_difference_is_named() {
    let _turn = turn();
    let hosts = Quiet::new();
    let standby = hosts.start_standby("standby", &[]);
    for (name, further, difference) in [
        (
            "other-name",
            &["--name", "web"][..],
            "the backup is configured for \"guest\"",
        ),
        (
            "other-memory",
            &["--memory-mib", "32"],
            "memory: primary has 32 MiB, backup has 64 MiB",
        ),
        (
            "other-vcpus",
            &["--vcpus", "2"],
            "vcpus: primary has 2, backup has 1",
        ),
        ("other-devices", &["--rng"], "backup has nothing"),
    ] {
        let mut primary = hosts.start_primary(name, further);
        await_log(&primary, difference, 1);
        await_log(&standby, difference, 1);
        let status = primary
            .await_status("alone", DEADLINE, |status| status.phase == "alone")
            .unwrap();
        let alarm = status.alarm.unwrap();
        assert!(alarm.contains(difference), "{name}: {alarm}");
        assert_eq!(standby.status().unwrap().phase, "listening", "{name}");
        primary.kill().unwrap();
    }
    let mut primary = hosts.start_primary("the-same", &[]);
    primary
        .await_status("protected", DEADLINE, |status| status.protected)
        .unwrap();
}
