//! `apt-get` with sources and lists of its own: Debian's, from where this machine has Debian, with or without its
//! backports, and whatever else it has left out. Needs no root. What must not be done here: change anything outside
//! `target/debian`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};

use super::{quiet, store};

/// Signs everything of Debian's; machines that have it elsewhere trust it anyway.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Which packages there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    Stable,
    /// Newer ones, as far as Debian offers some for its release.
    Backports,
}

/// One of apt's programs, for our lists.
pub(super) fn apt(program: &str, release: Release) -> Command {
    let home = home(release);
    let mut command = Command::new(program);
    for (option, value) in [
        ("Dir::Etc::SourceList", home.join("sources.list")),
        ("Dir::Etc::SourceParts", "/dev/null".into()),
        ("Dir::Etc::Preferences", "/dev/null".into()),
        ("Dir::Etc::PreferencesParts", "/dev/null".into()),
        ("Dir::State::Lists", home.join("lists")),
        ("Dir::Cache", home.join("cache")),
    ] {
        command.args(["-o", &format!("{option}={}", value.display())]);
    }
    // apt-get's own user cannot write here.
    command.args(["-o", "APT::Sandbox::User=", "-q"]);
    command
}

/// The name of the backports.
pub(super) fn backports() -> Result<String> {
    Ok(format!("{}-backports", codename()?))
}

/// Tries something with our lists as they are, and if it fails once more with fresh ones: there may be none yet,
/// or old ones whose packages are no longer to be had.
pub(super) fn with_lists<T>(release: Release, attempt: impl FnMut() -> Result<T>) -> Result<T> {
    twice(attempt, || update(release))
        .with_context(|| format!("cannot get packages of Debian's: this needs {NEEDS}"))
}

/// What [`with_lists`] cannot do without.
const NEEDS: &str = "Debian 12 and its network";

fn update(release: Release) -> Result<()> {
    eprintln!("          fetching Debian's lists");
    let home = home(release);
    for directory in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(home.join(directory))?;
    }
    let targets = quiet(Command::new("apt-get").args([
        "indextargets",
        "--no-release-info",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
    ]))?;
    let sources = sources(&targets, &codename()?, release, Path::new(KEYRING).exists());
    ensure!(
        !sources.is_empty(),
        "no source of Debian's packages among those of this machine:\n{targets}"
    );
    fs::write(home.join("sources.list"), sources)?;
    // Otherwise it is content with what it cannot reach.
    let strictly = ["-o", "APT::Update::Error-Mode=any", "update"];
    quiet(apt("apt-get", release).args(strictly)).map(drop)
}

/// The sources of Debian's release `codename` among this machine's, and its backports if they are wanted.
fn sources(targets: &str, codename: &str, wanted: Release, keyring: bool) -> String {
    let signed = if keyring {
        format!("[signed-by={KEYRING}] ")
    } else {
        String::new()
    };
    let suites = ["", "-updates", "-security"].map(|suite| format!("{codename}{suite}"));
    let mut lines: Vec<String> = Vec::new();
    for target in targets.lines() {
        let mut words = target.split(' ');
        let (Some(uri), Some(release), Some("main")) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        // Others name their releases like Debian's.
        let place = uri.trim_end_matches('/').rsplit('/').next();
        if !place.is_some_and(|place| place.starts_with("debian"))
            || !suites.iter().any(|suite| suite == release)
        {
            continue;
        }
        lines.push(format!("deb {signed}{uri} {release} main\n"));
        if release == codename && wanted == Release::Backports {
            lines.push(format!("deb {signed}{uri} {release}-backports main\n"));
        }
    }
    lines.sort();
    lines.dedup();
    lines.concat()
}

fn codename() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let name = name.with_context(|| format!("this is no release of Debian; needed is {NEEDS}"))?;
    Ok(name.trim_matches('"').to_owned())
}

fn home(release: Release) -> PathBuf {
    store().join(match release {
        Release::Stable => "apt",
        Release::Backports => "apt-backports",
    })
}

/// Does something again after a repair. If that is of no use, the error has the reasons of both.
pub(super) fn twice<T>(
    mut attempt: impl FnMut() -> Result<T>,
    repair: impl FnOnce() -> Result<()>,
) -> Result<T> {
    let why = match attempt() {
        Ok(value) => return Ok(value),
        Err(why) => why,
    };
    repair().map_err(|further| anyhow!("{}\n{}", brief(&why), brief(&further)))?;
    attempt()
}

/// The beginning of an error: apt-get has a line for each package.
fn brief(error: &anyhow::Error) -> String {
    const LINES: usize = 3;
    let text = format!("{error:#}");
    let mut brief: Vec<&str> = text.lines().take(LINES).collect();
    if text.lines().count() > LINES {
        brief.push("…");
    }
    brief.join("\n")
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn only_debian_s_own_sources_are_taken_and_its_backports_added_on_request() {
        let targets = "http://mirror.example/debian/ bookworm main\n\
            http://mirror.example/debian/ bookworm non-free\n\
            http://mirror.example/debian/ bookworm main\n\
            http://mirror.example/debian-security/ bookworm-security main\n\
            http://else.example/linux/ bookworm main\n\
            http://mirror.example/debian/ trixie main\n";
        let expected = "deb http://mirror.example/debian-security/ bookworm-security main\n\
            deb http://mirror.example/debian/ bookworm main\n";
        let found = |codename, release| sources(targets, codename, release, false);
        assert_eq!(found("bookworm", Release::Stable), expected);
        let backports = "deb http://mirror.example/debian/ bookworm-backports main\n";
        assert_eq!(
            found("bookworm", Release::Backports),
            format!("{expected}{backports}")
        );
        let signed = sources(targets, "bookworm", Release::Backports, true);
        assert_eq!(signed.matches("[signed-by=/usr/share/keyrings/").count(), 3);
        assert_eq!(found("noble", Release::Stable), "");
    }

    #[test]
    fn a_failure_is_repaired_once_and_told_with_what_hindered_the_repair() {
        let mut attempts = 0;
        let mut second = || {
            attempts += 1;
            if attempts == 2 {
                Ok(attempts)
            } else {
                bail!("no lists")
            }
        };
        assert_eq!(twice(&mut second, || Ok(())).unwrap(), 2);
        let mut repairs = 0;
        let mut repair = || {
            repairs += 1;
            Ok(())
        };
        let error = twice(|| -> Result<()> { bail!("no such package") }, &mut repair).unwrap_err();
        assert_eq!(error.to_string(), "no such package");
        assert_eq!(twice(|| Ok(7), &mut repair).unwrap(), 7);
        assert_eq!(repairs, 1);
        let error = twice(
            || -> Result<()> { bail!("no lists") },
            || bail!("no network"),
        );
        assert_eq!(error.unwrap_err().to_string(), "no lists\nno network");
        let error = twice(|| -> Result<()> { bail!("1\n2\n3\n4\n5") }, || bail!("no"));
        assert_eq!(error.unwrap_err().to_string(), "1\n2\n3\n…\nno");
    }
}
