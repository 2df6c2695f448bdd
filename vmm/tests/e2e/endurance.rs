//! What a protected guest's process has of its host: memory that stays, and heartbeats that go before other work.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use understudy_vmm::control;
use understudy_vmm::local_cluster::VmmProcess;

use crate::support::{DEADLINE, Quiet, TestCluster, await_code, await_log, binary, turn, wait_for};

/// The value of a line of the status of `host`'s process.
fn field(host: &VmmProcess, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{}/status", host.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim_start_matches(':').trim().to_owned()
}

/// Nice value and policy of `host`'s threads of this name.
fn threads(host: &VmmProcess, name: &str) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", host.pid())).unwrap();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let of_thread = |stat: String| {
        let (head, fields) = stat.rsplit_once(')')?;
        let field = |number: usize| Some(fields.split_whitespace().nth(number - 3)?.to_owned());
        head.ends_with(&format!("({name}")).then_some(())?;
        Some((field(19)?, field(41)?))
    };
    stats.filter_map(of_thread).collect()
}

#[test]
fn by_default_memory_stays_in_memory_and_heartbeats_go_before_other_work() {
    let _turn = turn();
    let hosts = Quiet::new();
    let (primary, standby) = hosts.start_protected();
    for host in [&primary, &standby] {
        let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", host.pid())).unwrap();
        let is_refused = host.log().contains("give it CAP_SYS_RESOURCE");
        assert!(score.trim() == "-900" || is_refused, "{}", host.log());
        assert_ne!(field(host, "VmLck"), "0 kB", "{}", host.log());
        let status = control::status(host.control()).unwrap();
        assert!(status.memory.locked_kib > 0 && status.memory.resident_kib > 0);
        assert_eq!(status.host_alarms, [""; 0]);
        let driver = threads(host, "driver");
        assert_eq!(driver, [("-11".into(), "0".into())], "nice, normal");
        assert_eq!(threads(host, "vcpu0"), threads(host, "node"), "as started");
    }
}

/// Rust's runtime takes the first SIGBUS for a possible overflow of a stack, and has the second one end the process. So it
/// is with memory that has failed: the access is made again.
#[test]
fn a_primary_that_dies_of_failed_memory_is_replaced_at_once_and_does_not_come_back() {
    let _turn = turn();
    let mut cluster = TestCluster::start();
    let pid = Pid::from_raw(cluster.local.primary.pid().cast_signed());
    wait_for("the end of the primary", || {
        // It may be gone already.
        let _ = kill(pid, Signal::SIGBUS);
        cluster.local.primary.await_exit(Duration::ZERO).ok()
    });
    let status = cluster.local.await_promotion(DEADLINE).unwrap();
    assert_eq!(
        status.failover.unwrap().cause,
        "the primary closed the link"
    );
    cluster.await_progress("clients of the guest that was taken over");
    cluster.assert_exact();
}

/// The processes that `host`'s has started, zombies too.
fn children(host: &VmmProcess) -> Vec<Pid> {
    let tasks = fs::read_dir(format!("/proc/{}/task", host.pid())).unwrap();
    let lists =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    let list: String = lists.collect();
    let children = list.split_whitespace();
    children
        .map(|child| Pid::from_raw(child.parse().unwrap()))
        .collect()
}

/// The process that keeps `host`'s memory.
fn keeper(host: &VmmProcess) -> Pid {
    let children = children(host);
    assert_eq!(children.len(), 1, "{children:?}");
    assert_eq!(of_process(children[0], "Name"), Some("vmm-keeper".into()));
    children[0]
}

/// The value of a line of the status of `process`, if there is one.
fn of_process(process: Pid, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start_matches(':').trim().to_owned())
}

/// Waits until `process` is no more.
fn await_end(process: Pid) {
    wait_for("its end", || match of_process(process, "State") {
        Some(state) if !state.starts_with('Z') => None,
        _ => Some(()),
    });
}

/// While the keeper is stopped, none of the memory can be freed: the standby has not waited for that.
#[test]
fn a_standby_takes_over_from_a_killed_primary_before_its_memory_is_freed() {
    let _turn = turn();
    let hosts = Quiet::new();
    let much = ["--memory-mib", "1024", "--lock-memory", "all"];
    let mut standby = hosts.start_standby("standby", &["--memory-mib", "1024"]);
    let mut primary = hosts.start_primary("primary", &much);
    primary
        .await_status("protected", DEADLINE, |status| status.protected)
        .unwrap();
    let keeper = keeper(&primary);
    let resident = || -> Option<u64> {
        let kib = of_process(keeper, "VmRSS")?;
        kib.trim_end_matches(" kB").parse().ok()
    };
    assert!(resident() >= Some(1 << 20), "all is touched");
    kill(keeper, Signal::SIGSTOP).unwrap();
    primary.kill().unwrap();
    let status = standby
        .await_status("promoted", DEADLINE, |status| status.failover.is_some())
        .unwrap();
    let cause = status.failover.unwrap().cause;
    assert_eq!(cause, "the primary closed the link");
    assert!(resident() >= Some(1 << 20), "{:?}", resident());
    kill(keeper, Signal::SIGCONT).unwrap();
    await_end(keeper);
}

#[test]
fn what_keeps_memory_ends_with_its_process_and_is_not_needed_by_it() {
    let _turn = turn();
    let hosts = Quiet::new();
    let (mut primary, mut standby) = hosts.start_protected();
    kill(keeper(&primary), Signal::SIGKILL).unwrap();
    await_log(
        &primary,
        "the process that keeps this one's memory has ended",
        1,
    );
    assert_eq!(children(&primary), [], "nor is there a zombie");
    primary.kill().unwrap();
    standby
        .await_status("promoted", DEADLINE, |status| status.failover.is_some())
        .unwrap();
    let keeper = keeper(&standby);
    standby.terminate().unwrap();
    await_code(&mut standby, 0);
    await_end(keeper);
}

/// The promotion is done on the thread with the priority: the guest must not have got it.
#[test]
fn a_guest_that_was_taken_over_runs_as_any_other_and_its_heartbeats_before_it() {
    let _turn = turn();
    let mut cluster = TestCluster::start_with(&binary(), &["--priority", "realtime"]);
    let driver = threads(&cluster.local.standby, "driver");
    assert_eq!(driver.len(), 1);
    assert_eq!(driver[0].1, "1", "SCHED_FIFO");
    cluster.local.primary.kill().unwrap();
    cluster.local.await_promotion(DEADLINE).unwrap();
    cluster.await_progress("clients of the guest that was taken over");
    let as_started = threads(&cluster.local.standby, "node");
    for name in ["vcpu0", "devices", "capture"] {
        assert_eq!(threads(&cluster.local.standby, name), as_started, "{name}");
    }
    cluster.assert_exact();
}
