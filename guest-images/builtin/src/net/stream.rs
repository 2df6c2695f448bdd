//! The `stream` workload: the pattern over HTTP, see `understudy_workload::http`.
//!
//! Every client of `/stream` gets the same rate: a budget that grows with time and is spent in pieces
//! of about a segment. The budget is capped, so a client that was held up does not get a burst, and
//! pieces leave on a common 5 ms grid, so that many clients do not mean many wake-ups.

use super::service::{Connection, Pass};
use alloc::string::{String, ToString};
use smoltcp::socket::tcp;
use understudy_workload::http::{HEAD_BYTES_MAX, Request, ResponseHead};
use understudy_workload::pattern;

/// The grid on which rate-limited streams are looked at.
const TICK_NS: u64 = 5_000_000;
/// Budget is kept for at most this long.
const BUDGET_NS_MAX: u64 = 20_000_000;
/// The largest piece a rate-limited stream waits for: one full segment.
const SEGMENT_BYTES: u64 = 1460;
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
            .map_or(u64::MAX, |budget| budget.pieces(now_ns));
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
            budget.next_ns(now_ns)
        });
        Pass {
            progress: sent > 0,
            next_ns,
        }
    }
}

/// What a rate-limited stream may send, in bytes times nanoseconds per second to lose no fraction.
struct Budget {
    rate: u64,
    saved: u64,
    at_ns: u64,
}

const NS_PER_S: u64 = 1_000_000_000;

impl Budget {
    fn new(rate: u64, now_ns: u64) -> Self {
        Self {
            rate,
            saved: 0,
            at_ns: now_ns,
        }
    }

    /// The piece worth sending: a segment, or what a slow stream may send in the time budget is kept.
    fn piece(&self) -> u64 {
        (self.rate / (NS_PER_S / BUDGET_NS_MAX)).clamp(1, SEGMENT_BYTES)
    }

    /// Bytes that may be sent now, in whole pieces.
    fn pieces(&mut self, now_ns: u64) -> u64 {
        let cap = (self.rate.saturating_mul(BUDGET_NS_MAX)).max(2 * self.piece() * NS_PER_S);
        let passed_ns = now_ns.saturating_sub(self.at_ns).min(NS_PER_S);
        self.at_ns = now_ns;
        self.saved = self
            .saved
            .saturating_add(self.rate.saturating_mul(passed_ns))
            .min(cap);
        let bytes = self.saved / NS_PER_S;
        bytes - bytes % self.piece()
    }

    fn spend(&mut self, bytes: u64) {
        self.saved = self.saved.saturating_sub(bytes.saturating_mul(NS_PER_S));
    }

    /// The point of the grid at which the next piece may be sent.
    fn next_ns(&self, now_ns: u64) -> u64 {
        let missing = (self.piece() * NS_PER_S).saturating_sub(self.saved);
        let ready_ns = now_ns + missing.div_ceil(self.rate);
        (ready_ns / TICK_NS + 1) * TICK_NS
    }
}
