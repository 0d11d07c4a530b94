#!/usr/bin/env bash
# Synchronized batch normalization over MPI: installs Open MPI and libclang where they are missing (as root, Debian or
# Ubuntu), builds bn-mpi, and runs its tests and its example on 1, 2, 3 and 4 ranks, more of them than cores or not.
set -euo pipefail
cd "$(dirname "$0")/../bn-mpi"

step() { printf '\n== %s\n' "$*"; }

# Ranks that cargo starts without mpirun (the doc tests) are refused to root otherwise.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

has_libclang() { ldconfig -p | grep -q 'libclang[-.]' && compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null; }

if ! command -v mpirun >/dev/null || ! command -v mpicc >/dev/null || ! has_libclang; then
    step 'install Open MPI and libclang'
    if [ "$(id -u)" -ne 0 ]; then
        echo 'install libopenmpi-dev openmpi-bin libclang1 libclang-common-dev, or run this as root' >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    # bindgen needs the library, and the compiler's own headers.
    apt-get install -qy --no-install-recommends libopenmpi-dev openmpi-bin libclang1-14 libclang-common-14-dev ||
        apt-get install -qy --no-install-recommends libopenmpi-dev openmpi-bin libclang-dev
fi

step 'format'
cargo fmt --check

step 'lints'
cargo clippy --all-targets -- -D warnings
cargo clippy --features half -- -D warnings

step 'docs'
RUSTDOCFLAGS='-D warnings' cargo doc --no-deps

step 'tests on 1, 2, 3 and 4 ranks, and doc tests'
cargo test

step 'the example on 4 ranks'
cargo build --example digits
timeout 120 mpirun --oversubscribe --bind-to none -n 4 "${CARGO_TARGET_DIR:-target}/debug/examples/digits"
