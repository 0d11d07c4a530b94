#!/usr/bin/env bash
# The same bits on every target: builds the conformance set for each, runs it (emulated where need
# be), and compares every hash with those of this machine's portable code.
#
#   ci/targets.sh [NAME...]      all runs, or those whose names begin so
#
# Without names it also proves that nothing can panic on bare metal, and builds for x86-64 without
# an operating system.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
tests=${CARGO_TARGET_DIR:-$root/target}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target/cross}
out=$CARGO_TARGET_DIR/conformance
began=$SECONDS

step() { printf '\n== %s (%d s)\n' "$*" $((SECONDS - began)); }
die() { printf 'targets: %s\n' "$*" >&2; exit 1; }

step 'tools'
ci/cross.sh install
rm -rf "$out"
mkdir -p "$out"

# Where f16 and bf16 are run too: their kernels take as long to build as all others, and have no code
# of their own elsewhere.
half() {
    case $1 in aarch64 | wasm-simd128 | cortex-m4) echo --features=half ;; esac
}

# build NAME PROFILE TARGET BIN RUSTFLAGS [ENV=VALUE...]: leaves the program's path in $program.
build() {
    local name=$1 profile=$2 target=$3 bin=$4 flags=$5
    shift 5
    local suffix='' var
    case $target in wasm32-*) suffix=.wasm ;; esac
    # Flags are the target's own, so that build scripts and macros are not built anew with them.
    var=CARGO_TARGET_$(tr 'a-z.-' 'A-Z__' <<<"$target")_RUSTFLAGS
    (cd embedded && env "$@" ${flags:+"$var=$flags"} \
        ../ci/cross.sh cargo build --locked --quiet --profile "$profile" -p runner --bin "$bin" --target "$target" $(half "$name")) || return 1
    # Other flags, other boards: the next build writes to the same place.
    program=$out/$name.program
    cp "$CARGO_TARGET_DIR/$target/$profile/$bin$suffix" "$program"
}

wanted() {
    local w
    [ ${#only[@]} -gt 0 ] || return 0
    for w in "${only[@]}"; do
        case $1 in "$w"*) return 0 ;; esac
    done
    return 1
}
only=("$@")
names=()

# run NAME COMMAND...: its output becomes NAME's hashes.
run() {
    local name=$1
    shift
    if ! timeout 300 "$@" >"$out/$name.txt" 2>"$out/$name.err" </dev/null; then
        tail -n 3 "$out/$name.txt" "$out/$name.err" >&2
        die "$name: the program failed or did not end: $*"
    fi
    # Semihosting writes where the emulator's messages go.
    [ -s "$out/$name.txt" ] || mv "$out/$name.err" "$out/$name.txt"
    [ "$(tail -1 "$out/$name.txt" | tr -d '\r')" = end ] || die "$name: its output is cut off"
    names+=("$name")
}

arm() { qemu-system-arm -nographic -semihosting-config enable=on,target=native "$@"; }
export -f arm

host=$(rustc -vV | sed -n 's/^host: //p')
step "reference: $host"
# With the bn-core that the tests of the workspace have built (Cargo.toml).
program=$(CARGO_TARGET_DIR=$tests cargo test --quiet --workspace --no-run --test header --test hashes --message-format json-render-diagnostics |
    sed -n 's/.*"executable":"\([^"]*\/hashes-[^"]*\)".*/\1/p')
run reference "$program" portable
for isa in avx2 avx512; do
    wanted "$host-$isa" || continue
    if "$program" $isa >/dev/null 2>&1; then
        run "$host-$isa" "$program" $isa
    elif [ $isa = avx512 ] && ci/emulate.sh install; then
        run "$host-avx512-emulated" ci/emulate.sh "$program" avx512
        grep -qx 'isa avx512' "$out/$host-avx512-emulated.txt" || die 'the emulated CPU did not run on avx512'
    else
        echo "this CPU has no $isa, nor can it be emulated here: not run"
    fi
done
case $host in
    x86_64-*)
        for cpu in qemu64 Nehalem SandyBridge Haswell; do
            wanted "x86_64-$cpu" || continue
            run "x86_64-$cpu" qemu-x86_64 -cpu $cpu "$program"
            # Emulated, so it must be what that CPU has, not what this one has.
            expected=portable
            [ $cpu != Haswell ] || expected=avx2
            grep -qx "isa $expected" "$out/x86_64-$cpu.txt" || die "x86_64-$cpu did not run on $expected"
        done
        ;;
esac

linux() { # NAME TARGET COMMAND...
    wanted "$1" || return 0
    step "$1"
    build "$1" quick "$2" all ''
    run "$1" "${@:3}" "$program"
}
linux aarch64 aarch64-unknown-linux-gnu qemu-aarch64 -L /usr/aarch64-linux-gnu
linux i686 i686-unknown-linux-gnu /usr/i686-linux-gnu/lib/ld-linux.so.2 --library-path /usr/i686-linux-gnu/lib

wasm() { # NAME FLAGS
    wanted "$1" || return 0
    step "$1"
    build "$1" quick wasm32-unknown-unknown all "$2"
    run "$1" node embedded/runner/wasm.mjs "$program"
}
wasm wasm ''
wasm wasm-simd128 '-C target-feature=+simd128'

if wanted riscv32; then
    step riscv32
    build riscv32 quick riscv32imac-unknown-none-elf all '' BN_BOARD=virt
    run riscv32 qemu-system-riscv32 -M virt -m 32 -bios none -nographic -kernel "$program"
fi

# The M4 and the M7 run one program.
if wanted cortex-m4 || wanted cortex-m7; then
    step 'cortex-m4, cortex-m7'
    build cortex-m4 quick thumbv7em-none-eabihf all '' BN_BOARD=mps2
    run cortex-m4 bash -c 'arm -M mps2-an386 -cpu cortex-m4 -kernel "$0"' "$program"
    run cortex-m7 bash -c 'arm -M mps2-an500 -cpu cortex-m7 -kernel "$0"' "$program"
    build cortex-m4-small small thumbv7em-none-eabihf all '' BN_BOARD=mps2
    run cortex-m4-small bash -c 'arm -M mps2-an386 -cpu cortex-m4 -kernel "$0"' "$program"
fi

# Without the M55's own vectors: with them (-C target-cpu=cortex-m55) the compiler cannot build core.
if wanted cortex-m55; then
    step cortex-m55
    build cortex-m55 quick thumbv8m.main-none-eabihf all '' BN_BOARD=an547
    run cortex-m55 bash -c 'arm -M mps3-an547 -kernel "$0"' "$program"
fi

# The whole set in the M0's instructions needs a bigger board; the M0 itself, with 256 KB of flash
# and 16 KB of memory, runs it in parts.
if wanted cortex-m0; then
    step 'cortex-m0'
    build cortex-m0-instructions small thumbv6m-none-eabi all '' BN_BOARD=mps2
    run cortex-m0-instructions bash -c 'arm -M mps2-an386 -cpu cortex-m4 -kernel "$0"' "$program"
    for part in {f32,f64}-{inference,training,running,deployment,backward}; do
        if ! build "cortex-m0-$part" small thumbv6m-none-eabi "$part" '' BN_BOARD=microbit 2>"$out/log"; then
            grep -q 'will not fit in region' "$out/log" || { cat "$out/log" >&2; die "cortex-m0 $part does not build"; }
            echo "cortex-m0 $part: $(grep -om1 'will not fit.*bytes' "$out/log" || echo 'does not fit')"
            continue
        fi
        run "cortex-m0-$part" bash -c 'arm -M microbit -kernel "$0"' "$program"
    done
fi

# What cannot be run or linked here compiles at least, with threads and the C library.
targets=()
for target in x86_64-pc-windows-msvc aarch64-apple-darwin aarch64-linux-android; do
    ! wanted "check-$target" || targets+=(--target "$target")
done
if [ ${#targets[@]} -gt 0 ]; then
    step "check: ${targets[*]}"
    BN_BUILD_STD=std,panic_abort ci/cross.sh cargo check --locked --quiet -p bn-core -p bn-std -p bn-capi "${targets[@]}"
fi

if [ ${#only[@]} -eq 0 ]; then
    step 'x86_64-unknown-none'
    (cd embedded && ../ci/cross.sh cargo build --locked --quiet --profile quick -p surface --target x86_64-unknown-none)
    step 'no panic path'
    ci/firmware.sh panics
fi

step 'compare'
files=()
for name in "${names[@]}"; do
    [ "$name" = reference ] || files+=("$out/$name.txt")
done
awk -f ci/compare.awk "$out/reference.txt" "${files[@]}"
