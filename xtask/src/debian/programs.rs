//! Programs that the tasks call, and files that those need: installed if they are missing. What must not be
//! done here: remove anything that is installed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{apt, quiet};

/// Where Debian keeps programs for administrators, which are not on everybody's path.
const FURTHER: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Installs the packages of programs that are missing (program, or absolute path of a file, and package each);
/// who is not root, or has no Debian, is told their names.
pub(crate) fn install(needed: &[(&str, &'static str)]) -> Result<()> {
    let missing = missing(needed, is_there);
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !is_there("apt-get") {
        bail!("missing programs: install what your distribution calls {names}");
    }
    if !is_root() {
        bail!("missing programs: as root, run `apt-get update && apt-get install {names}`");
    }
    let mut arguments = vec!["install", "-q", "-y"];
    arguments.extend(["--no-install-recommends", "--no-remove"]);
    arguments.extend(missing);
    let environment = [("DEBIAN_FRONTEND", "noninteractive")];
    apt::twice(
        || crate::workspace::run("apt-get", &arguments, &environment),
        || quiet(Command::new("apt-get").args(["-q", "update"])).map(drop),
    )
    .with_context(|| format!("cannot install {names}: do it yourself, with whatever apt-get asks"))
}

/// The packages of programs that are not there, each once.
fn missing<'a>(needed: &[(&str, &'a str)], is_there: impl Fn(&str) -> bool) -> Vec<&'a str> {
    let mut packages = Vec::new();
    for (program, package) in needed {
        if !is_there(program) && !packages.contains(package) {
            packages.push(package);
        }
    }
    packages
}

/// `PATH` with the directories of administrators' programs: `sudo env PATH="$PATH"` does not bring them.
pub(crate) fn search_path() -> Result<OsString> {
    std::env::join_paths(directories()).context("PATH cannot be extended")
}

fn directories() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<_> = std::env::split_paths(&path).collect();
    for further in FURTHER.map(PathBuf::from) {
        if !directories.contains(&further) {
            directories.push(further);
        }
    }
    directories
}

/// Whether there is a program of that name, or for an absolute path that file.
fn is_there(program: &str) -> bool {
    if Path::new(program).is_absolute() {
        return Path::new(program).exists();
    }
    directories()
        .iter()
        .any(|directory| is_program(&directory.join(program)))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.starts_with(b"0\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_of_several_missing_programs_is_named_once() {
        let needed = [
            ("ip", "iproute2"),
            ("setpriv", "util-linux"),
            ("bridge", "iproute2"),
            ("cpio", "cpio"),
        ];
        assert_eq!(
            missing(&needed, |program| program == "setpriv"),
            ["iproute2", "cpio"]
        );
        assert!(missing(&needed, |_| true).is_empty());
    }

    #[test]
    fn a_program_is_an_executable_file_and_a_path_any_file() {
        assert!(is_there("sh"));
        assert!(!is_there("no-such-program"));
        assert!(is_there("/etc/passwd"));
        assert!(!is_there("/etc/no-such-file"));
        assert!(!is_program(Path::new("/etc/passwd")));
        assert!(!is_program(Path::new("/usr/bin")));
    }
}
