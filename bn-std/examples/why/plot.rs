//! Figures of several panels, as SVG.
//!
//! A figure is data; drawing it is one function.

use anyhow::{Result, anyhow};
use core::ops::Range;
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Okabe & Ito's colours, which the colour-blind can tell apart.
pub const BLUE: RGBColor = RGBColor(0, 114, 178);
pub const VERMILION: RGBColor = RGBColor(213, 94, 0);
pub const GREEN: RGBColor = RGBColor(0, 158, 115);
pub const PURPLE: RGBColor = RGBColor(204, 121, 167);
pub const GREY: RGBColor = RGBColor(90, 90, 90);

const FONT: &str = "Helvetica, Arial, sans-serif";
/// In pixels; SVG scales. Three panels in a row are shown at about half their size, so the letters are large.
const PANEL: (u32, u32) = (560, 450);
const LEFT: u32 = 112;

/// Panels under one title and one legend.
pub struct Figure {
    pub title: String,
    /// What the lines and bands are.
    pub note: String,
    pub columns: usize,
    pub panels: Vec<Panel>,
}

/// One pair of axes.
pub struct Panel {
    pub title: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
}

/// A range with ticks. What lies beyond is drawn at its end.
#[derive(Clone)]
pub struct Axis {
    label: String,
    log: bool,
    ends: (f64, f64),
    ticks: Vec<f64>,
}

/// A line, and a band around it.
#[derive(Clone)]
pub struct Series {
    pub name: String,
    pub color: RGBColor,
    pub marker: Marker,
    pub dash: Dash,
    pub line: Vec<(f64, f64)>,
    /// x, low, high.
    pub band: Vec<(f64, f64, f64)>,
}

/// How a line is drawn.
#[derive(Clone, Copy, PartialEq)]
pub enum Dash {
    Solid,
    Dashed,
    Dotted,
}

/// What stands at each point, so that lines differ not in colour alone.
#[derive(Clone, Copy, PartialEq)]
pub enum Marker {
    None,
    Circle,
    Triangle,
    Cross,
    Square,
}

impl Axis {
    /// From the first tick to the last.
    pub fn linear(label: &str, ticks: &[f64]) -> Self {
        let ends = (ticks.first().copied().unwrap_or(0.0), ticks.last().copied().unwrap_or(1.0));
        Axis { label: label.into(), log: false, ends, ticks: ticks.to_vec() }
    }

    /// From 0 to a number of epochs, or of what else is counted.
    pub fn count(label: &str, last: usize) -> Self {
        let step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].into_iter().find(|step| last / step <= 6).unwrap_or(5000);
        let ticks: Vec<f64> = (0..=last).step_by(step).map(|t| t as f64).collect();
        Axis { ends: (0.0, last as f64), ..Axis::linear(label, &ticks) }
    }

    /// Logarithmic, with a tick at each decade, or at every second or third where they are many.
    pub fn log(label: &str, low: f64, high: f64) -> Self {
        let (first, last) = (low.log10().ceil() as i32, high.log10().floor() as i32);
        let step = 1 + (last - first) / 7;
        // By way of text, so that 0.001 is 0.001.
        let decade = |d: i32| format!("1e{d}").parse().unwrap_or_default();
        let ticks = (first..=last).filter(|d| d.rem_euclid(step) == 0).map(decade).collect();
        Axis { label: label.into(), log: true, ends: (low, high), ticks }
    }

    /// Logarithmic, with these ticks, and a little room on both sides of the values.
    pub fn log_at(label: &str, ticks: &[f64], values: &[f64]) -> Self {
        let (low, high) = values.iter().fold((f64::INFINITY, 0.0), |(low, high), &v| (v.min(low), v.max(high)));
        let room: f64 = (high / low).powf(0.05);
        let ends = (low / room, high * room);
        let ticks = ticks.iter().copied().filter(|t| (ends.0..=ends.1).contains(t)).collect();
        Axis { label: label.into(), log: true, ends, ticks }
    }

    /// Logarithmic over all finite positive values, in whole decades, but no further than from `least` to `most`.
    pub fn log_over(label: &str, values: impl Iterator<Item = f64>, (least, most): (f64, f64)) -> Self {
        let inside = values.filter(|v| v.is_finite() && *v > 0.0).map(|v| v.clamp(least, most));
        let (low, high) = inside.fold((most, least), |(low, high), v| (v.min(low), v.max(high)));
        let (low, high) = if low > high { (least, most) } else { (low, high) };
        let (low, high) = (low.log10().floor(), high.log10().ceil());
        Axis::log(label, 10f64.powf(low), 10f64.powf(high.max(low + 1.0)))
    }

    /// Where a value is, from 0 to 1. A loss that is no number any more is off the top.
    fn place(&self, value: f64) -> f64 {
        let scale = |v: f64| if self.log { v.log10() } else { v };
        let value = if value.is_nan() { f64::INFINITY } else { value };
        let (low, high) = (scale(self.ends.0), scale(self.ends.1));
        (scale(value).clamp(low, high) - low) / (high - low)
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (low, high): (i32, i32)) -> i32 {
        low + (self.place(*value) * f64::from(high - low)).round() as i32
    }
    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // Once: the faint lines between are not drawn.
        if hint.weight().allow_light_points() { Vec::new() } else { self.ticks.clone() }
    }
    fn range(&self) -> Range<f64> {
        self.ends.0..self.ends.1
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, tick: &f64) -> String {
        if *tick != 0.0 && !(1e-3..1e5).contains(&tick.abs()) { format!("{tick:e}") } else { tick.to_string() }
    }
}

impl Figure {
    /// The figure as SVG text.
    pub fn svg(&self) -> Result<String> {
        let columns = self.columns.min(self.panels.len()).max(1);
        let rows = self.panels.len().div_ceil(columns);
        let width = PANEL.0 * columns as u32;
        let note = wrap(&self.note, width as usize / 11);
        let head = 118 + 30 * note.len() as u32;
        let size = (width, head + PANEL.1 * rows as u32);
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            self.draw(&root, (head, &note), (rows, columns)).map_err(|e| anyhow!("drawing \"{}\": {e}", self.title))?;
            root.present()?;
        }
        // For those who hear the page.
        let label = format!("<title>{}</title>\n", escape(&self.title));
        if let Some(at) = svg.find("<rect") {
            svg.insert_str(at, &label);
        }
        Ok(svg)
    }

    fn draw(
        &self,
        root: &Area<'_>,
        (head, note): (u32, &[String]),
        grid: (usize, usize),
    ) -> Result<(), Box<dyn std::error::Error>> {
        root.fill(&WHITE)?;
        let (head, body) = root.split_vertically(head);
        let text =
            |size: u32, color: RGBColor| (FONT, size).into_font().color(&color).pos(Pos::new(HPos::Left, VPos::Top));
        head.draw(&Text::new(self.title.clone(), (20, 12), text(37, BLACK)))?;
        for (i, line) in note.iter().enumerate() {
            head.draw(&Text::new(line.clone(), (20, 58 + 30 * i as i32), text(25, GREY)))?;
        }

        let mut legend: Vec<&Series> = Vec::new();
        for series in self.panels.iter().flat_map(|p| &p.series).filter(|s| !s.name.is_empty()) {
            if !legend.iter().any(|known| known.name == series.name) {
                legend.push(series);
            }
        }
        let mut x = 20;
        for series in legend {
            let y = 58 + 30 * note.len() as i32 + 28;
            series.draw_line(&head, vec![(x, y), (x + 50, y)], &[(x + 25, y)])?;
            head.draw(&Text::new(series.name.clone(), (x + 60, y - 14), text(27, BLACK)))?;
            // Without a font library widths are a guess: a little more than Helvetica's mean.
            x += 60 + (series.name.chars().count() as f64 * 13.3) as i32 + 30;
        }
        for (panel, area) in self.panels.iter().zip(body.split_evenly(grid)) {
            panel.draw(&area)?;
        }
        Ok(())
    }
}

impl Panel {
    fn draw(&self, area: &Area<'_>) -> Result<(), Box<dyn std::error::Error>> {
        let Panel { x, y, .. } = self;
        let mut chart = ChartBuilder::on(area)
            .margin_left(8)
            .margin_right(32)
            .margin_top(48)
            .margin_bottom(16)
            .x_label_area_size(72)
            .y_label_area_size(LEFT - 8)
            .build_cartesian_2d(x.clone(), y.clone())?;
        chart
            .configure_mesh()
            .x_desc(&x.label)
            .y_desc(&y.label)
            .axis_desc_style((FONT, 27))
            .label_style((FONT, 26))
            .x_labels(x.ticks.len())
            .y_labels(y.ticks.len())
            .bold_line_style(RGBColor(222, 222, 222))
            .axis_style(RGBColor(120, 120, 120))
            .draw()?;
        // Along the plot, so that it stays clear of the topmost tick.
        let title = (FONT, 28).into_font().color(&BLACK).pos(Pos::new(HPos::Left, VPos::Top));
        area.draw(&Text::new(self.title.clone(), (LEFT as i32, 10), title))?;
        let plane = chart.plotting_area().strip_coord_spec();
        let (width, height) = plane.dim_in_pixel();
        let (right, bottom) = (width as i32 - 1, height as i32 - 1);
        let pixel = |px: f64, py: f64| (x.map(&px, (0, right)), y.map(&py, (bottom, 0)));
        for series in &self.series {
            if !series.band.is_empty() {
                let low = series.band.iter().map(|&(x, low, _)| pixel(x, low));
                let high = series.band.iter().rev().map(|&(x, _, high)| pixel(x, high));
                let outline: Vec<_> = low.chain(high).collect();
                plane.draw(&Polygon::new(outline, series.color.mix(0.18).filled()))?;
            }
        }
        for series in &self.series {
            let line: Vec<_> = series.line.iter().map(|&(x, y)| pixel(x, y)).collect();
            series.draw_line(&plane, line.clone(), &line)?;
        }
        Ok(())
    }
}

impl Series {
    /// In pixels: the line, and the marker where wanted.
    fn draw_line(
        &self,
        area: &Area<'_>,
        line: Vec<(i32, i32)>,
        points: &[(i32, i32)],
    ) -> Result<(), Box<dyn std::error::Error>> {
        let style = self.color.stroke_width(3);
        match self.dash {
            Dash::Solid => area.draw(&PathElement::new(line, style))?,
            Dash::Dashed => area.draw(&DashedPathElement::new(line, 11, 6, style))?,
            Dash::Dotted => area.draw(&DashedPathElement::new(line, 3, 4, style))?,
        }
        let fill = self.color.filled();
        for &at in points {
            match self.marker {
                Marker::None => {}
                Marker::Circle => area.draw(&Circle::new(at, 6, fill))?,
                Marker::Triangle => area.draw(&TriangleMarker::new(at, 9, fill))?,
                Marker::Cross => area.draw(&Cross::new(at, 6, style))?,
                Marker::Square => {
                    let (x, y) = at;
                    area.draw(&Rectangle::new([(x - 5, y - 5), (x + 5, y + 5)], fill))?;
                }
            }
        }
        Ok(())
    }
}

/// Into lines of no more letters than this, unless a word is longer.
fn wrap(text: &str, letters: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= letters => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_what_they_are_given() {
        let axis = Axis::log_over("loss", [0.02, 3.0, f64::NAN, f64::INFINITY, 0.0].into_iter(), (1e-6, 1e6));
        assert_eq!((axis.ends, &axis.ticks[..]), ((0.01, 10.0), &[0.01, 0.1, 1.0, 10.0][..]));
        assert_eq!([0.01, 1e-4, 20.0, 0.0].map(|t| axis.format_ext(&t)), ["0.01", "1e-4", "20", "0"]);
        assert_eq!([f64::NAN, 0.0, 10.0].map(|v| axis.place(v)), [1.0, 0.0, 1.0]);
        assert!((axis.place(0.1) - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!((axis.map(&10.0, (300, 0)), axis.map(&0.01, (300, 0))), (0, 300));
        let axis = Axis::log_over("nothing", [f64::NAN].into_iter(), (0.1, 10.0));
        assert_eq!(axis.ends, (0.1, 10.0));
        assert_eq!(Axis::count("epoch", 30).ticks, [0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0]);
    }

    #[test]
    fn notes_are_wrapped() {
        assert_eq!(wrap("ab cd efghij k", 5), ["ab cd", "efghij", "k"]);
        assert!(wrap("", 5).is_empty());
    }

    #[test]
    fn a_figure_is_svg_with_its_words() {
        let series = Series {
            name: "a < b".into(),
            color: BLUE,
            marker: Marker::Circle,
            dash: Dash::Dashed,
            line: vec![(1.0, 1.0), (2.0, f64::NAN), (3.0, f64::INFINITY)],
            band: vec![(1.0, 0.0, 2.0), (3.0, 1.0, 1.0)],
        };
        let (x, y) = (Axis::count("epoch", 3), Axis::log("loss", 0.1, 10.0));
        let panel = Panel { title: "panel".into(), x, y, series: vec![series] };
        let figure = Figure { title: "whole".into(), note: "note".into(), columns: 3, panels: vec![panel] };
        let svg = figure.svg().unwrap();
        for word in ["<svg", "<title>whole</title>", "panel", "note", "epoch", "loss", "a &lt; b"] {
            assert!(svg.contains(word), "{word} in {svg}");
        }
        assert!(!svg.contains("NaN"));
    }
}
