//! The thread that runs the switch and the clients.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use smoltcp::wire::Ipv4Address;

use super::ClusterError;
use super::clients::{Clients, Figures};
use super::stack::Stack;
use super::switch::{EthernetSwitch, PortCounts};

/// Address of the guest in a local cluster.
pub const GUEST: Ipv4Address = Ipv4Address::new(10, 77, 0, 2);
const CLIENTS: Ipv4Address = Ipv4Address::new(10, 77, 0, 1);
const PREFIX_BITS: u8 = 24;
/// Longest wait of the thread when neither stack nor clients have anything to do.
const IDLE: Duration = Duration::from_millis(100);

/// Switch and clients at work. Dropping it ends them.
pub struct Network {
    jobs: Sender<NetworkJob>,
    waker: UnixStream,
    readings: Arc<Mutex<Readings>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread last published.
#[derive(Default)]
struct Readings {
    figures: Figures,
    ports: Vec<PortCounts>,
    error: Option<String>,
}

/// Work for the thread.
enum NetworkJob {
    Connect {
        streams: usize,
        counters: usize,
    },
    /// Publish figures and counts, then say so.
    Publish(Sender<()>),
    End,
}

impl Network {
    /// A network with one port for each of `paths`.
    ///
    /// # Errors
    /// If a socket or the thread cannot be made.
    pub fn start(paths: &[&Path]) -> Result<Self, ClusterError> {
        let system = |what| move |source| ClusterError::System { what, source };
        let mut switch = EthernetSwitch::default();
        for path in paths {
            switch
                .add_port(path)
                .map_err(system("make a switch port"))?;
        }
        let (waker, woken) = UnixStream::pair().map_err(system("make a socket pair"))?;
        woken
            .set_nonblocking(true)
            .map_err(system("use a socket pair"))?;
        let (jobs, jobs_received) = channel();
        let readings = Arc::new(Mutex::new(Readings::default()));
        let mut network = NetworkThread {
            switch,
            ports: paths.len(),
            stack: Stack::new(CLIENTS, PREFIX_BITS),
            clients: None,
            jobs: jobs_received,
            woken,
            readings: Arc::clone(&readings),
        };
        let thread = std::thread::Builder::new()
            .name("local-cluster".into())
            .spawn(move || network.run())
            .map_err(system("start the network thread"))?;
        Ok(Self {
            jobs,
            waker,
            readings,
            thread: Some(thread),
        })
    }

    /// Connects clients to the guest.
    ///
    /// # Errors
    /// If the network has ended.
    pub fn connect(&self, streams: usize, counters: usize) -> Result<(), ClusterError> {
        self.send(NetworkJob::Connect { streams, counters })
    }

    /// What the clients saw up to now.
    ///
    /// # Errors
    /// If the network has ended, or the clients could not be connected.
    pub fn figures(&self) -> Result<Figures, ClusterError> {
        self.readings().map(|(figures, _)| figures)
    }

    /// Counts of all ports, in the order of `start`.
    ///
    /// # Errors
    /// As [`Network::figures`].
    pub fn counts(&self) -> Result<Vec<PortCounts>, ClusterError> {
        self.readings().map(|(_, ports)| ports)
    }

    fn readings(&self) -> Result<(Figures, Vec<PortCounts>), ClusterError> {
        let (done, wait) = channel();
        self.send(NetworkJob::Publish(done))?;
        wait.recv().map_err(|_| ClusterError::Ended)?;
        let readings = self.readings.lock();
        match &readings.error {
            Some(error) => Err(ClusterError::Connect(error.clone())),
            None => Ok((readings.figures.clone(), readings.ports.clone())),
        }
    }

    fn send(&self, job: NetworkJob) -> Result<(), ClusterError> {
        self.jobs.send(job).map_err(|_| ClusterError::Ended)?;
        // A full socket has unread wake-ups in it already.
        let _ = (&self.waker).write(&[1]);
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.send(NetworkJob::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct NetworkThread {
    switch: EthernetSwitch,
    ports: usize,
    stack: Stack,
    clients: Option<Clients>,
    jobs: Receiver<NetworkJob>,
    woken: UnixStream,
    readings: Arc<Mutex<Readings>>,
}

impl NetworkThread {
    fn run(&mut self) {
        loop {
            self.wait();
            self.switch.service();
            self.stack.poll(&mut self.switch);
            if let Some(clients) = &mut self.clients {
                clients.step(&mut self.stack);
                self.stack.poll(&mut self.switch);
            }
            self.switch.service();
            // Last, so that what is published includes all that had arrived when it was asked for.
            while let Ok(job) = self.jobs.try_recv() {
                match job {
                    NetworkJob::Connect { streams, counters } => self.connect(streams, counters),
                    NetworkJob::Publish(done) => self.publish(&done),
                    NetworkJob::End => return,
                }
            }
        }
    }

    fn connect(&mut self, streams: usize, counters: usize) {
        match Clients::connect(&mut self.stack, GUEST, streams, counters) {
            Ok(clients) => self.clients = Some(clients),
            Err(error) => self.readings.lock().error = Some(error.to_string()),
        }
    }

    fn publish(&mut self, done: &Sender<()>) {
        let mut readings = self.readings.lock();
        readings.figures = self
            .clients
            .as_ref()
            .map(Clients::figures)
            .unwrap_or_default();
        readings.ports = (0..self.ports)
            .map(|port| self.switch.counts(port))
            .collect();
        // Whoever asked may have given up.
        let _ = done.send(());
    }

    /// Waits until there is something to do.
    fn wait(&mut self) {
        let delays = [
            self.stack.poll_delay(),
            self.clients.as_ref().and_then(Clients::next_step),
        ];
        let delay = delays.into_iter().flatten().min().unwrap_or(IDLE);
        let mut files: Vec<PollFd<'_>> = self
            .switch
            .files()
            .map(|(file, write)| {
                let output = if write {
                    PollFlags::POLLOUT
                } else {
                    PollFlags::empty()
                };
                PollFd::new(file, PollFlags::POLLIN | output)
            })
            .collect();
        files.push(PollFd::new(self.woken.as_fd(), PollFlags::POLLIN));
        // Rounded up: a timer that is due in half a millisecond must not be polled for.
        let delay = u16::try_from(delay.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        // An interrupted poll is a short one.
        let _ = poll(&mut files, PollTimeout::from(delay));
        let mut bytes = [0; 64];
        let _ = (&self.woken).read(&mut bytes);
    }
}
