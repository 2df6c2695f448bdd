//! The signal by which a vCPU's thread is made to leave the guest, and a timer that sends it.
//!
//! What must not be done here: deciding when a vCPU leaves.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

use nix::unistd::gettid;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use super::ExitPage;

thread_local! {
    /// How the vCPU is told to leave the guest whose thread this is.
    static EXIT: Cell<*const ExitPage> = const { Cell::new(ptr::null()) };
}

/// Has the signal that stops vCPUs do so, in all of the process. Doing it again changes nothing.
///
/// # Errors
/// If the kernel refuses the handler.
pub fn register() -> io::Result<()> {
    extern "C" fn leave(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        let exit = EXIT.get();
        if !exit.is_null() {
            // SAFETY: this thread has set it, and sets it back before the page is unmapped (`Leaves`). What is called
            // stores a byte, which a signal handler may.
            unsafe { (*exit).request() };
        }
    }
    register_signal_handler(SIGRTMIN(), leave).map_err(io::Error::from)
}

/// This thread's vCPU leaves the guest when the signal comes, until this is dropped.
#[derive(Debug)]
pub struct Leaves<'a> {
    _exit: &'a ExitPage,
}

impl<'a> Leaves<'a> {
    /// From now on.
    #[must_use]
    pub fn by(exit: &'a ExitPage) -> Self {
        EXIT.set(exit);
        Self { _exit: exit }
    }
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        EXIT.set(ptr::null());
    }
}

/// A timer that signals the thread which made it.
#[derive(Debug)]
pub struct AlarmTimer(libc::timer_t);

impl AlarmTimer {
    /// # Errors
    /// If the host has no timer left for this user.
    pub fn new() -> io::Result<Self> {
        // SAFETY: zeros are a valid `sigevent`.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGRTMIN();
        event.sigev_notify_thread_id = gettid().as_raw();
        let mut timer = MaybeUninit::uninit();
        // SAFETY: both are valid for the call, which writes the timer if it returns 0.
        match unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, timer.as_mut_ptr()) } {
            // SAFETY: as above.
            0 => Ok(Self(unsafe { timer.assume_init() })),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Signals once after so long, whatever it was set to before.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set(&self, after: Duration) -> io::Result<()> {
        // Zero would be never.
        let after = after.max(Duration::from_nanos(1));
        let setting = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: after.as_secs().try_into().unwrap_or(libc::time_t::MAX),
                tv_nsec: after.subsec_nanos().into(),
            },
        };
        // SAFETY: the timer is `self`'s, and the setting is valid for the call.
        match unsafe { libc::timer_settime(self.0, 0, &setting, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for AlarmTimer {
    fn drop(&mut self) {
        // SAFETY: the timer is `self`'s, and nobody uses it any more.
        unsafe { libc::timer_delete(self.0) };
    }
}
