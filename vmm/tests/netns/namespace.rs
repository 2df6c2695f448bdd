//! One network namespace, made by `ip netns` and removed when it is dropped. Knows nothing of what is
//! in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Names begin so, followed by the process id of the test.
const PREFIX: &str = "understudy-test";

/// See the [module documentation](self).
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// `role` is unique among the namespaces of this process.
    pub(crate) fn new(role: &str) -> Self {
        let name = format!("{PREFIX}-{}-{role}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub(crate) fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// `ip ARGUMENTS` in here.
    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.tool("ip", arguments)
    }

    /// A tool of iproute2 in here.
    pub(crate) fn tool(&self, tool: &str, arguments: &str) -> String {
        let mut words = vec!["-n", self.name.as_str()];
        words.extend(arguments.split(' '));
        run(tool, &words)
    }

    /// A command that will run in here, as the process that is started: `ip netns exec` replaces
    /// itself by the program.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Whatever is in it goes with it, as soon as the last process has left.
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .output();
    }
}

/// Removes what killed runs have left behind.
pub(crate) fn remove_leftovers() {
    let Ok(names) = std::fs::read_dir("/run/netns") else {
        return;
    };
    for name in names.flatten() {
        let name = name.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').nth(1));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(Namespace { name });
        }
    }
}

/// Runs a program that must succeed; returns what it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    let said = text(&output);
    assert!(
        output.status.success(),
        "{program} {}: {}: {said}",
        arguments.join(" "),
        output.status,
    );
    said
}

/// What a program printed, errors behind the rest.
pub(crate) fn text(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    format!("{out}{}", String::from_utf8_lossy(&output.stderr))
}
