#!/usr/bin/env bash
# Every fuzz target, or those named, for a bounded number of runs from the seeds. RUNS changes the number for all.
#
#   ci/fuzz.sh [TARGET...]            by libFuzzer, with counters and the address sanitizer: a nightly toolchain
#   BLIND=1 ci/fuzz.sh [TARGET...]    by chance, on the build of `cargo test --workspace`
set -euo pipefail
cd "$(dirname "$0")/../fuzz"
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

# Few of what is slow: oracles and threads.
declare -A runs=([forward]=800 [backward]=600 [inference]=1000 [layouts]=250 [isas]=1000 [threads]=150 [stages]=200 [fold]=20000 [capi]=10000
    [errors]=50000)
targets=("$@")
[ $# -gt 0 ] || targets=(forward backward inference layouts isas threads stages fold capi errors)

if [ -n "${BLIND:-}" ]; then
    cd ..
    # That the targets compile with libFuzzer too, which itself need not be compiled for that.
    (cd fuzz && CUSTOM_LIBFUZZER_PATH=/nonexistent/libFuzzer.a cargo check --locked --bins)
    # With the bn-core that the tests of the workspace have built (Cargo.toml).
    programs=$(cargo test --workspace --no-run --test header "${targets[@]/#/--test=blind-}" --message-format json-render-diagnostics |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
    for t in "${targets[@]}"; do
        printf '\n== %s\n' "$t"
        mkdir -p "fuzz/artifacts/$t"
        program=$(grep "/blind_$t-" <<<"$programs")
        "$program" -runs="${RUNS:-${runs[$t]}}" -input="fuzz/artifacts/$t/input" "fuzz/seeds/$t" ||
            { echo "fuzz: $t failed on fuzz/artifacts/$t/input" >&2; exit 1; }
    done
    exit
fi

command -v cargo-fuzz >/dev/null || cargo install --locked --debug cargo-fuzz
how=(--codegen-units 16)
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
