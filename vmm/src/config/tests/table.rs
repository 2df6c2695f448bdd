//! The table of keys against the types that files are read into, and against the documentation.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::config::keys::{KEYS, Key, Unset, Values};

/// A file that says `value` for the key at `path`, and whatever else is needed then.
fn with(path: &str, value: &Value) -> String {
    let mut all = json!({
        "boot-source": {"kernel_image_path": "/k"},
        "drives": [{"drive_id": "d", "path_on_host": "/d"}],
        "network-interfaces": [{"iface_id": "n", "host_dev_name": "t"}],
        "replication": {"heartbeat": {"listen": "127.0.0.1:1", "peer": "127.0.0.1:2"}},
    });
    let mut at = &mut all;
    for name in path.split('.') {
        at = match name.strip_suffix("[]") {
            Some(list) => &mut at[list][0],
            None => &mut at[name],
        };
    }
    *at = value.clone();
    all.to_string()
}

/// What a key takes, and what it does not: values with the words that the error must have.
fn examples(key: &Key) -> (Vec<Value>, Vec<(Value, String)>) {
    let wrong_type = (json!([7]), "invalid type".to_owned());
    match &key.values {
        Values::Number { min, max, .. } => {
            let mut wrong = vec![
                (json!(max + 1), "too large".into()),
                (json!(u64::MAX), "too large".into()),
                (json!("7"), "invalid type".into()),
                (json!(-1), "invalid value".into()),
                (json!(1.5), "invalid type".into()),
                wrong_type,
            ];
            if *min > 0 {
                wrong.push((json!(min - 1), "too small".into()));
            }
            (vec![json!(max)], wrong)
        }
        Values::Words(words) => {
            let right = words.iter().map(|word| json!(word)).collect();
            let wrong = [json!("halt"), json!([7])];
            let wrong = wrong.map(|value| (value, words[0].to_owned()));
            (right, wrong.into())
        }
        Values::Switch => (
            vec![json!(false)],
            vec![(json!("no"), "invalid type".into()), wrong_type],
        ),
        Values::Addresses { max } => {
            let right = json!(["192.0.2.1", "2001:db8::1"]);
            let mut wrong = vec![
                (json!("192.0.2.1"), "invalid type".into()),
                (json!(7), "invalid type".into()),
                wrong_type,
                (json!(vec!["192.0.2.1"; max + 1]), "write a list".into()),
            ];
            let none = [
                "",
                "gateway",
                "192.0.2.1:7",
                "0.0.0.0",
                "::",
                "255.255.255.255",
                "224.0.0.1",
                "ff02::1",
                "a\u{1b}[2Jb",
            ];
            wrong.extend(none.map(|text| (json!([text]), "write a list".into())));
            (vec![right, json!([])], wrong)
        }
        Values::Path | Values::Name | Values::Text(_) => {
            let mut wrong = vec![(json!(7), "invalid type".into()), wrong_type];
            // A command line may be empty.
            let is_free = matches!(key.values, Values::Text("text"));
            let texts = ["", "a\nb", "a\u{1b}[2Jb", "a\0"].into_iter();
            wrong.extend(
                texts
                    .skip(is_free.into())
                    .map(|text| (json!(text), "write".into())),
            );
            if matches!(key.values, Values::Name) {
                let texts = [" a", "a ", " ", &*"a".repeat(65)];
                wrong.extend(texts.map(|text| (json!(text), "write a name".into())));
            }
            (Vec::new(), wrong)
        }
        Values::Section => {
            let wrong = [json!(7), json!([]), json!("on")];
            let wrong = wrong.map(|value| (value, "invalid type".to_owned()));
            (vec![json!({})], wrong.into())
        }
    }
}

#[test]
fn each_key_takes_what_the_table_says_and_names_itself_otherwise() {
    for key in KEYS {
        let (right, wrong) = examples(key);
        for value in right {
            // Two keys mean something only together with others.
            let text = with(key.path, &value);
            if let Err(error) = read(&text) {
                let error = error.to_string();
                let others = ["three heartbeats", "the longest epoch"];
                let is_known = others.iter().any(|other| error.contains(other));
                assert!(is_known, "{}: {error}", key.path);
            }
        }
        for (value, words) in wrong {
            let error = read(&with(key.path, &value)).unwrap_err();
            let text = error.to_string();
            let name = key.path.rsplit('.').next().unwrap();
            assert!(text.contains(name), "{}: {text}", key.path);
            assert!(
                text.contains(&words),
                "{}: no {words:?} in {text}",
                key.path
            );
            let about = error
                .key()
                .unwrap_or_else(|| panic!("about no key: {text}"));
            assert_eq!(about.path, key.path, "{text}");
            if matches!(key.values, Values::Number { .. }) {
                assert!(text.contains(&key.values.to_string()), "{text}");
            }
        }
    }
}

/// serde takes a list for any structure, and calls what is wrong by the names of types.
#[test]
fn sections_and_lists_are_what_they_are_called() {
    let heartbeat = json!(["127.0.0.1:1", "127.0.0.1:2"]);
    for (path, value, wanted) in [
        ("", json!([]), "a section"),
        ("", json!(null), "a section"),
        ("", json!("{}"), "a section"),
        ("boot-source", json!([]), "a section"),
        ("boot-source", json!(null), "a section"),
        ("machine-config", json!([]), "a section"),
        ("serial", json!([]), "a section"),
        ("replication", json!([]), "a section"),
        ("replication.heartbeat", heartbeat, "a section"),
        ("drives", json!({}), "a list"),
        ("drives", json!([[]]), "a section"),
        ("drives", json!([null]), "a section"),
        ("network-interfaces", json!("tap0"), "a list"),
    ] {
        let text = match path {
            "" => value.to_string(),
            _ => with(path, &value),
        };
        let error = refused(&text);
        let wanted = format!("expected {wanted}");
        assert!(
            error.contains(path) && error.contains(&wanted),
            "{text}: {error}"
        );
        assert!(!error.contains("struct"), "{text}: {error}");
    }
    for path in [
        "drives",
        "network-interfaces",
        "entropy",
        "watchdog",
        "replication.heartbeat",
    ] {
        config(&with(path, &json!(null)));
    }
}

/// Every leaf of `value`, as the table has it.
fn leaves(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(section) if !section.is_empty() => {
            for (name, value) in section {
                let dot = if path.is_empty() { "" } else { "." };
                leaves(value, &format!("{path}{dot}{name}"), found);
            }
        }
        Value::Array(items) => leaves(&items[0], &format!("{path}[]"), found),
        _ => drop(found.insert(path.to_owned())),
    }
}

#[test]
fn the_table_has_the_keys_of_the_types_and_no_others() {
    let address = "127.0.0.1:1".parse().unwrap();
    let file = ConfigFile {
        drives: Some(vec![Drive::default()]),
        network_interfaces: Some(vec![NetworkInterface::default()]),
        entropy: Some(Entropy {}),
        watchdog: Some(WatchdogSection::default()),
        replication: Replication {
            heartbeat: Some(HeartbeatSection {
                listen: address,
                peer: address,
            }),
            ..Replication::default()
        },
        ..ConfigFile::default()
    };
    let mut types = BTreeSet::new();
    leaves(&serde_json::to_value(file).unwrap(), "", &mut types);
    // A section that is there counts, too.
    types.insert("watchdog".into());
    let table: BTreeSet<String> = KEYS.iter().map(|key| key.path.to_owned()).collect();
    assert_eq!(types, table);
}

/// The tables of `docs/configuration.md`.
fn documented() -> String {
    let mut text = String::new();
    let mut section = "";
    for key in KEYS {
        let (of, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        let of = of.split('.').next().unwrap_or(of);
        let of = if of.is_empty() { name } else { of };
        if of != section {
            section = of;
            text += &format!("\n## `{}`\n\n", section.replace("[]", ""));
            text +=
                "| key | flag | values | default | meaning |\n| --- | --- | --- | --- | --- |\n";
        }
        let name = key.path.strip_prefix(section).unwrap_or(key.path);
        let name = match name.trim_start_matches('.') {
            "" => "(the section)".into(),
            name => format!("`{name}`"),
        };
        let flag = key.flag.map_or("–".into(), |flag| format!("`{flag}`"));
        let default = match &key.default {
            Unset::Required => "must be given".into(),
            Unset::Nothing => "–".into(),
            Unset::Text(text) => (*text).to_owned(),
            Unset::Value(value) => format!("`{}`", value()),
        };
        text += &format!(
            "| {name} | {flag} | {} | {default} | {} |\n",
            key.values, key.meaning
        );
    }
    text
}

const BEGIN: &str = "<!-- from the table in vmm/src/config/keys.rs: begin -->\n";
const END: &str = "<!-- end -->\n";

/// With `UNDERSTUDY_WRITE_DOCS=1` in the environment, writes it anew instead.
#[test]
fn the_documentation_has_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (table, after) = rest.split_once(END).unwrap();
    let needed = documented();
    if std::env::var_os("UNDERSTUDY_WRITE_DOCS").is_some() {
        let page = format!("{before}{BEGIN}{needed}\n{END}{after}");
        std::fs::write(&path, page).unwrap();
        return;
    }
    for (line, needed) in table.trim().lines().zip(needed.trim().lines()) {
        assert_eq!(line, needed, "write it anew with UNDERSTUDY_WRITE_DOCS=1");
    }
    assert_eq!(
        table.trim(),
        needed.trim(),
        "write it anew with UNDERSTUDY_WRITE_DOCS=1"
    );
}
