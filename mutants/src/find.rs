//! All mutants of a crate: a walk over its modules.

use anyhow::{Context, Result};
use proc_macro2::{Delimiter, Group, Ident, Span, TokenStream, TokenTree};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{BinOp, Expr, Meta, ReturnType, Type, UnOp};

/// One change of the source.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mutant {
    /// From 1; 0 as long as it has not been drawn.
    pub id: usize,
    /// Below `src`.
    pub file: String,
    pub line: usize,
    /// From 1.
    pub column: usize,
    pub function: String,
    pub what: String,
    #[serde(skip)]
    pub edit: Option<Edit>,
}

impl std::fmt::Display for Mutant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{} {}: {}", self.file, self.line, self.column, self.function, self.what)
    }
}

/// What is written in its place, as ranges of the file.
#[derive(Clone, Debug, PartialEq)]
pub enum Edit {
    /// Another operator.
    Binary { whole: Range<usize>, left: Range<usize>, right: Range<usize>, op: &'static str, assigns: bool },
    /// No operator.
    Unary { whole: Range<usize>, operand: Range<usize> },
    /// A function returns this at once.
    Body { at: usize, value: String },
    /// A match arm without a guard is never taken.
    Arm { at: usize },
    /// A guard is always true or false.
    Guard { guard: Range<usize>, value: bool },
}

/// Mutants, and how many more stand where no run-time switch can.
#[derive(Default)]
pub struct Found {
    pub mutants: Vec<Mutant>,
    pub in_consts: usize,
}

/// All of a crate. `cfg` has what is set, as `rustc --print cfg` writes it.
pub fn find(src: &Path, cfg: &HashSet<String>) -> Result<Found> {
    let mut found = Found::default();
    let mut files = vec!["lib.rs".to_string()];
    while let Some(file) = files.pop() {
        let text = std::fs::read_to_string(src.join(&file)).with_context(|| file.clone())?;
        let tree = syn::parse_file(&text).with_context(|| file.clone())?;
        let directory = match file.strip_suffix("mod.rs").or(file.strip_suffix("lib.rs")) {
            Some(own) => own.to_string(),
            None => format!("{}/", file.trim_end_matches(".rs")),
        };
        let mut walk =
            Walk { text: &text, file: &file, cfg, path: vec![], in_const: false, found: &mut found, modules: vec![] };
        walk.visit_file(&tree);
        for module in walk.modules {
            let (flat, nested) = (format!("{directory}{module}.rs"), format!("{directory}{module}/mod.rs"));
            files.push(if src.join(&flat).exists() { flat } else { nested });
        }
    }
    // In the order of the files' names, whatever that of the modules.
    found.mutants.sort_by(|a, b| (&a.file, a.line).cmp(&(&b.file, b.line)));
    Ok(found)
}

struct Walk<'a> {
    text: &'a str,
    file: &'a str,
    cfg: &'a HashSet<String>,
    path: Vec<String>,
    in_const: bool,
    found: &'a mut Found,
    modules: Vec<String>,
}

fn range(node: &impl Spanned) -> Range<usize> {
    node.span().byte_range()
}

impl Walk<'_> {
    fn add(&mut self, span: Span, what: String, edit: Edit) {
        if self.in_const {
            self.found.in_consts += 1;
            return;
        }
        let (file, function) = (self.file.to_string(), self.path.join("::"));
        let (line, column) = (span.start().line, span.start().column + 1);
        self.found.mutants.push(Mutant { id: 0, file, line, column, function, what, edit: Some(edit) });
    }

    /// Whether this build has an item.
    fn has(&self, attributes: &[syn::Attribute]) -> bool {
        attributes.iter().all(|a| match &a.meta {
            Meta::List(l) if a.path().is_ident("cfg") => l.parse_args().is_ok_and(|m| self.holds(&m)),
            _ => !a.path().is_ident("test"),
        })
    }

    fn holds(&self, cfg: &Meta) -> bool {
        let parts = |l: &syn::MetaList| {
            let parts = l.parse_args_with(syn::punctuated::Punctuated::<Meta, syn::Token![,]>::parse_terminated);
            parts.into_iter().flatten().collect::<Vec<_>>()
        };
        match cfg {
            Meta::List(l) if l.path.is_ident("not") => !parts(l).iter().any(|m| self.holds(m)),
            Meta::List(l) if l.path.is_ident("any") => parts(l).iter().any(|m| self.holds(m)),
            Meta::List(l) => parts(l).iter().all(|m| self.holds(m)),
            other => self.cfg.contains(&self.text[range(other)].replace(" = ", "=")),
        }
    }

    fn within(&mut self, name: String, visit: impl FnOnce(&mut Self)) {
        self.path.push(name);
        visit(self);
        self.path.pop();
    }

    /// What a run-time switch cannot be in.
    fn constant(&mut self, visit: impl FnOnce(&mut Self)) {
        let before = std::mem::replace(&mut self.in_const, true);
        visit(self);
        self.in_const = before;
    }

    fn function(&mut self, attributes: &[syn::Attribute], signature: &syn::Signature, body: &syn::Block) {
        if !self.has(attributes) {
            return;
        }
        let before = self.in_const;
        self.in_const |= signature.constness.is_some();
        self.within(signature.ident.to_string(), |walk| {
            let values = match &signature.output {
                ReturnType::Default => vec!["()".to_string()],
                ReturnType::Type(_, t) => walk.values(t),
            };
            let braces = body.brace_token.span;
            let inner = walk.text[braces.open().byte_range().end..braces.close().byte_range().start].trim();
            for value in values {
                if !body.stmts.is_empty() && inner != value {
                    let at = braces.open().byte_range().end;
                    let what = format!("replace the body with {value}");
                    walk.add(signature.ident.span(), what, Edit::Body { at, value });
                }
            }
            visit::visit_block(walk, body);
        });
        self.in_const = before;
    }

    /// Values of a type, as they can be written without knowing more of it.
    fn values(&self, t: &Type) -> Vec<String> {
        let all = |values: &[&str]| values.iter().map(|v| v.to_string()).collect::<Vec<_>>();
        let wrap = |name: &str, inner: Vec<String>| inner.iter().map(|v| format!("{name}({v})")).collect::<Vec<_>>();
        match t {
            Type::Tuple(t) => {
                let mut values = vec![String::new()];
                for part in &t.elems {
                    let more = self.values(part);
                    values = values.iter().flat_map(|v| more.iter().map(move |m| format!("{v}{m}, "))).collect();
                }
                values.iter().map(|v| format!("({})", v.trim_end_matches(", "))).collect()
            }
            Type::Array(a) => {
                let length = &self.text[range(&a.len)];
                self.values(&a.elem).iter().map(|v| format!("[{v}; {length}]")).collect()
            }
            Type::Path(p) => {
                let last = p.path.segments.last().expect("a path has a segment");
                let inner = match &last.arguments {
                    syn::PathArguments::AngleBracketed(a) => match a.args.first() {
                        Some(syn::GenericArgument::Type(t)) => self.values(t),
                        _ => vec![],
                    },
                    _ => vec![],
                };
                match last.ident.to_string().as_str() {
                    "bool" => all(&["true", "false"]),
                    "u8" | "u16" | "u32" | "u64" | "u128" | "usize" => all(&["0", "1"]),
                    "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => all(&["0", "1", "-1"]),
                    "f32" | "f64" => all(&["0.0", "1.0", "-1.0"]),
                    "Option" => [all(&["None"]), wrap("Some", inner)].concat(),
                    "Result" => wrap("Ok", inner),
                    _ => all(&["Default::default()"]),
                }
            }
            Type::Reference(r) if matches!(&*r.elem, Type::Path(p) if p.path.is_ident("str")) => all(&["\"\""]),
            _ => vec![],
        }
    }

    /// Code in the body of a macro or in its arguments, if it can be read.
    fn tokens<T: syn::parse::Parse>(&mut self, tokens: TokenStream, visit: impl FnOnce(&mut Self, T)) -> bool {
        syn::parse2::<T>(tokens).map(|tree| visit(self, tree)).is_ok()
    }

    fn macro_bodies(&mut self, tokens: TokenStream) {
        let trees: Vec<TokenTree> = tokens.into_iter().collect();
        for (i, tree) in trees.iter().enumerate() {
            let arrow = i >= 2 && trees[i - 1].to_string() == ">" && trees[i - 2].to_string() == "=";
            let TokenTree::Group(body) = tree else { continue };
            if !arrow {
                continue;
            }
            let plain = without_variables(body.stream());
            let braced = |before: &str| {
                let mut all: TokenStream = before.parse().expect("tokens");
                all.extend([TokenTree::Group(Group::new(Delimiter::Brace, plain.clone()))]);
                all
            };
            let read = self.tokens(plain.clone(), |w, t: syn::File| w.visit_file(&t))
                || self
                    .tokens(braced("impl X"), |w, t: syn::ItemImpl| t.items.iter().for_each(|i| w.visit_impl_item(i)))
                || self.tokens(braced(""), |w, t: syn::Block| w.visit_block(&t));
            if !read {
                eprintln!("{}:{}: a macro's body that is left out", self.file, body.span().start().line);
            }
        }
    }
}

/// The body of a macro as if its variables were names, and what it repeats stood there once.
fn without_variables(tokens: TokenStream) -> TokenStream {
    let mut out = TokenStream::new();
    let mut rest = tokens.into_iter().peekable();
    while let Some(tree) = rest.next() {
        match (&tree, rest.peek()) {
            (TokenTree::Punct(p), Some(TokenTree::Ident(name))) if p.as_char() == '$' => {
                let span = p.span().join(name.span()).expect("in one file");
                let name = if name == "crate" { "crate".to_string() } else { format!("__{name}") };
                out.extend([TokenTree::Ident(Ident::new(&name, span))]);
                rest.next();
            }
            (TokenTree::Punct(p), Some(TokenTree::Group(repeated))) if p.as_char() == '$' => {
                out.extend(without_variables(repeated.stream()));
                rest.next();
                while rest.next().is_some_and(|t| !"*+?".contains(&t.to_string())) {}
            }
            (TokenTree::Group(g), _) => {
                let mut group = Group::new(g.delimiter(), without_variables(g.stream()));
                group.set_span(g.span());
                out.extend([TokenTree::Group(group)]);
            }
            _ => out.extend([tree]),
        }
    }
    out
}

/// Whether `let` is part of a condition, which cannot be moved.
fn binds(e: &Expr) -> bool {
    match e {
        Expr::Let(_) => true,
        Expr::Binary(b) => binds(&b.left) || binds(&b.right),
        _ => false,
    }
}

/// The operators that take an operator's place.
fn others(op: &BinOp) -> &'static [&'static str] {
    match op {
        BinOp::Eq(_) => &["!="],
        BinOp::Ne(_) => &["=="],
        BinOp::And(_) => &["||"],
        BinOp::Or(_) => &["&&"],
        BinOp::Lt(_) => &["==", ">", "<="],
        BinOp::Gt(_) => &["==", "<", ">="],
        BinOp::Le(_) => &[">"],
        BinOp::Ge(_) => &["<"],
        BinOp::Add(_) => &["-", "*"],
        BinOp::Sub(_) => &["+", "/"],
        BinOp::Mul(_) => &["+", "/"],
        BinOp::Div(_) => &["%", "*"],
        BinOp::Rem(_) => &["/", "+"],
        BinOp::Shl(_) => &[">>"],
        BinOp::Shr(_) => &["<<"],
        BinOp::BitAnd(_) => &["|", "^"],
        BinOp::BitOr(_) => &["&", "^"],
        BinOp::BitXor(_) => &["|", "&"],
        BinOp::AddAssign(_) => &["-=", "*="],
        BinOp::SubAssign(_) => &["+=", "/="],
        BinOp::MulAssign(_) => &["+=", "/="],
        BinOp::DivAssign(_) => &["%=", "*="],
        BinOp::RemAssign(_) => &["/=", "+="],
        BinOp::ShlAssign(_) => &[">>="],
        BinOp::ShrAssign(_) => &["<<="],
        BinOp::BitAndAssign(_) => &["|=", "^="],
        BinOp::BitOrAssign(_) => &["&=", "^="],
        BinOp::BitXorAssign(_) => &["|=", "&="],
        _ => &[],
    }
}

impl<'ast> Visit<'ast> for Walk<'_> {
    fn visit_item_mod(&mut self, m: &'ast syn::ItemMod) {
        if self.has(&m.attrs) {
            match m.content {
                None => self.modules.push(m.ident.to_string()),
                Some(_) => visit::visit_item_mod(self, m),
            }
        }
    }
    fn visit_item_fn(&mut self, f: &'ast syn::ItemFn) {
        self.function(&f.attrs, &f.sig, &f.block);
    }
    fn visit_impl_item_fn(&mut self, f: &'ast syn::ImplItemFn) {
        self.function(&f.attrs, &f.sig, &f.block);
    }
    fn visit_trait_item_fn(&mut self, f: &'ast syn::TraitItemFn) {
        if let Some(body) = &f.default {
            self.function(&f.attrs, &f.sig, body);
        }
    }
    fn visit_item_impl(&mut self, i: &'ast syn::ItemImpl) {
        if self.has(&i.attrs) {
            let name = match &*i.self_ty {
                Type::Path(p) => p.path.segments.last().expect("a segment").ident.to_string(),
                other => self.text[range(other)].to_string(),
            };
            self.within(name, |walk| visit::visit_item_impl(walk, i));
        }
    }
    fn visit_item_trait(&mut self, t: &'ast syn::ItemTrait) {
        if self.has(&t.attrs) {
            self.within(t.ident.to_string(), |walk| visit::visit_item_trait(walk, t));
        }
    }
    fn visit_item_macro(&mut self, m: &'ast syn::ItemMacro) {
        match &m.ident {
            _ if !self.has(&m.attrs) => {}
            Some(name) => self.within(format!("{name}!"), |walk| walk.macro_bodies(m.mac.tokens.clone())),
            None => visit::visit_item_macro(self, m),
        }
    }
    /// Arguments that are expressions, where the macro may be the crate's own.
    fn visit_macro(&mut self, m: &'ast syn::Macro) {
        const FOREIGN: [&str; 8] =
            ["assert", "debug_assert", "cfg", "compile_error", "matches", "write", "unreachable", "new"];
        let name = m.path.segments.last().expect("a segment").ident.to_string();
        if FOREIGN.iter().any(|f| name.starts_with(f)) {
            return;
        }
        // Commas between the parameters of a closure separate no arguments.
        let (mut arguments, mut in_closure) = (vec![TokenStream::new()], false);
        for tree in m.tokens.clone() {
            match &tree {
                TokenTree::Punct(p) if p.as_char() == ',' && !in_closure => arguments.push(TokenStream::new()),
                _ => {
                    in_closure ^= matches!(&tree, TokenTree::Punct(p) if p.as_char() == '|');
                    arguments.last_mut().expect("one").extend([tree]);
                }
            }
        }
        self.within(format!("{name}!(…)"), |walk| {
            for argument in arguments {
                walk.tokens(argument, |w, e: Expr| w.visit_expr(&e));
            }
        });
    }

    fn visit_item_const(&mut self, i: &'ast syn::ItemConst) {
        self.constant(|walk| visit::visit_item_const(walk, i));
    }
    fn visit_item_static(&mut self, i: &'ast syn::ItemStatic) {
        self.constant(|walk| visit::visit_item_static(walk, i));
    }
    fn visit_impl_item_const(&mut self, i: &'ast syn::ImplItemConst) {
        self.constant(|walk| visit::visit_impl_item_const(walk, i));
    }
    fn visit_trait_item_const(&mut self, i: &'ast syn::TraitItemConst) {
        self.constant(|walk| visit::visit_trait_item_const(walk, i));
    }
    fn visit_expr_const(&mut self, e: &'ast syn::ExprConst) {
        self.constant(|walk| visit::visit_expr_const(walk, e));
    }
    fn visit_type(&mut self, t: &'ast Type) {
        self.constant(|walk| visit::visit_type(walk, t));
    }
    fn visit_generic_argument(&mut self, a: &'ast syn::GenericArgument) {
        self.constant(|walk| visit::visit_generic_argument(walk, a));
    }
    fn visit_variant(&mut self, v: &'ast syn::Variant) {
        self.constant(|walk| visit::visit_variant(walk, v));
    }
    fn visit_pat(&mut self, p: &'ast syn::Pat) {
        self.constant(|walk| visit::visit_pat(walk, p));
    }
    fn visit_expr_repeat(&mut self, e: &'ast syn::ExprRepeat) {
        self.visit_expr(&e.expr);
        self.constant(|walk| walk.visit_expr(&e.len));
    }

    fn visit_local(&mut self, l: &'ast syn::Local) {
        if self.has(&l.attrs) {
            visit::visit_local(self, l);
        }
    }
    fn visit_expr_block(&mut self, e: &'ast syn::ExprBlock) {
        if self.has(&e.attrs) {
            visit::visit_expr_block(self, e);
        }
    }
    fn visit_expr_if(&mut self, e: &'ast syn::ExprIf) {
        if self.has(&e.attrs) {
            visit::visit_expr_if(self, e);
        }
    }

    fn visit_expr_binary(&mut self, e: &'ast syn::ExprBinary) {
        if !binds(&e.left) && !binds(&e.right) {
            let (whole, left, right) = (range(e), range(&e.left), range(&e.right));
            let (original, assigns) = (&self.text[range(&e.op)], ends_in_assignment(&e.op));
            for op in others(&e.op) {
                let (whole, left, right) = (whole.clone(), left.clone(), right.clone());
                let what = format!("replace {original} with {op}");
                self.add(e.op.span(), what, Edit::Binary { whole, left, right, op, assigns });
            }
        }
        visit::visit_expr_binary(self, e);
    }
    fn visit_expr_unary(&mut self, e: &'ast syn::ExprUnary) {
        if matches!(e.op, UnOp::Not(_) | UnOp::Neg(_)) {
            let what = format!("delete {}", &self.text[range(&e.op)]);
            self.add(e.op.span(), what, Edit::Unary { whole: range(e), operand: range(&e.expr) });
        }
        visit::visit_expr_unary(self, e);
    }
    fn visit_expr_match(&mut self, e: &'ast syn::ExprMatch) {
        let arms: Vec<_> = e.arms.iter().filter(|a| self.has(&a.attrs)).collect();
        let rest = arms.iter().any(|a| a.guard.is_none() && matches!(a.pat, syn::Pat::Wild(_)));
        for arm in &arms {
            let pattern = self.text[range(&arm.pat)].to_string();
            match &arm.guard {
                Some((_, guard)) if !binds(guard) => {
                    for value in [true, false] {
                        let what = format!("replace the guard of {pattern} with {value}");
                        self.add(guard.span(), what, Edit::Guard { guard: range(&**guard), value });
                    }
                }
                None if rest && !matches!(arm.pat, syn::Pat::Wild(_)) => {
                    let at = range(&arm.pat).end;
                    self.add(arm.pat.span(), format!("delete the arm {pattern}"), Edit::Arm { at });
                }
                _ => {}
            }
        }
        self.visit_expr(&e.expr);
        arms.into_iter().for_each(|arm| self.visit_arm(arm));
    }
}

fn ends_in_assignment(op: &BinOp) -> bool {
    use BinOp::*;
    !matches!(
        op,
        Add(_)
            | Sub(_)
            | Mul(_)
            | Div(_)
            | Rem(_)
            | And(_)
            | Or(_)
            | BitXor(_)
            | BitAnd(_)
            | BitOr(_)
            | Shl(_)
            | Shr(_)
            | Eq(_)
            | Lt(_)
            | Le(_)
            | Ne(_)
            | Ge(_)
            | Gt(_)
    )
}
