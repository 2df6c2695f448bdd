//! Runs switch and clients on a thread of their own.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use smoltcp::wire::Ipv4Address;

use super::LabError;
use super::clients::{Figures, Load};
use super::stack::Stack;
use super::switch::{PortCounts, Switch};

/// Address of the guest in a lab.
pub const GUEST: Ipv4Address = Ipv4Address::new(10, 77, 0, 2);
const CLIENTS: Ipv4Address = Ipv4Address::new(10, 77, 0, 1);
const PREFIX_BITS: u8 = 24;

/// Switch and clients at work. Dropping it ends them.
pub struct Network {
    commands: Sender<Command>,
    waker: std::os::unix::net::UnixStream,
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    figures: Figures,
    ports: Vec<PortCounts>,
    error: Option<String>,
}

enum Command {
    Connect {
        streams: usize,
        counters: usize,
    },
    /// Publish figures and counts.
    Look(Sender<()>),
    End,
}

impl Network {
    /// A network with one port for each of `paths`.
    ///
    /// # Errors
    /// If a socket or the thread cannot be made.
    pub fn start(paths: &[&Path]) -> Result<Self, LabError> {
        let system = |what| move |source| LabError::System { what, source };
        let mut switch = Switch::new();
        for path in paths {
            switch
                .add_port(path)
                .map_err(system("make a switch port"))?;
        }
        let (waker, woken) =
            std::os::unix::net::UnixStream::pair().map_err(system("make a socket pair"))?;
        woken
            .set_nonblocking(true)
            .map_err(system("use a socket pair"))?;
        let (commands, commanded) = channel();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let mut work = Work {
            switch,
            ports: paths.len(),
            stack: Stack::new(CLIENTS, PREFIX_BITS),
            load: None,
            commands: commanded,
            woken,
            shared: Arc::clone(&shared),
        };
        let thread = std::thread::Builder::new()
            .name("lab".into())
            .spawn(move || work.run())
            .map_err(system("start the network thread"))?;
        Ok(Self {
            commands,
            waker,
            shared,
            thread: Some(thread),
        })
    }

    /// Connects clients to the guest.
    ///
    /// # Errors
    /// If the network has ended.
    pub fn connect(&self, streams: usize, counters: usize) -> Result<(), LabError> {
        self.command(Command::Connect { streams, counters })
    }

    /// What the clients saw up to now.
    ///
    /// # Errors
    /// If the network has ended, or the clients could not be connected.
    pub fn figures(&self) -> Result<Figures, LabError> {
        self.look().map(|(figures, _)| figures)
    }

    /// Counts of all ports, in the order of `start`.
    ///
    /// # Errors
    /// As [`Network::figures`].
    pub fn counts(&self) -> Result<Vec<PortCounts>, LabError> {
        self.look().map(|(_, ports)| ports)
    }

    fn look(&self) -> Result<(Figures, Vec<PortCounts>), LabError> {
        let (done, wait) = channel();
        self.command(Command::Look(done))?;
        wait.recv().map_err(|_| LabError::Ended)?;
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        match &shared.error {
            Some(error) => Err(LabError::Connect(error.clone())),
            None => Ok((shared.figures.clone(), shared.ports.clone())),
        }
    }

    fn command(&self, command: Command) -> Result<(), LabError> {
        use std::io::Write;
        self.commands.send(command).map_err(|_| LabError::Ended)?;
        // A full socket has unread wake-ups in it already.
        let _ = (&self.waker).write(&[1]);
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = self.command(Command::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Work {
    switch: Switch,
    ports: usize,
    stack: Stack,
    load: Option<Load>,
    commands: Receiver<Command>,
    woken: std::os::unix::net::UnixStream,
    shared: Arc<Mutex<Shared>>,
}

impl Work {
    fn run(&mut self) {
        loop {
            self.wait();
            self.switch.service();
            self.stack.poll(&mut self.switch);
            if let Some(load) = &mut self.load {
                load.step(&mut self.stack);
                self.stack.poll(&mut self.switch);
            }
            self.switch.service();
            // Last, so that a look sees all that had come when it was asked for.
            while let Ok(command) = self.commands.try_recv() {
                if matches!(command, Command::End) {
                    return;
                }
                self.obey(command);
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        match command {
            Command::Connect { streams, counters } => {
                match Load::connect(&mut self.stack, GUEST, streams, counters) {
                    Ok(load) => self.load = Some(load),
                    Err(error) => shared.error = Some(error.to_string()),
                }
            }
            Command::Look(done) => {
                shared.figures = self.load.as_ref().map(Load::figures).unwrap_or_default();
                shared.ports = (0..self.ports)
                    .map(|port| self.switch.counts(port))
                    .collect();
                // Who asked may have given up.
                let _ = done.send(());
            }
            Command::End => {}
        }
    }

    fn wait(&mut self) {
        use std::io::Read;
        let delays = [
            self.stack.poll_delay(),
            self.load.as_ref().and_then(Load::next_step),
        ];
        let delay = delays
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(Duration::from_millis(100));
        // Rounded up: a timer that is due in half a millisecond must not be polled for.
        let delay = u16::try_from(delay.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        let mut files: Vec<PollFd<'_>> = self
            .switch
            .files()
            .map(|(file, write)| {
                let flags = if write {
                    PollFlags::POLLIN | PollFlags::POLLOUT
                } else {
                    PollFlags::POLLIN
                };
                PollFd::new(file, flags)
            })
            .collect();
        files.push(PollFd::new(self.woken.as_fd(), PollFlags::POLLIN));
        // An interrupted poll is a short one.
        let _ = poll(&mut files, PollTimeout::from(delay));
        let mut bytes = [0; 64];
        let _ = (&self.woken).read(&mut bytes);
    }
}
