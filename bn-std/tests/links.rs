//! Every relative link of the documents leads to a file.

use std::path::{Path, PathBuf};

fn documents(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_symlink() {
            // The README beside a package, whose links are those of its own place.
            continue;
        }
        if path.is_dir() {
            // What is built, and what is not ours.
            if !name.starts_with('.') && !["target", "corpus", "artifacts"].contains(&name.as_str()) {
                documents(&path, found);
            }
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    documents(root, &mut found);
    let mut links = 0;
    for document in &found {
        let text = std::fs::read_to_string(document).unwrap();
        for after in text.split("](").skip(1) {
            let target = after.split([')', '#']).next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            let path = document.parent().unwrap().join(target);
            assert!(path.exists(), "{} links to {target}", document.display());
        }
    }
    assert!(links > 30, "only {links} links in {} documents", found.len());
}
