//! Taps that cannot be used: `vmm run` fails and says which and what to do.
//!
//! The unprivileged user is `nobody`, in a mount namespace (which `ip netns exec` makes) where
//! everybody may open `/dev/kvm` and `/dev/net/tun`, as on hosts whose users run virtual machines.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::namespace::{Namespace, run, text};
use super::pair::VMM;
use super::{alone, await_some};

/// Exit code of anything that fails.
const FAILED: i32 = 1;
/// The user without rights.
const NOBODY: u32 = 65534;
/// What the guest's start is logged as.
const RUNS: &str = "the guest runs";

/// A `vmm run`, killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A host on which anybody may use KVM and taps of their own.
struct Hypervisor {
    namespace: Namespace,
    directory: TempDir,
}

impl Hypervisor {
    fn new() -> Self {
        let namespace = Namespace::new("taps");
        let directory = tempfile::tempdir().unwrap();
        let open_to_all = Permissions::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open_to_all).unwrap();
        let hypervisor = Self {
            namespace,
            directory,
        };
        // The target directory may be closed to others.
        std::fs::copy(VMM, hypervisor.file("vmm")).unwrap();
        for (device, major, minor) in [("kvm", "10", "232"), ("tun", "10", "200")] {
            let file = hypervisor.file(device).display().to_string();
            run("mknod", &["-m", "666", &file, "c", major, minor]);
        }
        hypervisor
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The words behind `ip` that run `program` here as nobody.
    fn as_nobody(&self, program: &Path) -> Vec<String> {
        let mount = "mount --bind \"$0/kvm\" /dev/kvm && mount --bind \"$0/tun\" /dev/net/tun && exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
        let directory = self.directory.path().display().to_string();
        let program = program.display().to_string();
        ["netns", "exec", self.namespace.name(), "sh", "-c", mount]
            .into_iter()
            .map(str::to_owned)
            .chain([directory, program])
            .collect()
    }

    /// `vmm run` as nobody, with `tap`, which must fail; what it says.
    fn refused(&self, tap: &str) -> String {
        let output = Command::new("ip")
            .args(self.as_nobody(&self.file("vmm")))
            .args(run_arguments(tap))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = text(&output);
        assert_eq!(output.status.code(), Some(FAILED), "{said}");
        assert!(!said.contains(RUNS), "{said}");
        assert!(said.contains(&format!("tap {tap}")), "no name: {said}");
        said
    }

    /// `vmm run` as nobody, with `tap`, once its guest runs.
    fn running(&self, tap: &str) -> Running {
        let log = self.file("log");
        let errors = std::fs::File::create(&log).unwrap();
        // All the programs in between give way to `vmm` by exec: the process is its own.
        let running = Command::new("ip")
            .args(self.as_nobody(&self.file("vmm")))
            .args(run_arguments(tap))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .map(Running)
            .unwrap();
        await_some("the guest runs", || {
            let log = std::fs::read_to_string(&log).unwrap();
            assert!(!log.contains("error") && !log.contains("vmm: "), "{log}");
            log.contains(RUNS).then_some(())
        });
        running
    }

    /// Does what a message advises: the `ip` commands in it.
    fn follow(&self, advice: &str) {
        self.namespace.ip("link add guests type bridge");
        let (_, commands) = advice.split_once(": ip ").expect("commands");
        for command in format!("ip {}", commands.trim()).split("; ") {
            let arguments = command.strip_prefix("ip ").expect("an ip command");
            self.namespace.ip(&arguments.replace("BRIDGE", "guests"));
        }
    }
}

fn run_arguments(tap: &str) -> Vec<String> {
    let net = format!("tap={tap}");
    ["run", "--memory-mib", "64", "--net", &net]
        .into_iter()
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_missing_tap_is_named_and_the_advice_helps() {
    let _alone = alone();
    let hypervisor = Hypervisor::new();
    let said = hypervisor.refused("tap7");
    assert!(said.contains("there is no tap tap7"), "{said}");
    assert!(said.contains(&format!("user {NOBODY}")), "{said}");
    hypervisor.follow(&said);
    drop(hypervisor.running("tap7"));
}

/// Root could make a tap, but not one that leads anywhere.
#[test]
fn a_missing_tap_is_missing_for_root_too() {
    let _alone = alone();
    let namespace = Namespace::new("taps");
    let output = namespace
        .command(VMM)
        .args(run_arguments("tap7"))
        .output()
        .unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(FAILED), "{said}");
    assert!(said.contains("there is no tap tap7"), "{said}");
    assert!(!namespace.ip("link show").contains("tap7"));
}

#[test]
fn a_tap_of_another_user_is_named_and_the_advice_helps() {
    let _alone = alone();
    let hypervisor = Hypervisor::new();
    let namespace = &hypervisor.namespace;
    namespace.ip("tuntap add dev tap7 mode tap user root");
    let said = hypervisor.refused("tap7");
    assert!(said.contains("no permission for tap tap7"), "{said}");
    assert!(said.contains(&format!("user {NOBODY}")), "{said}");
    hypervisor.follow(&said);
    drop(hypervisor.running("tap7"));
}

#[test]
fn a_tap_in_use_is_named_and_free_again_later() {
    let _alone = alone();
    let hypervisor = Hypervisor::new();
    let namespace = &hypervisor.namespace;
    namespace.ip(&format!("tuntap add dev tap7 mode tap user {NOBODY}"));
    let first = hypervisor.running("tap7");
    let said = hypervisor.refused("tap7");
    assert!(said.contains("used by another process"), "{said}");
    assert!(said.contains("each VM needs its own"), "{said}");
    drop(first);
    drop(hypervisor.running("tap7"));
}
