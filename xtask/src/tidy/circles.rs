//! Files of a crate that import each other, directly or by way of others: whoever changes one must know all.
//!
//! A file imports the file that defines what it names, not the module that passes it on. A module's own
//! `pub use` is no import. A folder is one room: what its `mod.rs` defines is common to the files in it, which may
//! use it while it calls them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use quote::ToTokens;
use syn::{Item, UseTree, Visibility};

use super::finding::Finding;
use super::source::{Source, definition, paths_in};

/// Passing on from module to module ends at last.
const HOPS_MAX: usize = 16;

/// A module that is a file.
struct Module<'a> {
    source: &'a Source,
    /// Its path in the crate.
    path: Vec<String>,
    defined: BTreeSet<String>,
    /// What its `use` items call a path.
    names: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
}

/// The files of one crate, by the paths of their modules.
type Crate<'a> = BTreeMap<Vec<String>, Module<'a>>;
/// From file to file, with the line of the first import.
type Imports<'a> = BTreeMap<&'a str, BTreeMap<&'a str, usize>>;

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut crates: BTreeMap<&str, Crate<'_>> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        if let Some((root, path)) = module_path(&source.path) {
            let module = Module::new(source, path.clone());
            crates.entry(root).or_default().insert(path, module);
        }
    }
    crates.values().flat_map(circles).collect()
}

/// The crate's root folder and the path of the module in it.
fn module_path(file: &str) -> Option<(&str, Vec<String>)> {
    let (before, _) = file.split_once("src/")?;
    let mut root = before.len() + "src/".len();
    if let Some(binary) = file[root..].strip_prefix("bin/") {
        root += "bin/".len() + binary.find('/')? + 1;
    }
    let mut path: Vec<String> = file[root..]
        .strip_suffix(".rs")?
        .split('/')
        .map(str::to_owned)
        .collect();
    if matches!(
        path.last().map(String::as_str),
        Some("mod" | "lib" | "main")
    ) {
        path.pop();
    }
    Some((&file[..root], path))
}

impl<'a> Module<'a> {
    fn new(source: &'a Source, path: Vec<String>) -> Self {
        let mut module = Self {
            source,
            path,
            defined: BTreeSet::new(),
            names: BTreeMap::new(),
            globs: Vec::new(),
        };
        for item in &source.items {
            match item {
                Item::Use(item) => module.take(&item.tree, &mut Vec::new()),
                Item::Mod(inline) if inline.content.is_some() => {
                    module.defined.insert(inline.ident.to_string());
                }
                item => module
                    .defined
                    .extend(definition(item).map(|(name, _)| name.to_string())),
            }
        }
        module
    }

    fn take(&mut self, tree: &UseTree, prefix: &mut Vec<String>) {
        match tree {
            UseTree::Path(tree) => {
                prefix.push(tree.ident.to_string());
                self.take(&tree.tree, prefix);
                prefix.pop();
            }
            UseTree::Name(tree) if tree.ident == "self" => {
                let name = prefix.last().cloned().unwrap_or_default();
                self.names.insert(name, prefix.clone());
            }
            UseTree::Name(tree) => {
                let name = tree.ident.to_string();
                let path = [&prefix[..], std::slice::from_ref(&name)].concat();
                self.names.insert(name, path);
            }
            UseTree::Rename(tree) => {
                let path = [&prefix[..], &[tree.ident.to_string()]].concat();
                self.names.insert(tree.rename.to_string(), path);
            }
            UseTree::Glob(_) => self.globs.push(prefix.clone()),
            UseTree::Group(tree) => tree.items.iter().for_each(|tree| self.take(tree, prefix)),
        }
    }
}

/// The file that defines what `path` names in a module; none for modules themselves and other crates.
fn resolve<'a>(
    all: &Crate<'a>,
    from: &Module<'a>,
    path: &[String],
    hops: usize,
) -> Option<&'a str> {
    let (first, rest) = path.split_first()?;
    if hops == 0 {
        return None;
    }
    match first.as_str() {
        "crate" => walk(all, Vec::new(), rest, hops),
        "self" => walk(all, from.path.clone(), rest, hops),
        "super" => {
            let mut at = from.path.clone();
            let mut rest = path;
            while let Some((word, further)) = rest.split_first()
                && word == "super"
            {
                at.pop();
                rest = further;
            }
            walk(all, at, rest, hops)
        }
        _ if from.defined.contains(first) => None,
        _ => match from.names.get(first) {
            Some(named) if named.first() != Some(first) || named.len() > 1 => {
                resolve(all, from, &[named, rest].concat(), hops - 1)
            }
            _ => {
                let below = [&from.path[..], std::slice::from_ref(first)].concat();
                all.contains_key(&below)
                    .then(|| walk(all, below, rest, hops))?
            }
        },
    }
}

fn walk<'a>(all: &Crate<'a>, mut at: Vec<String>, path: &[String], hops: usize) -> Option<&'a str> {
    let mut rest = path;
    while let Some((first, further)) = rest.split_first() {
        let below = [&at[..], std::slice::from_ref(first)].concat();
        if !all.contains_key(&below) {
            break;
        }
        (at, rest) = (below, further);
    }
    let module = all.get(&at)?;
    let first = rest.first()?;
    if module.defined.contains(first) {
        return Some(&module.source.path);
    }
    if let Some(named) = module.names.get(first) {
        return resolve(all, module, &[named, &rest[1..]].concat(), hops - 1);
    }
    let mut globs = module.globs.iter();
    globs.find_map(|glob| resolve(all, module, &[glob, rest].concat(), hops - 1))
}

fn circles(all: &Crate<'_>) -> Vec<Finding> {
    let mut imports: Imports<'_> = BTreeMap::new();
    for module in all.values() {
        let from = module.source.path.as_str();
        let above = module
            .path
            .split_last()
            .and_then(|(_, above)| all.get(above));
        let room = above.map(|above| above.source.path.as_str());
        for item in &module.source.items {
            if matches!(item, Item::Use(item) if !matches!(item.vis, Visibility::Inherited)) {
                continue;
            }
            for named in paths_in(item.to_token_stream()) {
                if let Some(to) = resolve(all, module, &named.segments, HOPS_MAX)
                    && to != from
                    && Some(to) != room
                {
                    imports
                        .entry(from)
                        .or_default()
                        .entry(to)
                        .or_insert(named.line);
                }
            }
        }
    }
    let mut findings = Vec::new();
    while let Some(circle) = shortest(&imports) {
        let (from, to) = weakest(&circle);
        let line = imports.get_mut(from).and_then(|targets| targets.remove(to));
        if let Some(module) = all.values().find(|module| module.source.path == *from) {
            let message = format!(
                "files import each other: {}; move what both need into a file of its own",
                circle.join(" -> ")
            );
            let line = line.unwrap_or(1);
            findings.push(module.source.finding("circles", line, to, message));
        }
    }
    findings
}

/// The shortest circle that is left; its first file is its last one, too.
fn shortest<'a>(imports: &Imports<'a>) -> Option<Vec<&'a str>> {
    let edges = imports
        .iter()
        .flat_map(|(from, targets)| targets.keys().map(move |to| (*from, *to)));
    let circles =
        edges.filter_map(|(from, to)| Some([&[from][..], &way(imports, to, from)?].concat()));
    circles.min_by_key(Vec::len)
}

/// The import of a circle that is best undone: that of a file further up, which uses this one.
fn weakest<'a>(circle: &[&'a str]) -> (&'a str, &'a str) {
    let edges = circle.windows(2).map(|edge| (edge[0], edge[1]));
    let depth = |file: &str| file.matches('/').count() * 2 - usize::from(file.ends_with("/mod.rs"));
    let best = edges.max_by_key(|(from, to)| depth(from).cast_signed() - depth(to).cast_signed());
    best.unwrap_or(("", ""))
}

/// The shortest way from one file to another along imports, both among it.
fn way<'a>(imports: &Imports<'a>, from: &'a str, to: &str) -> Option<Vec<&'a str>> {
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(file) = queue.pop_front() {
        if file == to {
            let mut way = vec![file];
            while let Some(last) = way.last()
                && *last != from
            {
                way.push(before.get(last)?);
            }
            way.reverse();
            return Some(way);
        }
        for next in imports.get(file).into_iter().flat_map(BTreeMap::keys) {
            if *next != from && !before.contains_key(next) {
                before.insert(next, file);
                queue.push_back(next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<(String, String)> {
        let sources: Vec<Source> = (files.iter())
            .map(|(path, text)| Source::parse(path, text).unwrap())
            .collect();
        let findings = check(&sources).into_iter();
        findings.map(|found| (found.path, found.item)).collect()
    }

    #[test]
    fn files_that_import_each_other_are_found_through_what_passes_on() {
        let a = ("x/src/a.rs", "use crate::all::B;\npub struct A(B);\n");
        let all = (
            "x/src/all/mod.rs",
            "mod b;\nmod c;\npub use b::B;\npub use c::*;\n",
        );
        let c = ("x/src/all/c.rs", "use crate::a;\npub struct C(a::A);\n");
        let straight = [a, all, ("x/src/all/b.rs", "pub struct B;\n"), c];
        assert_eq!(found(&straight), []);
        let circle = [
            a,
            all,
            ("x/src/all/b.rs", "use super::C;\npub struct B(C);\n"),
            c,
        ];
        assert_eq!(
            found(&circle),
            [("x/src/all/c.rs".to_owned(), "x/src/a.rs".to_owned())]
        );
    }

    #[test]
    fn a_folders_files_may_use_what_its_module_defines_but_not_by_way_of_others() {
        let child = ("x/src/p/c.rs", "use super::Size;\npub fn f(_: Size) {}\n");
        let module = (
            "x/src/p/mod.rs",
            "mod c;\npub struct Size;\nfn g() { c::f(Size) }\n",
        );
        assert_eq!(found(&[child, module]), []);
        let other = ("x/src/o.rs", "use crate::p::Size;\npub fn h(_: Size) {}\n");
        let calling = (
            "x/src/p/c.rs",
            "pub fn f(_: super::Size) { crate::o::h() }\n",
        );
        assert_eq!(found(&[calling, module, other]).len(), 1);
        let tests = (
            "x/src/o.rs",
            "#[cfg(test)]\nmod t { use crate::p::Size; }\npub fn h() {}\n",
        );
        assert_eq!(found(&[calling, module, tests]), []);
    }
}
