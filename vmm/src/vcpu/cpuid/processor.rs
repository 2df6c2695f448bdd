//! Whose fault it is that a guest cannot have a feature: the processor's, or that of KVM, which hides it.
//!
//! What must not be done here: decide what a guest gets. The processor is asked for the blame alone.

use std::collections::BTreeSet;

/// Says who lacks `features`, which are names with further words behind them.
pub(super) fn blame(features: &[String]) -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    blame_among(features, &flags(&cpuinfo))
}

/// What Linux says that the first processor has.
fn flags(cpuinfo: &str) -> BTreeSet<&str> {
    let line = cpuinfo.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == "flags").then_some(value)
    });
    line.unwrap_or_default().split_whitespace().collect()
}

fn blame_among(features: &[String], processor: &BTreeSet<&str>) -> String {
    let has = |feature: &&String| {
        let name = feature.split(' ').next().unwrap_or_default();
        // Linux has an older name for it.
        let name = if name == "sse3" { "pni" } else { name };
        processor.contains(name)
    };
    let (hidden, lacking): (Vec<&String>, Vec<&String>) = features.iter().partition(has);
    let list = |features: &[&String]| {
        let names: Vec<&str> = features.iter().map(|feature| feature.as_str()).collect();
        names.join(", ")
    };
    let mut said = Vec::new();
    if !lacking.is_empty() {
        said.push(format!("this host's CPU lacks {}", list(&lacking)));
    }
    if !hidden.is_empty() {
        let hidden = list(&hidden);
        said.push(format!(
            "this host's KVM does not offer {hidden}, which its CPU has: use a newer kernel, or have it offered by the \
             machine that this host runs in"
        ));
    }
    said.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_processor_has_is_not_blamed_on_it() {
        let text = "processor\t: 0\nflags\t\t: fpu pni avx2\nbugs\t\t: none\n\nflags\t\t: bmi1\n";
        let processor = flags(text);
        let said = |features: &[&str]| {
            let features: Vec<String> = features.iter().map(|name| (*name).to_owned()).collect();
            blame_among(&features, &processor)
        };
        let lacking = said(&["bmi1 (leaf 7, EBX bit 3)", "fma (leaf 1)"]);
        assert_eq!(
            lacking,
            "this host's CPU lacks bmi1 (leaf 7, EBX bit 3), fma (leaf 1)"
        );
        let hidden = said(&["avx2 (leaf 7, EBX bit 5)", "sse3 (leaf 1, ECX bit 0)"]);
        assert!(
            hidden.starts_with(
                "this host's KVM does not offer avx2 (leaf 7, EBX bit 5), sse3 (leaf 1"
            ),
            "{hidden}"
        );
        let both = said(&["avx2 (leaf 7)", "fma (leaf 1)"]);
        assert!(
            both.starts_with("this host's CPU lacks fma (leaf 1); this host's KVM does"),
            "{both}"
        );
    }
}
