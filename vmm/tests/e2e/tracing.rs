//! One thread of a `vmm` process, held from outside as a debugger does, while the others go on.

use nix::errno::Errno;
use nix::libc::user_regs_struct as Registers;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use understudy_vmm::local_cluster::VmmProcess;

/// The first thread of `host` with this name.
pub(crate) fn thread_named(host: &VmmProcess, name: &str) -> Pid {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", host.pid())).unwrap();
    let mut tasks = tasks.map(|task| task.unwrap().path());
    let is_named = |path: &std::path::PathBuf| {
        let found = std::fs::read_to_string(path.join("comm"));
        found.is_ok_and(|found| found.trim_end() == name)
    };
    let path = tasks.find(is_named).expect("there is such a thread");
    let number = path.file_name().unwrap().to_str().unwrap();
    Pid::from_raw(number.parse().unwrap())
}

/// A thread that stands still until this is dropped.
pub(crate) struct Stopped {
    thread: Pid,
    is_gone: bool,
}

impl Stopped {
    pub(crate) fn new(thread: Pid) -> Self {
        ptrace::seize(thread, ptrace::Options::empty()).unwrap();
        let stopped = Self {
            thread,
            is_gone: false,
        };
        ptrace::interrupt(thread).unwrap();
        stopped.await_stop();
        stopped
    }

    fn await_stop(&self) {
        match waitpid(self.thread, Some(WaitPidFlag::__WALL)) {
            // A signal on its way to it stops it, too: one that is for vCPUs has no name.
            Ok(WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..)) | Err(Errno::EINVAL) => {}
            other => panic!("{other:?}"),
        }
    }

    /// Has the thread make a system call, in the place of the one that it waits in, which begins anew later. Returns
    /// what the call does.
    pub(crate) fn call(&mut self, number: i64, arguments: [u64; 3]) -> i64 {
        const SYSCALL: i64 = 0x050f;
        let before = ptrace::getregs(self.thread).unwrap();
        let instruction = before.rip - 2;
        let found = ptrace::read(self.thread, instruction as ptrace::AddressType).unwrap();
        assert_eq!(found & 0xffff, SYSCALL, "it does not wait in a system call");
        let mut there = Registers {
            rip: instruction,
            rax: number.cast_unsigned(),
            rdi: arguments[0],
            rsi: arguments[1],
            rdx: arguments[2],
            ..before
        };
        // So that the kernel does not begin the other call anew now.
        there.orig_rax = u64::MAX;
        ptrace::setregs(self.thread, there).unwrap();
        ptrace::step(self.thread, None::<Signal>).unwrap();
        self.await_stop();
        let result = ptrace::getregs(self.thread).unwrap().rax;
        ptrace::setregs(self.thread, before).unwrap();
        result.cast_signed()
    }

    /// Whether the thread has ended. Its process cannot end before somebody has asked.
    pub(crate) fn is_gone(&mut self) -> bool {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        self.is_gone |= matches!(
            waitpid(self.thread, Some(flags)),
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(Errno::ECHILD)
        );
        self.is_gone
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if !self.is_gone {
            // It may be about to end.
            let _ = ptrace::detach(self.thread, None::<Signal>);
        }
    }
}
