#!/usr/bin/env bash
# Every fuzz target, or those named, for a bounded number of runs from the seeds. RUNS changes the number for all.
# SANITIZER=none leaves the address sanitizer out, and BLIND=1 bn-core's coverage counters: each takes minutes from a build.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

command -v cargo-fuzz >/dev/null || cargo install --locked --debug cargo-fuzz
# Few of what is slow: oracles and threads.
declare -A runs=([forward]=800 [backward]=600 [inference]=1000 [layouts]=250 [isas]=1000 [threads]=150 [stages]=200 [fold]=20000 [capi]=10000
    [errors]=50000)
targets=("$@")
[ $# -gt 0 ] || targets=(forward backward inference layouts isas threads stages fold capi errors)

# In a directory of its own: cargo would take one bn-core for the other.
[ -z "${BLIND:-}" ] || export RUSTC_WRAPPER=$PWD/uninstrumented.sh CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/blind
how=(--sanitizer "${SANITIZER:-address}" --codegen-units 16)
cargo +nightly fuzz build "${how[@]}"
for t in "${targets[@]}"; do
    printf '\n== fuzz %s\n' "$t"
    mkdir -p "corpus/$t"
    # A thread that is ending while leaks are looked for has memory that nobody else knows of.
    leaks=1
    [ "$t" != threads ] || leaks=0
    # The seed of the generator is fixed: the same runs each time.
    cargo +nightly fuzz run "${how[@]}" "$t" "corpus/$t" "seeds/$t" -- \
        -runs="${RUNS:-${runs[$t]}}" -seed=1 -max_len=512 -len_control=0 -timeout=60 -verbosity=0 -print_final_stats=1 -detect_leaks=$leaks
done
