//! `cargo xtask tidy`: what the compiler does not check. Each rule has a file:
//!
//! ```text
//!   layers.rs     who may import what, and where `unsafe` may stand (docs/ARCHITECTURE.md)
//!   circles.rs    files of a crate that import each other
//!   lengths.rs    long files and functions
//!   public.rs     public items that nobody else uses
//!   threads.rs    the table of threads against the names in the code
//!   words.rs      names that mean something else here, or nothing
//!   layout.rs     one style of modules
//! ```
//!
//! A rule takes sources and returns findings. What must not be done here: change a file, or look at one that
//! git does not know.

mod circles;
mod exceptions;
mod finding;
mod layers;
mod layout;
mod lengths;
mod public;
mod source;
mod threads;
mod words;

use std::fs;

use anyhow::{Context, Result, bail};

use exceptions::{EXCEPTIONS, Exceptions};
use threads::ARCHITECTURE;

use crate::workspace::root;

/// Checks everything; fails if anything is found that is no exception.
pub(crate) fn run() -> Result<()> {
    let root = root();
    let read = |path: &str| {
        fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))
    };
    let sources = source::load(&root)?;
    let mut findings = layers::check(&sources);
    for (manifest, banned) in layers::MANIFESTS {
        findings.extend(layers::check_manifest(manifest, &read(manifest)?, banned));
    }
    findings.extend(circles::check(&sources));
    findings.extend(lengths::check(&sources));
    findings.extend(public::check(&sources));
    findings.extend(threads::check(&sources, &read(ARCHITECTURE)?));
    findings.extend(words::check(&sources));
    findings.extend(layout::check(&sources));
    let exceptions = Exceptions::parse(&read(EXCEPTIONS)?)?;
    let mut findings = exceptions.apply(findings);
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!(
            "tidy found {} things; what has to stay is listed in {EXCEPTIONS}, with its reason",
            findings.len()
        );
    }
    Ok(())
}
