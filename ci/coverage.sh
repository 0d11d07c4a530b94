#!/usr/bin/env bash
# Lines of bn-core's sources that the tests run, file by file; arguments go to the report (--html, --show-missing-lines).
#
# Needs cargo-llvm-cov (cargo install --locked cargo-llvm-cov) and the toolchain's llvm-tools (or LLVM_COV and
# LLVM_PROFDATA). Code for AVX-512 is left out: most machines cannot run it. Doctests are not counted.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin" PROPTEST_RNG_SEED="${PROPTEST_RNG_SEED:-20260923}"

step() { printf '\n== %s\n' "$*"; }

cargo llvm-cov clean --workspace
step 'all tests of the default members, all element types'
cargo llvm-cov --no-report -p bn-core -p bn-std -p bn-oracle -p bn-conformance --all-features --tests
step 'element by element, as on bare metal'
RUSTFLAGS='--cfg bn_single' cargo llvm-cov --no-report -p bn-core --features half --test sizes --test strides --test tasks --test extremes
step 'lines of bn-core'
cargo llvm-cov report --ignore-filename-regex '/(benches|bn-std|bn-conformance|bn-capi|oracle)/|bn-core/src/lanes/avx512\.rs' "$@"
