//! Gives the shared library its name in programs that are linked with it.

use std::env::var;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let os = var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    if matches!(os.as_str(), "linux" | "android" | "freebsd" | "netbsd" | "openbsd" | "dragonfly") {
        // While the major version is 0 no two minor versions are promised to fit.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libbatchnorm.so.0");
    }
}
