//! A learning Ethernet switch. A port is a Unix stream socket with the framing of QEMU and passt (32
//! bit big-endian length, then the frame), or the local side, which is this process' own clients.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Longest frame accepted; a port that announces more is closed.
const FRAME_BYTES_MAX: usize = 65_550;
/// Bytes waiting for a port that does not read; further frames to it are dropped, as a switch does.
const BACKLOG_BYTES_MAX: usize = 4 << 20;
const MAC_BYTES: usize = 6;

type Mac = [u8; MAC_BYTES];

/// What went over one port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortCounts {
    /// Frames from the host.
    pub frames_in: u64,
    /// Frames to the host.
    pub frames_out: u64,
    /// Frames to the host that it did not take.
    pub frames_dropped: u64,
}

/// A learning Ethernet switch: it floods what it has no port for, and drops what a port does not read.
#[derive(Debug, Default)]
pub(super) struct EthernetSwitch {
    ports: Vec<Port>,
    /// Where each address was last seen; `None` is the local side.
    table: HashMap<Mac, Option<usize>>,
    /// Frames for the local side.
    local: VecDeque<Vec<u8>>,
}

#[derive(Debug)]
struct Port {
    listener: UnixListener,
    stream: Option<UnixStream>,
    input: Vec<u8>,
    output: VecDeque<u8>,
    counts: PortCounts,
}

impl EthernetSwitch {
    /// Adds a port that one host at a time can connect to at `path`. Returns its number.
    pub(super) fn add_port(&mut self, path: &Path) -> std::io::Result<usize> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        self.ports.push(Port {
            listener,
            stream: None,
            input: Vec::new(),
            output: VecDeque::new(),
            counts: PortCounts::default(),
        });
        Ok(self.ports.len() - 1)
    }

    /// Counts of a port.
    pub(super) fn counts(&self, port: usize) -> PortCounts {
        self.ports[port].counts
    }

    /// What to poll: for each file whether room to write is awaited too.
    pub(super) fn files(&self) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        self.ports.iter().flat_map(|port| {
            let stream = port
                .stream
                .iter()
                .map(|stream| (stream.as_fd(), !port.output.is_empty()));
            std::iter::once((port.listener.as_fd(), false)).chain(stream)
        })
    }

    /// Moves everything that can be moved without waiting.
    pub(super) fn service(&mut self) {
        for number in 0..self.ports.len() {
            for frame in self.ports[number].receive() {
                self.forward(Some(number), frame);
            }
        }
        for port in &mut self.ports {
            port.flush();
        }
    }

    /// A frame from the local side.
    pub(super) fn send_local(&mut self, frame: Vec<u8>) {
        self.forward(None, frame);
    }

    /// The next frame for the local side.
    pub(super) fn receive_local(&mut self) -> Option<Vec<u8>> {
        self.local.pop_front()
    }

    fn forward(&mut self, from: Option<usize>, frame: Vec<u8>) {
        let Some((destination, source)) = addresses(&frame) else {
            return;
        };
        self.table.insert(source, from);
        match self.table.get(&destination) {
            Some(to) if *to == from => {}
            Some(to) => self.deliver(*to, frame),
            None => {
                for to in (0..self.ports.len()).map(Some).chain([None]) {
                    if to != from {
                        self.deliver(to, frame.clone());
                    }
                }
            }
        }
    }

    fn deliver(&mut self, to: Option<usize>, frame: Vec<u8>) {
        match to {
            Some(number) => self.ports[number].send(&frame),
            None => self.local.push_back(frame),
        }
    }
}

fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    let destination: Mac = frame.get(..MAC_BYTES)?.try_into().ok()?;
    let source: Mac = frame.get(MAC_BYTES..2 * MAC_BYTES)?.try_into().ok()?;
    Some((destination, source))
}

impl Port {
    fn receive(&mut self) -> Vec<Vec<u8>> {
        if let Ok((stream, _)) = self.listener.accept() {
            // A host that was restarted: its old connection is of no use any more.
            let usable = stream.set_nonblocking(true).is_ok();
            self.stream = usable.then_some(stream);
            self.input.clear();
            self.output.clear();
        }
        let mut buffer = [0; 64 * 1024];
        while let Some(stream) = &mut self.stream {
            match stream.read(&mut buffer) {
                Ok(0) => self.close(),
                Ok(count) => {
                    self.input.extend_from_slice(&buffer[..count]);
                    if count < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.close(),
            }
        }
        self.split_frames()
    }

    fn split_frames(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut at = 0;
        while let Some(prefix) = self.input.get(at..at + 4) {
            let len = u32::from_be_bytes([prefix[0], prefix[1], prefix[2], prefix[3]]) as usize;
            if len > FRAME_BYTES_MAX {
                self.close();
                return frames;
            }
            let Some(frame) = self.input.get(at + 4..at + 4 + len) else {
                break;
            };
            frames.push(frame.to_vec());
            at += 4 + len;
        }
        self.input.drain(..at);
        self.counts.frames_in += frames.len() as u64;
        frames
    }

    fn send(&mut self, frame: &[u8]) {
        if self.stream.is_none() || self.output.len() + frame.len() > BACKLOG_BYTES_MAX {
            self.counts.frames_dropped += 1;
            return;
        }
        self.output.extend((frame.len() as u32).to_be_bytes());
        self.output.extend(frame);
        self.counts.frames_out += 1;
    }

    fn flush(&mut self) {
        while let Some(stream) = &mut self.stream
            && !self.output.is_empty()
        {
            let (first, _) = self.output.as_slices();
            match stream.write(first) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.close(),
            }
        }
    }

    fn close(&mut self) {
        self.stream = None;
        self.input.clear();
        self.output.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(to: u8, from: u8) -> Vec<u8> {
        [[to; 6], [from; 6]].concat()
    }

    fn connect(switch: &mut EthernetSwitch, path: &Path) -> UnixStream {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_nonblocking(true).unwrap();
        switch.service();
        stream
    }

    fn send(stream: &mut UnixStream, frame: &[u8]) {
        stream
            .write_all(&(frame.len() as u32).to_be_bytes())
            .unwrap();
        stream.write_all(frame).unwrap();
    }

    #[test]
    fn unknown_addresses_are_flooded_and_known_ones_reach_one_port() {
        let directory = tempfile::tempdir().unwrap();
        let mut switch = EthernetSwitch::default();
        let paths = ["a", "b"].map(|name| directory.path().join(name));
        let ports = paths.each_ref().map(|path| switch.add_port(path).unwrap());
        let mut hosts = paths.each_ref().map(|path| connect(&mut switch, path));
        send(&mut hosts[0], &frame(9, 1));
        switch.service();
        assert_eq!(switch.receive_local(), Some(frame(9, 1)));
        assert_eq!(switch.counts(ports[1]).frames_out, 1);
        switch.send_local(frame(1, 9));
        assert_eq!(switch.counts(ports[0]).frames_out, 1);
        assert_eq!(switch.counts(ports[1]).frames_out, 1);
        // The address moves: the other host speaks with it.
        send(&mut hosts[1], &frame(9, 1));
        switch.service();
        switch.send_local(frame(1, 9));
        assert_eq!(switch.counts(ports[0]).frames_out, 1);
        assert_eq!(switch.counts(ports[1]).frames_out, 2);
    }

    #[test]
    fn a_port_that_announces_too_much_is_closed() {
        let directory = tempfile::tempdir().unwrap();
        let mut switch = EthernetSwitch::default();
        let path = directory.path().join("a");
        let port = switch.add_port(&path).unwrap();
        let mut host = connect(&mut switch, &path);
        host.write_all(&u32::MAX.to_be_bytes()).unwrap();
        switch.service();
        assert!(switch.ports[port].stream.is_none());
    }
}
