//! The `counter` workload: the key-value protocol of `understudy_workload::counter`.

use super::service::{Connection, Pass};
use alloc::vec::Vec;
use core::fmt::Write;
use smoltcp::socket::tcp;
use understudy_workload::counter::{LINE_BYTES_MAX, Response, Store, next_line};

/// One counter connection.
#[derive(Default)]
pub(crate) struct Counter {
    line: Vec<u8>,
    refused: bool,
}

/// Writes to a socket that is known to have room for a line.
struct Sender<'a, 'b>(&'a mut tcp::Socket<'b>);

impl Write for Sender<'_, '_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        match self.0.send_slice(text.as_bytes()) {
            Ok(sent) if sent == text.len() => Ok(()),
            _ => Err(core::fmt::Error),
        }
    }
}

impl Counter {
    /// Answers the first complete line, if there is one.
    fn answer(&mut self, socket: &mut tcp::Socket<'_>, store: &mut Store) -> bool {
        match next_line(&self.line) {
            Ok(None) => false,
            Ok(Some((line, used))) => {
                // A peer that has gone away gets no answer; its request counts all the same.
                let _ = writeln!(Sender(socket), "{}", store.serve(line));
                self.line.drain(..used);
                true
            }
            Err(error) => {
                let _ = writeln!(Sender(socket), "{}", Response::Error(error.text()));
                self.refused = true;
                false
            }
        }
    }
}

impl Connection for Counter {
    type Shared = Store;

    fn serve(&mut self, socket: &mut tcp::Socket<'_>, store: &mut Store, _now_ns: u64) -> Pass {
        let mut progress = false;
        while !self.refused && socket.may_send() {
            if socket.send_capacity() - socket.send_queue() < LINE_BYTES_MAX {
                break; // requests wait until their answers have room
            }
            if self.answer(socket, store) {
                progress = true;
                continue;
            }
            let room = LINE_BYTES_MAX - self.line.len();
            let received = socket.recv(|bytes| {
                let length = bytes.len().min(room);
                self.line.extend_from_slice(&bytes[..length]);
                (length, length)
            });
            match received {
                Ok(length) if length > 0 => progress = true,
                _ => break,
            }
        }
        if socket.may_send() && (self.refused || !socket.may_recv()) {
            socket.close();
            progress = true;
        }
        Pass {
            progress,
            next_ns: None,
        }
    }
}
