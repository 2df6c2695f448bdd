//! `guest-tool`: what the Linux guest's init script starts, and the checker of what it wrote.

use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result, bail};
use understudy_guest_tool::{fsync, stream};

const HELP: &str = "\
guest-tool stream ADDRESS:PORT [BYTES_PER_S]  serves the stream pattern over HTTP (262144; 0 without limit)
guest-tool fsync ADDRESS:PORT DIRECTORY       writes records and acknowledges each after fsync
guest-tool verify DIRECTORY ACKED             checks records, of which the first ACKED were acknowledged
";
const RATE: u64 = 262_144;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["stream", address] => Ok(stream::serve(&listen(address)?, RATE)?),
        ["stream", address, rate] => {
            let rate = rate
                .parse()
                .with_context(|| format!("{rate} is not a rate"))?;
            Ok(stream::serve(&listen(address)?, rate)?)
        }
        ["fsync", address, directory] => {
            let store = fsync::Store::open(Path::new(directory))?;
            println!("understudy: fsync: {} records are there", store.records());
            Ok(fsync::serve(&listen(address)?, store)?)
        }
        ["verify", directory, acked] => {
            let acked = acked
                .parse()
                .with_context(|| format!("{acked} is not a number of records"))?;
            let found = fsync::check(Path::new(directory), acked)?;
            println!(
                "verify: ok records={} acked={acked} torn_bytes={}",
                found.records, found.torn_bytes
            );
            Ok(())
        }
        _ => bail!("what to do?\n{HELP}"),
    }
}

fn listen(address: &str) -> Result<TcpListener> {
    TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))
}
