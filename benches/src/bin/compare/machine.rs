//! What a record says of where it was made.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// The CPUs that this process may use, one for each core first, then their siblings.
pub fn cpus() -> Vec<usize> {
    let allowed = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let allowed = allowed.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    let allowed = list(allowed.trim());
    let first_of_core = |cpu: &usize| {
        let file = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let siblings = list(fs::read_to_string(file).unwrap_or_default().trim());
        siblings.iter().filter(|s| allowed.contains(s)).min().is_none_or(|first| first == cpu)
    };
    let (mut cores, siblings): (Vec<_>, Vec<_>) = allowed.iter().copied().partition(first_of_core);
    cores.extend(siblings);
    cores
}

/// "0-3,8" as numbers.
fn list(text: &str) -> BTreeSet<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// Keeps this process, and its threads to be, on these CPUs.
#[cfg(target_os = "linux")]
pub fn pin(cpus: &[usize]) -> anyhow::Result<()> {
    // SAFETY: a set of bits, of which all zeros are valid; the macros stay inside it.
    let status = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for &cpu in cpus {
            libc::CPU_SET(cpu, &mut set);
        }
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    anyhow::ensure!(status == 0, "pinning to {cpus:?}: {}", std::io::Error::last_os_error());
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub fn pin(_: &[usize]) -> anyhow::Result<()> {
    Ok(())
}

/// Name and value.
pub type Facts = Vec<(String, String)>;

/// The CPU and its caches, the system, the commit, the compiler.
pub fn facts() -> Facts {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let value = |l: &str| l.split_once(':').filter(|(k, _)| k.trim() == name).map(|(_, v)| v.trim().to_owned());
        info.lines().find_map(value).unwrap_or_else(|| "unknown".into())
    };
    let family = format!("family {} model {} stepping {}", field("cpu family"), field("model"), field("stepping"));
    let features = ["avx2", "avx512f"].map(|f| (f, field("flags").split(' ').any(|g| g == f)));
    let features: Vec<&str> = features.iter().filter(|(_, has)| *has).map(|(f, _)| *f).collect();
    let mut facts = vec![
        ("cpu", field("model name")),
        ("cpu family", family),
        ("cpus", cpus().len().to_string()),
        ("cpu features", features.join(" ")),
    ];
    for (name, index) in [("L1d", 0), ("L2", 2), ("L3", 3)] {
        let file = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        facts.push((name, fs::read_to_string(file).map_or_else(|_| "unknown".into(), |s| s.trim().to_owned())));
    }
    let hugepages = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let hugepages = hugepages.split(['[', ']']).nth(1).unwrap_or("unknown").to_owned();
    facts.push(("transparent huge pages", hugepages));
    facts.push(("system", output("uname", &["-srm"])));
    facts.push(("load before", fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()));
    facts.push(("date", time::OffsetDateTime::now_utc().date().to_string()));
    let dirty =
        if output("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty() { "" } else { ", changed" };
    facts.push(("commit", output("git", &["rev-parse", "HEAD"]) + dirty));
    facts.push(("rustc", output("rustc", &["--version"])));
    facts.push(("bn", format!("{}, BITS_VERSION {}", env!("CARGO_PKG_VERSION"), bn_core::BITS_VERSION)));
    facts.into_iter().map(|(k, v)| (k.into(), v)).collect()
}

/// A directory's name for this machine.
pub fn slug(facts: &Facts) -> String {
    let get = |name: &str| facts.iter().find(|(k, _)| k == name).map_or("", |(_, v)| v);
    let family = get("cpu family").replace("family ", "f").replace(" model ", "m").replace(" stepping ", "s");
    let text = format!("{} {} {}cpu", get("cpu"), family, get("cpus")).to_lowercase();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
    words.collect::<Vec<_>>().join("-")
}

/// What a command says; nothing where it fails.
fn output(program: &str, arguments: &[&str]) -> String {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = if here.is_dir() { here } else { Path::new(".") };
    let output = Command::new(program).args(arguments).current_dir(directory).output();
    output
        .ok()
        .filter(|o| o.status.success())
        .map_or_else(String::new, |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus() {
        assert_eq!(list("0-2,5").into_iter().collect::<Vec<_>>(), [0, 1, 2, 5]);
        assert!(list("").is_empty());
    }

    #[test]
    fn slugs_are_file_names() {
        let facts = [("cpu", "AMD EPYC(tm) 9B14"), ("cpu family", "family 25 model 17 stepping 1"), ("cpus", "2")];
        let facts = facts.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec();
        assert_eq!(slug(&facts), "amd-epyc-tm-9b14-f25m17s1-2cpu");
    }
}
