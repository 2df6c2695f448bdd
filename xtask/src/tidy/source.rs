//! Rust files as the rules see them: parsed, with tests told from the product.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Item, Visibility};

use super::finding::Finding;

/// A Rust file.
pub(super) struct Source {
    /// Below the repository.
    pub(super) path: String,
    pub(super) lines: usize,
    /// Without what is compiled for tests alone.
    pub(super) items: Vec<Item>,
    /// Everything.
    pub(super) file: syn::File,
}

/// A path as the code writes it, `use` trees taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) segments: Vec<String>,
    pub(super) line: usize,
}

/// All Rust files that git knows.
pub(super) fn load(root: &Path) -> Result<Vec<Source>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .arg("*.rs")
        .current_dir(root)
        .output()
        .context("cannot run git")?;
    ensure!(output.status.success(), "git does not list the files");
    let listed = String::from_utf8(output.stdout)?;
    let there = listed.lines().filter(|path| root.join(path).exists());
    there
        .map(|path| Source::parse(path, &std::fs::read_to_string(root.join(path))?))
        .collect()
}

impl Source {
    pub(super) fn parse(path: &str, text: &str) -> Result<Self> {
        let file = syn::parse_file(text)
            .map_err(|error| anyhow!("{path}:{}: {error}", error.span().start().line))?;
        Ok(Self {
            path: path.into(),
            lines: text.lines().count(),
            items: product(&file.items),
            file,
        })
    }

    /// Whether it is compiled for tests alone.
    pub(super) fn is_test(&self) -> bool {
        let mut parts = self.path.rsplit('/');
        matches!(parts.next(), Some("tests.rs" | "testing.rs"))
            || parts.any(|folder| folder == "tests")
    }

    /// The tokens of the product.
    pub(super) fn tokens(&self) -> TokenStream {
        let mut tokens = TokenStream::new();
        for item in &self.items {
            item.to_tokens(&mut tokens);
        }
        tokens
    }

    /// All paths that the product names.
    pub(super) fn paths(&self) -> Vec<Named> {
        let mut found = Vec::new();
        collect(self.tokens(), &[], &mut found);
        found
    }

    pub(super) fn finding(
        &self,
        rule: &'static str,
        line: usize,
        item: impl Into<String>,
        message: String,
    ) -> Finding {
        Finding {
            path: self.path.clone(),
            line,
            rule,
            item: item.into(),
            message,
        }
    }
}

/// Paths in any tokens.
pub(super) fn paths_in(tokens: TokenStream) -> Vec<Named> {
    let mut found = Vec::new();
    collect(tokens, &[], &mut found);
    found
}

/// The items that are compiled outside of tests, too.
fn product(items: &[Item]) -> Vec<Item> {
    let kept = items.iter().filter(|item| !for_tests(attributes(item)));
    kept.cloned()
        .map(|mut item| {
            if let Item::Mod(module) = &mut item
                && let Some((_, content)) = &mut module.content
            {
                *content = product(content);
            }
            item
        })
        .collect()
}

fn for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = attribute.to_token_stream().to_string();
        text.contains("cfg (test)") || text.contains("cfg (all (test")
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// The name an item defines, where it is, and who may use it.
pub(super) fn definition(item: &Item) -> Option<(&syn::Ident, Option<&Visibility>)> {
    match item {
        Item::Const(item) => Some((&item.ident, Some(&item.vis))),
        Item::Enum(item) => Some((&item.ident, Some(&item.vis))),
        Item::Fn(item) => Some((&item.sig.ident, Some(&item.vis))),
        Item::Macro(item) => Some((item.ident.as_ref()?, None)),
        Item::Static(item) => Some((&item.ident, Some(&item.vis))),
        Item::Struct(item) => Some((&item.ident, Some(&item.vis))),
        Item::Trait(item) => Some((&item.ident, Some(&item.vis))),
        Item::Type(item) => Some((&item.ident, Some(&item.vis))),
        Item::Union(item) => Some((&item.ident, Some(&item.vis))),
        _ => None,
    }
}

/// Collects paths; those in a group that follows `prefix::` belong to it.
fn collect(tokens: TokenStream, prefix: &[String], found: &mut Vec<Named>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let is_colons = |at: usize| {
        let colon = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
        colon(at) && colon(at + 1)
    };
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            TokenTree::Group(group) => collect(group.stream(), prefix, found),
            // A new name, not one of the path.
            TokenTree::Ident(word) if word == "as" => at += 1,
            TokenTree::Ident(first) => {
                let line = first.span().start().line;
                let mut segments = prefix.to_vec();
                segments.push(first.to_string());
                while is_colons(at + 1)
                    && let Some(TokenTree::Ident(next)) = tokens.get(at + 3)
                {
                    segments.push(next.to_string());
                    at += 3;
                }
                match tokens.get(at + 3) {
                    Some(TokenTree::Group(group))
                        if is_colons(at + 1) && group.delimiter() == Delimiter::Brace =>
                    {
                        collect(group.stream(), &segments, found);
                        at += 3;
                    }
                    _ => found.push(Named { segments, line }),
                }
            }
            _ => {}
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_wherever_they_stand_but_in_tests() {
        let text = "use a::{b::{self, C}, d as e};\nfn f() { x!(g::h(1), \"no::path\"); }\n\
                    #[cfg(test)]\nmod tests { use never::seen; }\n";
        let source = Source::parse("a/src/lib.rs", text).unwrap();
        let paths = source.paths();
        let named = |path: &str| {
            let found = paths.iter().find(|named| named.segments.join("::") == path);
            found.map(|named| named.line)
        };
        for (path, line) in [("a::b::self", 1), ("a::b::C", 1), ("a::d", 1), ("g::h", 2)] {
            assert_eq!(named(path), Some(line), "{path} in {paths:?}");
        }
        assert_eq!((named("never::seen"), named("a::e")), (None, None));
        assert!(Source::parse("b/src/c/tests.rs", "").unwrap().is_test());
        assert!(Source::parse("b/tests/sim/world.rs", "").unwrap().is_test());
    }
}
