//! The list of exceptions: lines `RULE | PATH [ITEM] | REASON`. One that excuses nothing is a finding itself, so
//! that the list only ever says what is so.

use anyhow::{Result, bail};

use super::finding::Finding;

/// Where they are.
pub(super) const EXCEPTIONS: &str = "xtask/tidy.txt";

struct Exception {
    line: usize,
    rule: String,
    path: String,
    item: String,
}

/// All of them.
pub(super) struct Exceptions(Vec<Exception>);

impl Exceptions {
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut exceptions = Vec::new();
        for (line, words) in (1..).zip(text.lines()) {
            if words.is_empty() || words.starts_with('#') {
                continue;
            }
            let parts: Vec<&str> = words.splitn(3, '|').map(str::trim).collect();
            let [rule, place, reason] = parts[..] else {
                bail!("{EXCEPTIONS}:{line}: write RULE | PATH [ITEM] | REASON");
            };
            if reason.is_empty() {
                bail!("{EXCEPTIONS}:{line}: an exception needs its reason");
            }
            let (path, item) = place.split_once(' ').unwrap_or((place, ""));
            exceptions.push(Exception {
                line,
                rule: rule.to_owned(),
                path: path.to_owned(),
                item: item.to_owned(),
            });
        }
        Ok(Self(exceptions))
    }

    /// Takes out what is excused, and adds the exceptions that excuse nothing.
    pub(super) fn apply(&self, mut findings: Vec<Finding>) -> Vec<Finding> {
        let excuses = |exception: &Exception, finding: &Finding| {
            exception.rule == finding.rule
                && exception.path == finding.path
                && exception.item == finding.item
        };
        let idle = self.0.iter().filter(|exception| {
            let needed = findings.iter().any(|finding| excuses(exception, finding));
            !needed
        });
        let idle: Vec<Finding> = idle
            .map(|exception| Finding {
                path: EXCEPTIONS.into(),
                line: exception.line,
                rule: "exceptions",
                item: String::new(),
                message: "this exception is no longer needed: delete the line".into(),
            })
            .collect();
        findings.retain(|finding| !self.0.iter().any(|exception| excuses(exception, finding)));
        findings.extend(idle);
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_excuse_once_need_a_reason_and_do_not_outlive_their_cause() {
        let finding = Finding {
            path: "a.rs".into(),
            line: 7,
            rule: "lengths",
            item: "long".into(),
            message: String::new(),
        };
        let excused = Exceptions::parse("# a\nlengths | a.rs long | a table of opcodes\n").unwrap();
        assert_eq!(excused.apply(vec![finding.clone()]), []);
        let idle = excused.apply(Vec::new());
        assert_eq!((idle[0].path.as_str(), idle[0].line), (EXCEPTIONS, 2));
        let other = Exceptions::parse("lengths | a.rs short | a table\n").unwrap();
        assert_eq!(other.apply(vec![finding]).len(), 2);
        for wrong in ["lengths | a.rs", "lengths | a.rs |"] {
            assert!(Exceptions::parse(wrong).is_err());
        }
    }
}
