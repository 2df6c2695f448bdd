//! Names that mean something else in this project, or have to be decoded. The glossary is in
//! docs/ARCHITECTURE.md.

use syn::visit::{self, Visit};
use syn::{Ident, Item};

use super::finding::Finding;
use super::source::{Source, definition};

/// A name that must not be given to a type or function, or behind `mod ` to a module.
struct Banned {
    name: &'static str,
    /// Where it may be, by a part of the path.
    except: &'static [&'static str],
    instead: &'static str,
}

const fn banned(
    name: &'static str,
    except: &'static [&'static str],
    instead: &'static str,
) -> Banned {
    Banned {
        name,
        except,
        instead,
    }
}

const BANNED: [Banned; 21] = [
    banned(
        "Shared",
        &[],
        "name what it holds, such as QueueState; shared is a disk that both hosts reach",
    ),
    banned(
        "Command",
        &["vmm/src/bin/vmm/args", "xtask/"],
        "work for a thread is a job, a person's wish a request, a disk's a RequestKind",
    ),
    banned(
        "Report",
        &["benches/", "chaos/", "xtask/", "/tests/", "/demo/"],
        "how things stand is a status, what happened an event",
    ),
    banned(
        "Lab",
        &[],
        "vmm's is the local cluster, xtask's the testbed, tests' the test cluster",
    ),
    banned("mod lab", &[], "vmm's is local_cluster, xtask's testbed"),
    banned(
        "Host",
        &[
            "xtask/src/testbed/",
            "/tests/",
            "vmm/src/local_cluster/",
            "benches/",
            "chaos/",
        ],
        "a host is a computer; one guest on one host is a node",
    ),
    banned(
        "Role",
        &["vmm/src/node/"],
        "roles are node::Role; primary or standby alone is a Side",
    ),
    banned(
        "mod machine",
        &["vmm/src/lib.rs"],
        "machine is the whole VM: transitions are a core's, cpu the guest's, qemu xtask's",
    ),
    banned("Ward", &[], "say what is looked after"),
    banned("Clerk", &[], "say what the thread does"),
    banned("Desk", &[], "say what is handed over there"),
    banned("mod desk", &[], "say what is handed over there"),
    banned("Has", &[], "say what there is"),
    banned("Life", &[], "say which state it is"),
    banned("Done", &[], "say what has ended, and how"),
    banned(
        "Listener",
        &["transport/src/", "/tests/"],
        "say what is listened for",
    ),
    banned("teller", &[], "say who tells whom what"),
    banned("equip", &[], "say what is added: devices"),
    banned(
        "ends_uncaptured",
        &[],
        "say what ends, and what is then not captured",
    ),
    banned("mod clerk", &[], "say what the thread does"),
    banned("mod ward", &[], "say what is looked after"),
];

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        let mut names = Names::default();
        names.visit_file(&source.file);
        for (kind, name) in names.0 {
            let word = format!("{kind}{name}");
            let Some(banned) = BANNED.iter().find(|banned| banned.name == word) else {
                continue;
            };
            let may = |part: &&str| format!("/{}", source.path).contains(*part);
            if !banned.except.iter().any(may) {
                let line = name.span().start().line;
                let message = format!("{word} is not a name for this: {}", banned.instead);
                findings.push(source.finding("words", line, word, message));
            }
        }
    }
    findings
}

/// Names of types, functions and (behind `mod `) modules, at any depth.
#[derive(Default)]
struct Names(Vec<(&'static str, Ident)>);

impl<'ast> Visit<'ast> for Names {
    fn visit_item(&mut self, item: &'ast Item) {
        if let Item::Mod(module) = item {
            self.0.push(("mod ", module.ident.clone()));
        } else if let Some((name, _)) = definition(item) {
            self.0.push(("", name.clone()));
        }
        visit::visit_item(self, item);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.0.push(("", function.sig.ident.clone()));
        visit::visit_impl_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banned_names_are_found_where_they_are_given_and_not_where_they_are_used() {
        let text = "struct Shared;\nmod lab;\nimpl A { fn equip() {} }\nuse b::Command;\nenum Command {}\n";
        let found = check(&[Source::parse("vmm/src/a.rs", text).unwrap()]);
        let items: Vec<_> = found.iter().map(|f| (f.line, f.item.as_str())).collect();
        assert_eq!(
            items,
            [(1, "Shared"), (2, "mod lab"), (3, "equip"), (5, "Command")]
        );
        for (path, text) in [
            ("vmm/src/bin/vmm/args.rs", "enum Command {}"),
            (
                "replication/tests/sim/world.rs",
                "struct Report; struct Host;",
            ),
            ("vmm/src/node/role.rs", "enum Role {}"),
        ] {
            assert_eq!(check(&[Source::parse(path, text).unwrap()]), [], "{path}");
        }
    }
}
