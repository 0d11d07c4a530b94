//! The copy of the repository, and cargo in it.

use crate::find::Mutant;
use crate::run::{Test, list};
use crate::splice::{owners, splice};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where everything is.
pub struct Tree {
    pub repository: PathBuf,
    pub copy: PathBuf,
    pub target: PathBuf,
    /// `--cfg` flags.
    pub flags: String,
}

/// Writes a file unless it is there already: cargo goes by times.
fn write(path: &Path, text: &[u8]) -> Result<()> {
    if std::fs::read(path).ok().as_deref() != Some(text) {
        std::fs::create_dir_all(path.parent().context("a file")?)?;
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

impl Tree {
    pub fn sources(&self) -> PathBuf {
        self.repository.join("bn-core/src")
    }

    /// What is set where bn-core is compiled.
    pub fn cfg(&self) -> Result<HashSet<String>> {
        let out = Command::new("rustc").args(["--print", "cfg"]).args(self.flags.split_whitespace()).output()?;
        let set = String::from_utf8(out.stdout)?;
        Ok(set.lines().map(String::from).chain(["feature=\"half\"".to_string()]).collect())
    }

    /// Copies all that git knows, and new tests, with these mutants in bn-core.
    pub fn write(&self, mutants: &[Mutant]) -> Result<()> {
        let mut git = Command::new("git");
        git.args(["ls-files", "-co", "--exclude-standard"]).current_dir(&self.repository);
        for file in String::from_utf8(git.output()?.stdout)?.lines() {
            let Ok(text) = std::fs::read(self.repository.join(file)) else { continue };
            match file.strip_prefix("bn-core/src/") {
                Some(own) => {
                    let mine: Vec<&Mutant> = mutants.iter().filter(|m| m.file == own).collect();
                    let mut spliced = splice(std::str::from_utf8(&text)?, &mine);
                    if own == "lib.rs" {
                        spliced += "\n/// Which mutant is on.\nmod mutants;\n";
                    }
                    write(&self.copy.join(file), spliced.as_bytes())?;
                }
                None => write(&self.copy.join(file), &text)?,
            }
        }
        write(&self.copy.join("bn-core/src/mutants.rs"), include_bytes!("switch.rs"))
    }

    /// Runs cargo, and gives what it says.
    fn cargo(&self, arguments: &[&str]) -> Result<(bool, Vec<Value>)> {
        let mut cargo = Command::new("cargo");
        cargo
            .args(arguments)
            .args(["--features", "half", "--message-format", "json"])
            // Compiled in half the time, for tests that take a little longer.
            .args(["--config", "profile.dev.package.bn-core.opt-level=1", "--config", "profile.dev.debug=0"])
            .current_dir(&self.copy)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("RUSTFLAGS", format!("--cap-lints allow {}", self.flags).trim())
            .stderr(Stdio::inherit());
        let out = cargo.output()?;
        let lines = String::from_utf8(out.stdout)?;
        Ok((out.status.success(), lines.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()))
    }

    /// Leaves out, until the rest compiles, those that do not, and gives how many. Those of earlier runs are known: what
    /// is written twice is built twice.
    pub fn settle(&self, mutants: &mut Vec<Mutant>, kept: &Path) -> Result<usize> {
        let drawn = mutants.len();
        let mut known: HashSet<String> = match std::fs::read(kept) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(_) => HashSet::new(),
        };
        mutants.retain(|m| !known.contains(&m.to_string()));
        loop {
            self.write(mutants)?;
            let (good, said) = self.cargo(&["check", "-p", "bn-core", "--lib"])?;
            if good {
                std::fs::write(kept, serde_json::to_vec(&known)?)?;
                return Ok(drawn - mutants.len());
            }
            let wrong = self.blamed(&said)?;
            ensure!(!wrong.is_empty(), "bn-core does not compile, and no mutant is to blame");
            for m in mutants.iter().filter(|m| wrong.contains(&m.id)) {
                eprintln!("not viable: {m}");
                known.insert(m.to_string());
            }
            mutants.retain(|m| !wrong.contains(&m.id));
        }
    }

    /// The mutants that errors point at.
    fn blamed(&self, said: &[Value]) -> Result<HashSet<usize>> {
        let mut blamed = HashSet::new();
        for message in said.iter().map(|m| &m["message"]).filter(|m| m["level"] == "error") {
            let mut spans: Vec<&Value> = message["spans"].as_array().into_iter().flatten().collect();
            // What the error is about before what explains it.
            spans.sort_by_key(|s| s["is_primary"] != true);
            let mut of_this = vec![];
            for span in spans {
                // From a macro's body out to where it is called.
                let mut at = Some(span);
                while let Some(span) = at.filter(|_| of_this.is_empty()) {
                    let path = self.copy.join(span["file_name"].as_str().unwrap_or_default());
                    let byte = |name: &str| span[name].as_u64().unwrap_or(0) as usize;
                    if let Ok(text) = std::fs::read_to_string(path) {
                        of_this = owners(&text, byte("byte_start")..byte("byte_end"));
                    }
                    at = span["expansion"].get("span");
                }
            }
            if of_this.is_empty() && !message["spans"].as_array().is_none_or(|s| s.is_empty()) {
                eprintln!("{}", message["rendered"].as_str().unwrap_or_default());
            }
            blamed.extend(of_this);
        }
        Ok(blamed)
    }

    /// Builds the tests of these packages and targets.
    pub fn tests(&self, arguments: &[&str]) -> Result<Vec<Test>> {
        let (good, said) = self.cargo(&[&["test", "--no-run"], arguments].concat())?;
        if !good {
            for message in &said {
                eprint!("{}", message["message"]["rendered"].as_str().unwrap_or_default());
            }
            bail!("the tests do not build");
        }
        let mut executables = BTreeMap::new();
        for artifact in said.iter().filter(|m| m["reason"] == "compiler-artifact") {
            if let (Some(e), Some(m)) = (artifact["executable"].as_str(), artifact["manifest_path"].as_str()) {
                executables.insert(PathBuf::from(e), Path::new(m).parent().context("a manifest")?.to_path_buf());
            }
        }
        let mut tests = vec![];
        for (executable, package) in executables {
            for name in list(&executable, &package)? {
                let (executable, package) = (executable.clone(), package.clone());
                tests.push(Test { executable, package, name, time: 0.0, reaches: HashSet::new() });
            }
        }
        Ok(tests)
    }
}
