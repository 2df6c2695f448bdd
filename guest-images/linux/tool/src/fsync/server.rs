//! Serves a store over TCP. What must not be done here: acknowledge before the store has.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::check::check;
use super::store::Store;

/// Longest line of a client, with its end.
pub const LINE_BYTES_MAX: u64 = 64;
/// Clients at the same time; more are turned away.
const CONNECTIONS_MAX: usize = 16;

/// Serves until accepting fails.
///
/// # Errors
/// Why accepting failed.
pub fn serve(listener: &TcpListener, store: Store) -> io::Result<()> {
    let store = Arc::new(Mutex::new(store));
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let (stream, _) = listener.accept()?;
        if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            open.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (store, open) = (Arc::clone(&store), Arc::clone(&open));
        std::thread::spawn(move || {
            // A client that went away is no matter of ours.
            let _ = converse(&stream, &store);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn converse(stream: &TcpStream, store: &Mutex<Store>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::new(stream);
    let mut output = BufWriter::new(stream);
    loop {
        let mut line = String::new();
        if (&mut input).take(LINE_BYTES_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let Some(line) = line.strip_suffix('\n') else {
            writeln!(output, "error a line has at most {LINE_BYTES_MAX} bytes")?;
            return output.flush();
        };
        answer(line.trim_end(), store, &mut output)?;
        output.flush()?;
    }
}

fn answer(line: &str, store: &Mutex<Store>, output: &mut impl Write) -> io::Result<()> {
    let words: Vec<&str> = line.split(' ').collect();
    let lock = || store.lock().unwrap_or_else(PoisonError::into_inner);
    match (
        words.as_slice(),
        words.get(1).map(|word| word.parse::<u64>()),
    ) {
        (["append", _], Some(Ok(count))) => {
            for _ in 0..count {
                // Locked for each, so that other clients get their turn.
                let appended = lock().append();
                match appended {
                    Ok(number) => writeln!(output, "ack {number}")?,
                    Err(error) => return writeln!(output, "error {error}"),
                }
                output.flush()?;
            }
            Ok(())
        }
        (["verify", _], Some(Ok(acked))) => {
            let store = lock();
            drop_caches();
            match check(store.directory(), acked) {
                Ok(found) => writeln!(
                    output,
                    "ok records={} torn_bytes={}",
                    found.records, found.torn_bytes
                ),
                Err(error) => writeln!(output, "bad {error}"),
            }
        }
        (["count"], None) => {
            let records = lock().records();
            writeln!(output, "count {records}")
        }
        _ => writeln!(
            output,
            "error there are append COUNT, verify ACKED and count"
        ),
    }
}

/// So that what is read comes from the disk. Only in a guest where we are root: elsewhere the check is of the
/// page cache, and as good as that.
fn drop_caches() {
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "3");
}
