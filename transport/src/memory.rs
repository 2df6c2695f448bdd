//! Links in memory, with seeded faults on the byte stream, for tests and simulations.
//!
//! Time is tokio's. With a paused clock a run takes no real time, and the same seed with the same
//! callers gives the same run, byte for byte. Delays are in whole milliseconds, the resolution of
//! tokio's timers. The faults are those of byte streams: bytes of one direction never overtake each
//! other, but messages on different links do; see [`FaultyNetwork`]. Not for real traffic.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::frame::Limits;
use crate::link::Link;

/// What happens to the bytes of one direction. Offsets count the direction's bytes from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults {
    /// Shortest time from writing to being readable.
    pub delay_min: Duration,
    /// Longest time from writing to being readable. The time is drawn again for each piece.
    pub delay_max: Duration,
    /// Writes are cut into pieces of 1 to this many bytes, and reads with them. `None` leaves them
    /// whole.
    pub piece_bytes_max: Option<usize>,
    /// The connection is lost in both directions once this many bytes have been written.
    pub lose_after_bytes: Option<u64>,
    /// The stream ends as if closed once this many bytes have been written. Later writes fail.
    pub truncate_after_bytes: Option<u64>,
    /// Offsets of bytes to change.
    pub corrupt_offsets: Vec<u64>,
    /// In addition, one byte in this many is changed on average.
    pub corrupt_one_in_bytes: Option<u64>,
    /// Most bytes in flight. The writer waits for room.
    pub in_flight_bytes_max: usize,
}

impl Default for Faults {
    /// No faults: the bytes arrive at once and unharmed.
    fn default() -> Self {
        Self {
            delay_min: Duration::ZERO,
            delay_max: Duration::ZERO,
            piece_bytes_max: None,
            lose_after_bytes: None,
            truncate_after_bytes: None,
            corrupt_offsets: Vec::new(),
            corrupt_one_in_bytes: None,
            in_flight_bytes_max: 256 << 10,
        }
    }
}

/// The two ends of a link with the same faults in both directions. Each direction has its own
/// randomness.
#[must_use]
pub fn pair(seed: u64, faults: Faults) -> (Link, Link) {
    pair_with(seed, faults.clone(), faults, Limits::default())
}

/// The two ends of a link. `there` applies to what the first sends, `back` to what the second
/// sends.
#[must_use]
pub fn pair_with(seed: u64, there: Faults, back: Faults, limits: Limits) -> (Link, Link) {
    let (first, second, _) = connect(seed, there, back, limits, "memory");
    (first, second)
}

/// Several links with different delays, so that messages on different links overtake each other.
#[derive(Debug)]
pub struct FaultyNetwork {
    luck: StdRng,
    faults: Faults,
    spread: Duration,
    wires: Vec<Weak<Mutex<Wire>>>,
}

impl FaultyNetwork {
    /// A network whose links all have `faults`, plus a constant delay of 0 to `spread` for each
    /// link.
    #[must_use]
    pub fn new(seed: u64, faults: Faults, spread: Duration) -> Self {
        Self {
            luck: StdRng::seed_from_u64(seed),
            faults,
            spread,
            wires: Vec::new(),
        }
    }

    /// The two ends of a new link. Links are numbered from 0.
    pub fn link(&mut self, limits: Limits) -> (Link, Link) {
        let detour = draw_duration(&mut self.luck, Duration::ZERO, self.spread);
        let mut faults = self.faults.clone();
        faults.delay_min += detour;
        faults.delay_max += detour;
        let name = format!("memory:{}", self.wires.len());
        let seed = self.luck.random();
        let (first, second, wire) = connect(seed, faults.clone(), faults, limits, &name);
        self.wires.push(wire);
        (first, second)
    }

    /// Loses the `link`-th link now. Bytes in flight are gone, and both ends see a reset. Does
    /// nothing if that link no longer exists.
    pub fn cut(&mut self, link: usize) {
        if let Some(wire) = self.wires.get(link).and_then(Weak::upgrade) {
            let mut wire = wire.lock();
            for direction in &mut wire.directions {
                direction.in_flight.clear();
                direction.in_flight_bytes = 0;
            }
            wire.lose();
        }
    }
}

fn connect(
    seed: u64,
    there: Faults,
    back: Faults,
    limits: Limits,
    name: &str,
) -> (Link, Link, Weak<Mutex<Wire>>) {
    let mut luck = StdRng::seed_from_u64(seed);
    let wire = Arc::new(Mutex::new(Wire {
        directions: [
            Direction::new(luck.random(), there),
            Direction::new(luck.random(), back),
        ],
    }));
    let end = |sends: usize| {
        let reader = WireReader {
            wire: wire.clone(),
            direction: 1 - sends,
            alarm: None,
        };
        let writer = WireWriter {
            wire: wire.clone(),
            direction: sends,
        };
        Link::new(reader, writer, name, limits)
    };
    (end(0), end(1), Arc::downgrade(&wire))
}

/// Both directions of a connection. A loss affects both.
#[derive(Debug)]
struct Wire {
    directions: [Direction; 2],
}

impl Wire {
    fn lose(&mut self) {
        for direction in &mut self.directions {
            direction.finish(Ending::Lost);
        }
    }
}

/// What the reader finds when everything before it has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Closed,
    Lost,
}

#[derive(Debug)]
struct Direction {
    faults: Faults,
    luck: StdRng,
    /// What was written and not read yet, with its time of arrival. Only the first is looked at, so
    /// that nothing arrives before what was written earlier.
    in_flight: VecDeque<(Instant, Bytes)>,
    in_flight_bytes: usize,
    written_bytes: u64,
    /// Offset of the next byte to be changed at random.
    corrupt_next: Option<u64>,
    ending: Option<Ending>,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Direction {
    fn new(seed: u64, faults: Faults) -> Self {
        let mut direction = Self {
            faults,
            luck: StdRng::seed_from_u64(seed),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            written_bytes: 0,
            corrupt_next: None,
            ending: None,
            reader_gone: false,
            reader: None,
            writer: None,
        };
        direction.corrupt_next = direction.draw_corruption(0);
        direction
    }

    /// Ends the stream after what was written. The first ending stays.
    fn finish(&mut self, ending: Ending) {
        self.ending.get_or_insert(ending);
        self.wake();
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }

    /// Takes a piece of `bytes`. Returns its length, 0 if there is no room.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let room = self.faults.in_flight_bytes_max.max(1) - self.in_flight_bytes;
        let mut len = bytes.len().min(room);
        if let Some(piece_bytes_max) = self.faults.piece_bytes_max
            && len > 0
        {
            len = len.min(self.luck.random_range(1..=piece_bytes_max.max(1)));
        }
        for cut in [
            self.faults.lose_after_bytes,
            self.faults.truncate_after_bytes,
        ] {
            let left = cut.map_or(u64::MAX, |cut| cut.saturating_sub(self.written_bytes));
            len = len.min(usize::try_from(left).unwrap_or(usize::MAX));
        }
        if len > 0 {
            let piece = self.corrupt(&bytes[..len]);
            let (min, max) = (self.faults.delay_min, self.faults.delay_max);
            let arrival = Instant::now() + draw_duration(&mut self.luck, min, max);
            self.in_flight.push_back((arrival, piece));
            self.in_flight_bytes += len;
            self.written_bytes += len as u64;
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
        }
        len
    }

    /// A copy of `bytes`, which begin at `written_bytes`, with the faults that fall into them.
    fn corrupt(&mut self, bytes: &[u8]) -> Bytes {
        if self.corrupt_next.is_none() && self.faults.corrupt_offsets.is_empty() {
            return Bytes::copy_from_slice(bytes);
        }
        let mut piece = bytes.to_vec();
        for (offset, byte) in (self.written_bytes..).zip(&mut piece) {
            let by_chance = self.corrupt_next == Some(offset);
            if by_chance {
                self.corrupt_next = self.draw_corruption(offset + 1);
            }
            if by_chance || self.faults.corrupt_offsets.contains(&offset) {
                *byte ^= self.luck.random_range(1..=u8::MAX);
            }
        }
        piece.into()
    }

    /// Where the first random fault at or after `from` falls.
    fn draw_corruption(&mut self, from: u64) -> Option<u64> {
        let one_in_bytes = self.faults.corrupt_one_in_bytes?.max(1);
        // Uniform with about the right mean. Nothing here needs the exact distribution.
        Some(from + self.luck.random_range(0..2 * one_in_bytes))
    }

    /// The ending that the faults cause after what has been written, if any.
    fn due_ending(&self) -> Option<Ending> {
        let due = |cut: Option<u64>| cut.is_some_and(|cut| self.written_bytes >= cut);
        if due(self.faults.lose_after_bytes) {
            Some(Ending::Lost)
        } else if due(self.faults.truncate_after_bytes) {
            Some(Ending::Closed)
        } else {
            None
        }
    }
}

fn draw_duration(luck: &mut StdRng, min: Duration, max: Duration) -> Duration {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (min, max) = (millis(min), millis(max));
    Duration::from_millis(luck.random_range(min..=max.max(min)))
}

struct WireReader {
    wire: Arc<Mutex<Wire>>,
    direction: usize,
    /// Rings when the next piece arrives.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for WireReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let arrival = {
                let mut wire = this.wire.lock();
                let direction = &mut wire.directions[this.direction];
                match direction.in_flight.front_mut() {
                    Some((arrival, piece)) if *arrival <= Instant::now() => {
                        let len = piece.len().min(into.remaining());
                        into.put_slice(&piece[..len]);
                        piece.advance(len);
                        if piece.is_empty() {
                            direction.in_flight.pop_front();
                        }
                        direction.in_flight_bytes -= len;
                        if let Some(writer) = direction.writer.take() {
                            writer.wake();
                        }
                        return Poll::Ready(Ok(()));
                    }
                    Some((arrival, _)) => *arrival,
                    None => {
                        return match direction.ending {
                            Some(Ending::Closed) => Poll::Ready(Ok(())),
                            Some(Ending::Lost) => {
                                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
                            }
                            None => {
                                direction.reader = Some(cx.waker().clone());
                                Poll::Pending
                            }
                        };
                    }
                }
            };
            // A cut may remove what this waits for.
            this.wire.lock().directions[this.direction].reader = Some(cx.waker().clone());
            let alarm = this
                .alarm
                .get_or_insert_with(|| Box::pin(sleep_until(arrival)));
            if alarm.deadline() != arrival {
                alarm.as_mut().reset(arrival);
            }
            ready!(alarm.as_mut().poll(cx));
        }
    }
}

impl Drop for WireReader {
    fn drop(&mut self) {
        let mut wire = self.wire.lock();
        let direction = &mut wire.directions[self.direction];
        direction.reader_gone = true;
        direction.wake();
    }
}

struct WireWriter {
    wire: Arc<Mutex<Wire>>,
    direction: usize,
}

impl AsyncWrite for WireWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut wire = self.wire.lock();
        let direction = &mut wire.directions[self.direction];
        if direction.reader_gone || direction.ending.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = direction.write(bytes);
        match direction.due_ending() {
            Some(Ending::Lost) => wire.lose(),
            Some(Ending::Closed) => direction.finish(Ending::Closed),
            None if taken == 0 && !bytes.is_empty() => {
                direction.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            None => {}
        }
        match taken {
            0 if !bytes.is_empty() => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            taken => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.lock().directions[self.direction].finish(Ending::Closed);
        Poll::Ready(Ok(()))
    }
}

impl Drop for WireWriter {
    fn drop(&mut self) {
        self.wire.lock().directions[self.direction].finish(Ending::Closed);
    }
}
