#!/usr/bin/env bash
# What bn-core costs firmware, and that it cannot panic there.
#
#   ci/firmware.sh panics      fails if any public operation has a path to a panic left
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
    for target in thumbv7em-none-eabihf thumbv6m-none-eabi; do
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

case ${1:-} in
    panics) panics ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
