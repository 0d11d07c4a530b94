//! How wrong the training forward pass of each library is, as the mean of x grows against its deviation.

use crate::measure::{Group, groups};
use crate::onednn::OneDnn;
use crate::{Options, measure};
use anyhow::{Context, Result, ensure};
use bn_benches::Operation;
use bn_benches::check::Answer;
use bn_benches::data::Data;
use bn_benches::shapes::{Case, layout_name};
use bn_core::Layout;
use comfy_table::{CellAlignment, Table, presets};
use std::collections::BTreeMap;

/// A line of what a measuring process prints: layout, library, ratio, error; apart by tabs.
const SEPARATOR: char = '\t';

/// The errors of one layout, in a process that has its threads.
pub fn run(options: &Options, layout: Layout, threads: usize, ratios: &[f32]) -> Result<String> {
    measure::in_pool(threads, || {
        let peers = OneDnn::load_all(options.libraries())?;
        let mut lines = String::new();
        for name in &options.shapes {
            let case = Case::named(name).context("no such shape")?;
            let Some(shape) = case.shape(layout)? else { continue };
            let mut data = Data::new(shape);
            for &ratio in ratios {
                data.set_mean(ratio);
                let answer = Answer::new(&data, Operation::Forward);
                // Made anew each time: some keep what they were made with.
                for Group { subjects, .. } in &mut groups(options, threads, &peers, &mut data)? {
                    for timed in subjects.iter_mut().filter(|t| t.subject.operation == Operation::Forward) {
                        let error = answer.error(&mut timed.subject, &mut data)?;
                        let (library, variant) = (&timed.subject.library, &timed.subject.variant);
                        let who = if library == "bn" { format!("bn, {variant}") } else { library.clone() };
                        let line = [layout_name(layout), name, &who, &ratio.to_string(), &error.to_string()];
                        lines += &line.join(&SEPARATOR.to_string());
                        lines.push('\n');
                    }
                }
            }
        }
        Ok(lines)
    })
}

/// The table of all processes' lines.
pub fn table(lines: &str, ratios: &[f32], markdown: bool) -> Result<String> {
    let mut rows: Vec<[&str; 3]> = Vec::new();
    let mut errors: BTreeMap<([&str; 3], &str), f64> = BTreeMap::new();
    for line in lines.lines() {
        let fields: Vec<_> = line.split(SEPARATOR).collect();
        let &[layout, shape, who, ratio, error] = &fields[..] else { anyhow::bail!("not a line of errors: {line:?}") };
        let row = [layout, shape, who];
        if !rows.contains(&row) {
            rows.push(row);
        }
        errors.insert((row, ratio), error.parse()?);
    }
    ensure!(!rows.is_empty(), "nothing was measured");
    let mut table = Table::new();
    table.load_style(if markdown { presets::ASCII_MARKDOWN } else { presets::UTF8_FULL_CONDENSED });
    let header = ["layout", "shape", "library"].map(str::to_owned).into_iter();
    table.set_header(header.chain(ratios.iter().map(|r| format!("mean/std {r:e}"))));
    for row in rows {
        let cells =
            ratios.iter().map(|r| errors.get(&(row, &r.to_string()[..])).map_or("–".into(), |e| format!("{e:.1e}")));
        table.add_row(row.iter().map(|&cell| cell.to_owned()).chain(cells));
    }
    for column in table.column_iter_mut().skip(3) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    Ok(format!("{table}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_a_row_for_each_library() {
        let lines =
            "nhwc\t1x1\tbn, avx2\t1\t0.0000005\nnhwc\t1x1\tpeer\t1\t0.5\nnhwc\t1x1\tbn, avx2\t100000\t0.0000006\n";
        let table = table(lines, &[1.0, 1e5], true).unwrap();
        let bn = table.lines().find(|l| l.contains("bn, avx2")).unwrap();
        assert!(bn.contains("5.0e-7") && bn.contains("6.0e-7"), "{bn}");
        let peer = table.lines().find(|l| l.contains("peer")).unwrap();
        assert!(peer.contains("5.0e-1") && peer.contains('–'), "{peer}");
        assert!(super::table("", &[1.0], true).is_err());
        assert!(super::table("nhwc\t1", &[1.0], true).is_err());
    }
}
