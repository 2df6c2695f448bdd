//! `vmm` processes that play hosts: started, killed, frozen and thawed by process id.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use understudy_replication::runtime::Status;

use super::ClusterError;
use crate::control;

/// Pause between two looks at something that changes by itself.
const LOOK: Duration = Duration::from_millis(2);

/// The processes that this program has started.
static ALL: Mutex<Started> = Mutex::new(Started {
    children: Vec::new(),
    is_over: false,
});

struct Started {
    children: Vec<Weak<Mutex<Child>>>,
    is_over: bool,
}

impl Started {
    fn start(&mut self, mut command: Command) -> io::Result<Arc<Mutex<Child>>> {
        if self.is_over {
            return Err(io::Error::other("the program is about to end"));
        }
        let child = Arc::new(Mutex::new(command.spawn()?));
        self.children.retain(|child| child.strong_count() > 0);
        self.children.push(Arc::downgrade(&child));
        Ok(child)
    }
}

/// A `vmm` process. Dropping it kills the process.
#[derive(Debug)]
pub struct VmmProcess {
    name: String,
    child: Arc<Mutex<Child>>,
    control: PathBuf,
    log: PathBuf,
    console: PathBuf,
}

impl VmmProcess {
    /// Starts `binary` with `arguments` and `--control`; standard error goes to `NAME.log` and standard
    /// output to `NAME.console` in `directory`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(
        binary: &Path,
        name: &str,
        directory: &Path,
        arguments: &[String],
    ) -> Result<Self, ClusterError> {
        let system = |what| move |source| ClusterError::System { what, source };
        let log = directory.join(format!("{name}.log"));
        let control = directory.join(format!("{name}.control"));
        let errors = File::create(&log).map_err(system("create a log file"))?;
        let console = directory.join(format!("{name}.console"));
        let output = File::create(&console).map_err(system("create a console file"))?;
        let mut command = Command::new(binary);
        command
            .args(arguments)
            .arg("--control")
            .arg(&control)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors);
        let child = ALL.lock().start(command);
        let child = child.map_err(system("start a vmm process"))?;
        Ok(Self {
            name: name.into(),
            child,
            control,
            log,
            console,
        })
    }

    /// Kills all such processes of this program, which can start none any more: it is about to end.
    pub fn end_all() {
        let mut all = ALL.lock();
        all.is_over = true;
        for child in all.children.drain(..).filter_map(|child| child.upgrade()) {
            let mut child = child.lock();
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Its control socket.
    #[must_use]
    pub fn control(&self) -> &Path {
        &self.control
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.lock().id()
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What its guest said on standard output.
    #[must_use]
    pub fn console(&self) -> String {
        let bytes = std::fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Its status, if it answers.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        let status = control::status(&self.control).ok()?;
        status.replication().cloned()
    }

    /// Waits until its status is as `wanted`.
    ///
    /// # Errors
    /// If it ends, or is not so within `patience`; with the end of its log.
    pub fn await_status(
        &mut self,
        what: &str,
        patience: Duration,
        wanted: impl Fn(&Status) -> bool,
    ) -> Result<Status, ClusterError> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.status()
                && wanted(&status)
            {
                return Ok(status);
            }
            let exit = self.child.lock().try_wait();
            if let Ok(Some(exit)) = exit {
                return Err(self.failure(format!("ended ({exit}) before {what}")));
            }
            if Instant::now() > deadline {
                return Err(self.failure(format!("not {what} within {patience:?}")));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the process has ended.
    ///
    /// # Errors
    /// If it has not within `patience`.
    pub fn await_exit(&mut self, patience: Duration) -> Result<ExitStatus, ClusterError> {
        let deadline = Instant::now() + patience;
        loop {
            let exit = self.child.lock().try_wait();
            match exit {
                Ok(Some(exit)) => return Ok(exit),
                Ok(None) if Instant::now() > deadline => {
                    return Err(self.failure(format!("still running after {patience:?}")));
                }
                Ok(None) => std::thread::sleep(LOOK),
                Err(source) => {
                    return Err(ClusterError::System {
                        what: "wait for a vmm process",
                        source,
                    });
                }
            }
        }
    }

    /// SIGKILL: the host loses power.
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub fn kill(&mut self) -> Result<(), ClusterError> {
        self.signal(Signal::SIGKILL)?;
        self.await_exit(Duration::from_secs(10)).map(drop)
    }

    /// SIGTERM: a person or the service manager wants it to end.
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub fn terminate(&self) -> Result<(), ClusterError> {
        self.signal(Signal::SIGTERM)
    }

    /// SIGSTOP: the host hangs.
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub fn freeze(&self) -> Result<(), ClusterError> {
        self.signal(Signal::SIGSTOP)
    }

    /// SIGCONT: the host goes on as if nothing had happened.
    ///
    /// # Errors
    /// If the signal cannot be sent.
    pub fn thaw(&self) -> Result<(), ClusterError> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), ClusterError> {
        // Our own child, not waited for yet: the number cannot have been given to another process.
        let child = self.child.lock();
        kill(Pid::from_raw(child.id().cast_signed()), signal).map_err(|error| {
            ClusterError::System {
                what: "signal a vmm process",
                source: error.into(),
            }
        })
    }

    fn failure(&self, what: String) -> ClusterError {
        let log = self.log();
        let mut tail: Vec<&str> = log.lines().rev().take(12).collect();
        tail.reverse();
        ClusterError::Process {
            name: self.name.clone(),
            what,
            log: tail.join("\n"),
        }
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        let mut child = self.child.lock();
        // It may have ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}
