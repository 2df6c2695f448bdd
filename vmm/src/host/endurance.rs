//! That the process of a protected guest outlives a host that is short of memory or time: the kernel's choice of whom to
//! end, swapping, and neighbours that take all CPUs.
//!
//! What must not be done here: insist. A guest runs without any of this, too.

use std::fs;
use std::io;

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use thread_priority::{
    NormalThreadSchedulePolicy, RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue,
    ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};

use super::Finding;
use crate::config::{Endurance, LockMemory, Priority};
use crate::memory::Keeper;

/// Low enough that everything else goes first, but what has said the same and what may never be ended.
const OOM_SCORE: &str = "-900";
const OOM_SCORE_FILE: &str = "/proc/self/oom_score_adj";
/// `CAP_IPC_LOCK`.
const MAY_LOCK: u32 = 14;
/// Of 99; the nice value that it stands for is -11.
const HIGH: u8 = 75;
/// The least of the real-time priorities. Every other real-time task of the host still goes first. What is raised is one
/// thread that waits most of its time; it copies at most a slice of an epoch before it waits again. If it ever did not, the
/// kernel would keep a twentieth of the CPU's time for others (`sched_rt_runtime_us`, or the fair server).
const REALTIME: u8 = 1;

/// Something that the host does not allow.
#[derive(Debug)]
pub struct Lack {
    /// In plain words.
    pub what: String,
    /// Somebody has asked for it.
    pub asked: bool,
}

/// Takes for this process what `wanted` says of memory; returns what it cannot have. The priority is for one thread:
/// [`raise_priority`]; whether it could be raised is found out here.
#[must_use]
pub fn endure(wanted: Endurance) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let mut note = |asked: bool, tried: Result<(), String>| {
        lacks.extend(tried.err().map(|what| Lack { what, asked }));
    };
    if wanted.oom_protection.unwrap_or(true) {
        note(wanted.oom_protection.is_some(), protect_from_oom());
    }
    let lock = wanted.lock_memory.unwrap_or_default();
    note(wanted.lock_memory.is_some(), lock_memory(lock));
    let priority = wanted.priority.unwrap_or_default();
    note(wanted.priority.is_some(), try_priority(priority));
    lacks
}

fn protect_from_oom() -> Result<(), String> {
    fs::write(OOM_SCORE_FILE, OOM_SCORE).map_err(|error| {
        format!("the kernel may end this process when the host runs out of memory: {OOM_SCORE_FILE}: {error}; give it CAP_SYS_RESOURCE")
    })
}

fn lock_memory(which: LockMemory) -> Result<(), String> {
    let mut flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE;
    match which {
        LockMemory::Off => return Ok(()),
        LockMemory::OnFault => flags |= MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT),
        LockMemory::All => {}
    }
    // With a limit, some later allocation would fail.
    let locked = match may_lock_all() {
        true => mlockall(flags).map_err(|error| error.to_string()),
        false => Err("a limit applies".into()),
    };
    locked.map_err(|why| {
        format!("this process's memory cannot be locked, so it may be swapped out: {why}; give it CAP_IPC_LOCK, or no limit for locked memory (RLIMIT_MEMLOCK, LimitMEMLOCK=infinity)")
    })
}

fn may_lock_all() -> bool {
    let unlimited =
        getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == RLIM_INFINITY);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = field(&status, "CapEff").and_then(|held| u64::from_str_radix(held, 16).ok());
    unlimited || held.is_some_and(|held| held >> MAY_LOCK & 1 == 1)
}

/// Raises the priority of the calling thread. Threads that it starts have it, too: those that ask the arbiter.
///
/// # Errors
/// If the host does not allow it.
pub fn raise_priority(priority: Priority) -> io::Result<()> {
    let (value, policy) = match priority {
        Priority::Normal => return Ok(()),
        Priority::High => (
            HIGH,
            ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other),
        ),
        Priority::Realtime => (
            REALTIME,
            ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo),
        ),
    };
    let value = ThreadPriorityValue::try_from(value).map_err(io::Error::other)?;
    let value = ThreadPriority::Crossplatform(value);
    set_thread_priority_and_policy(thread_native_id(), value, policy).map_err(|error| match error {
        thread_priority::Error::OS(errno) => io::Error::from_raw_os_error(errno),
        other => io::Error::other(format!("{other:?}")),
    })
}

/// Keeps this process's memory from being freed before its sockets are closed when it is killed, so that the other host
/// learns of that at once, however much memory it is. Without it, only that takes longer.
pub fn keep_memory() {
    let started = std::thread::Builder::new()
        .name("keeper".into())
        .spawn(|| match Keeper::start() {
            Ok(keeper) => {
                let ended = keeper.wait();
                tracing::warn!(
                    "the process that keeps this one's memory has ended ({ended:?}): if this one is killed now, the other host learns of it only when all memory has been freed"
                );
            }
            Err(error) => cannot_keep(&error),
        });
    if let Err(error) = started {
        cannot_keep(&error);
    }
}

fn cannot_keep(error: &io::Error) {
    tracing::warn!(
        "if this process is killed, the other host learns of it only when all memory has been freed: no process can be started that keeps it: {error}"
    );
}

/// Tries it on a thread that ends at once.
fn try_priority(priority: Priority) -> Result<(), String> {
    let tried = std::thread::Builder::new()
        .name("priority".into())
        .spawn(move || raise_priority(priority))
        .map(std::thread::JoinHandle::join);
    let tried = match tried {
        Ok(Ok(tried)) => tried,
        Ok(Err(_)) => Err(io::Error::other("the thread panicked")),
        Err(error) => Err(error),
    };
    tried.map_err(|error| {
        format!("heartbeats may come late when the host is busy: their thread gets no priority: {error}; give the process CAP_SYS_NICE")
    })
}

/// What the host allows, for whoever asks before there is a guest.
pub(super) fn findings() -> [Finding; 3] {
    let finding = |name: &str, meaning: &str, tried: Result<(), String>| Finding {
        name: name.into(),
        have: tried.is_ok(),
        required: false,
        meaning: meaning.into(),
        advice: tried.err().unwrap_or_default(),
    };
    let before = fs::read_to_string(OOM_SCORE_FILE).unwrap_or_default();
    let oom = protect_from_oom();
    // This process need not be protected. If it stays so, nothing is lost.
    let _ = fs::write(OOM_SCORE_FILE, before);
    let lock = match may_lock_all() {
        true => Ok(()),
        false => Err("give it CAP_IPC_LOCK, or no limit for locked memory (RLIMIT_MEMLOCK)".into()),
    };
    [
        finding(
            "protection from the out-of-memory killer",
            "a host short of memory ends other processes first",
            oom,
        ),
        finding(
            "locked memory",
            "neither guest nor standby's copy is swapped out",
            lock,
        ),
        finding(
            "priority of heartbeats",
            "a busy host is not taken for one that has failed; `realtime` is possible, too",
            try_priority(Priority::Realtime),
        ),
    ]
}

/// The value of a line of `/proc/self/status`.
pub(crate) fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    status.lines().find_map(value).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whether_something_was_asked_for_is_said_with_what_the_host_refuses() {
        let nothing = Endurance {
            oom_protection: Some(false),
            lock_memory: Some(LockMemory::Off),
            priority: Some(Priority::Normal),
        };
        assert!(endure(nothing).is_empty(), "there is nothing to refuse");
        for priority in [Some(Priority::Realtime), None] {
            let lacks = endure(Endurance {
                priority,
                ..nothing
            });
            let may = try_priority(priority.unwrap_or_default()).is_ok();
            assert_eq!(lacks.is_empty(), may, "{lacks:?}");
            assert!(lacks.iter().all(|lack| lack.asked == priority.is_some()));
        }
    }

    #[test]
    fn a_raised_priority_is_the_threads_and_not_the_processs() {
        let of_thread = || {
            let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
            let (_, fields) = stat.rsplit_once(')').unwrap();
            let field = |number: usize| fields.split_whitespace().nth(number - 3).unwrap();
            (field(19).to_owned(), field(41).to_owned())
        };
        let before = of_thread();
        let raised = |priority| {
            let thread = std::thread::spawn(move || {
                let raised = raise_priority(priority);
                raised.map(|()| of_thread())
            });
            thread.join().unwrap()
        };
        // Without the right to do it, that it cannot be done is all there is to see.
        match raised(Priority::High) {
            Ok((nice, policy)) => assert_eq!((nice.as_str(), policy.as_str()), ("-11", "0")),
            Err(error) => assert!(error.raw_os_error().is_some(), "{error}"),
        }
        match raised(Priority::Realtime) {
            Ok((_, policy)) => assert_eq!(policy, "1", "SCHED_FIFO"),
            Err(error) => assert!(error.raw_os_error().is_some(), "{error}"),
        }
        assert_eq!(of_thread(), before);
    }

    #[test]
    fn lines_of_a_status_are_found_by_their_whole_name() {
        let status = "VmSwapped:\t1 kB\nVmSwap:\t   28 kB\nCapEff:\t00ff\n";
        assert_eq!(field(status, "VmSwap"), Some("28 kB"));
        assert_eq!(field(status, "CapEff"), Some("00ff"));
        assert_eq!(field(status, "VmLck"), None);
    }
}
