//! Long files and functions, tests among them: who reads one should see a whole.

use proc_macro2::Span;
use syn::visit::{self, Visit};
use syn::{Block, Signature};

use super::finding::Finding;
use super::source::Source;

const RULE: &str = "lengths";
const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 80;

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        if source.lines > FILE_LINES_MAX {
            let message = format!(
                "{} lines, at most {FILE_LINES_MAX}: split it by what it knows",
                source.lines
            );
            findings.push(source.finding(RULE, 1, "", message));
        }
        let mut functions = Functions::default();
        functions.visit_file(&source.file);
        for (name, line, lines) in functions.0 {
            if lines > FUNCTION_LINES_MAX {
                let message = format!(
                    "{name} has {lines} lines, at most {FUNCTION_LINES_MAX}: name its parts and call them"
                );
                findings.push(source.finding(RULE, line, name, message));
            }
        }
    }
    findings
}

/// Name, first line and length of each function.
#[derive(Default)]
struct Functions(Vec<(String, usize, usize)>);

impl Functions {
    fn note(&mut self, signature: &Signature, block: &Block) {
        let line = |span: Span| span.start().line;
        let first = line(signature.fn_token.span);
        let last = line(block.brace_token.span.close());
        let name = signature.ident.to_string();
        self.0.push((name, first, last - first + 1));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.note(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.note(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.note(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_601_lines_and_a_method_of_81_are_too_long() {
        let method = format!("impl A {{\n    fn long() {{\n{}}}\n}}\n", "\n".repeat(79));
        let text = method.clone() + &"\n".repeat(601 - method.lines().count());
        let found = check(&[Source::parse("a.rs", &text).unwrap()]);
        let places: Vec<_> = found.iter().map(|f| (f.line, f.item.as_str())).collect();
        assert_eq!(places, [(1, ""), (2, "long")]);
        let fine = "fn short() {\n".to_owned() + &"\n".repeat(78) + "}\n";
        assert_eq!(check(&[Source::parse("a.rs", &fine).unwrap()]), []);
    }
}
