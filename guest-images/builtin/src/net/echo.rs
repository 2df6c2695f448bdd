//! The `echo` workload: every byte comes back.

use super::service::{Connection, Pass};
use smoltcp::socket::tcp;

const PIECE_BYTES: usize = 4096;

/// One echo connection.
#[derive(Default)]
pub(crate) struct Echo {
    /// Bytes sent back so far.
    pub(crate) bytes: u64,
}

impl Connection for Echo {
    type Shared = ();

    fn serve(&mut self, socket: &mut tcp::Socket<'_>, (): &mut (), _now_ns: u64) -> Pass {
        let mut progress = false;
        let mut piece = [0; PIECE_BYTES];
        loop {
            let room = socket.send_capacity() - socket.send_queue();
            let limit = if socket.may_send() {
                room.min(PIECE_BYTES)
            } else {
                0
            };
            let Ok(length) = socket.recv_slice(&mut piece[..limit]) else {
                break;
            };
            if length == 0 {
                break;
            }
            // All of it fits: the room was measured before.
            let _ = socket.send_slice(&piece[..length]);
            self.bytes += length as u64;
            progress = true;
        }
        if socket.may_send() && !socket.may_recv() {
            socket.close(); // the peer is done, and so is the answer
            progress = true;
        }
        Pass {
            progress,
            next_ns: None,
        }
    }
}
