//! The text of a file with its mutants in it, each behind a question to `crate::mutants::on`.

use crate::find::{Edit, Mutant};
use std::ops::Range;

/// The mutants of one place.
struct Site<'a> {
    range: Range<usize>,
    mutants: Vec<&'a Mutant>,
}

fn edit(m: &Mutant) -> &Edit {
    m.edit.as_ref().expect("found in this run")
}

fn place(e: &Edit) -> Range<usize> {
    match e {
        Edit::Binary { whole, .. } | Edit::Unary { whole, .. } => whole.clone(),
        Edit::Body { at, .. } | Edit::Arm { at } => *at..*at,
        Edit::Guard { guard, .. } => guard.clone(),
    }
}

/// The file with these mutants, all of which are its own.
pub fn splice(text: &str, mutants: &[&Mutant]) -> String {
    let mut sites: Vec<Site> = vec![];
    for m in mutants {
        let same = |s: &&mut Site| {
            s.range == place(edit(m)) && std::mem::discriminant(edit(s.mutants[0])) == std::mem::discriminant(edit(m))
        };
        match sites.iter_mut().find(same) {
            Some(site) => site.mutants.push(m),
            None => sites.push(Site { range: place(edit(m)), mutants: vec![m] }),
        }
    }
    // The outer before the inner: a guard before the operator that all of it is.
    sites.sort_by_key(|s| {
        let inner = !matches!(edit(s.mutants[0]), Edit::Guard { .. });
        (s.range.start, !s.range.is_empty(), usize::MAX - s.range.end, inner)
    });
    render(text, 0..text.len(), &sites)
}

/// A range, in which all `sites` are.
fn render(text: &str, range: Range<usize>, sites: &[Site]) -> String {
    let (mut out, mut at, mut i) = (String::new(), range.start, 0);
    while i < sites.len() {
        let site = &sites[i];
        let inner = sites[i + 1..].iter().take_while(|s| s.range.start < site.range.end).count();
        let below = &sites[i + 1..i + 1 + inner];
        out += &text[at..site.range.start];
        out += &written(text, site, below);
        at = site.range.end;
        i += 1 + inner;
    }
    out + &text[at..range.end]
}

/// One site. Comments say which text is whose: `owners` reads them.
fn written(text: &str, site: &Site, below: &[Site]) -> String {
    let ids: Vec<String> = site.mutants.iter().map(|m| m.id.to_string()).collect();
    let part = |r: &Range<usize>| {
        let inside = |s: &&Site| r.start <= s.range.start && s.range.end <= r.end;
        let first = below.iter().position(|s| inside(&s)).unwrap_or(0);
        let count = below.iter().filter(inside).count();
        render(text, r.clone(), &below[first..first + count])
    };
    let mut out = format!("/*<{}*/", ids.join(","));
    match edit(site.mutants[0]) {
        Edit::Binary { left, right, .. } => {
            let (l, r) = (part(left), part(right));
            out += "(";
            for m in &site.mutants {
                let Edit::Binary { op, assigns, .. } = edit(m) else { unreachable!("of one kind") };
                let changed = if *assigns { format!("{l} {op} {r}") } else { format!("({l}) {op} ({r})") };
                out += &format!("if crate::mutants::on({id}) {{/*<{id}*/{changed}/*>*/}} else ", id = m.id);
            }
            out += &format!("{{{l}{}{r}}})", &text[left.end..right.start]);
        }
        Edit::Unary { whole, operand } => {
            let (id, o) = (&ids[0], part(operand));
            let operator = &text[whole.start..operand.start];
            out += &format!("(if crate::mutants::on({id}) {{/*<{id}*/{o}/*>*/}} else {{{operator}{o}}})");
        }
        Edit::Body { .. } => {
            for m in &site.mutants {
                let Edit::Body { value, .. } = edit(m) else { unreachable!("of one kind") };
                out += &format!("if crate::mutants::on({id}) {{/*<{id}*/return {value};/*>*/}}", id = m.id);
            }
        }
        Edit::Arm { .. } => out += &format!(" if !crate::mutants::on({})", ids[0]),
        Edit::Guard { guard, .. } => {
            let mut all = format!("({})", part(guard));
            for m in &site.mutants {
                let always = matches!(edit(m), Edit::Guard { value: true, .. });
                let (not, or) = if always { ("", "||") } else { ("!", "&&") };
                all = format!("({not}crate::mutants::on({}) {or} {all})", m.id);
            }
            out += &all;
        }
    }
    out + "/*>*/"
}

/// Whose the bytes of a written file are that a compiler complains about: the mutants of the innermost text around them.
pub fn owners(text: &str, bytes: Range<usize>) -> Vec<usize> {
    let mut open: Vec<(usize, &str)> = vec![];
    let mut best: Option<(usize, &str)> = None;
    let mut at = 0;
    while let Some(next) = text[at..].find("/*").map(|i| at + i) {
        let end = next + text[next..].find("*/").expect("comments end") + 2;
        let mark = &text[next + 2..end - 2];
        if mark == ">" {
            let (start, ids) = open.pop().expect("in pairs");
            let around = start <= bytes.start && bytes.end <= end;
            if around && best.is_none_or(|(other, _)| other < start) {
                best = Some((start, ids));
            }
        } else if let Some(ids) = mark.strip_prefix('<') {
            open.push((next, ids));
        }
        at = end;
    }
    best.map(|(_, ids)| ids.split(',').map(|i| i.parse().expect("a number")).collect()).unwrap_or_default()
}
