//! `vmm disk verify`: has a running primary compare its disks' images with the standby's.

use anyhow::Result;
use understudy_vmm::control::{self, Verifying};
use understudy_vmm::node::{VERIFY_RANGES_MAX, Verified, VerifyOptions};

use crate::args::VerifyArgs;
use crate::exit::Differs;
use crate::say;

const MIB: f64 = (1 << 20) as f64;

pub(crate) fn verify(arguments: &VerifyArgs) -> Result<()> {
    let options = VerifyOptions {
        bytes_per_second: arguments.rate_mib << 20,
        repair: arguments.repair,
    };
    let mut said = Ok(());
    let found = control::verify_disks(&arguments.control.control, options, |now| {
        if said.is_ok() {
            said = tell(now, arguments.json);
        }
    })?;
    said?;
    if found.differing_blocks == 0 {
        return Ok(());
    }
    Err(Differs {
        blocks: found.differing_blocks,
        repaired: arguments.repair,
    }
    .into())
}

fn tell(now: &Verifying, json: bool) -> Result<()> {
    if json {
        say::line(serde_json::to_string(now)?)
    } else if now.done {
        say::print(result(&now.found))
    } else {
        say::line(progress(&now.found))
    }
}

fn progress(found: &Verified) -> String {
    let (all, done) = (found.bytes as f64, found.compared_bytes as f64);
    let percent = if all > 0.0 { done * 100.0 / all } else { 100.0 };
    let differing = match found.differing_blocks {
        0 => "no difference".into(),
        blocks => format!("{blocks} blocks differ"),
    };
    format!(
        "{percent:>3.0} %  {:.0} of {:.0} MiB compared, {differing} so far",
        done / MIB,
        all / MIB
    )
}

fn result(found: &Verified) -> String {
    let compared = found.compared_bytes as f64 / MIB;
    if found.differing_blocks == 0 {
        return format!("equal on both hosts: {compared:.1} MiB compared\n");
    }
    let mut text = format!(
        "NOT equal: {} of {} blocks differ, {compared:.1} MiB compared\n",
        found.differing_blocks,
        found.compared_bytes.div_ceil(64 << 10)
    );
    for range in &found.first {
        let end = range.offset + range.bytes;
        text += &format!("  disk {}: bytes {} to {end}\n", range.disk, range.offset);
    }
    if found.first.len() == VERIFY_RANGES_MAX {
        text += "  and perhaps more\n";
    }
    if found.repaired_blocks > 0 {
        text += &format!("{} blocks sent once more\n", found.repaired_blocks);
    }
    text
}

#[cfg(test)]
mod tests {
    use understudy_vmm::node::Differing;

    use super::*;

    #[test]
    fn what_differs_is_named() {
        let mut found = Verified {
            bytes: 4 << 20,
            compared_bytes: 2 << 20,
            ..Verified::default()
        };
        assert_eq!(
            progress(&found),
            " 50 %  2 of 4 MiB compared, no difference so far"
        );
        found.compared_bytes = 4 << 20;
        assert_eq!(result(&found), "equal on both hosts: 4.0 MiB compared\n");
        found.differing_blocks = 2;
        found.first.push(Differing {
            disk: "data".into(),
            offset: 65536,
            bytes: 131_072,
        });
        assert_eq!(
            result(&found),
            "NOT equal: 2 of 64 blocks differ, 4.0 MiB compared\n  disk data: bytes 65536 to 196608\n"
        );
    }
}
