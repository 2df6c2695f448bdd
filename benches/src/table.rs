//! Results as rows: the same cells for people and for programs, and the progress line.

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value};

/// Rows of named cells. All rows have the same names, in the same order.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<(&'static str, Cell)>>,
}

/// One value, and how many digits behind the point a person wants to see.
#[derive(Debug, Clone)]
pub(crate) enum Cell {
    Text(String),
    Number(f64, usize),
    /// This was not measured.
    Unknown,
}

pub(crate) fn text(value: impl Into<String>) -> Cell {
    Cell::Text(value.into())
}

pub(crate) fn number(value: f64, digits: usize) -> Cell {
    Cell::Number(value, digits)
}

impl Cell {
    fn show(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(value, digits) => format!("{value:.digits$}"),
            Self::Unknown => "–".into(),
        }
    }

    fn value(&self) -> Value {
        match self {
            Self::Text(text) => Value::from(text.clone()),
            Self::Number(value, _) => Value::from(*value),
            Self::Unknown => Value::Null,
        }
    }
}

impl Table {
    pub(crate) fn push(&mut self, row: Vec<(&'static str, Cell)>) {
        self.rows.push(row);
    }

    pub(crate) fn json(&self) -> Result<String> {
        let rows: Vec<Map<String, Value>> = self
            .rows
            .iter()
            .map(|row| {
                row.iter()
                    .map(|(name, cell)| ((*name).to_owned(), cell.value()))
                    .collect()
            })
            .collect();
        Ok(serde_json::to_string_pretty(&rows)?)
    }

    /// A Markdown table, so that it can be kept in a README as it is.
    pub(crate) fn render(&self) -> String {
        let Some(first) = self.rows.first() else {
            return "nothing was measured\n".into();
        };
        let header: Vec<String> = first
            .iter()
            .map(|(name, _)| name.replace('_', " "))
            .collect();
        let lines: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| row.iter().map(|(_, cell)| cell.show()).collect())
            .collect();
        let widths: Vec<usize> = (0..header.len())
            .map(|column| {
                std::iter::once(&header)
                    .chain(&lines)
                    .map(|line| line[column].chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let rule = widths.iter().map(|width| "-".repeat(*width)).collect();
        let mut out = String::new();
        for line in [&header, &rule].into_iter().chain(&lines) {
            for (cell, width) in line.iter().zip(&widths) {
                out.push_str(&format!("| {cell:<width$} "));
            }
            out.push_str("|\n");
        }
        out
    }
}

/// A line on standard error that says what is going on; plain lines if that is not a terminal.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn start() -> Result<Self> {
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::with_template("{spinner} {elapsed} {msg}")?);
        Ok(Self(bar))
    }

    /// A new step has begun.
    pub(crate) fn say(&self, text: &str) {
        if self.0.is_hidden() {
            eprintln!("{text}");
        }
        self.show(text);
    }

    /// The same step, further on.
    pub(crate) fn show(&self, text: &str) {
        self.0.set_message(text.to_owned());
        self.0.tick();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
