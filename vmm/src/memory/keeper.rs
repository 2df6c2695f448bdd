//! A process that has this one's memory as its own, and nothing else of it.
//!
//! When a process is killed, the kernel frees its memory before it closes its sockets, and the other host learns of
//! its end that much later: with 4 GiB more than half a second. Memory that another process still has is not freed.
//! So the sockets are closed at once, then the keeper ends, and with it the memory.
//!
//! What must not be done here: anything in the keeper but system calls. It shares the thread-local storage of the
//! thread that starts it.

use std::ffi::{c_int, c_long, c_uint, c_void};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::sys::signal::SigSet;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// What is there to see of it in a list of processes.
const NAME: &std::ffi::CStr = c"vmm-keeper";
/// Far more than a few system calls need, in words of 16 bytes, as the stack of a function begins at a multiple of that.
const STACK: usize = 4096;

/// A keeper of this process's memory.
#[derive(Debug)]
pub(crate) struct Keeper {
    process: Pid,
    /// The keeper ends when this is closed, as it is when this process ends in whatever way.
    end: Option<UnixStream>,
    /// The keeper runs on it.
    _stack: Vec<u128>,
}

impl Keeper {
    /// Starts a keeper, a child of this process.
    ///
    /// # Errors
    /// If the host does not allow it, or its kernel is too old (5.9 is needed).
    pub(crate) fn start() -> io::Result<Self> {
        let (mut end, theirs) = UnixStream::pair()?;
        let mut stack = vec![0_u128; STACK];
        let flags = libc::CLONE_VM | libc::SIGCHLD;
        // No handler of this process may run in the keeper. It inherits this.
        let signals = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)?;
        // SAFETY: the stack is the keeper's alone and lives until `drop` has waited for its end. `keep` makes system
        // calls only; it reads its argument as a number. It shares the thread-local storage of this thread, of which
        // a system call writes `errno` when it fails: until the keeper has said that it is ready, this thread only
        // waits, and afterwards the keeper makes one more call, which cannot fail.
        let process = unsafe {
            libc::clone(
                keep,
                stack.as_mut_ptr_range().end.cast(),
                flags,
                theirs.as_raw_fd() as usize as *mut c_void,
            )
        };
        let cloned = match process {
            -1 => Err(io::Error::last_os_error()),
            process => Ok(Self {
                process: Pid::from_raw(process),
                end: None,
                _stack: stack,
            }),
        };
        let unmasked = signals.thread_set_mask();
        drop(theirs);
        let mut keeper = cloned?;
        if let Err(error) = unmasked {
            // It waits for this.
            drop(end);
            return Err(error.into());
        }
        end.read_exact(&mut [0]).map_err(|_| {
            io::Error::other("the kernel does not close files by ranges (Linux 5.9 does)")
        })?;
        keeper.end = Some(end);
        Ok(keeper)
    }

    /// Waits until it has ended, which it does only if it is killed.
    ///
    /// # Errors
    /// If it is not this process's to wait for.
    pub(crate) fn wait(&self) -> io::Result<WaitStatus> {
        Ok(waitpid(self.process, None)?)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.end = None;
        // It may have been waited for already.
        let _ = self.wait();
    }
}

/// What the keeper does.
extern "C" fn keep(end: *mut c_void) -> c_int {
    let end = end as usize as c_uint;
    let mut byte = 0_u8;
    // SAFETY: these calls change nothing but this process's own files, name, session and priority; they read a constant,
    // and write a byte of this function's own.
    unsafe {
        // With a copy of this process's sockets it would keep them open.
        let below = match end.checked_sub(1) {
            Some(last) => libc::syscall(libc::SYS_close_range, 0, last, 0),
            None => 0,
        };
        let above = libc::syscall(libc::SYS_close_range, end + 1, c_uint::MAX, 0);
        if below != 0 || above != 0 {
            return 1;
        }
        libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, NAME.as_ptr());
        // What is sent to a terminal's group is not for it.
        libc::syscall(libc::SYS_setsid);
        let one: c_long = 1;
        libc::syscall(libc::SYS_write, end, &raw const byte, one);
        libc::syscall(libc::SYS_read, end, &raw mut byte, one);
    }
    0
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::signal::{Signal, kill};

    use super::*;

    fn field(process: Pid, name: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim_start_matches(':').trim().to_owned()
    }

    #[test]
    fn it_has_the_memory_and_one_file_and_hears_no_signal() {
        let keeper = Keeper::start().unwrap();
        let process = keeper.process;
        assert_eq!(field(process, "Name"), "vmm-keeper");
        let files = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
        assert_eq!(files.count(), 1, "and no socket of this process");
        let later = vec![1_u8; 64 << 20];
        let has_kib: usize = field(process, "VmRSS")
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        assert!(has_kib >= later.len() >> 10, "{has_kib} KiB");
        kill(process, Signal::SIGTERM).unwrap();
        // As soon as it waits for the end of this process.
        loop {
            match &*field(process, "State") {
                "S (sleeping)" => break,
                "R (running)" => std::thread::yield_now(),
                other => panic!("the keeper's state is {other}"),
            }
        }
        drop(keeper);
        assert!(!fs::exists(format!("/proc/{process}")).unwrap());
    }

    #[test]
    fn that_it_was_killed_is_noticed() {
        let keeper = Keeper::start().unwrap();
        kill(keeper.process, Signal::SIGKILL).unwrap();
        let ended = keeper.wait().unwrap();
        assert_eq!(
            ended,
            WaitStatus::Signaled(keeper.process, Signal::SIGKILL, false)
        );
    }
}
