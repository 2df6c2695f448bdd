//! What a protected guest's process has of its host: memory that stays, and heartbeats that go before other work.

use std::fs;
use std::time::Duration;

use understudy_vmm::control;
use understudy_vmm::local_cluster::VmmProcess;

use crate::support::{DEADLINE, Quiet, TestCluster, binary, turn, wait_for};

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
    let pid = nix::unistd::Pid::from_raw(cluster.local.primary.pid().cast_signed());
    wait_for("the end of the primary", || {
        // It may be gone already.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGBUS);
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
