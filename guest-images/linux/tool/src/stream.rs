//! The `stream` workload of the built-in guest, served by Linux: same port, paths, bytes and pace, so the same
//! clients check both. What must not be done here: anything the protocol in `understudy_workload::http` lacks.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use understudy_workload::http::{HEAD_BYTES_MAX, HttpError, Request, ResponseHead, Status};
use understudy_workload::pacing::Budget;
use understudy_workload::{STREAM_CONNECTIONS_MAX, pattern};

/// What one write takes at most.
const PIECE_BYTES: usize = 16 << 10;
/// A client that does not say what it wants for this long is left.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves until accepting fails; `rate` is in bytes per second for each client of `/stream`, 0 without limit.
///
/// # Errors
/// Why accepting failed.
pub fn serve(listener: &TcpListener, rate: u64) -> io::Result<()> {
    let begin = Instant::now();
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, _) = listener.accept()?;
        if open.fetch_add(1, Ordering::Relaxed) >= STREAM_CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let open = Arc::clone(&open);
        std::thread::spawn(move || {
            // A client that went away is no matter of ours.
            let _ = answer(&stream, begin, &open, rate);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn answer(stream: &TcpStream, begin: Instant, open: &AtomicUsize, rate: u64) -> io::Result<()> {
    let mut stream = stream;
    stream.set_nodelay(true)?;
    match read_request(stream)? {
        Err(error) => write!(stream, "{}", ResponseHead::Refusal(error)),
        Ok(Request::Status) => {
            let status = Status {
                uptime_ms: u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
                dirty_iterations: &[],
                open_connections: open.load(Ordering::Relaxed),
                echo_bytes: &[],
            }
            .to_string();
            let head = ResponseHead::Json {
                bytes: status.len(),
            };
            write!(stream, "{head}{status}")
        }
        Ok(Request::File { bytes }) => {
            write!(stream, "{}", ResponseHead::Pattern { bytes: Some(bytes) })?;
            send(stream, 0, bytes)
        }
        Ok(Request::Stream { from }) => {
            write!(stream, "{}", ResponseHead::Pattern { bytes: None })?;
            if rate == 0 {
                return send(stream, from, u64::MAX);
            }
            send_paced(stream, from, rate)
        }
    }
}

/// A request, or why there is none.
fn read_request(mut stream: &TcpStream) -> io::Result<Result<Request, HttpError>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut head = Vec::new();
    let mut piece = [0; HEAD_BYTES_MAX];
    loop {
        let count = stream.read(&mut piece)?;
        head.extend_from_slice(&piece[..count]);
        match Request::parse(&head) {
            Ok(Some(request)) => return Ok(Ok(request)),
            Err(error) => return Ok(Err(error)),
            Ok(None) if count == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(None) => {}
        }
    }
}

/// Sends the pattern as fast as the client takes it.
fn send(mut stream: &TcpStream, from: u64, bytes: u64) -> io::Result<()> {
    let mut buffer = [0; PIECE_BYTES];
    let mut sent = 0;
    while sent < bytes {
        let piece = usize::try_from(bytes - sent).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        pattern::fill(from.wrapping_add(sent), &mut buffer[..piece]);
        stream.write_all(&buffer[..piece])?;
        sent += piece as u64;
    }
    Ok(())
}

/// Sends the pattern at a rate, until the client leaves.
fn send_paced(mut stream: &TcpStream, mut position: u64, rate: u64) -> io::Result<()> {
    let begin = Instant::now();
    let now_ns = || u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let mut budget = Budget::new(rate, now_ns());
    let mut buffer = [0; PIECE_BYTES];
    loop {
        let available = budget.available_bytes(now_ns());
        let piece = usize::try_from(available).map_or(PIECE_BYTES, |bytes| bytes.min(PIECE_BYTES));
        if piece == 0 {
            let wait_ns = budget.next_ns().saturating_sub(now_ns());
            std::thread::sleep(Duration::from_nanos(wait_ns));
            continue;
        }
        pattern::fill(position, &mut buffer[..piece]);
        stream.write_all(&buffer[..piece])?;
        budget.spend(piece as u64);
        position = position.wrapping_add(piece as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(rate: u64, request: &str) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(&listener, rate));
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    fn body(mut stream: TcpStream, bytes: usize) -> Vec<u8> {
        let mut all = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let head = all.windows(4).position(|four| four == b"\r\n\r\n");
            if head.is_some_and(|head| all.len() >= head + 4 + bytes) {
                return all.split_off(head.unwrap() + 4)[..bytes].to_vec();
            }
            let count = stream.read(&mut piece).unwrap();
            assert_ne!(count, 0, "the service closed too early");
            all.extend_from_slice(&piece[..count]);
        }
    }

    #[test]
    fn files_and_streams_are_the_pattern() {
        let file = ask(0, &Request::File { bytes: 100_000 }.to_string());
        assert_eq!(pattern::check(0, &body(file, 100_000)), Ok(()));
        for rate in [0, 10_000_000] {
            let stream = ask(rate, &Request::Stream { from: 12_345 }.to_string());
            assert_eq!(pattern::check(12_345, &body(stream, 100_000)), Ok(()));
        }
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let mut stream = ask(0, "GET /nothing HTTP/1.1\r\n\r\n");
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 404 "), "{text}");
    }
}
