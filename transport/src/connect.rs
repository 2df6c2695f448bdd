//! Opens links: connects to an [`Endpoint`] or listens on one, and configures the sockets.
//!
//! Neither sets a timeout of its own or tries again: patience is the caller's policy.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::endpoint::Endpoint;
use crate::frame::Limits;
use crate::link::Link;
use crate::source::SocketSource;

/// An idle TCP link is probed this long after the last byte. Heartbeats notice a silent peer far
/// earlier. These limits only make the kernel forget dead connections.
const TCP_KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
/// Time between two probes.
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Unanswered probes or data fail the connection after this long. So does a peer that answers but
/// takes no byte of what waits for it.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// How much the kernel takes of what the network does not.
const UNSENT_BYTES_MAX: u32 = 256 << 10;

/// Buffer size requested for Unix sockets. Their default of 208 KiB makes the two sides switch back
/// and forth for one batch of pages. The kernel caps it at `net.core.wmem_max`. TCP buffers are
/// left alone: setting them would turn off the kernel's own, better tuning.
const UNIX_BUFFER_BYTES: usize = 1 << 20;

/// Why a link could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No connection could be made.
    #[error("cannot connect to {endpoint}: {source}")]
    Connect {
        /// The endpoint.
        endpoint: Endpoint,
        /// The cause.
        source: io::Error,
    },
    /// The endpoint cannot be listened on.
    #[error("cannot listen on {endpoint}: {source}")]
    Listen {
        /// The endpoint.
        endpoint: Endpoint,
        /// The cause.
        source: io::Error,
    },
    /// Another process listens there.
    #[error("cannot listen on {endpoint}: another process is listening there")]
    InUse {
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// The path of a Unix socket belongs to something else, which is left alone.
    #[error("cannot listen on {endpoint}: there is a file that is not a socket")]
    NotASocket {
        /// The endpoint.
        endpoint: Endpoint,
    },
    /// No connection could be accepted.
    #[error("cannot accept a connection on {endpoint}: {source}")]
    Accept {
        /// The endpoint.
        endpoint: Endpoint,
        /// The cause.
        source: io::Error,
    },
}

/// Connects to a [`Listener`].
///
/// # Errors
/// If nobody listens there or the network does not reach it. Wrap this in a timeout: towards a dead
/// host, the kernel tries for minutes.
pub async fn connect(endpoint: &Endpoint, limits: Limits) -> Result<Link, ConnectError> {
    let connected = match endpoint {
        Endpoint::Tcp(address) => match TcpStream::connect(address).await {
            Ok(stream) => tcp_link(stream, limits),
            Err(error) => Err(error),
        },
        Endpoint::Unix(path) => match UnixStream::connect(path).await {
            Ok(stream) => unix_link(stream, endpoint.to_string(), limits),
            Err(error) => Err(error),
        },
    };
    connected.map_err(|source| ConnectError::Connect {
        endpoint: endpoint.clone(),
        source,
    })
}

/// Waits for links. When it is dropped, the file of its Unix socket is removed.
#[derive(Debug)]
pub struct Listener {
    socket: ListenSocket,
    endpoint: Endpoint,
    limits: Limits,
}

#[derive(Debug)]
enum ListenSocket {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        /// Dropped together with the listener.
        _file: SocketFile,
    },
}

impl Listener {
    /// Listens on `endpoint`. A Unix socket file on which nobody answers is replaced.
    ///
    /// # Errors
    /// If another process listens there, or the endpoint cannot be listened on.
    pub async fn bind(endpoint: &Endpoint, limits: Limits) -> Result<Self, ConnectError> {
        let refuse = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => ConnectError::InUse {
                endpoint: endpoint.clone(),
            },
            _ => ConnectError::Listen {
                endpoint: endpoint.clone(),
                source,
            },
        };
        let (socket, endpoint) = match endpoint {
            Endpoint::Tcp(address) => {
                let listener = TcpListener::bind(address).await.map_err(refuse)?;
                let local = listener.local_addr().map_err(refuse)?;
                (
                    ListenSocket::Tcp(listener),
                    Endpoint::Tcp(local.to_string()),
                )
            }
            Endpoint::Unix(path) => {
                make_way(path, endpoint).await?;
                let listener = UnixListener::bind(path).map_err(refuse)?;
                let _file = SocketFile::of(path).map_err(refuse)?;
                (ListenSocket::Unix { listener, _file }, endpoint.clone())
            }
        };
        Ok(Self {
            socket,
            endpoint,
            limits,
        })
    }

    /// Where it listens, with the actual port if port 0 was requested.
    #[must_use]
    pub fn local_endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Waits for the next connection. Cancel safe.
    ///
    /// # Errors
    /// If the kernel reports a failed connection or has no resources for another. The listener
    /// stays usable.
    pub async fn accept(&self) -> Result<Link, ConnectError> {
        let accepted = match &self.socket {
            ListenSocket::Tcp(listener) => match listener.accept().await {
                Ok((stream, _)) => tcp_link(stream, self.limits),
                Err(error) => Err(error),
            },
            ListenSocket::Unix { listener, .. } => match listener.accept().await {
                Ok((stream, _)) => unix_link(stream, self.endpoint.to_string(), self.limits),
                Err(error) => Err(error),
            },
        };
        accepted.map_err(|source| ConnectError::Accept {
            endpoint: self.endpoint.clone(),
            source,
        })
    }
}

/// Removes a socket file that a dead process left behind, and nothing else.
async fn make_way(path: &Path, endpoint: &Endpoint) -> Result<(), ConnectError> {
    let refuse = |source| ConnectError::Listen {
        endpoint: endpoint.clone(),
        source,
    };
    let found = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found.map_err(refuse)?,
    };
    if !found.file_type().is_socket() {
        return Err(ConnectError::NotASocket {
            endpoint: endpoint.clone(),
        });
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(%endpoint, "replacing a socket file on which nobody answers");
            std::fs::remove_file(path).map_err(refuse)
        }
        // Accepted, a full queue, or no permission: there may be a listener.
        _ => Err(ConnectError::InUse {
            endpoint: endpoint.clone(),
        }),
    }
}

/// The file of a Unix socket on which this process listens, with its identity. If another process
/// has replaced the file, this process must not remove it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: file_identity(path)?,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if file_identity(&self.path).is_ok_and(|found| found == self.identity) {
            // If it cannot be removed, the next listener replaces it as stale.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Device and inode of a file.
fn file_identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

fn tcp_link(stream: TcpStream, limits: Limits) -> io::Result<Link> {
    let peer = format!("tcp:{}", stream.peer_addr()?);
    let socket = SockRef::from(&stream);
    // Each batch of frames is one write, so holding back its last segment only adds delay.
    socket.set_tcp_nodelay(true)?;
    // What waits, waits in the queue before the socket: there its length is known, and a heartbeat or an epoch's end is
    // not behind megabytes that no network has seen yet.
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    socket.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(TCP_KEEPALIVE_IDLE)
            .with_interval(TCP_KEEPALIVE_INTERVAL),
    )?;
    let (reader, writer) = stream.into_split();
    let source = Box::new(SocketSource::Tcp(reader));
    Ok(Link::from_source(source, Box::new(writer), peer, limits))
}

fn unix_link(stream: UnixStream, peer: String, limits: Limits) -> io::Result<Link> {
    SockRef::from(&stream).set_send_buffer_size(UNIX_BUFFER_BYTES)?;
    let (reader, writer) = stream.into_split();
    let source = Box::new(SocketSource::Unix(reader));
    Ok(Link::from_source(source, Box::new(writer), peer, limits))
}
