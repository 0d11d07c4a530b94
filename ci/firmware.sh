#!/usr/bin/env bash
# What bn-core costs firmware, and that it cannot panic there.
#
#   ci/firmware.sh panics      fails if any public operation has a path to a panic left
#   ci/firmware.sh size        writes docs/size.md: flash, stack, and instructions
#
# embedded/surface has each operation behind a symbol of its own; here each symbol is linked alone,
# with unused sections removed. The panic handler calls a function that nobody defines, so a link
# that succeeds is the proof that no panic can be reached.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
target_dir=${CARGO_TARGET_DIR:-$root/target/cross}
export CARGO_TARGET_DIR=$target_dir

die() { printf 'firmware: %s\n' "$*" >&2; exit 1; }

host=$(rustc -vV | sed -n 's/^host: //p')
lld=$(rustc --print sysroot)/lib/rustlib/$host/bin/rust-lld
[ -x "$lld" ] || die 'rust-lld is missing: it comes with rustup'"'"'s toolchains'
llvm=$(ls -d /usr/lib/llvm-*/bin 2>/dev/null | sort -V | tail -1)
[ -n "$llvm" ] || die 'llvm is missing: ci/cross.sh install'

# build TARGET PROFILE: leaves the archive's path in $archive.
build() {
    (cd embedded && ../ci/cross.sh cargo build --locked --quiet --profile "$2" -p surface --target "$1")
    archive=$target_dir/$1/$2/libsurface.a
}

# The operations: all symbols that the archive's Rust code exports with C names.
symbols() {
    "$llvm/llvm-nm" --defined-only --extern-only "$archive" 2>/dev/null |
        awk '$2 == "T" && $3 ~ /^(f16|bf16|f32|f64|shape|moments|running)_[a-z_]+$/ { print $3 }' | sort -u
}

# link SYMBOL OUT [ARGS]: one operation and what it needs.
link() {
    "$lld" -flavor gnu --gc-sections --entry="$1" --undefined="$1" "${@:3}" "$archive" -o "$2"
}

panics() {
    local tmp target profile s bad=0 n=0
    tmp=$(mktemp -d)
    # shellcheck disable=SC2064 # the directory of now
    trap "rm -rf '$tmp'" EXIT
    # One target: which paths are left is decided before there are machine instructions.
    for target in thumbv7em-none-eabihf; do
        for profile in release small; do
            build "$target" "$profile"
            for s in $(symbols); do
                n=$((n + 1))
                if link "$s" "$tmp/$s" 2>"$tmp/err"; then
                    continue
                fi
                grep -q a_panic_path_is_left "$tmp/err" || { cat "$tmp/err" >&2; die "$s does not link"; }
                bad=$((bad + 1))
                echo "$s ($target, $profile) can panic:"
                link "$s" "$tmp/$s" --defsym=a_panic_path_is_left=0 2>/dev/null
                sites "$tmp/$s"
            done
        done
    done
    [ "$n" -gt 0 ] || die 'no operations found: has embedded/surface lost its symbols?'
    [ "$bad" -eq 0 ] || die "$bad of $n operations can panic"
    echo "no panic path in $n linked operations"
}

# sites ELF: where the calls of panicking functions come from, by the line tables.
sites() {
    "$llvm/llvm-objdump" -d --no-show-raw-insn "$1" |
        awk '/^[0-9a-f]+ </ { inside = ($2 ~ /panic|unwind/) }
             !inside && /<[^>+]*(panic|unwrap_failed|expect_failed|_fail)[^>+]*>/ { sub(":", "", $1); print "0x" $1 }' |
        "$llvm/llvm-symbolizer" --inlines --obj="$1" --output-style=LLVM |
        awk '/:[0-9]+:[0-9]+$/ { sub(".*/(registry/src/[^/]*|library)/", ""); sub("'"$root"'/", ""); at = at (at ? " < " : "    ") $0 }
             /^$/ && at { print at; at = "" }' | sort | uniq -c
}

# Bytes of flash of one linked operation.
flash() {
    link "$1" "$tmp/elf" --defsym=a_panic_path_is_left=0 2>/dev/null
    "$llvm/llvm-size" "$tmp/elf" | awk 'NR == 2 { print $1 + $2 }'
}

# The operations that firmware is made of; the first of each kind that the surface has.
MAIN=(
    f32_plan f32_prepare f32_apply f32_inference f32_moments f32_normalize f32_training f32_backward_sums
    f32_backward_apply f32_backward_batch f32_backward f32_running_update moments_merge
    f64_inference f64_training f64_backward
)

size() {
    local target profile s core opt column=0
    tmp=$(mktemp -d)
    # shellcheck disable=SC2064 # the directory of now
    trap "rm -rf '$tmp'" EXIT
    for target in thumbv7em-none-eabihf thumbv6m-none-eabi; do
        for profile in small release; do
            column=$((column + 1))
            build "$target" "$profile"
            for s in "${MAIN[@]}"; do flash "$s"; done >"$tmp/flash.$column"
            (cd embedded && BN_BOARD=mps2 ../ci/cross.sh cargo build --locked --quiet --profile "$profile" -p runner \
                --bin cost --target "$target")
            # One board for both: the M4 runs the M0's instructions, and has the memory.
            qemu-system-arm -M mps2-an386 -cpu cortex-m4 -nographic -icount shift=0 \
                -semihosting-config enable=on,target=native -kernel "$target_dir/$target/$profile/cost" \
                >"$tmp/cost.$column" 2>&1 </dev/null || { cat "$tmp/cost.$column" >&2; die 'cost failed'; }
        done
    done
    mkdir -p docs
    {
        cat <<'END'
# Size, stack and instructions on Cortex-M

Written by `ci/firmware.sh size`. M4F is `thumbv7em-none-eabihf` (single-precision FPU; f64 in software), M0 is
`thumbv6m-none-eabi` (no FPU). Fat LTO, one codegen unit, optimised for size ("s") or speed (3).

## Flash

Bytes of code and constants of one operation linked alone, with all that it needs: software floating point, `memcpy`,
square root. Programs with several operations share most of that. Activation, layout and options are run-time
arguments, and so all linked. `f32_backward_batch` leaves out running statistics and the residual.

END
        echo '| operation | M4F, s | M4F, 3 | M0, s | M0, 3 |'
        echo '|---|--:|--:|--:|--:|'
        printf '%s\n' "${MAIN[@]}" | paste - "$tmp"/flash.{1,2,3,4} | awk '{ print "| `" $1 "` | " $2 " | " $3 " | " $4 " | " $5 " |" }'
        cat <<'END'

## Instructions and stack

f32, with gamma, beta and ReLU, on the calling thread, counted by the emulator: instructions per element and per
channel (from three sizes of 4096 to 8192 elements), and the deepest stack in bytes over several shapes, ordinary and
extreme values (which lead through the f64 paths).

END
        echo '| operation | layout | | M4F, s | M4F, 3 | M0, s | M0, 3 |'
        echo '|---|---|---|--:|--:|--:|--:|'
        paste -d' ' "$tmp"/cost.{1,2,3,4} | tr -d '\r' | awk '$1 == "cost" {
            print "| " $2 " | " $3 " | per element | " $4 / 10 " | " $10 / 10 " | " $16 / 10 " | " $22 / 10 " |"
            print "| | | per channel | " $5 " | " $11 " | " $17 " | " $23 " |"
            print "| | | stack | " $6 " | " $12 " | " $18 " | " $24 " |" }'
    } >docs/size.md
    echo 'written: docs/size.md'
}

case ${1:-} in
    panics) panics ;;
    size) size ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
