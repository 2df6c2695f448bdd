//! The table of threads in docs/ARCHITECTURE.md against the names that the code gives. In names `{…}` and `<…>`
//! stand for a part that differs.

use std::collections::BTreeMap;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::visit::Visit;

use super::finding::Finding;
use super::source::Source;

/// Where the table is.
pub(super) const ARCHITECTURE: &str = "docs/ARCHITECTURE.md";
const RULE: &str = "threads";
const HEADING: &str = "## Threads";
/// Whose threads the table lists.
const CRATES: [&str; 3] = ["transport/src/", "replication/src/", "vmm/src/"];

pub(super) fn check(sources: &[Source], architecture: &str) -> Vec<Finding> {
    let table = table(architecture);
    let mut findings = Vec::new();
    let mut named = Vec::new();
    let ours = |source: &&Source| CRATES.iter().any(|one| source.path.starts_with(one));
    let product = sources.iter().filter(|source| !source.is_test());
    let threads: Vec<&Source> = product.filter(ours).collect();
    for source in threads.iter().copied() {
        for path in source.paths() {
            if let [.., module, function] = &path.segments[..]
                && (module.as_str(), function.as_str()) == ("thread", "spawn")
            {
                let message = "a thread without a name: use thread::Builder, and list it".into();
                findings.push(source.finding(RULE, path.line, "", message));
            }
        }
        for place in places(source) {
            let mut names: Vec<(&Source, String, usize)> = Vec::new();
            match place.name {
                Some(name) => names.push((source, name, place.line)),
                None => {
                    for caller in &threads {
                        let mut found = Vec::new();
                        calls(caller.tokens(), &place.function, &mut found);
                        names.extend(found.into_iter().map(|(name, line)| (*caller, name, line)));
                    }
                }
            }
            if names.is_empty() {
                let message =
                    "the thread's name must be a literal, here or where this function is \
                               called"
                        .into();
                findings.push(source.finding(RULE, place.line, "", message));
            }
            for (source, name, line) in names {
                if !table.contains_key(&name) {
                    let message = format!(
                        "thread `{name}` is not in the table of {ARCHITECTURE}: add its row"
                    );
                    findings.push(source.finding(RULE, line, &name, message));
                }
                named.push(name);
            }
        }
    }
    for (name, line) in &table {
        if !named.contains(name) {
            findings.push(Finding {
                path: ARCHITECTURE.into(),
                line: *line,
                rule: RULE,
                item: name.clone(),
                message: format!("no thread is called `{name}`: delete its row, or correct it"),
            });
        }
    }
    findings
}

/// The names in the first column of the table, and their lines.
fn table(architecture: &str) -> BTreeMap<String, usize> {
    let lines = (1..).zip(architecture.lines());
    let section = lines.skip_while(|(_, line)| *line != HEADING).skip(1);
    let section = section.take_while(|(_, line)| !line.starts_with("## "));
    let rows = section.filter_map(|(number, line)| {
        let column = line.strip_prefix("| `")?;
        Some((plain(column.split('`').next()?), number))
    });
    rows.collect()
}

/// A name, with each part that differs as `*`.
fn plain(name: &str) -> String {
    let mut plain = String::new();
    let mut rest = name;
    while let Some(begin) = rest.find(['{', '<']) {
        plain.push_str(&rest[..begin]);
        plain.push('*');
        let end = rest[begin..]
            .find(['}', '>'])
            .map_or(rest.len(), |end| begin + end + 1);
        rest = &rest[end..];
    }
    plain + rest
}

/// A place where a thread gets its name.
struct Place {
    /// None if the name is not in the code here.
    name: Option<String>,
    line: usize,
    /// The function around it.
    function: String,
}

/// The threads that a file's functions start.
fn places(source: &Source) -> Vec<Place> {
    let mut functions = Functions::default();
    source
        .items
        .iter()
        .for_each(|item| functions.visit_item(item));
    let mut found = Vec::new();
    for (function, body) in functions.0 {
        let mut names = Vec::new();
        builders(body, &mut names);
        found.extend(names.into_iter().map(|(name, line)| Place {
            name,
            line,
            function: function.clone(),
        }));
    }
    found
}

/// Names and bodies of functions; the innermost function of a token is enough, so nested ones are left out.
#[derive(Default)]
struct Functions(Vec<(String, TokenStream)>);

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        let name = function.sig.ident.to_string();
        self.0.push((name, function.block.to_token_stream()));
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        let name = function.sig.ident.to_string();
        self.0.push((name, function.block.to_token_stream()));
    }
}

fn builders(tokens: TokenStream, found: &mut Vec<(Option<String>, usize)>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let word =
        |at: usize, word: &str| matches!(tokens.get(at), Some(TokenTree::Ident(it)) if it == word);
    for (at, token) in tokens.iter().enumerate() {
        let TokenTree::Group(group) = token else {
            continue;
        };
        // thread :: Builder :: new ( ) . name ( … )
        let is_builder = at >= 10
            && word(at - 1, "name")
            && word(at - 4, "new")
            && word(at - 7, "Builder")
            && word(at - 10, "thread");
        if is_builder {
            let name = literal(group.stream()).map(|name| plain(&name));
            found.push((name, group.span().start().line));
        }
        builders(group.stream(), found);
    }
}

/// The names with which a function is called that starts a thread with the name it is given first.
fn calls(tokens: TokenStream, function: &str, found: &mut Vec<(String, usize)>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for (at, token) in tokens.iter().enumerate() {
        let TokenTree::Group(group) = token else {
            continue;
        };
        let is_call = at > 0 && matches!(&tokens[at - 1], TokenTree::Ident(it) if it == function);
        let argument: Vec<TokenTree> = (group.stream().into_iter())
            .take_while(|token| !matches!(token, TokenTree::Punct(it) if it.as_char() == ','))
            .collect();
        let is_text = match argument.first() {
            Some(TokenTree::Ident(word)) => word == "format",
            first => matches!(first, Some(TokenTree::Literal(_))),
        };
        if is_call
            && is_text
            && let Some(name) = literal(argument.into_iter().collect())
        {
            found.push((plain(&name), group.span_open().start().line));
        }
        calls(group.stream(), function, found);
    }
}

/// The first string in some tokens.
fn literal(tokens: TokenStream) -> Option<String> {
    tokens.into_iter().find_map(|token| match token {
        TokenTree::Literal(literal) => {
            let text = literal.to_string();
            Some(text.strip_prefix('"')?.strip_suffix('"')?.to_owned())
        }
        TokenTree::Group(group) => literal(group.stream()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "# A\n## Threads\n\n| name | owns |\n| --- | --- |\n| `vcpu<N>` | a |\n\
                         | `gone` | b |\n\n## B\n| `other` | c |\n";

    #[test]
    fn names_in_the_code_and_in_the_table_must_be_the_same() {
        let text = "fn f() {\n    std::thread::Builder::new().name(format!(\"vcpu{index}\")).spawn(g);\n\
                    \n    thread::Builder::new().name(\"new\".into()).spawn(g);\n\
                    \n    std::thread::spawn(g);\n}\nfn nobody_calls(name: &str) {\n\
                    \n    std::thread::Builder::new().name(name.into()).spawn(g);\n}\n\
                    fn named(name: &str) {\n    std::thread::Builder::new().name(name.into()).spawn(g);\n}\n\
                    fn h() {\n    named(\"other\", \"x\");\n    named(|| \"no name\");\n}\n";
        let source = Source::parse("vmm/src/a.rs", text).unwrap();
        let mut found = check(&[source], TABLE);
        found.sort();
        let places: Vec<_> = found
            .iter()
            .map(|f| (f.path.as_str(), f.line, f.item.as_str()))
            .collect();
        assert_eq!(
            places,
            [
                (ARCHITECTURE, 7, "gone"),
                ("vmm/src/a.rs", 4, "new"),
                ("vmm/src/a.rs", 6, ""),
                ("vmm/src/a.rs", 10, ""),
                ("vmm/src/a.rs", 16, "other"),
            ]
        );
    }
}
