//! The `stream` workload: the pattern over HTTP, see `understudy_workload::http`.
//!
//! Every client of `/stream` gets the same rate, see `understudy_workload::pacing`.

use super::service::{Connection, Pass};
use alloc::string::{String, ToString};
use smoltcp::socket::tcp;
use understudy_workload::http::{HEAD_BYTES_MAX, Request, ResponseHead};
use understudy_workload::pacing::Budget;
use understudy_workload::pattern;

/// What one connection may queue in one pass, so that all get their turn.
const PASS_BYTES_MAX: usize = 32 * 1024;

/// What all stream connections share.
pub(crate) struct StreamShared {
    /// Bytes per second for each `/stream`; 0 is without limit.
    pub(crate) rate: u64,
    /// A client has asked for `/status` and waits for it to be written.
    pub(crate) status_wanted: bool,
    /// The answer to `/status`, while it is fresh.
    pub(crate) status: Option<String>,
}

/// One HTTP connection.
#[derive(Default)]
pub(crate) struct Stream {
    phase: Phase,
}

#[derive(Default)]
enum Phase {
    /// The request head is not complete.
    #[default]
    Head,
    /// The response head and all of the body that is not pattern is queued; the pattern goes on here.
    Pattern(Body),
    /// Everything is queued.
    Done,
}

struct Body {
    position: u64,
    left: Option<u64>,
    budget: Option<Budget>,
}

impl Connection for Stream {
    type Shared = StreamShared;

    fn serve(
        &mut self,
        socket: &mut tcp::Socket<'_>,
        shared: &mut StreamShared,
        now_ns: u64,
    ) -> Pass {
        let mut pass = Pass::default();
        if let Phase::Head = self.phase {
            match answer(socket, shared, now_ns) {
                Some(phase) => {
                    self.phase = phase;
                    pass.progress = true;
                }
                None => {
                    if socket.may_send() && !socket.may_recv() {
                        socket.close();
                        pass.progress = true;
                    }
                    pass.progress |= shared.status_wanted;
                    return pass;
                }
            }
        }
        // Whatever else the client sends is not for us.
        while matches!(socket.recv(|bytes| (bytes.len(), bytes.len())), Ok(1..)) {
            pass.progress = true;
        }
        match &mut self.phase {
            Phase::Pattern(body) => {
                pass = pass.and(body.serve(socket, now_ns));
                if body.left == Some(0) {
                    self.phase = Phase::Done;
                    pass.progress = true;
                }
            }
            Phase::Done if socket.may_send() => {
                socket.close();
                pass.progress = true;
            }
            Phase::Head | Phase::Done => {}
        }
        pass
    }
}

/// Answers the request once it is complete. The transmit buffer is empty and has room for any head.
fn answer(socket: &mut tcp::Socket<'_>, shared: &mut StreamShared, now_ns: u64) -> Option<Phase> {
    // The connection's first bytes lie in one piece: the ring was empty before them.
    let request = Request::parse(socket.peek(HEAD_BYTES_MAX).ok()?);
    let mut body = None;
    let (head, phase) = match request {
        Ok(Some(Request::Stream { from })) => {
            let budget = (shared.rate > 0).then(|| Budget::new(shared.rate, now_ns));
            let body = Body {
                position: from,
                left: None,
                budget,
            };
            (ResponseHead::Pattern { bytes: None }, Phase::Pattern(body))
        }
        Ok(Some(Request::File { bytes })) => {
            let body = Body {
                position: 0,
                left: Some(bytes),
                budget: None,
            };
            (
                ResponseHead::Pattern { bytes: Some(bytes) },
                Phase::Pattern(body),
            )
        }
        Ok(Some(Request::Status)) => {
            shared.status_wanted = shared.status.is_none();
            body = Some(shared.status.as_deref()?);
            (
                ResponseHead::Json {
                    bytes: body.map_or(0, str::len),
                },
                Phase::Done,
            )
        }
        Ok(None) => return None,
        Err(error) => (ResponseHead::Refusal(error), Phase::Done),
    };
    let _ = socket.send_slice(head.to_string().as_bytes());
    if let Some(body) = body {
        let _ = socket.send_slice(body.as_bytes());
    }
    Some(phase)
}

impl Body {
    fn serve(&mut self, socket: &mut tcp::Socket<'_>, now_ns: u64) -> Pass {
        if !socket.may_send() {
            return Pass::default();
        }
        let room = socket.send_capacity() - socket.send_queue();
        if room == 0 {
            return Pass::default(); // an acknowledgement will bring us back
        }
        let allowed = self
            .budget
            .as_mut()
            .map_or(u64::MAX, |budget| budget.available_bytes(now_ns));
        let allowed = allowed.min(self.left.unwrap_or(u64::MAX));
        let mut wanted = allowed.min(room.min(PASS_BYTES_MAX) as u64) as usize;
        let mut sent = 0;
        while wanted > 0 {
            let position = self.position;
            let written = socket.send(|buffer| {
                let length = buffer.len().min(wanted);
                pattern::fill(position, &mut buffer[..length]);
                (length, length)
            });
            let Ok(length @ 1..) = written else { break };
            self.position = self.position.wrapping_add(length as u64);
            wanted -= length;
            sent += length as u64;
        }
        if let Some(left) = &mut self.left {
            *left -= sent;
        }
        let next_ns = self.budget.as_mut().map(|budget| {
            budget.spend(sent);
            budget.next_ns()
        });
        Pass {
            progress: sent > 0,
            next_ns,
        }
    }
}
