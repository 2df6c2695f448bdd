//! `cargo xtask mutants`: breaks each rule on purpose and sees the test fail that guards it.
//!
//! The list is `xtask/mutants.toml`: a file, a text that occurs in it exactly once, what to put in its
//! place, and the test that must fail then. Everything happens in a copy of the working tree in
//! `target/mutants`; builds share the target directory. With `--generated`, cargo-mutants makes the mutants.

mod generated;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::workspace::root;

/// A mutant that makes its test hang is caught after so many seconds.
const DEADLINE_S: &str = "600";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    /// What the mutant does wrong, in a few words. Unique.
    name: String,
    /// Which rule or property it breaks.
    breaks: String,
    file: PathBuf,
    old: String,
    new: String,
    #[serde(flatten)]
    test: Test,
}

#[derive(Debug, Clone, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Test {
    /// The package that has the test.
    package: String,
    /// The file under `tests/` that has it; without it, the test is in the library.
    target: Option<String>,
    /// The test's full path, as `cargo test` prints it.
    test: String,
}

enum Outcome {
    Passed,
    Failed,
    DoesNotBuild,
}

/// Runs all mutants whose name, rule or file contains `filter`, or the generated ones of the rooms it begins.
pub(crate) fn run(filter: &str, only_list: bool, generated: bool) -> Result<()> {
    if generated {
        return generated::run(filter);
    }
    let all = read()?;
    let mutants: Vec<_> = all.iter().filter(|it| it.matches(filter)).collect();
    ensure!(!mutants.is_empty(), "no mutant matches {filter:?}");
    if only_list {
        for Mutant { breaks, name, .. } in &mutants {
            println!("{breaks:<12} {name}");
        }
        return Ok(());
    }
    let copy = root().join("target/mutants");
    copy_tree(&copy)?;
    for test in mutants.iter().map(|it| &it.test).collect::<BTreeSet<_>>() {
        let outcome = test.run(&copy)?;
        let without = matches!(outcome, Outcome::Passed);
        ensure!(without, "{} does not pass without a mutant", test.test);
    }
    let mut survivors = Vec::new();
    for mutant in &mutants {
        let began = Instant::now();
        let outcome = mutant.run(&copy)?;
        let verdict = match outcome {
            Outcome::Failed => "caught",
            Outcome::Passed => "SURVIVED",
            Outcome::DoesNotBuild => "DOES NOT BUILD",
        };
        let Mutant { breaks, name, .. } = mutant;
        let seconds = began.elapsed().as_secs();
        println!("{verdict:<14} {breaks:<12} {name} ({seconds} s)");
        if !matches!(outcome, Outcome::Failed) {
            survivors.push(name.as_str());
        }
    }
    println!(
        "{} of {} caught",
        mutants.len() - survivors.len(),
        mutants.len()
    );
    ensure!(survivors.is_empty(), "not caught: {}", survivors.join("; "));
    Ok(())
}

impl Mutant {
    fn matches(&self, filter: &str) -> bool {
        let file = self.file.to_string_lossy();
        [&self.name, &self.breaks, &*file]
            .iter()
            .any(|text| text.contains(filter))
    }

    /// The file with the mutation.
    fn apply(&self, text: &str) -> Result<String> {
        let found = text.matches(&self.old).count();
        let (name, file) = (&self.name, self.file.display());
        ensure!(
            found == 1,
            "mutant {name:?}: its old text occurs {found} times in {file}, not once: change xtask/mutants.toml"
        );
        ensure!(self.old != self.new, "mutant {name:?} changes nothing");
        Ok(text.replace(&self.old, &self.new))
    }

    fn run(&self, copy: &Path) -> Result<Outcome> {
        let path = copy.join(&self.file);
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        std::fs::write(&path, self.apply(&text)?)?;
        let outcome = self.test.run(copy);
        std::fs::write(&path, text)?;
        outcome
    }
}

impl Test {
    /// Whether a file that may have the test has one of that name.
    fn is_there(&self) -> Result<bool> {
        let package = self.package.trim_start_matches("understudy-");
        let name = self.test.rsplit("::").next().unwrap_or_default();
        let mut git = Command::new("git");
        git.args(["grep", "--quiet", "--untracked", "--fixed-strings"])
            .args([&format!("fn {name}("), "--"])
            .current_dir(root());
        match &self.target {
            None => git.arg(format!("{package}/src")),
            Some(target) => git
                .arg(format!("{package}/tests/{target}.rs"))
                .arg(format!("{package}/tests/{target}")),
        };
        Ok(git.status().context("cannot run git")?.success())
    }

    fn run(&self, copy: &Path) -> Result<Outcome> {
        eprintln!("+ {} ({})", self.test, self.package);
        let built = self.cargo(copy, &["--no-run"])?;
        if !built.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&built.stderr));
            return Ok(Outcome::DoesNotBuild);
        }
        let output = self.cargo(copy, &["--", "--exact", &self.test])?;
        let text = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            // A test that is not there fails nowhere.
            let ran = text.contains(&format!("test {} ", self.test));
            ensure!(ran, "there is no test {} in {}", self.test, self.package);
            return Ok(Outcome::Passed);
        }
        Ok(Outcome::Failed)
    }

    fn cargo(&self, copy: &Path, further: &[&str]) -> Result<std::process::Output> {
        let mut command = Command::new("timeout");
        command.args([DEADLINE_S, "cargo", "test", "--locked", "--package"]);
        command.arg(&self.package);
        match &self.target {
            Some(target) => command.args(["--test", target]),
            None => command.arg("--lib"),
        };
        command
            .args(further)
            .current_dir(copy)
            .env("CARGO_TARGET_DIR", root().join("target"))
            // A mutant changes one line: most of its crate need not be built again.
            .env("CARGO_INCREMENTAL", "1")
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .output()
            .context("cannot run timeout and cargo")
    }
}

/// The list, whose texts and tests are all found.
fn read() -> Result<Vec<Mutant>> {
    let path = root().join("xtask/mutants.toml");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let list: List = toml::from_str(&text).with_context(|| path.display().to_string())?;
    let mut names = BTreeSet::new();
    for mutant in &list.mutant {
        let name = &mutant.name;
        ensure!(names.insert(name), "two mutants are called {name:?}");
        let text = std::fs::read_to_string(root().join(&mutant.file))
            .with_context(|| format!("mutant {name:?}: {}", mutant.file.display()))?;
        mutant.apply(&text)?;
        ensure!(
            mutant.test.is_there()?,
            "mutant {name:?}: there is no test {} where it is said to be: change xtask/mutants.toml",
            mutant.test.test
        );
    }
    Ok(list.mutant)
}

/// Brings the copy of the working tree up to date: what git knows or would take. Files that are the
/// same keep their time, so that they are not built again.
fn copy_tree(copy: &Path) -> Result<()> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let listed = Command::new("git")
        .args(arguments)
        .current_dir(root())
        .output()
        .context("cannot run git")?;
    if !listed.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    }
    for name in String::from_utf8(listed.stdout)?.lines() {
        let (from, to) = (root().join(name), copy.join(name));
        let Ok(content) = std::fs::read(&from) else {
            // Removed in the working tree, or a link.
            let _ = std::fs::remove_file(&to);
            continue;
        };
        if std::fs::read(&to).is_ok_and(|there| there == content) {
            continue;
        }
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&to, content).with_context(|| to.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_mutant_and_its_test_are_found() {
        super::read().unwrap();
    }
}
