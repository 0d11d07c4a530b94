//! Records: CSV, with facts about the run in comments at the beginning.

use crate::machine::Facts;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// One subject's times.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Row {
    pub layout: String,
    pub operation: String,
    pub shape: String,
    pub threads: usize,
    pub library: String,
    /// This library's ISA, or what the library says that it uses.
    pub variant: String,
    /// Of a call, over the rounds.
    pub median_us: f64,
    pub least_us: f64,
    /// Of the rounds' spread: the distance of the quartiles.
    pub quartiles_us: f64,
    pub rounds: usize,
    /// Calls that one time is the mean of.
    pub calls: usize,
    /// That a call must move.
    pub bytes: usize,
    /// bytes / median.
    pub gb_per_s: f64,
    /// Of workspace.
    pub workspace_bytes: usize,
}

/// A run.
#[derive(Default)]
pub struct Record {
    pub facts: Facts,
    pub rows: Vec<Row>,
}

impl Record {
    /// From files, one after the other.
    pub fn read(paths: &[impl AsRef<Path>]) -> Result<Self> {
        let mut record = Record::default();
        for path in paths {
            let path = path.as_ref();
            let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
            record.extend(&text).with_context(|| path.display().to_string())?;
        }
        Ok(record)
    }

    /// Takes in the text of one.
    pub fn extend(&mut self, text: &str) -> Result<()> {
        let facts = text.lines().filter_map(|l| l.strip_prefix("# ")?.split_once(": "));
        for (name, value) in facts {
            if self.fact(name).is_none() {
                self.facts.push((name.into(), value.into()));
            }
        }
        let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(text.as_bytes());
        for row in reader.deserialize() {
            self.rows.push(row?);
        }
        Ok(())
    }

    /// As text.
    pub fn csv(&self) -> Result<String> {
        let mut text = String::new();
        for (name, value) in &self.facts {
            writeln!(text, "# {name}: {value}")?;
        }
        let mut writer = csv::Writer::from_writer(Vec::new());
        for row in &self.rows {
            writer.serialize(row)?;
        }
        text += std::str::from_utf8(&writer.into_inner()?)?;
        Ok(text)
    }

    pub fn fact(&self, name: &str) -> Option<&str> {
        self.facts.iter().find(|(k, _)| k == name).map(|(_, v)| &v[..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back() {
        let row = Row {
            layout: "nhwc".into(),
            operation: "forward".into(),
            shape: "1x2".into(),
            threads: 2,
            library: "bn".into(),
            variant: "avx2, or so".into(),
            median_us: 1.5,
            least_us: 1.25,
            quartiles_us: 0.5,
            rounds: 3,
            calls: 7,
            bytes: 16,
            gb_per_s: 0.5,
            workspace_bytes: 8,
        };
        let facts = vec![("cpu".into(), "A: B".into())];
        let record = Record { facts: facts.clone(), rows: vec![row.clone()] };
        let mut back = Record::default();
        back.extend(&record.csv().unwrap()).unwrap();
        assert_eq!((back.facts, back.rows), (facts, vec![row]));
    }
}
