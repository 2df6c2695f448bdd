//! `vmm check`: what this host can and cannot do, and what to do about it.

use anyhow::{Result, bail};
use understudy_vmm::host;

use crate::args::CheckArgs;
use crate::say;

pub(crate) fn check(arguments: &CheckArgs) -> Result<()> {
    let findings = host::findings();
    let fit = findings
        .iter()
        .all(|finding| finding.have || !finding.required);
    if arguments.json {
        say::line(serde_json::json!({ "fit": fit, "findings": findings }))?;
    } else {
        for finding in &findings {
            let mark = match (finding.have, finding.required) {
                (true, _) => "yes",
                (false, true) => "NO",
                (false, false) => "no",
            };
            say::line(format_args!(
                "{mark:>4}  {}: {}",
                finding.name, finding.meaning
            ))?;
            if !finding.have {
                say::line(format_args!("      {}", finding.advice))?;
            }
        }
    }
    if !fit {
        bail!("this host cannot run guests; see the lines marked NO");
    }
    if !arguments.json {
        say::line("\nThis host can run and protect guests.")?;
    }
    Ok(())
}
