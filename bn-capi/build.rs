//! Gives the shared library its name in programs that are linked with it.

use std::env::var;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let os = var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if matches!(os.as_str(), "linux" | "android" | "freebsd" | "netbsd" | "openbsd" | "dragonfly") {
        // While the major version is 0 no two minor versions are promised to fit.
        let [major, minor] = ["MAJOR", "MINOR"].map(|n| var(format!("CARGO_PKG_VERSION_{n}")).unwrap_or_default());
        let version = if major == "0" { format!("0.{minor}") } else { major };
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libbatchnorm.so.{version}");
    }
}
