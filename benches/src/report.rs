//! A document of the results: what was measured, on what, as tables and charts.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::{Map, Value};

use crate::plot::{self, Bar, Group};
use crate::suite::{Chart, Results, SUITES, Suite};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Where `suite` has put its results.
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    results: PathBuf,
    /// The document; its charts go to a directory beside it, in lower case.
    #[arg(long, value_name = "FILE", default_value = "docs/BENCHMARKS.md")]
    to: PathBuf,
    /// The typeface of the charts.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"
    )]
    font: PathBuf,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let font = fs::read(&arguments.font).with_context(|| {
        format!(
            "cannot read the typeface {} (package fonts-dejavu-core, or name another one with --font)",
            arguments.font.display()
        )
    })?;
    plot::use_typeface(font)?;
    let charts = arguments.to.with_file_name("benchmarks");
    fs::create_dir_all(&charts).with_context(|| format!("cannot make {}", charts.display()))?;
    let mut document = String::from(HEAD);
    let mut parts = 0;
    for suite in &SUITES {
        let Some(results) = Results::read(&arguments.results, suite.name)? else {
            continue;
        };
        parts += 1;
        document.push_str(&part(suite, &results, &charts)?);
    }
    ensure!(
        parts > 0,
        "no results in {}; measure first: `cargo xtask bench`",
        arguments.results.display()
    );
    document.push_str(TAIL);
    fs::write(&arguments.to, document)
        .with_context(|| format!("cannot write {}", arguments.to.display()))?;
    eprintln!("{}: {parts} parts", arguments.to.display());
    Ok(())
}

const HEAD: &str = include_str!("report/head.md");
const TAIL: &str = include_str!("report/tail.md");

fn part(suite: &Suite, results: &Results, charts: &Path) -> Result<String> {
    let rows = kinds(suite, &results.rows);
    let mut text = format!("## {}\n\n{}\n\n", suite.title, wrap(suite.says));
    text.push_str(&table(suite, &rows));
    text.push('\n');
    for chart in suite.charts {
        let groups = groups(suite, &rows, chart);
        let title = match chart.log {
            true => format!("{} (bars by logarithm)", chart.title),
            false => chart.title.into(),
        };
        for format in ["svg", "png"] {
            plot::draw(
                &charts.join(chart.file).with_extension(format),
                &title,
                &groups,
                chart.log,
            )?;
        }
        text.push_str(&format!(
            "![{}](benchmarks/{}.svg)\n\n",
            chart.title, chart.file
        ));
    }
    let measured = format!(
        "Measured {}: {}",
        results.surroundings.date,
        results.surroundings.describe()
    );
    text.push_str(&format!("{}\n\n", wrap(&measured)));
    Ok(text)
}

/// Rows of a kind, that is, with the same words: the values of each column in all of them.
struct Kind {
    words: Vec<String>,
    values: BTreeMap<&'static str, Vec<f64>>,
}

fn kinds(suite: &Suite, rows: &[Map<String, Value>]) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for row in rows {
        let words: Vec<String> = suite
            .columns
            .iter()
            .filter_map(|(name, _)| row.get(*name)?.as_str().map(String::from))
            .chain(key(row))
            .collect();
        let at = kinds.iter().position(|kind| kind.words == words);
        let at = at.unwrap_or_else(|| {
            kinds.push(Kind {
                words,
                values: BTreeMap::new(),
            });
            kinds.len() - 1
        });
        for (name, _) in suite.columns {
            if let Some(value) = row.get(*name).and_then(Value::as_f64) {
                kinds[at].values.entry(name).or_default().push(value);
            }
        }
    }
    kinds
}

/// A number that tells kinds apart, too.
fn key(row: &Map<String, Value>) -> Option<String> {
    row.get("pages")?.as_u64().map(|pages| pages.to_string())
}

impl Kind {
    fn median(&self, column: &str) -> Option<f64> {
        let mut values = self.values.get(column)?.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// The median, with the least and the greatest if there are several.
    fn show(&self, column: &str) -> String {
        let Some(median) = self.median(column) else {
            return "–".into();
        };
        let values = &self.values[column];
        if values.len() < 2 {
            return short(median);
        }
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!("{} ({}–{})", short(median), short(least), short(most))
    }
}

/// Three digits that say something.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.0995 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn table(suite: &Suite, rows: &[Kind]) -> String {
    let headings: Vec<&str> = suite.columns.iter().map(|(_, heading)| *heading).collect();
    let mut text = format!("| {} |\n", headings.join(" | "));
    text.push_str(&format!("|{}\n", " --- |".repeat(headings.len())));
    for row in rows {
        let mut words = row.words.iter();
        let cells: Vec<String> = suite
            .columns
            .iter()
            .map(|(name, _)| match row.values.contains_key(name) {
                true => row.show(name),
                false if is_word(name) => words.next().cloned().unwrap_or_default(),
                false => "–".into(),
            })
            .collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}

/// Columns that hold words in every row.
fn is_word(column: &str) -> bool {
    matches!(column, "scenario" | "guest" | "vmm" | "with" | "pages")
}

/// The bars of one guest side by side, a bar for each program and its options.
fn groups(suite: &Suite, rows: &[Kind], chart: &Chart) -> Vec<Group> {
    let at = |name: &str| suite.columns.iter().position(|(column, _)| *column == name);
    let (vmm, with) = (at("vmm"), at("with"));
    let mut groups: Vec<Group> = Vec::new();
    for row in rows {
        let (Some(value), Some(name)) = (row.median(chart.column), row.words.first()) else {
            continue;
        };
        let of = |place: Option<usize>| {
            place
                .and_then(|place| row.words.get(place))
                .map(String::as_str)
        };
        let bar = Bar {
            name: who(of(vmm).unwrap_or_default(), of(with).unwrap_or_default()),
            value,
            shown: short(value),
        };
        match groups.iter_mut().find(|group| group.name == *name) {
            Some(group) => group.bars.push(bar),
            None => groups.push(Group {
                name: name.clone(),
                bars: vec![bar],
            }),
        }
    }
    groups
}

/// A short name for a program with its options.
fn who(vmm: &str, with: &str) -> String {
    let with = with.trim_start_matches("--checkpointing ");
    match (vmm, with) {
        ("vmm", "") => "Understudy".into(),
        (vmm, "") => vmm.into(),
        ("vmm", with) => with.into(),
        (vmm, with) => format!("{vmm} {with}"),
    }
}

/// Lines of at most 120 characters.
fn wrap(text: &str) -> String {
    let (mut out, mut length) = (String::new(), 0);
    for word in text.split_whitespace() {
        let more = word.chars().count() + 1;
        if length > 0 && length + more > 120 {
            out.push('\n');
            length = 0;
        } else if length > 0 {
            out.push(' ');
        }
        out.push_str(word);
        length += more;
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows(rows: Value) -> Vec<Map<String, Value>> {
        serde_json::from_value(rows).unwrap()
    }

    const SUITE: Suite = Suite {
        name: "test",
        title: "Test",
        says: "",
        runs: &[],
        columns: &[
            ("scenario", "guest"),
            ("vmm", "program"),
            ("with", "with"),
            ("ratio", "speed"),
            ("ack", "ack"),
        ],
        charts: &[],
    };

    #[test]
    fn repeated_rows_become_one_with_median_and_spread() {
        let rows = rows(json!([
            {"scenario": "a", "vmm": "vmm", "with": "", "ratio": 0.5, "ack": 3},
            {"scenario": "a", "vmm": "QEMU", "with": "COLO", "ratio": 0.25, "ack": null},
            {"scenario": "a", "vmm": "vmm", "with": "", "ratio": 0.75, "ack": 5},
            {"scenario": "a", "vmm": "vmm", "with": "", "ratio": 0.625, "ack": 4},
        ]));
        let table = table(&SUITE, &kinds(&SUITE, &rows));
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[0], "| guest | program | with | speed | ack |");
        assert_eq!(
            lines[2],
            "| a | vmm |  | 0.62 (0.50–0.75) | 4.00 (3.00–5.00) |"
        );
        assert_eq!(lines[3], "| a | QEMU | COLO | 0.25 | – |");
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn a_chart_has_a_group_for_each_guest() {
        let rows = rows(json!([
            {"scenario": "a", "vmm": "vmm", "with": "", "ratio": 0.9, "ack": 1},
            {"scenario": "a", "vmm": "vmm", "with": "--checkpointing remus", "ratio": 0.5, "ack": 1},
            {"scenario": "b", "vmm": "QEMU", "with": "COLO", "ratio": 0.25, "ack": null},
        ]));
        let chart = Chart {
            file: "x",
            title: "X",
            column: "ratio",
            log: false,
        };
        let groups = groups(&SUITE, &kinds(&SUITE, &rows), &chart);
        let names: Vec<Vec<&str>> = groups
            .iter()
            .map(|group| group.bars.iter().map(|bar| &*bar.name).collect())
            .collect();
        assert_eq!(names, [vec!["Understudy", "remus"], vec!["QEMU COLO"]]);
        assert_eq!(groups[1].bars[0].shown, "0.25");
    }

    #[test]
    fn numbers_have_as_many_digits_as_say_something() {
        for (value, shown) in [
            (0.0, "0"),
            (0.0002, "0.0002"),
            (0.9, "0.90"),
            (12.34, "12.3"),
            (123.4, "123"),
        ] {
            assert_eq!(short(value), shown);
        }
    }
}
