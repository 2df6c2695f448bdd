//! What the tests share: turns, labs with clients, and single hosts without a network.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use understudy_vmm::local_cluster::{ClusterOptions, Figures, LocalCluster, VmmProcess};

/// How long a test waits for what must come. Only a failure waits that long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// Silence that counts as a loss, in milliseconds: long, so that a busy machine is no lost host.
pub(crate) const TIMEOUT_MS: &str = "2000";

const STREAMS: usize = 3;
const COUNTERS: usize = 1;
/// Stream bytes and INCRs that show that clients are served.
const PROGRESS_BYTES: u64 = 200_000;
const PROGRESS_WRITES: u64 = 20;

/// The turn of a test that runs guests.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .expect("these tests need a usable /dev/kvm");
    // A test that failed has ended its guests too.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn binary() -> PathBuf {
    assert_cmd::cargo::cargo_bin!("vmm").into()
}

/// Runs `vmm` with `arguments` until it ends.
pub(crate) fn vmm(arguments: &[&str]) -> Output {
    assert_cmd::Command::new(binary())
        .args(arguments)
        .timeout(DEADLINE)
        .output()
        .unwrap()
}

/// Standard output of a `vmm` that must succeed.
pub(crate) fn vmm_says(arguments: &[&str]) -> String {
    let output = vmm(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `vmm COMMAND` against `host` until it ends.
pub(crate) fn ask(host: &VmmProcess, command: &str, further: &[&str]) -> Output {
    let control = host.control().display().to_string();
    vmm(&[&[command, "--control", &control], further].concat())
}

/// Standard output of a `vmm COMMAND` that must succeed.
pub(crate) fn says(host: &VmmProcess, command: &str, further: &[&str]) -> String {
    let output = ask(host, command, further);
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A `vmm COMMAND` that must fail, saying `text`.
pub(crate) fn is_denied(host: &VmmProcess, command: &str, text: &str) {
    let output = ask(host, command, &[]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains(text), "{errors}");
}

/// Waits until `host` has ended with `code`; returns its log.
pub(crate) fn await_code(host: &mut VmmProcess, code: i32) -> String {
    let exit = host.await_exit(DEADLINE).unwrap();
    let log = host.log();
    assert_eq!(exit.code(), Some(code), "{log}");
    log
}

/// Calls `look` until it gives something.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "no {what} within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `host` has logged `text` `times` times.
pub(crate) fn await_log(host: &VmmProcess, text: &str, times: usize) {
    let end = Instant::now() + DEADLINE;
    while host.log().matches(text).count() < times {
        let log = host.log();
        assert!(
            Instant::now() < end,
            "not logged {times} times: {text:?}\n{log}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A protected guest with clients.
pub(crate) struct TestCluster {
    pub(crate) local: LocalCluster,
    pub(crate) directory: tempfile::TempDir,
}

impl TestCluster {
    pub(crate) fn start() -> Self {
        Self::start_with(&binary(), &[])
    }

    /// With another program as `vmm`, and further arguments for both sides.
    pub(crate) fn start_with(binary: &Path, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut all = vec!["--timeout-ms".to_owned(), TIMEOUT_MS.to_owned()];
        all.extend(arguments.iter().map(ToString::to_string));
        let options = ClusterOptions {
            binary: binary.into(),
            memory_mib: 64,
            vcpus: 1,
            workload: "workload=stream,counter".into(),
            disk: None,
            arguments: all,
        };
        let local = LocalCluster::start(directory.path(), &options).unwrap();
        local.network.connect(STREAMS, COUNTERS).unwrap();
        let cluster = Self { local, directory };
        cluster.await_progress("clients of a new guest");
        cluster
    }

    pub(crate) fn arbiter(&self) -> ArbiterFile {
        ArbiterFile(self.directory.path().join("arbiter"))
    }

    pub(crate) fn figures(&self) -> Figures {
        self.local.network.figures().unwrap()
    }

    /// Frames that came from a host: 0 is the first primary, 1 the standby.
    pub(crate) fn frames_from(&self, port: usize) -> u64 {
        self.local.network.counts().unwrap()[port].frames_in
    }

    /// Waits until every client was served and they got a good deal more than until now.
    pub(crate) fn await_progress(&self, what: &str) {
        let before = self.figures();
        wait_for(what, || {
            let now = self.figures();
            assert_eq!(now.errors, [], "{what}");
            (now.clients_served == STREAMS + COUNTERS
                && now.bytes_checked >= before.bytes_checked + PROGRESS_BYTES
                && now.acked_writes >= before.acked_writes + PROGRESS_WRITES)
                .then_some(())
        });
    }

    /// No client saw anything lost, repeated or broken.
    pub(crate) fn assert_exact(&self) {
        let figures = self.figures();
        assert_eq!(figures.errors, []);
        assert_eq!(figures.bytes_lost, 0);
        assert_eq!(figures.bytes_repeated, 0);
        assert_eq!(figures.acked_writes_missing, 0);
    }
}

impl Drop for TestCluster {
    /// A test that fails shows what both sides have said.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (primary, standby) = (self.local.primary.log(), self.local.standby.log());
            eprintln!("the primary's log:\n{primary}\nthe standby's log:\n{standby}");
        }
    }
}

/// The arbiter's directory, which a test can take away from both sides.
pub(crate) struct ArbiterFile(PathBuf);

impl ArbiterFile {
    /// From now on neither reading nor claiming works: nothing of the record is there.
    pub(crate) fn break_it(&self) {
        std::fs::rename(&self.0, self.0.with_extension("aside")).unwrap();
        std::fs::create_dir(&self.0).unwrap();
    }

    pub(crate) fn repair(&self) {
        std::fs::remove_dir(&self.0).unwrap();
        std::fs::rename(self.0.with_extension("aside"), &self.0).unwrap();
    }
}

/// Hosts without a network, whose guest only idles, in a directory.
pub(crate) struct Quiet {
    pub(crate) directory: tempfile::TempDir,
}

impl Quiet {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Where the standby listens.
    pub(crate) fn channel(&self) -> PathBuf {
        self.path("channel")
    }

    pub(crate) fn start_standby(&self, name: &str, further: &[&str]) -> VmmProcess {
        let mut host = self.start("standby", "--listen", name, further);
        host.await_status("listening", DEADLINE, |status| status.phase == "listening")
            .unwrap();
        host
    }

    pub(crate) fn start_primary(&self, name: &str, further: &[&str]) -> VmmProcess {
        self.start("primary", "--backup", name, further)
    }

    pub(crate) fn start_protected(&self) -> (VmmProcess, VmmProcess) {
        self.start_protected_with(&[])
    }

    /// With further flags of the primary.
    pub(crate) fn start_protected_with(&self, further: &[&str]) -> (VmmProcess, VmmProcess) {
        let standby = self.start_standby("standby", &[]);
        let mut primary = self.start_primary("primary", further);
        primary
            .await_status("protected", DEADLINE, |status| status.protected)
            .unwrap();
        (primary, standby)
    }

    /// Flags given again in `further` replace the usual ones.
    fn start(&self, side: &str, link: &str, name: &str, further: &[&str]) -> VmmProcess {
        let channel = format!("unix:{}", self.channel().display());
        let arbiter = self.path("arbiter").display().to_string();
        let mut arguments: Vec<String> = vec![side.into()];
        let usual = [
            ("--name", "guest"),
            ("--node", name),
            (link, &channel),
            ("--arbiter", &arbiter),
            ("--memory-mib", "64"),
            ("--vcpus", "1"),
            ("--console", "none"),
            ("--cmdline", "workload=idle"),
            ("--timeout-ms", TIMEOUT_MS),
        ];
        for (flag, value) in usual {
            if !further.contains(&flag) {
                arguments.extend([flag.to_owned(), value.to_owned()]);
            }
        }
        arguments.extend(further.iter().map(ToString::to_string));
        VmmProcess::start(&binary(), name, self.directory.path(), &arguments).unwrap()
    }
}
