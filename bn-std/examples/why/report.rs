//! What was seen, in Markdown.

use super::plot::Figure;
use super::{BATCH, HIDDEN, LEARNING_RATE, Lab, Spread};
use core::fmt::Write;

/// One claim, and what became of it.
pub struct Section {
    pub claim: String,
    pub verdict: Verdict,
    /// In a few words.
    pub seen: String,
    pub title: String,
    /// Of the figure, without `.svg`.
    pub file: &'static str,
    pub figure: Figure,
    pub text: String,
}

/// Whether a claim showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Shown,
    Partly,
    NotShown,
}

impl Verdict {
    pub fn of(all: bool, some: bool) -> Self {
        match (all, some) {
            (true, _) => Verdict::Shown,
            (false, true) => Verdict::Partly,
            (false, false) => Verdict::NotShown,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Verdict::Shown => "shown",
            Verdict::Partly => "shown in part",
            Verdict::NotShown => "**not shown**",
        }
    }
}

/// A Markdown table; all but the first column are aligned right.
pub struct Table(String);

impl Table {
    pub fn new(header: &[&str]) -> Self {
        let rule = "|---:".repeat(header.len().saturating_sub(1));
        Table(format!("| {} |\n|---{rule}|\n", header.join(" | ")))
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().collect();
        self.0 += &format!("| {} |\n", cells.join(" | "));
    }

    pub fn markdown(&self) -> &str {
        &self.0
    }
}

/// "97.2 (96.1 – 98.0)": of shares, in per cent.
pub fn percent(spread: Spread) -> String {
    show(spread.map(|v| v * 100.0), |v| format!("{v:.1}"))
}

/// With two significant digits.
pub fn number(spread: Spread) -> String {
    show(spread, digits)
}

/// As a factor.
pub fn times(spread: Spread) -> String {
    show(spread, |v| digits(v) + "×")
}

/// Whole numbers; infinity is "never".
pub fn count(spread: Spread) -> String {
    show(spread, |v| if v.is_infinite() { "never".into() } else { format!("{}", v.round()) })
}

/// A change, with its sign.
pub fn signed(v: f64) -> String {
    // Not "-0.0".
    let v = if v.abs() < 0.05 { 0.0 } else { v };
    format!("{v:+.1}").replace('-', "−")
}

fn show(Spread { median, low, high }: Spread, f: impl Fn(f64) -> String) -> String {
    let [median, low, high] = [median, low, high].map(f);
    if low == high { median } else { format!("{median} ({low} – {high})") }
}

pub fn digits(v: f64) -> String {
    match v.abs() {
        a if a.is_infinite() => "∞".into(),
        0.0 => "0".into(),
        a if !(1e-3..1e4).contains(&a) => format!("{v:.1e}"),
        a if a >= 10.0 => format!("{v:.0}"),
        // Digits behind the point, so that two count.
        a => format!("{v:.*}", (1 - a.log10().floor() as i32).max(0) as usize),
    }
}

/// The page.
pub fn markdown(lab: &Lab, sections: &[Section]) -> String {
    let mut page = String::new();
    let data = lab.starts.first().map(|s| (s.data.train.rows(), s.data.test.rows())).unwrap_or_default();
    let command = if lab.quick { " -- --quick" } else { "" };
    let hidden = HIDDEN.map(|width| width.to_string()).join(" → ");
    let seeds = match &lab.seeds[..] {
        [one] => format!("one seed ({one})"),
        [first, .., last] => format!("{} seeds ({first} to {last})", lab.seeds.len()),
        [] => "no seeds".into(),
    };
    let _ = write!(
        page,
        "# Why batch normalization works: what shows on handwritten digits\n\n\
         Written by `cargo run --release --example why_it_works{command}`, from its numbers, verdicts and all. The claims \
         are those of Ioffe & Szegedy 2015, of Santurkar et al. 2018, of Ketan Doshi's article \"Batch Norm Explained \
         Visually — Why does it work?\", and of Lei Mao's \"Batch Normalization Explained\".\n\n\
         - **Data**: 1,797 scanned digits of 8 × 8 pixels; {} to learn from, {} to test on, split anew for each seed.\n\
         - **Network**: 64 → {hidden} → 10, dense, ReLU; BN before each ReLU (ε 10⁻⁵, running statistics as PyTorch's \
         with momentum 0.1) or none. Weights after He et al. 2015.\n\
         - **Training**: plain SGD without schedule, momentum or decay: {} epochs of batches of {BATCH}, learning rate \
         {LEARNING_RATE}, where nothing else is said.\n\
         - **Runs**: {seeds}. All that is compared starts from the same weights and sees the same batches in the same \
         order. Numbers are medians (lowest – highest). The test set has a resolution of {:.2} %: smaller differences \
         mean nothing.\n\n\
         It is a small network on easy data. What shows here need not show elsewhere, and the other way round.\n\n\
         | claim | here | what was seen |\n|---|---|---|\n",
        data.0,
        data.1,
        lab.epochs,
        100.0 / data.1.max(1) as f64,
    );
    for s in sections {
        let anchor = s.title.to_lowercase().replace(' ', "-").replace(|c: char| !c.is_alphanumeric() && c != '-', "");
        let _ = writeln!(page, "| [{}](#{anchor}) | {} | {} |", s.claim, s.verdict.name(), s.seen);
    }
    for s in sections {
        let _ = write!(page, "\n## {}\n\n![{}]({}.svg)\n\n{}", s.title, s.figure.title, s.file, s.text);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (v, text) in [
            (0.0, "0"),
            (0.034_56, "0.035"),
            (1.26, "1.3"),
            (12.6, "13"),
            (1234.0, "1234"),
            (1e6, "1.0e6"),
            (0.000_123, "1.2e-4"),
            (f64::INFINITY, "∞"),
        ] {
            assert_eq!(digits(v), text);
        }
        let spread = Spread { median: 0.972, low: 0.96, high: 0.98 };
        assert_eq!([1.26, 0.01, -0.01, -2.0].map(signed), ["+1.3", "+0.0", "+0.0", "−2.0"]);
        assert_eq!(percent(spread), "97.2 (96.0 – 98.0)");
        assert_eq!(count(Spread::of([3.0, 3.0])), "3");
        assert_eq!(count(Spread::of([3.0, 5.0, f64::INFINITY])), "5 (3 – never)");
    }

    #[test]
    fn tables_are_markdown() {
        let mut table = Table::new(&["a", "b"]);
        table.row(["1".into(), "2".into()]);
        assert_eq!(table.markdown(), "| a | b |\n|---|---:|\n| 1 | 2 |\n");
    }
}
