//! `docs/two-hosts.md`, step by step, as its reader would do it: the commands and the configuration are taken
//! out of the page. What must not be done here: repeat what the page says. Replaced are addresses, sizes, and
//! what emulated hosts need.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::super::guest::{self, Mode};
use super::super::host::Host;
use super::super::load::Loads;
use super::super::network::{GUEST, Network, Side};
use super::super::two_hosts::Testbed;
use super::super::vmm;
use super::super::wait::{say, until};

const PAGE: &str = include_str!("../../../../docs/two-hosts.md");
/// Acknowledged writes before something happens, and after it.
const WRITES: u64 = 20;
const BOOT: Duration = Duration::from_secs(120);
/// Ends, takeovers and repairs.
const PATIENCE: Duration = Duration::from_secs(300);

/// The page's blocks of a language.
fn blocks(language: &str) -> impl Iterator<Item = &'static str> {
    let begin = format!("```{language}\n");
    PAGE.split("\n\n").filter_map(move |paragraph| {
        let block = paragraph.trim().strip_prefix(&begin)?;
        block.strip_suffix("```")
    })
}

/// The page's command for a prompt that begins so, with its continued lines; comments are left out.
fn command(prompt: &str, beginning: &str) -> Result<String> {
    let wanted = format!("{prompt} {beginning}");
    let lines = blocks("console").map(|block| block.replace("\\\n", " "));
    let found = lines
        .flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>())
        .find(|line| line.starts_with(&wanted))
        .with_context(|| format!("docs/two-hosts.md has no command `{wanted}`"))?;
    let command = found[prompt.len()..]
        .split("  #")
        .next()
        .unwrap_or_default();
    let words: Vec<&str> = command.split_whitespace().collect();
    Ok(words.join(" "))
}

/// What the guest needs on its command line to be this one.
fn root_and_address() -> String {
    format!(
        "root=/dev/vda loglevel=4 understudy.ip={GUEST}/24 understudy.services=fsync,redis,shell"
    )
}

/// The page's configuration on a side: the addresses, and what emulated hosts need.
fn configuration(side: Side) -> Result<Value> {
    let text = blocks("json")
        .next()
        .context("docs/two-hosts.md has no JSON")?;
    let text = text
        .replace("10.0.0.1:", &format!("{}:", Network::Channel.address(side)))
        .replace(
            "10.0.0.2:",
            &format!("{}:", Network::Channel.address(side.other())),
        )
        .replace("/shared/", "/shared/guide/")
        .replace("root=/dev/vda1", &root_and_address());
    let mut config: Value = serde_json::from_str(&text).context("the JSON of docs/two-hosts.md")?;
    config["machine-config"]["mem_size_mib"] = json!(384);
    config["network-interfaces"][0]["guest_mac"] = json!(vmm::GUEST_MAC);
    config["replication"]["epoch_ms"] = json!(guest::EPOCH_MS);
    config["replication"]["heartbeat_ms"] = json!(vmm::HEARTBEAT_MS);
    config["replication"]["timeout_ms"] = json!(vmm::TIMEOUT_MS);
    Ok(config)
}

/// The places the page names, on a host of the testbed.
fn prepare(host: &Host) -> Result<()> {
    let config = serde_json::to_string_pretty(&configuration(host.side)?)?;
    host.must(&format!(
        "mkdir -p /var/lib /var/log /etc; rm -rf /run/web.sock /shared/guide/web.arbiter\n\
         ln -sfn /data /var/lib/web\ncat > /etc/web.json <<'END'\n{config}\nEND"
    ))?;
    Ok(())
}

/// Starts a command that stays.
fn begin(testbed: &mut Testbed, side: Side, command: &str) -> Result<()> {
    say(format_args!("{}# {command}", side.name()));
    vmm::begin(testbed.host(side), command)
}

/// A command of the page that must succeed on a host.
fn done(testbed: &mut Testbed, side: Side, command: &str) -> Result<String> {
    say(format_args!("{}# {command}", side.name()));
    testbed.host(side).must(command)
}

fn await_shell(testbed: &Testbed, side: Side) -> Result<()> {
    let answer = until("the guest's shell", BOOT, || {
        testbed.check_runs(side)?;
        Ok(guest::shell("true", Duration::from_secs(10)).ok())
    });
    answer.map(drop)
}

/// Waits until `vmm status`, as the page calls it, says `text`.
fn await_said(testbed: &mut Testbed, side: Side, text: &str) -> Result<String> {
    let status = command("host-a#", "vmm status")?;
    let mut last = String::new();
    let said = until(&format!("{text:?} in the status"), PATIENCE, || {
        testbed.check_runs(side)?;
        last = testbed.host(side).run(&status)?.text;
        Ok(last.contains(text).then(|| last.clone()))
    });
    said.with_context(|| format!("{} says {last}", side.name()))
}

pub(super) fn follow(testbed: &mut Testbed) -> Result<()> {
    let guest = guest::linux(Mode::Replicated)?;
    let image = &guest.drives[0].image;
    let bytes = std::fs::metadata(image)?.len();
    let initrd = guest.initrd.as_deref().context("no initrd")?;
    let small = [(guest.kernel.as_path(), "vmlinuz"), (initrd, "initrd")];
    for side in Side::BOTH {
        testbed.host(side).power_off()?;
        let mut files = small.to_vec();
        if side == Side::A {
            files.push((image.as_path(), "disk"));
        }
        testbed.host(side).make_disk(&files)?;
    }
    testbed.boot_all()?;
    for side in Side::BOTH {
        prepare(testbed.host(side))?;
        let fit = done(testbed, side, &command("host-a#", "vmm check")?)?;
        ensure!(fit.contains("can run and protect guests"), "{fit}");
    }
    let init = command("host-a#", "vmm arbiter init")?.replace("/shared/", "/shared/guide/");
    done(testbed, Side::A, &init)?;
    alone(testbed)?;
    protect(testbed, bytes)?;
    there_and_back(testbed)?;
    wrong_start(testbed)
}

/// Step 3: the guest boots, unprotected, and ends.
fn alone(testbed: &mut Testbed) -> Result<()> {
    let run = command("host-a#", "vmm run")?
        .replace("root=/dev/vda1", &root_and_address())
        .replace("--memory-mib 1024", "--memory-mib 384")
        .replace("52:54:00:00:00:09", vmm::GUEST_MAC);
    begin(testbed, Side::A, &run)?;
    await_shell(testbed, Side::A)?;
    let said = await_said(testbed, Side::A, "unprotected run")?;
    ensure!(said.contains("no second copy"), "{said}");
    done(testbed, Side::A, &command("host-a#", "vmm power-button")?)?;
    // This guest has nobody who listens to the button.
    guest::shell("poweroff", BOOT)?;
    let (code, words) = testbed.await_end(Side::A)?;
    ensure!(code == 0, "vmm run ended with {code}: {words}");
    Ok(())
}

/// Step 5.
fn protect(testbed: &mut Testbed, bytes: u64) -> Result<()> {
    let truncate = command("host-b#", "truncate")?.replace("$((20 << 30))", &bytes.to_string());
    done(testbed, Side::B, &truncate)?;
    begin(testbed, Side::B, &command("host-b#", "vmm standby")?)?;
    begin(testbed, Side::A, &command("host-a#", "vmm primary")?)?;
    let said = await_said(testbed, Side::A, "protected by")?;
    say(said);
    await_shell(testbed, Side::A)
}

/// Step 6, there and back, while clients write.
fn there_and_back(testbed: &mut Testbed) -> Result<()> {
    let loads = Loads::start()?;
    let kill = command("host-a#", "kill -9")?;
    let standby = command("host-a#", "vmm standby")?;
    for side in Side::BOTH {
        loads.await_more(WRITES)?;
        done(testbed, side, &kill)?;
        let failover = testbed.await_takeover_at(side.other(), "/run/web.sock")?;
        testbed.measure(format!("kill -9 on {}", side.name()), failover, None);
        loads.await_more(WRITES)?;
        begin(testbed, side, &standby)?;
        let said = await_said(testbed, side.other(), "protected by")?;
        ensure!(
            said.contains("last time what had changed was copied"),
            "{said}"
        );
        say(said);
    }
    loads.verify().map(drop)
}

/// The end of step 6: a primary is not started where it is not wanted.
fn wrong_start(testbed: &mut Testbed) -> Result<()> {
    done(testbed, Side::A, &command("host-a#", "kill -9")?)?;
    testbed.await_takeover_at(Side::B, "/run/web.sock")?;
    begin(testbed, Side::A, &command("host-a#", "vmm primary")?)?;
    let (code, words) = testbed.await_end(Side::A)?;
    say(&words);
    ensure!(code != 0, "a second primary ran");
    let text = "start this side as its standby";
    ensure!(words.contains(text), "no {text:?} in {words}");
    let stop = command("host-b#", "vmm stop")?;
    let impatient = testbed
        .host(Side::B)
        .run(&format!("{stop} --patience-s 0"))?;
    ensure!(impatient.text.contains("runs on"), "{}", impatient.text);
    guest::shell("poweroff", BOOT)?;
    let (code, words) = testbed.await_end(Side::B)?;
    ensure!(code == 0, "the end of the guest is {code}: {words}");
    Ok(())
}
