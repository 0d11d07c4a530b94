//! The two figures: dots, a row for each shape.

use crate::record::Record;
use crate::report::{LAYOUTS, Times};
use anyhow::{Result, anyhow};
use bn_benches::Operation;
use bn_benches::shapes::CASES;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Okabe & Ito's colours, which the colour-blind can tell apart.
const COLOURS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115)];
const GREY: RGBColor = RGBColor(90, 90, 90);
const FAINT: RGBColor = RGBColor(222, 222, 222);
const FONT: &str = "Helvetica, Arial, sans-serif";

const LABELS: i32 = 190;
const PANEL: i32 = 520;
const GAP: i32 = 60;
const ROW: i32 = 34;
const HEAD: i32 = 186;
const FOOT: i32 = 88;

/// A figure.
struct Figure<'r> {
    title: String,
    note: [String; 2],
    axis: &'static str,
    operations: &'static [Operation],
    log: bool,
    ticks: &'static [f64],
    /// Where the reference line is.
    one: &'static str,
    value: &'r dyn Fn(crate::report::Point<'_>, Operation) -> Option<f64>,
}

/// Writes `ratios.svg` and `limit.svg`.
pub fn write(record: &Record, directory: &Path) -> Result<()> {
    let times = Times::new(record);
    let cpu = record.fact("cpu").unwrap_or("an unknown CPU");
    let date = record.fact("date").unwrap_or("");
    let letters = times.letters();
    let peers: Vec<&str> = letters.keys().copied().collect();
    let ratio = |p: crate::report::Point<'_>, o| times.ratio(p, o);
    let ratios = Figure {
        title: "Speed of bn, as a multiple of the fastest peer's".into(),
        note: [
            format!("{cpu}, {}, f32, medians of one run, {date}. Further right is faster.", times.isa),
            format!("Fastest of: {}.", peers.join(", ")),
        ],
        axis: "× the fastest peer (logarithmic)",
        operations: Operation::COMMON,
        log: true,
        ticks: &[0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0],
        one: "as fast",
        value: &ratio,
    };
    let share = |p: crate::report::Point<'_>, o| times.of_limit(p, o);
    let limit = Figure {
        title: "Speed of bn, as a share of what the memory allows".into(),
        note: [
            format!("{cpu}, {}, f32, medians of one run, {date}.", times.isa),
            "Limit: forward, the fastest read + copy; backward, the fastest read of two + triad; inference, the fastest copy.".into(),
        ],
        axis: "share of the limit",
        operations: Operation::COMMON,
        log: false,
        ticks: &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6],
        one: "limit",
        value: &share,
    };
    for (name, figure) in [("ratios.svg", ratios), ("limit.svg", limit)] {
        if let Some(svg) = figure.svg(&times)? {
            crate::write(&directory.join(name), &svg)?;
        } else {
            eprintln!("nothing to draw for {name}");
        }
    }
    Ok(())
}

impl Figure<'_> {
    /// `None` where there is nothing to draw.
    fn svg(&self, times: &Times<'_>) -> Result<Option<String>> {
        let has = |layout: &&str| times.threads().iter().any(|&t| times.points(layout, t).next().is_some());
        let layouts: Vec<&str> = LAYOUTS.into_iter().filter(has).collect();
        let threads: Vec<usize> = times.threads().into_iter().collect();
        let shapes: Vec<&str> = CASES.iter().map(|c| c.name).collect();
        let mut dots = Vec::new();
        for (panel, layout) in layouts.iter().enumerate() {
            for (fill, &t) in threads.iter().enumerate() {
                for p in times.points(layout, t) {
                    for (kind, &operation) in self.operations.iter().enumerate() {
                        let row = shapes.iter().position(|s| *s == p.shape);
                        if let (Some(value), Some(row)) = ((self.value)(p, operation), row) {
                            dots.push(Dot { panel, row, kind, fill, value });
                        }
                    }
                }
            }
        }
        let rows: Vec<usize> = (0..shapes.len()).filter(|r| dots.iter().any(|d| d.row == *r)).collect();
        if dots.is_empty() {
            return Ok(None);
        }
        let (low, high) = self.ends(&dots);
        let width = LABELS + (PANEL + GAP) * layouts.len() as i32;
        let height = HEAD + ROW * rows.len() as i32 + FOOT;
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, (width as u32, height as u32)).into_drawing_area();
            let scene = Scene { layouts: &layouts, threads: &threads, rows: &rows, low, high };
            self.draw(&root, &scene, &dots).map_err(|e| anyhow!("drawing \"{}\": {e}", self.title))?;
            root.present()?;
        }
        // For those who hear the page.
        if let Some(at) = svg.find("<rect") {
            svg.insert_str(at, &format!("<title>{}</title>\n", self.title));
        }
        Ok(Some(svg))
    }

    fn scale(&self, v: f64) -> f64 {
        if self.log { v.log2() } else { v }
    }

    /// Whole ticks around all values.
    fn ends(&self, dots: &[Dot]) -> (f64, f64) {
        let least = dots.iter().fold(1.0f64, |m, d| m.min(d.value));
        let most = dots.iter().fold(1.0f64, |m, d| m.max(d.value));
        let low = self.ticks.iter().rev().find(|t| **t <= least).or(self.ticks.first()).copied().unwrap_or(least);
        let high = self.ticks.iter().find(|t| **t >= most).or(self.ticks.last()).copied().unwrap_or(most);
        (low, high)
    }

    fn draw(&self, root: &Area<'_>, scene: &Scene<'_>, dots: &[Dot]) -> Drawn {
        root.fill(&WHITE)?;
        text(root, &self.title, (20, 16), 28, BLACK, HPos::Left)?;
        for (i, line) in self.note.iter().enumerate() {
            text(root, line, (20, 54 + 24 * i as i32), 18, GREY, HPos::Left)?;
        }
        // The legend: operations, then threads.
        let mut x = 20;
        for (kind, operation) in self.operations.iter().enumerate() {
            mark(root, (x + 10, 122), kind, true)?;
            text(root, operation.name(), (x + 28, 112), 20, BLACK, HPos::Left)?;
            x += 60 + 11 * operation.name().len() as i32;
        }
        x += 20;
        for (fill, t) in scene.threads.iter().enumerate() {
            mark_circle(root, (x + 10, 122), GREY, fill > 0)?;
            let name = format!("{t} thread{}", if *t == 1 { "" } else { "s" });
            text(root, &name, (x + 28, 112), 20, BLACK, HPos::Left)?;
            x += 60 + 11 * name.len() as i32;
        }
        let bottom = HEAD + ROW * scene.rows.len() as i32;
        let at = |panel: usize, value: f64| {
            let (low, high) = (self.scale(scene.low), self.scale(scene.high));
            let place = (self.scale(value).clamp(low, high) - low) / (high - low);
            LABELS + (PANEL + GAP) * panel as i32 + (place * f64::from(PANEL)).round() as i32
        };
        for (i, row) in scene.rows.iter().enumerate() {
            let y = HEAD + ROW * i as i32;
            if i % 2 == 0 {
                for panel in 0..scene.layouts.len() {
                    let band = [(at(panel, scene.low), y), (at(panel, scene.high), y + ROW)];
                    root.draw(&Rectangle::new(band, RGBColor(246, 246, 246).filled()))?;
                }
            }
            text(root, &CASES[*row].name.replace('x', "×"), (LABELS - 14, y + ROW / 2 - 9), 18, BLACK, HPos::Right)?;
        }
        // Below it are the shapes that do not count in the means.
        if let Some(i) = scene.rows.iter().position(|r| !CASES[*r].big).filter(|i| *i > 0) {
            let y = HEAD + ROW * i as i32;
            let right = at(scene.layouts.len() - 1, scene.high);
            root.draw(&PathElement::new(vec![(20, y), (right, y)], RGBColor(160, 160, 160).stroke_width(1)))?;
        }
        for (panel, layout) in scene.layouts.iter().enumerate() {
            let centre = (at(panel, scene.low) + at(panel, scene.high)) / 2;
            text(root, &layout.to_uppercase(), (centre, HEAD - 32), 22, BLACK, HPos::Center)?;
            for tick in self.ticks.iter().filter(|t| (scene.low..=scene.high).contains(*t)) {
                let x = at(panel, *tick);
                let style = if *tick == 1.0 { GREY.stroke_width(2) } else { FAINT.stroke_width(1) };
                root.draw(&PathElement::new(vec![(x, HEAD), (x, bottom)], style))?;
                text(root, &tick.to_string(), (x, bottom + 8), 18, BLACK, HPos::Center)?;
            }
            text(root, self.one, (at(panel, 1.0), bottom + 30), 16, GREY, HPos::Center)?;
            text(root, self.axis, (centre, bottom + 54), 18, BLACK, HPos::Center)?;
        }
        for dot in dots {
            // Operations and threads beside each other, so that equal values both show.
            let order = (dot.kind * scene.threads.len() + dot.fill) as i32;
            let places = (self.operations.len() * scene.threads.len()) as i32;
            let shift = (2 * order - (places - 1)) * (ROW - 12) / (2 * places);
            let i = scene.rows.iter().position(|r| *r == dot.row).unwrap_or(0) as i32;
            mark(root, (at(dot.panel, dot.value), HEAD + ROW * i + ROW / 2 + shift), dot.kind, dot.fill > 0)?;
        }
        Ok(())
    }
}

struct Scene<'a> {
    layouts: &'a [&'a str],
    threads: &'a [usize],
    rows: &'a [usize],
    low: f64,
    high: f64,
}

struct Dot {
    panel: usize,
    /// In the table of shapes.
    row: usize,
    kind: usize,
    fill: usize,
    value: f64,
}

fn text(root: &Area<'_>, text: &str, at: (i32, i32), size: u32, colour: RGBColor, side: HPos) -> Drawn {
    let style = (FONT, size).into_font().color(&colour).pos(Pos::new(side, VPos::Top));
    Ok(root.draw(&Text::new(text.to_owned(), at, style))?)
}

fn mark_circle(root: &Area<'_>, at: (i32, i32), colour: RGBColor, filled: bool) -> Drawn {
    let inside = if filled { colour } else { WHITE };
    root.draw(&Circle::new(at, 6, inside.filled()))?;
    Ok(root.draw(&Circle::new(at, 6, colour.stroke_width(2)))?)
}

/// A circle, a square or a triangle; open for the fewest threads.
fn mark(root: &Area<'_>, (x, y): (i32, i32), kind: usize, filled: bool) -> Drawn {
    let colour = COLOURS[kind % COLOURS.len()];
    let corners = match kind {
        0 => return mark_circle(root, (x, y), colour, filled),
        1 => vec![(x - 5, y - 5), (x + 5, y - 5), (x + 5, y + 5), (x - 5, y + 5)],
        _ => vec![(x - 7, y + 5), (x + 7, y + 5), (x, y - 7)],
    };
    let inside = if filled { colour } else { WHITE };
    root.draw(&Polygon::new(corners.clone(), inside.filled()))?;
    let closed = corners.iter().chain(&corners[..2]).copied().collect::<Vec<_>>();
    Ok(root.draw(&PathElement::new(closed, colour.stroke_width(2)))?)
}
