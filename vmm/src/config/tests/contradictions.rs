//! Settings that contradict each other are refused, and never decided between in silence.

use super::*;

/// `{"replication": {…}}` must be refused for `key`, with `words`.
#[track_caller]
fn replication_refused(section: &str, key: &str, words: &str) {
    let error = refused(&format!(r#"{{"replication": {{{section}}}}}"#));
    assert!(
        error.starts_with(&format!("replication.{key}: ")),
        "{section}: {error}"
    );
    assert!(error.contains(words), "{section}: {error}");
}

#[test]
fn a_host_is_not_its_own_other_host() {
    for same in ["10.0.0.1:7000", "unix:/run/channel"] {
        let section = format!(r#""listen": "{same}", "backup": "{same}""#);
        replication_refused(&section, "backup", "where this host itself listens");
    }
    let section = r#""listen": "10.0.0.1:7000", "backup": "tcp:10.0.0.1:7000""#;
    replication_refused(section, "backup", "where this host itself listens");
    config(r#"{"replication": {"listen": "0.0.0.0:7000", "backup": "10.0.0.2:7000"}}"#);
    replication_refused(r#""backup": "10.0.0.2:0""#, "backup", "port 0");
}

#[test]
fn heartbeats_go_to_another_address_that_can_be_reached() {
    for (peer, words) in [
        ("10.0.0.1:7001", "this host's own"),
        ("10.0.0.2:0", "no address that anything can be sent to"),
        ("0.0.0.0:7001", "no address that anything can be sent to"),
        ("[::1]:7001", "one is IPv4, the other IPv6"),
    ] {
        let section = format!(r#""heartbeat": {{"listen": "10.0.0.1:7001", "peer": "{peer}"}}"#);
        replication_refused(&section, "heartbeat.peer", words);
    }
}

#[test]
fn a_fixed_interval_is_not_also_ended_by_output_nor_the_guest_slowed_for_it() {
    for way in ["remus", "stop-and-send"] {
        let section = format!(r#""checkpointing": "{way}", "overhead_percent": 5"#);
        replication_refused(&section, "overhead_percent", "fixed interval");
        let section = format!(r#""checkpointing": "{way}", "latency_target_ms": 50"#);
        replication_refused(&section, "latency_target_ms", "fixed interval");
        let section = format!(r#"{{"replication": {{"checkpointing": "{way}"}}}}"#);
        let policy = config(&section).replication.policy;
        assert_eq!(
            (policy.overhead_percent, policy.latency_target),
            (0, Duration::ZERO)
        );
    }
}

#[test]
fn devices_have_names_of_their_own() {
    let error = refused(
        r#"{"drives": [{"drive_id": "a", "path_on_host": "/a"}, {"drive_id": "a", "path_on_host": "/b"}]}"#,
    );
    assert!(
        error.starts_with("drives.a.drive_id: two have this name"),
        "{error}"
    );
    let error = refused(
        r#"{"network-interfaces": [{"iface_id": "n", "host_dev_name": "a"}, {"iface_id": "n", "host_dev_name": "b"}]}"#,
    );
    assert!(
        error.starts_with("network-interfaces.n.iface_id: two have this name"),
        "{error}"
    );
}

#[test]
fn a_drives_name_and_partition_are_what_a_guest_can_be_told() {
    let drive = |rest: &str| {
        refused(&format!(
            r#"{{"drives": [{{"path_on_host": "/a", {rest}}}]}}"#
        ))
    };
    for id in ["a b", "a.b", "a_name_of_21_letters_", "ä"] {
        let error = drive(&format!(r#""drive_id": "{id}""#));
        assert!(
            error.contains("drive_id: ") && error.contains("1 to 20 letters"),
            "{error}"
        );
    }
    let error = drive(r#""drive_id": "a", "is_root_device": true, "partuuid": "x panic=1""#);
    assert!(
        error.starts_with("drives.a.partuuid: \"x panic=1\" is not"),
        "{error}"
    );
    let error = drive(r#""drive_id": "a", "partuuid": "0eaa91a0-01""#);
    assert!(
        error.starts_with("drives.a.partuuid: only the root device"),
        "{error}"
    );
}

#[test]
fn no_file_that_is_written_has_a_second_purpose() {
    let drives = |rest: &str| {
        format!(
            r#""drives": [{{"drive_id": "a", "path_on_host": "/a"}}, {{"drive_id": "b", {rest}}}]"#
        )
    };
    for (text, key, other) in [
        (
            drives(r#""path_on_host": "/a""#),
            "drives.b.path_on_host",
            "drives.a.path_on_host",
        ),
        (
            drives(r#""path_on_host": "/b", "map_path": "/a""#),
            "drives.b.map_path",
            "drives.a.path_on_host",
        ),
        (
            drives(r#""path_on_host": "/b", "map_path": "/a.understudy-map""#),
            "drives.b.map_path",
            "drives.a.map_path",
        ),
        (
            format!(
                r#"{}, "replication": {{"disk_journal": "/./b"}}"#,
                drives(r#""path_on_host": "/b""#)
            ),
            "replication.disk_journal",
            "drives.b.path_on_host",
        ),
        (
            r#""boot-source": {"kernel_image_path": "/k"}, "serial": {"output": "/k"}"#.into(),
            "serial.output",
            "boot-source.kernel_image_path",
        ),
        (
            r#""replication": {"arbiter": "/x", "control_socket": "/x"}"#.into(),
            "replication.control_socket",
            "replication.arbiter",
        ),
    ] {
        let error = refused(&format!("{{{text}}}"));
        assert!(error.starts_with(&format!("{key}: ")), "{text}: {error}");
        assert!(
            error.contains(&format!("is named by {other} too")),
            "{text}: {error}"
        );
    }
    // Images that are only read may be the same.
    let read_only = r#""path_on_host": "/a", "is_read_only": true"#;
    config(&format!(
        r#"{{"drives": [{{"drive_id": "a", {read_only}}}, {{"drive_id": "b", {read_only}}}]}}"#
    ));
}
