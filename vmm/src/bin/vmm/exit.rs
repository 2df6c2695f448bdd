//! How the program ends: exit codes, and errors with a hint.

use std::process::ExitCode;

use understudy_vmm::config::ConfigError;

/// Something failed; the message says what.
pub(crate) const FAILED: u8 = 1;
/// Another host owns the guest now.
pub(crate) const FENCED: u8 = 3;

/// This side was fenced: no failure of the program, but the guest does not run here any more.
#[derive(Debug, thiserror::Error)]
#[error("fenced: {0}")]
pub(crate) struct Fenced(pub(crate) String);

/// Says on standard error what went wrong, with all its causes, and picks the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Some errors repeat their source's text in their own.
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    let flag = error.downcast_ref().and_then(flag_of).unwrap_or_default();
    eprintln!("vmm: {text}{flag}");
    if error.downcast_ref::<Fenced>().is_some() {
        ExitCode::from(FENCED)
    } else {
        ExitCode::from(FAILED)
    }
}

/// What to say of the flag that sets the same as the key that `error` is about.
fn flag_of(error: &ConfigError) -> Option<String> {
    let key = error.key()?;
    let flag = key.flag?;
    let part = match key.path {
        "drives[].map_path" => " path=…,map=FILE",
        _ => "",
    };
    Some(format!(" (flag: {flag}{part})"))
}
