//! Bar charts, as SVG for documents and PNG for everywhere else. Each bar has its value beside it, so that a chart can be
//! read without an axis.

use std::path::Path;

use anyhow::{Context, Result, bail};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Bars that belong together, and what they are of.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) bars: Vec<Bar>,
}

#[derive(Debug)]
pub(crate) struct Bar {
    /// Bars of the same name have the same colour.
    pub(crate) name: String,
    pub(crate) value: f64,
    /// The value in figures.
    pub(crate) shown: String,
}

const WIDTH: u32 = 960;
const MARGIN: i32 = 16;
const TITLE: i32 = 40;
const LEGEND: i32 = 28;
const BAR: i32 = 16;
const GAP: i32 = 10;
/// Left of the bars, for names.
const NAMES: i32 = 380;
/// Right of the bars, for values.
const VALUES: i32 = 80;
const TYPEFACE: &str = "sans-serif";
/// Told apart by people who see few colours, too (Okabe and Ito, "Color Universal Design", 2008).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(86, 180, 233),
    RGBColor(204, 121, 167),
];
const INK: RGBColor = RGBColor(34, 34, 34);

/// Takes a TrueType font for all charts.
pub(crate) fn use_typeface(font: Vec<u8>) -> Result<()> {
    // Charts use it to the end of the program.
    let font: &'static [u8] = font.leak();
    if register_font(TYPEFACE, FontStyle::Normal, font).is_err() {
        bail!("the typeface is no TrueType font");
    }
    Ok(())
}

/// Draws into a file whose name tells the format.
pub(crate) fn draw(path: &Path, title: &str, groups: &[Group], log: bool) -> Result<()> {
    let size = (WIDTH, height(groups));
    let drawn = if path.extension().is_some_and(|it| it == "svg") {
        let area = SVGBackend::new(path, size).into_drawing_area();
        chart(&area, title, groups, log).map_err(|error| error.to_string())
    } else {
        let area = BitMapBackend::new(path, size).into_drawing_area();
        chart(&area, title, groups, log).map_err(|error| error.to_string())
    };
    drawn
        .map_err(anyhow::Error::msg)
        .with_context(|| format!("cannot draw {}", path.display()))
}

fn height(groups: &[Group]) -> u32 {
    let bars: i32 = groups
        .iter()
        .map(|group| group.bars.len() as i32 * BAR + GAP)
        .sum();
    (MARGIN + TITLE + LEGEND + bars + MARGIN) as u32
}

fn chart<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    groups: &[Group],
    log: bool,
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    area.fill(&WHITE)?;
    let text = |size: f64, at: HPos| {
        TextStyle::from((TYPEFACE, size).into_font())
            .color(&INK)
            .pos(Pos::new(at, VPos::Center))
    };
    let (left, middle, right) = (
        text(13.0, HPos::Left),
        text(20.0, HPos::Left),
        text(13.0, HPos::Right),
    );
    area.draw_text(title, &middle, (MARGIN, MARGIN + TITLE / 2))?;
    let names = names(groups);
    let mut x = MARGIN;
    let y = MARGIN + TITLE + LEGEND / 2;
    for (number, name) in names.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()].filled();
        area.draw(&Rectangle::new([(x, y - 6), (x + 12, y + 6)], colour))?;
        area.draw_text(name, &left, (x + 18, y))?;
        let (width, _) = area.estimate_text_size(name, &left)?;
        x += 18 + width as i32 + 24;
    }
    let scale = Scale::new(groups, log);
    let space = WIDTH as i32 - NAMES - VALUES - MARGIN;
    let mut y = MARGIN + TITLE + LEGEND;
    for group in groups {
        let middle = y + group.bars.len() as i32 * BAR / 2;
        area.draw_text(&group.name, &right, (NAMES - 8, middle))?;
        for bar in &group.bars {
            let number = names.iter().position(|name| *name == bar.name).unwrap_or(0);
            let colour = COLOURS[number % COLOURS.len()].filled();
            let end = NAMES + (scale.part(bar.value) * f64::from(space)) as i32;
            area.draw(&Rectangle::new(
                [(NAMES, y + 1), (end.max(NAMES + 1), y + BAR - 1)],
                colour,
            ))?;
            area.draw_text(&bar.shown, &left, (end + 6, y + BAR / 2))?;
            y += BAR;
        }
        y += GAP;
    }
    area.present()
}

/// The names of bars, in the order in which they come.
fn names(groups: &[Group]) -> Vec<&str> {
    let mut names = Vec::new();
    for bar in groups.iter().flat_map(|group| &group.bars) {
        if !names.contains(&&*bar.name) {
            names.push(&*bar.name);
        }
    }
    names
}

/// From values to lengths.
struct Scale {
    log: bool,
    least: f64,
    most: f64,
}

impl Scale {
    fn new(groups: &[Group], log: bool) -> Self {
        let values = groups
            .iter()
            .flat_map(|group| &group.bars)
            .map(|bar| bar.value);
        let most = values.clone().fold(f64::MIN_POSITIVE, f64::max);
        let least = values.filter(|value| *value > 0.0).fold(most, f64::min);
        // The shortest bar is still one.
        Self {
            log,
            least: least / 2.0,
            most,
        }
    }

    /// The length of a bar, as a part of the longest.
    fn part(&self, value: f64) -> f64 {
        if value <= 0.0 {
            0.0
        } else if self.log {
            (value / self.least).ln() / (self.most / self.least).ln()
        } else {
            value / self.most
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(values: &[f64]) -> Vec<Group> {
        let bar = |value: &f64| Bar {
            name: "a".into(),
            value: *value,
            shown: value.to_string(),
        };
        vec![Group {
            name: "g".into(),
            bars: values.iter().map(bar).collect(),
        }]
    }

    #[test]
    fn bars_are_as_long_as_their_values_or_as_the_logarithms() {
        let plain = Scale::new(&group(&[1.0, 2.0, 4.0]), false);
        assert_eq!(
            [1.0, 2.0, 4.0].map(|value| plain.part(value)),
            [0.25, 0.5, 1.0]
        );
        let log = Scale::new(&group(&[1.0, 2.0, 4.0]), true);
        let parts = [1.0, 2.0, 4.0].map(|value| log.part(value));
        assert!(
            (parts[0] - 1.0 / 3.0).abs() < 1e-9 && (parts[1] - 2.0 / 3.0).abs() < 1e-9,
            "{parts:?}"
        );
        assert_eq!(log.part(0.0), 0.0);
        assert_eq!(Scale::new(&[], true).part(0.0), 0.0);
    }
}
