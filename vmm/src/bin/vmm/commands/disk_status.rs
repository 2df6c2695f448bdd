//! What `vmm status` says of disks, for a person: a line for each.

use understudy_vmm::node::{
    BlkCounters, DiskStatus, DiskSync, DisksStatus, Named, STALLED_AFTER, Side, Status,
};

/// A line for each disk, behind its name.
pub(super) fn lines(status: &Status, counted: &[Named<BlkCounters>]) -> Vec<(String, String)> {
    let disks = status.disks.disks.iter().enumerate();
    disks
        .map(|(number, disk)| {
            let line = line(status, number, disk) + &failing(disk, counted);
            (disk.name.clone(), line)
        })
        .collect()
}

/// What the disk on this host has done to the guest; nothing if it works.
fn failing(disk: &DiskStatus, counted: &[Named<BlkCounters>]) -> String {
    let counted = counted.iter().find(|blk| blk.device == disk.name);
    let failing = match counted.map_or(0, |blk| blk.counters.failures) {
        0 => String::new(),
        1 => "; FAILING: it has failed a request of the guest on this host".into(),
        failures => {
            format!("; FAILING: it has failed {failures} requests of the guest on this host")
        }
    };
    let waited = counted.map_or(0, |blk| blk.counters.oldest_wait_ms);
    if waited < STALLED_AFTER.as_millis() as u64 {
        return failing;
    }
    let seconds = waited / 1000;
    format!("{failing}; HANGS: a request of the guest has waited for {seconds} s on this host")
}

/// The same for a guest that runs unprotected.
pub(super) fn run_lines(
    disks: &DisksStatus,
    counted: &[Named<BlkCounters>],
) -> Vec<(String, String)> {
    let state = |disk: &DiskStatus| match (disk.mode.as_str(), disks.marked_bytes) {
        ("local", _) => "one image, no second copy".into(),
        ("readonly", _) => "never written".into(),
        ("replicated", bytes) if bytes > 0 => format!(
            "NOT protected; {} of all disks to be copied when the guest is protected again",
            mib(bytes)
        ),
        _ => "NOT protected".to_owned(),
    };
    (disks.disks.iter())
        .map(|disk| {
            let failing = failing(disk, counted);
            let line = format!(
                "{}, {}, {}{failing}",
                disk.mode,
                mib(disk.bytes),
                state(disk)
            );
            (disk.name.clone(), line)
        })
        .collect()
}

fn line(status: &Status, number: usize, disk: &DiskStatus) -> String {
    let state = match disk.mode.as_str() {
        "shared" => shared(status),
        _ => replicated(status, number),
    };
    format!("{}, {}, {state}", disk.mode, mib(disk.bytes))
}

fn shared(status: &Status) -> String {
    match (status.side, status.protected) {
        (Side::Primary, true) => "writes are held until the standby has their epoch",
        (Side::Primary, false) if super::is_undecided(status) => "writes are held, NOT protected",
        (Side::Primary, false) => "written at once, NOT protected",
        (Side::Standby, true) => "written by the primary",
        (Side::Standby, false) => "not in use here",
    }
    .into()
}

fn replicated(status: &Status, number: usize) -> String {
    let sync = status.disks.sync.as_ref();
    let durable = match status.disks.durable_epoch {
        0 => String::new(),
        epoch if status.side == Side::Primary => {
            format!(", on the standby's image up to epoch {epoch}")
        }
        epoch => format!(", on this image up to epoch {epoch}"),
    };
    match (status.side, status.protected, sync) {
        (Side::Primary, false, Some(sync)) if status.phase == "syncing" => progress(sync),
        (Side::Primary, false, _) => match status.disks.marked_bytes {
            0 => "NOT protected".into(),
            bytes => format!(
                "NOT protected; {} of all disks to be copied when its standby comes back",
                mib(bytes)
            ),
        },
        (Side::Primary, true, Some(sync)) => {
            let (copied, sent) = (mib(sync.bytes), mib(sync.bytes_sent));
            let full = sync.full.get(number) != Some(&false);
            let how = match (full, sync.compared.get(number)) {
                (_, Some(true)) => "all of it was compared",
                (true, _) => "all of it was copied",
                (false, _) => "what had changed was copied",
            };
            format!("in sync (last time {how}: {copied}, {sent} sent){durable}")
        }
        (_, true, _) => format!("in sync{durable}"),
        (Side::Standby, false, _) if status.phase == "syncing" => {
            "being synchronised; the primary knows how far it is".into()
        }
        (Side::Standby, false, _) => "not in sync".into(),
    }
}

/// How far a synchronisation is.
pub(super) fn progress(sync: &DiskSync) -> String {
    let done = sync.bytes.saturating_sub(sync.bytes_left);
    let percent = match sync.bytes {
        0 => 100.0,
        bytes => done as f64 * 100.0 / bytes as f64,
    };
    let seconds = sync.elapsed_ms as f64 / 1e3;
    let rate = match sync.elapsed_ms {
        0 => String::new(),
        _ => format!(", {:.1} MiB/s", sync.bytes_sent as f64 / seconds / MIB),
    };
    let equal = if sync.compared.contains(&true) {
        format!(", {} found equal", mib(sync.bytes_equal))
    } else {
        String::new()
    };
    format!(
        "synchronising: {percent:.0} % ({} of {}{equal}{rate})",
        mib(done),
        mib(sync.bytes)
    )
}

const MIB: f64 = (1 << 20) as f64;

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fails_the_guest_is_said_to_although_its_copy_is_in_sync() {
        let disk = DiskStatus {
            name: "data".into(),
            mode: "replicated".into(),
            bytes: 1 << 20,
        };
        let mut status = Status {
            protected: true,
            ..Status::default()
        };
        status.disks.disks = vec![disk];
        let mut counted = Named::<BlkCounters> {
            device: "data".into(),
            ..Named::default()
        };
        let line = |counted: &Named<BlkCounters>| {
            lines(&status, std::slice::from_ref(counted))[0].1.clone()
        };
        assert_eq!(line(&counted), "replicated, 1.0 MiB, in sync");
        counted.counters.failures = 3;
        let expected = "replicated, 1.0 MiB, in sync; FAILING: it has failed 3 requests of the guest on this host";
        assert_eq!(line(&counted), expected);
        (counted.counters.failures, counted.counters.oldest_wait_ms) = (0, 7900);
        let expected = "replicated, 1.0 MiB, in sync; HANGS: a request of the guest has waited for 7 s on this host";
        assert_eq!(line(&counted), expected);
    }

    #[test]
    fn a_synchronisation_tells_how_far_it_is() {
        let mut sync = DiskSync {
            full: vec![true],
            compared: vec![false],
            bytes_equal: 8 << 20,
            bytes: 40 << 20,
            bytes_left: 30 << 20,
            bytes_sent: 12 << 20,
            elapsed_ms: 500,
        };
        let text = progress(&sync);
        assert_eq!(
            text,
            "synchronising: 25 % (10.0 MiB of 40.0 MiB, 24.0 MiB/s)"
        );
        sync.compared = vec![true];
        assert_eq!(
            progress(&sync),
            "synchronising: 25 % (10.0 MiB of 40.0 MiB, 8.0 MiB found equal, 24.0 MiB/s)"
        );
        let nothing = DiskSync::default();
        assert_eq!(
            progress(&nothing),
            "synchronising: 100 % (0.0 MiB of 0.0 MiB)"
        );
    }
}
