//! include/batchnorm.h is what cbindgen makes of the sources.
//!
//! `BATCHNORM_HEADER=write cargo test -p bn-capi --test header` writes it.

use std::path::Path;

#[test]
fn header_is_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new().with_src(root.join("src/lib.rs")).with_config(config);
    let mut made = Vec::new();
    // With the modules, whose items the header has first: what calls take, then the calls.
    let modules = ["types.rs", "status.rs"].map(|m| root.join("src").join(m));
    modules.into_iter().fold(bindings, cbindgen::Builder::with_src).generate().unwrap().write(&mut made);
    let made = String::from_utf8(made).unwrap();
    let path = root.join("include/batchnorm.h");
    if std::env::var("BATCHNORM_HEADER").as_deref() == Ok("write") {
        std::fs::write(&path, &made).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == made, "include/batchnorm.h is stale: BATCHNORM_HEADER=write cargo test -p bn-capi --test header");
}
