//! A relay between two sockets, for links that are slow or stand still.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// At most so much is passed on at once.
const PIECE_BYTES: usize = 100_000;

/// Passes on what comes in at `from` to `to`, and everything that comes back. Before each piece it calls `pace` with
/// its length, which may take its time.
pub(crate) fn relay(from: &Path, to: &Path, pace: impl Fn(usize) + Clone + Send + 'static) {
    let listener = UnixListener::bind(from).unwrap();
    let to = to.to_owned();
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (Ok(near), Ok(far)) = (near, UnixStream::connect(&to)) else {
                return;
            };
            let (mut back_in, mut back_out) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            std::thread::spawn(move || {
                // Both ends see the end of either.
                let _ = std::io::copy(&mut back_in, &mut back_out);
                let _ = back_out.shutdown(Shutdown::Both);
            });
            let (mut near, mut far) = (near, far);
            let mut piece = vec![0; PIECE_BYTES];
            while let Ok(bytes @ 1..) = near.read(&mut piece) {
                pace(bytes);
                if far.write_all(&piece[..bytes]).is_err() {
                    break;
                }
            }
            let _ = far.shutdown(Shutdown::Both);
        }
    });
}
