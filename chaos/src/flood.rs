//! Connections and datagrams that make no sense, as fast as two threads can.

use std::io::Write;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::Rng;

use crate::network::{Network, Side, Way};

/// Connections that are kept open by one thread.
const OPEN_MAX: usize = 40;
/// Longest rubbish on a connection, and in a datagram.
const RUBBISH_BYTES_MAX: usize = 1000;
const DATAGRAMS: usize = 20;
const PAUSE: Duration = Duration::from_millis(1);
const CONNECT: Duration = Duration::from_millis(200);

/// Goes on until this is dropped.
#[derive(Debug)]
pub(crate) struct Flood {
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Flood {
    /// Each host floods the other one.
    ///
    /// # Errors
    /// If one of them cannot.
    pub(crate) fn start(network: &Arc<Network>) -> Result<Self> {
        let end = Arc::new(AtomicBool::new(false));
        let (sender, ready) = std::sync::mpsc::channel();
        let threads = Side::BOTH.map(|to| {
            let (network, end, ready) = (Arc::clone(network), Arc::clone(&end), sender.clone());
            std::thread::spawn(move || {
                let begun = network.host(to.other()).enter().and_then(|()| {
                    UdpSocket::bind("0.0.0.0:0").context("no datagrams can be sent")
                });
                // Whoever started this thread waits for it.
                match begun {
                    Ok(udp) => {
                        let _ = ready.send(Ok(()));
                        flood(to, &udp, &end);
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            })
        });
        let flood = Self {
            end,
            threads: threads.into(),
        };
        for _ in Side::BOTH {
            ready.recv().context("a thread panicked")??;
        }
        Ok(flood)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // A panic was printed.
            let _ = thread.join();
        }
    }
}

fn flood(to: Side, udp: &UdpSocket, end: &AtomicBool) {
    let mut random = rand::rng();
    let mut open = Vec::new();
    let port: Option<SocketAddr> = Way::Channel.endpoint(to).parse().ok();
    while !end.load(Ordering::Acquire) {
        let mut rubbish = [0; RUBBISH_BYTES_MAX];
        random.fill(&mut rubbish[..]);
        let rubbish = &rubbish[..random.random_range(1..RUBBISH_BYTES_MAX)];
        // What is refused or cut off was tried.
        if let Some(Ok(mut connection)) =
            port.map(|port| TcpStream::connect_timeout(&port, CONNECT))
        {
            let _ = connection.write(rubbish);
            open.push(connection);
            if open.len() > OPEN_MAX {
                open.swap_remove(random.random_range(0..open.len()));
            }
        }
        for _ in 0..DATAGRAMS {
            let _ = udp.send_to(rubbish, Way::Beat.endpoint(to));
        }
        std::thread::sleep(PAUSE);
    }
}
