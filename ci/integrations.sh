#!/usr/bin/env bash
# The adapters for candle and burn: lints, docs and tests. Not a part of CI: the frameworks take long to compile.
set -euo pipefail
cd "$(dirname "$0")/../integrations"

step() { printf '\n== %s\n' "$*"; }

for framework in candle burn; do
    cd "$framework"
    step "$framework: format, lints, docs"
    cargo fmt --check
    cargo clippy --locked --release --all-targets -- -D warnings
    RUSTDOCFLAGS='-D warnings' cargo doc --locked --release --no-deps
    step "$framework: tests"
    cargo test --locked --release
    cd ..
done
