//! Who may import what, and where `unsafe` may stand. The invariants are those of docs/ARCHITECTURE.md.

use proc_macro2::{TokenStream, TokenTree};

use super::finding::Finding;
use super::source::Source;

const RULE: &str = "layers";

/// Something that files of some folders must not name.
struct Layer {
    /// Which files, by the beginning of their path.
    inside: &'static [&'static str],
    /// Which of them may.
    except: &'static [&'static str],
    /// Beginnings of paths in the code. A last `*` stands for the rest of a name.
    banned: &'static [&'static str],
    instead: &'static str,
}

const LAYERS: [Layer; 9] = [
    Layer {
        inside: &["replication/src/core/"],
        except: &[],
        banned: &[
            "std::net",
            "std::thread",
            "std::fs",
            "std::process",
            "std::time::Instant",
            "std::time::SystemTime",
            "tokio",
            "parking_lot",
            "crate::runtime",
        ],
        instead: "the core takes inputs and returns effects; let the runtime do it",
    },
    Layer {
        inside: &["replication/"],
        except: &["replication/examples/"],
        banned: &["understudy_vmm", "kvm_ioctls", "kvm_bindings"],
        instead: "replication knows no VMM; add what it needs to a trait in ports",
    },
    Layer {
        inside: &["transport/"],
        except: &[],
        banned: &["understudy_*", "kvm_ioctls", "kvm_bindings", "vm_memory"],
        instead: "transport moves frames and knows no guests; let its user say it in numbers",
    },
    Layer {
        inside: &["vmm/src/"],
        except: &["vmm/src/kvm/", "vmm/src/devices/virtio/net/backend/tap.rs"],
        banned: &["vmm_sys_util::ioctl*", "libc::ioctl", "nix::ioctl*"],
        instead: "ioctls of KVM are made in vmm/src/kvm: add a function there",
    },
    Layer {
        inside: &["vmm/src/"],
        except: &[
            "vmm/src/kvm/",
            "vmm/src/vcpu/",
            "vmm/src/machine/",
            "vmm/src/memory/",
        ],
        banned: &["kvm_ioctls"],
        instead: "only kvm, vcpu, machine and memory hold file descriptors of KVM",
    },
    Layer {
        inside: &["vmm/src/bin/vmm/"],
        except: &[],
        banned: &[
            "understudy_replication",
            "understudy_transport",
            "understudy_vmm::devices",
            "understudy_vmm::dirty",
            "understudy_vmm::kvm",
            "understudy_vmm::machine",
            "understudy_vmm::memory",
            "understudy_vmm::output",
            "understudy_vmm::vcpu",
        ],
        instead: "the command line parses, calls, renders: let node or config offer it",
    },
    Layer {
        inside: &["vmm/src/"],
        except: &[
            "vmm/src/node/",
            "vmm/src/bin/",
            "vmm/src/control/",
            "vmm/src/local_cluster/",
        ],
        banned: &["crate::node", "crate::control"],
        instead: "a part of the machine does not know the node that runs it",
    },
    Layer {
        inside: &[""],
        except: &[
            "benches/",
            "chaos/",
            "vmm/src/local_cluster/",
            "vmm/src/bin/vmm/commands/demo/",
        ],
        banned: &["understudy_vmm::local_cluster", "crate::local_cluster"],
        instead: "the local cluster is for demo, tests and benchmarks",
    },
    Layer {
        inside: &[
            "transport/",
            "replication/",
            "vmm/",
            "xtask/",
            "benches/",
            "chaos/",
        ],
        except: &[],
        banned: &["rustix"],
        instead: "use nix, which has what we need; one crate for one job",
    },
];

/// Manifests, and the crates that must not be in them.
pub(super) const MANIFESTS: [(&str, &[&str]); 2] = [
    (
        "transport/Cargo.toml",
        &["understudy-replication", "understudy-vmm"],
    ),
    ("replication/Cargo.toml", &["understudy-vmm"]),
];

/// Where product code may be `unsafe`, by the beginning of the path.
const UNSAFE: [&str; 5] = [
    "vmm/src/kvm/",
    "vmm/src/memory/",
    "vmm/src/devices/virtio/net/backend/tap.rs",
    "vmm/src/vcpu/time.rs",
    "guest-images/builtin/",
];

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        let begins = |prefixes: &[&str]| prefixes.iter().any(|one| source.path.starts_with(one));
        let paths = source.paths();
        for layer in &LAYERS {
            if !begins(layer.inside) || begins(layer.except) {
                continue;
            }
            for named in &paths {
                let hit = layer
                    .banned
                    .iter()
                    .find(|one| matches(&named.segments, one));
                if let Some(banned) = hit {
                    let name = named.segments.join("::");
                    let message = format!("{name} must not be used here: {}", layer.instead);
                    findings.push(source.finding(RULE, named.line, *banned, message));
                }
            }
        }
        if !begins(&UNSAFE) {
            for line in unsafes(source.tokens()) {
                let message = "`unsafe` stands only where docs/ARCHITECTURE.md says: call a \
                               function of vmm/src/kvm, vmm/src/memory or of a crate"
                    .into();
                findings.push(source.finding(RULE, line, "unsafe", message));
            }
        }
    }
    findings
}

/// Whether a manifest has a crate that must not be there.
pub(super) fn check_manifest(path: &str, text: &str, banned: &[&str]) -> Vec<Finding> {
    let lines = (1..).zip(text.lines());
    let named = lines.filter_map(|(line, words)| {
        let name = words.split(['.', ' ', '=']).next()?;
        banned.contains(&name).then_some((line, name))
    });
    named
        .map(|(line, name)| Finding {
            path: path.into(),
            line,
            rule: RULE,
            item: name.into(),
            message: format!(
                "{name} must not be a dependency: arrows go vmm, replication, transport"
            ),
        })
        .collect()
}

fn matches(segments: &[String], banned: &str) -> bool {
    let mut segments = segments.iter();
    banned.split("::").all(|want| {
        segments
            .next()
            .is_some_and(|have| match want.strip_suffix('*') {
                Some(beginning) => have.starts_with(beginning),
                None => have == want,
            })
    })
}

/// The lines in which `unsafe` stands.
fn unsafes(tokens: TokenStream) -> Vec<usize> {
    let mut lines = Vec::new();
    for token in tokens {
        match token {
            TokenTree::Ident(word) if word == "unsafe" => lines.push(word.span().start().line),
            TokenTree::Group(group) => lines.extend(unsafes(group.stream())),
            _ => {}
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(path: &str, text: &str) -> Vec<String> {
        let source = Source::parse(path, text).unwrap();
        let findings = check(&[source]);
        findings.into_iter().map(|finding| finding.item).collect()
    }

    #[test]
    fn each_layer_refuses_what_is_not_its_business() {
        for (path, text, expected) in [
            (
                "replication/src/core/a.rs",
                "use std::{fs, fmt};",
                "std::fs",
            ),
            (
                "replication/src/core/a.rs",
                "fn f() { std::time::Instant::now(); }",
                "std::time::Instant",
            ),
            (
                "replication/src/disk/a.rs",
                "use kvm_ioctls::VmFd;",
                "kvm_ioctls",
            ),
            (
                "transport/src/a.rs",
                "use understudy_vmm::x;",
                "understudy_*",
            ),
            (
                "vmm/src/dirty/a.rs",
                "use vmm_sys_util::ioctl::ioctl;",
                "vmm_sys_util::ioctl*",
            ),
            ("vmm/src/output/a.rs", "use kvm_ioctls::VmFd;", "kvm_ioctls"),
            (
                "vmm/src/bin/vmm/a.rs",
                "use understudy_vmm::machine::Machine;",
                "understudy_vmm::machine",
            ),
            (
                "vmm/src/devices/a.rs",
                "use crate::node::Node;",
                "crate::node",
            ),
            (
                "vmm/src/node/a.rs",
                "use crate::local_cluster::Pair;",
                "crate::local_cluster",
            ),
            ("xtask/src/a.rs", "use rustix::fs;", "rustix"),
            (
                "replication/src/a.rs",
                "fn f() { unsafe { g() } }",
                "unsafe",
            ),
        ] {
            assert_eq!(items(path, text), [expected], "{path}: {text}");
        }
        for (path, text) in [
            ("replication/src/runtime/a.rs", "use std::fs;"),
            (
                "vmm/src/kvm/a.rs",
                "use kvm_ioctls::VmFd; fn f() { unsafe { g() } }",
            ),
            (
                "replication/src/core/a.rs",
                "#[cfg(test)] mod tests { use std::fs; }",
            ),
            ("replication/src/core/a/tests.rs", "use std::fs;"),
            ("vmm/src/bin/vmm/a.rs", "use understudy_vmm::node::Node;"),
        ] {
            assert_eq!(items(path, text), [""; 0], "{path}: {text}");
        }
    }

    #[test]
    fn arrows_between_crates_do_not_turn_round() {
        let text = "[dependencies]\nunderstudy-vmm.workspace = true\n";
        let found = check_manifest("replication/Cargo.toml", text, &["understudy-vmm"]);
        assert_eq!((found.len(), found[0].line), (1, 2));
        assert!(check_manifest("a", "understudy-vmmx = \"1\"", &["understudy-vmm"]).is_empty());
    }
}
