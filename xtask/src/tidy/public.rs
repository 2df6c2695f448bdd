//! Public items that nobody uses outside of their own file: they are private, or dead. A use is the name as a
//! word in any other file, tests, benchmarks and guests among them; passing it on by `pub use` is none. A type
//! that another public item of its file shows is used with that.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Ident, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{ImplItem, Item, Signature, Visibility};

use super::finding::Finding;
use super::source::{Source, definition};

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    // In how many files each word stands, and in which one if it is only one.
    let mut users: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for (number, source) in sources.iter().enumerate() {
        let mut words = BTreeSet::new();
        for item in source.file.items.iter().filter(|item| !passes_on(item)) {
            collect(item.to_token_stream(), &mut words);
        }
        for word in words {
            users.entry(word).or_default().insert(number);
        }
    }
    let mut findings = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        if source.is_test() {
            continue;
        }
        let mut shown = BTreeSet::new();
        show(&source.items, &mut shown);
        for name in public(&source.items) {
            let word = name.to_string();
            let used = shown.contains(&word)
                || users
                    .get(&word)
                    .is_some_and(|files| files.iter().any(|file| *file != number));
            if !used {
                let line = name.span().start().line;
                let message = format!("nobody else uses {word}: make it private, or delete it");
                findings.push(source.finding("public", line, word, message));
            }
        }
    }
    findings
}

fn is_public(visibility: &Visibility) -> bool {
    !matches!(visibility, Visibility::Inherited)
}

fn passes_on(item: &Item) -> bool {
    matches!(item, Item::Use(item) if is_public(&item.vis))
}

/// The names of public items, methods among them.
fn public(items: &[Item]) -> Vec<&Ident> {
    let mut names = Vec::new();
    for item in items {
        match item {
            Item::Impl(block) if block.trait_.is_none() => {
                names.extend(block.items.iter().filter_map(|item| match item {
                    ImplItem::Fn(method) if is_public(&method.vis) => Some(&method.sig.ident),
                    ImplItem::Const(constant) if is_public(&constant.vis) => Some(&constant.ident),
                    _ => None,
                }));
            }
            Item::Mod(module) => {
                if let Some((_, content)) = &module.content {
                    names.extend(public(content));
                }
            }
            item => {
                names.extend(definition(item).and_then(|(name, visibility)| {
                    visibility.is_some_and(is_public).then_some(name)
                }))
            }
        }
    }
    names
}

/// The words of what a file shows to others: signatures, fields, variants and traits, but for the names that
/// they define.
fn show(items: &[Item], words: &mut BTreeSet<String>) {
    for item in items {
        match item {
            Item::Fn(function) if is_public(&function.vis) => {
                show_signature(&function.sig, words);
            }
            Item::Struct(item) if is_public(&item.vis) => {
                collect(item.fields.to_token_stream(), words);
            }
            Item::Enum(item) if is_public(&item.vis) => {
                collect(item.variants.to_token_stream(), words);
            }
            Item::Type(item) if is_public(&item.vis) => collect(item.ty.to_token_stream(), words),
            Item::Const(item) if is_public(&item.vis) => collect(item.ty.to_token_stream(), words),
            Item::Trait(item) => item
                .items
                .iter()
                .for_each(|part| collect(part.to_token_stream(), words)),
            Item::Impl(block) => {
                let is_trait = block.trait_.is_some();
                for part in &block.items {
                    match part {
                        ImplItem::Fn(method) if is_trait || is_public(&method.vis) => {
                            show_signature(&method.sig, words);
                        }
                        ImplItem::Type(part) => collect(part.ty.to_token_stream(), words),
                        _ => {}
                    }
                }
            }
            Item::Mod(module) => {
                if let Some((_, content)) = &module.content {
                    show(content, words);
                }
            }
            _ => {}
        }
    }
}

fn show_signature(signature: &Signature, words: &mut BTreeSet<String>) {
    collect(signature.inputs.to_token_stream(), words);
    collect(signature.output.to_token_stream(), words);
}

/// All words, those that format strings name among them.
fn collect(tokens: TokenStream, words: &mut BTreeSet<String>) {
    for token in tokens {
        match token {
            TokenTree::Ident(word) => {
                words.insert(word.to_string());
            }
            TokenTree::Group(group) => collect(group.stream(), words),
            TokenTree::Literal(literal) => {
                let text = literal.to_string();
                for rest in text.split('{').skip(1) {
                    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
                    words.insert(rest[..end.unwrap_or(rest.len())].to_owned());
                }
            }
            TokenTree::Punct(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_item_that_only_its_own_file_or_a_re_export_names_is_found() {
        let a = "pub struct Dead(Shown);\npub(crate) struct Used;\nconst PRIVATE: u8 = 0;\n\
                 impl Used {\n    pub fn lonely(&self) -> Dead { Dead }\n    pub fn called(&self) {}\n}\n\
                 pub const LIMIT: u8 = 1;\npub struct Shown;\npub struct Own;\nfn h(own: Own) {}\n";
        let b = "pub use crate::a::{Dead, Used};\nfn f(used: &crate::a::Used) { used.called(); }\n\
                 fn g() { panic!(\"at most {LIMIT}\"); }\n";
        let sources = [
            Source::parse("x/src/a.rs", a).unwrap(),
            Source::parse("x/src/b.rs", b).unwrap(),
        ];
        let found = check(&sources);
        let items: Vec<_> = found.iter().map(|f| (f.line, f.item.as_str())).collect();
        assert_eq!(items, [(5, "lonely"), (10, "Own")]);
    }
}
