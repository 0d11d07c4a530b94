#!/usr/bin/env bash
# Licences, bans and sources of every dependency of every workspace, by deny.toml. With `advisories` as an
# argument also what the advisory database says, which is fetched.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

# Not optimised: it runs for seconds, and takes minutes to build.
command -v cargo-deny >/dev/null || cargo install --locked --debug cargo-deny
# A workspace is what has a lock file; --locked: the versions there are those that are checked.
git ls-files '*Cargo.lock' | while read -r lock; do
    printf '\n== cargo deny: %s\n' "${lock%.lock}.toml"
    cargo deny --manifest-path "${lock%.lock}.toml" --locked --config deny.toml check -A duplicate bans licenses sources "$@"
done
