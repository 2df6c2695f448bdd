//! What all runs showed, as figures.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::clients::Losses;
use crate::run::Outcome;

/// The row for all runs with two failures.
const PAIRS: &str = "two failures";
/// The row for the ends of all runs: the host with the guest is killed.
const LAST: &str = "(the end of each run: its host is killed)";

/// See the [module documentation](self).
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    runs: usize,
    failed: usize,
    /// Runs in which more than one host spoke for the guest.
    two_speakers: usize,
    stuck: usize,
    #[serde(flatten)]
    losses: Losses,
    bytes: u64,
    writes: u64,
    flushed: u64,
    /// Runs whose disk lacked some of these, or was not of one moment.
    wrong_disks: usize,
    /// Guests that were started from their disk, where that may be.
    started_over: usize,
    rows: Vec<Row>,
    outcomes: Vec<Outcome>,
}

/// Outages and repairs of runs of one kind, in milliseconds.
#[derive(Debug, Serialize)]
struct Row {
    title: String,
    runs: usize,
    outage_ms: Option<Percentiles>,
    repair_ms: Option<Percentiles>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Percentiles {
    median: f64,
    p95: f64,
    worst: f64,
}

impl Percentiles {
    /// By nearest rank.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let rank = |percent: usize| {
            let rank = (values.len() * percent).div_ceil(100);
            values.get(rank.saturating_sub(1)).copied()
        };
        Some(Self {
            median: rank(50)?,
            p95: rank(95)?,
            worst: rank(100)?,
        })
    }
}

impl Report {
    pub(crate) fn new(outcomes: Vec<Outcome>) -> Self {
        let mut report = Self {
            runs: outcomes.len(),
            ..Self::default()
        };
        let mut kinds: BTreeMap<(usize, &str), Vec<&Outcome>> = BTreeMap::new();
        for one in &outcomes {
            report.failed += usize::from(!one.faults.is_empty());
            report.two_speakers += usize::from(one.two_speakers);
            report.stuck += usize::from(one.is_stuck);
            report.losses.add(&one.losses);
            report.bytes += one.bytes;
            report.writes += one.writes;
            report.flushed += one.flushed;
            report.wrong_disks += usize::from(one.disk_is_wrong);
            report.started_over += usize::from(one.started_over.is_some());
            let title = if one.failures > 1 { PAIRS } else { &one.title };
            kinds.entry((one.failures, title)).or_default().push(one);
        }
        for ((_, title), outcomes) in kinds {
            let outages = outcomes.iter().filter_map(|one| one.outage_ms);
            let repairs = outcomes.iter().filter_map(|one| one.repair_ms);
            report.rows.push(Row {
                title: title.to_owned(),
                runs: outcomes.len(),
                outage_ms: Percentiles::of(outages.collect()),
                repair_ms: Percentiles::of(repairs.collect()),
            });
        }
        let last: Vec<f64> = outcomes
            .iter()
            .filter_map(|one| one.last_outage_ms)
            .collect();
        report.rows.push(Row {
            title: LAST.to_owned(),
            runs: last.len(),
            outage_ms: Percentiles::of(last),
            repair_ms: None,
        });
        report.outcomes = outcomes;
        report
    }

    pub(crate) fn failed(&self) -> usize {
        self.failed
    }

    /// For a person.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        let Losses {
            bytes_lost,
            bytes_repeated,
            writes_lost,
            writes_repeated,
        } = self.losses;
        for (name, value) in [
            ("runs", self.runs.to_string()),
            ("of these failed", self.failed.to_string()),
            ("with two speakers", self.two_speakers.to_string()),
            ("stuck", self.stuck.to_string()),
            (
                "bytes",
                format!(
                    "{} checked, {bytes_lost} lost, {bytes_repeated} repeated",
                    self.bytes
                ),
            ),
            (
                "acknowledged writes",
                format!(
                    "{}, {writes_lost} lost, {writes_repeated} repeated",
                    self.writes
                ),
            ),
            (
                "flushed disk writes",
                format!(
                    "{}, not as they should be in {} runs",
                    self.flushed, self.wrong_disks
                ),
            ),
            ("started from the disk", self.started_over.to_string()),
        ] {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name:<24}{value}");
        }
        let _ = writeln!(
            text,
            "\n| what fails | runs | outage, median | p95 | worst | protected again, median | p95 | worst |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- |"
        );
        for row in &self.rows {
            let cells = [row.outage_ms, row.repair_ms].map(|times| {
                times.map_or("- | - | -".to_owned(), |it| {
                    format!("{:.0} | {:.0} | {:.0}", it.median, it.p95, it.worst)
                })
            });
            let _ = writeln!(
                text,
                "| {} | {} | {} |",
                row.title,
                row.runs,
                cells.join(" | ")
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let found = Percentiles::of((1..=20).map(f64::from).collect());
        let expected = Percentiles {
            median: 10.0,
            p95: 19.0,
            worst: 20.0,
        };
        assert_eq!(found, Some(expected));
        assert_eq!(Percentiles::of(Vec::new()), None);
    }

    #[test]
    fn what_must_not_be_is_counted() {
        let well = Outcome {
            title: "flood".into(),
            failures: 1,
            outage_ms: Some(5.0),
            ..Outcome::default()
        };
        let ill = Outcome {
            faults: vec!["stuck".into()],
            is_stuck: true,
            two_speakers: true,
            disk_is_wrong: true,
            ..well.clone()
        };
        let report = Report::new(vec![well, ill]);
        assert_eq!((report.runs, report.failed()), (2, 1));
        assert_eq!((report.stuck, report.two_speakers), (1, 1));
        let text = report.render();
        for told in [
            "| flood | 2 | 5 | 5 | 5 | - | - | - |",
            "0, not as they should be in 1 runs",
        ] {
            assert!(text.contains(told), "{text}");
        }
    }
}
