//! `vmm arbiter`: makes an arbiter, and shows one's record.

use anyhow::Result;
use understudy_vmm::node::{look_at_arbiter, make_arbiter};

use crate::args::{ArbiterArgs, ArbiterCommand};
use crate::say;

pub(crate) fn arbiter(command: &ArbiterCommand) -> Result<()> {
    match command {
        ArbiterCommand::Init(arguments) => init(arguments),
        ArbiterCommand::Show(arguments) => show(arguments),
    }
}

fn init(arguments: &ArbiterArgs) -> Result<()> {
    let id = make_arbiter(&arguments.path)?;
    if arguments.json {
        return say::line(serde_json::json!({ "arbiter": id }));
    }
    let path = arguments.path.display();
    say::line(format_args!("made the arbiter {id} in {path}"))
}

fn show(arguments: &ArbiterArgs) -> Result<()> {
    let found = look_at_arbiter(&arguments.path)?;
    if arguments.json {
        return say::line(serde_json::to_string(&found)?);
    }
    say::line(format_args!("arbiter     {}", found.arbiter))?;
    let Some(holder) = found.holder else {
        return say::line("generation  none: the guest has never run");
    };
    let lives = match found.holder_lives {
        true => "alive",
        false => "gone, or cut off from this storage",
    };
    say::line(format_args!("generation  {}", found.generation))?;
    say::line(format_args!("holder      {holder}, {lives}"))?;
    say::line(match found.backup {
        Some(backup) => format!("backup      {backup} may have a copy"),
        None => "backup      none has a copy".into(),
    })
}
