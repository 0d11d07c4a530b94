#!/usr/bin/env bash
# What the library promises of targets: it builds for bare metal.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

BARE=(thumbv7em-none-eabihf thumbv6m-none-eabi riscv32imac-unknown-none-elf x86_64-unknown-none)

step 'tools'
ci/cross.sh install

for target in "${BARE[@]}"; do
    step "bn-core for $target ($(ci/cross.sh which "$target"))"
    ci/cross.sh cargo build --locked --release -p bn-core --target "$target"
done
