//! The reading end of a byte stream: an `AsyncRead` that can also say what has already arrived.
//!
//! For sockets the answer comes from the kernel, not from the runtime. Tokio learns of new bytes,
//! and of a close, only when its driver runs, but a primary must see a close that has already
//! happened. Nothing here knows frames.

use std::future::poll_fn;
use std::io::{self, Read};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use socket2::SockRef;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::OwnedReadHalf as TcpReadHalf;
use tokio::net::unix::OwnedReadHalf as UnixReadHalf;

/// What a [`LinkReader`](crate::LinkReader) reads from.
pub(crate) trait Source: AsyncRead + Send + Unpin {
    /// Reads what is there now. `None` means nothing yet, `Some(0)` the end of the stream.
    fn read_now(&mut self, into: &mut [u8]) -> io::Result<Option<usize>>;
}

/// Any `AsyncRead`: what is there is what one poll returns.
pub(crate) struct Polled<R>(pub(crate) R);

impl<R: AsyncRead + Send + Unpin> AsyncRead for Polled<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl<R: AsyncRead + Send + Unpin> Source for Polled<R> {
    fn read_now(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let mut into = ReadBuf::new(into);
        let read = poll_fn(|cx| Pin::new(&mut self.0).poll_read(cx, &mut into));
        // Unconstrained: an exhausted task budget must not look like "nothing has arrived".
        let polled =
            pin!(tokio::task::unconstrained(read)).poll(&mut Context::from_waker(Waker::noop()));
        match polled {
            Poll::Ready(Ok(())) => Ok(Some(into.filled().len())),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Ok(None),
        }
    }
}

/// The receiving half of a connected socket.
pub(crate) enum SocketSource {
    /// A TCP socket, which must acknowledge at once.
    Tcp(TcpReadHalf),
    Unix(UnixReadHalf),
}

impl AsyncRead for SocketSource {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(half) => {
                let polled = Pin::new(&mut *half).poll_read(cx, into);
                if polled.is_pending() {
                    // The kernel leaves quick-acknowledgement mode by itself, and a delayed
                    // acknowledgement can hold up the sender's next segment for 40 ms. So the mode
                    // is requested again before each wait. A failure makes it slow, not wrong.
                    let _ = SockRef::from(half.as_ref()).set_tcp_quickack(true);
                }
                polled
            }
            Self::Unix(half) => Pin::new(half).poll_read(cx, into),
        }
    }
}

impl Source for SocketSource {
    fn read_now(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let socket = match self {
            Self::Tcp(half) => SockRef::from((*half).as_ref()),
            Self::Unix(half) => SockRef::from((*half).as_ref()),
        };
        read_socket(&socket, into)
    }
}

/// Reads from a non-blocking socket without tokio. This is sound with edge-triggered readiness:
/// bytes left behind, or new ones, still raise an event, and the next ordinary read clears a stale
/// readiness.
fn read_socket(socket: &SockRef<'_>, into: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        let mut socket: &socket2::Socket = socket;
        match socket.read(into) {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
