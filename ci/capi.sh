#!/usr/bin/env bash
# The C library: its header, what it exports, the C programs of its tests, its examples as users build
# them (installed, by pkg-config), and the firmware archive.
#
#   ci/capi.sh               all
#   ci/capi.sh firmware      the archive for Cortex-M4F and its example alone
#
# BATCHNORM_PROFILE=dev takes the tests' profile instead of release: after the tests its kernels are there, and those of release take
# minutes to compile.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
export BATCHNORM_PROFILE=${BATCHNORM_PROFILE:-release}
libraries=$CARGO_TARGET_DIR/${BATCHNORM_PROFILE/#dev/debug}
export BATCHNORM_LIBRARIES=$libraries
packages=(-p bn-capi)
# With the features of the whole workspace and its tests, or bn-core is compiled again.
[ "$BATCHNORM_PROFILE" != dev ] || packages=(--workspace --lib --test header)
header=bn-capi/include/batchnorm.h
flags=(-Wall -Wextra -Wpedantic -Werror)

step() { printf '\n== %s\n' "$*"; }
die() { printf 'capi: %s\n' "$*" >&2; exit 1; }

# The functions that the header declares.
declared() { grep -oE '\bbatchnorm_[a-z_]+\(' "$header" | tr -d '(' | sort -u; }

firmware() {
    step 'firmware: the archive, and that it brings what the header declares'
    local target=thumbv7em-none-eabihf dir llvm
    ci/cross.sh cargo build --quiet -p bn-capi --no-default-features --profile firmware --target $target
    llvm=$(ls -d /usr/lib/llvm-*/bin 2>/dev/null | sort -V | tail -1)
    [ -n "$llvm" ] || die 'llvm is missing: ci/cross.sh install'
    dir=$CARGO_TARGET_DIR/$target/firmware
    "$llvm/llvm-nm" --defined-only --extern-only "$dir/libbatchnorm.a" 2>/dev/null |
        awk '$2 == "T" && $3 ~ /^batchnorm_/ { print $3 }' | sort -u | diff - <(declared) || die 'other symbols than the header'
    arm-none-eabi-gcc "${flags[@]}" -std=c99 -mcpu=cortex-m4 -mthumb -mfloat-abi=hard -fsyntax-only -x c "$header"

    # Each call linked alone: without a panic path there is no batchnorm_panic to be defined.
    local lld f
    lld=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/rust-lld
    for f in $(declared); do
        if "$lld" -flavor gnu --gc-sections --entry="$f" --undefined="$f" "$dir/libbatchnorm.a" -o "$dir/$f.elf" 2>"$dir/err"; then
            "$llvm/llvm-size" "$dir/$f.elf" | awk -v f="$f" 'NR == 2 { printf "%8d bytes of flash  %s\n", $1 + $2, f }'
        elif [ "$f" = batchnorm_conformance_hash ] && ! grep 'undefined' "$dir/err" | grep -qv batchnorm_panic; then
            # A test, not firmware: it may index.
            echo "         (can panic)    $f"
        else
            cat "$dir/err" >&2
            die "$f does not link: it can panic, or needs what firmware does not have"
        fi
    done
}

# The network of examples/firmware, on the host in C, on an emulated Cortex-M4F in C and in Rust: the same bits.
firmware_example() {
    step 'firmware: a network step, in C and Rust, with the bits of the host'
    local target=thumbv7em-none-eabihf from=bn-capi/examples/firmware to rust
    to=$CARGO_TARGET_DIR/$target/firmware/net
    mkdir -p "$to"
    local c=("${flags[@]}" -Wno-overlength-strings -std=c99 -ffp-contract=off -Ibn-capi/include "-I$to")
    local host=("$libraries/libbatchnorm.a" -lpthread -ldl -lm)
    gcc "${c[@]}" $from/table.c "${host[@]}" -o "$to/table"
    "$to/table" >"$to/table.h"
    gcc "${c[@]}" $from/net.c "${host[@]}" -o "$to/net"
    "$to/net" >"$to/host.txt"
    arm-none-eabi-gcc "${c[@]}" -Os -mcpu=cortex-m4 -mthumb -mfloat-abi=hard -mfpu=fpv4-sp-d16 -ffunction-sections \
        -nostartfiles --specs=nano.specs -T $from/board.ld -Wl,--gc-sections -Wl,-z,noexecstack -Wl,--no-warn-rwx-segments \
        $from/net.c $from/startup.c "$CARGO_TARGET_DIR/$target/firmware/libbatchnorm.a" -o "$to/net.elf"
    arm-none-eabi-size "$to/net.elf"
    ! arm-none-eabi-nm "$to/net.elf" | grep -E ' (malloc|_malloc_r|_sbrk)$' || die 'the firmware has a heap'
    (cd embedded && BN_BOARD=mps2 ../ci/cross.sh cargo build --locked --quiet --profile small -p runner --bin net --features net --target $target)
    rust=$CARGO_TARGET_DIR/$target/small/net
    local program
    for program in "$to/net.elf" "$rust"; do
        timeout 60 qemu-system-arm -M mps2-an386 -cpu cortex-m4 -nographic -semihosting-config enable=on,target=native \
            -kernel "$program" >"$program.txt" 2>&1 </dev/null || { cat "$program.txt"; die "$program failed"; }
    done
    sed 's/\r$//' "$to/net.elf.txt"
    # The stack is the emulated one's business alone.
    sed 's/\r$//; /^stack/d' "$to/net.elf.txt" | diff - "$to/host.txt" || die 'C: other bits than on the host'
    sed 's/\r$//' "$rust.txt" | diff - "$to/host.txt" || die 'Rust: other bits than on the host'
}

if [ "${1:-}" = firmware ]; then
    cargo build --profile "$BATCHNORM_PROFILE" "${packages[@]}"
    firmware
    firmware_example
    exit
fi

command -v gcc >/dev/null && command -v g++ >/dev/null || die 'gcc and g++ are missing'

step 'the libraries'
cargo build --profile "$BATCHNORM_PROFILE" "${packages[@]}"

step 'the header: C and C++ without a warning'
for std in c99 c11 c17; do gcc "${flags[@]}" -std=$std -fsyntax-only -x c "$header"; done
for std in c++98 c++11 c++17; do g++ "${flags[@]}" -Wno-long-long -std=$std -fsyntax-only -x c++ "$header"; done

step 'what the shared library exports, and its name'
nm -D --defined-only "$libraries/libbatchnorm.so" | awk '{ print $3 }' | sort -u | diff - <(declared) ||
    die 'the shared library exports something else than the header declares'
objdump -p "$libraries/libbatchnorm.so" | grep -q 'SONAME *libbatchnorm\.so\.0\.1$' || die 'no SONAME'

step 'tests: the header is fresh, C programs'
# With the features of the whole workspace, whose tests have built bn-core.
cargo test --workspace --test header --test programs -- --include-ignored

step 'installed, and the examples built by pkg-config'
prefix=$(mktemp -d)
trap 'rm -rf "$prefix"' EXIT
bn-capi/install.sh "$prefix"
if command -v pkg-config >/dev/null; then
    export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
    pkg=(pkg-config batchnorm)
    [ "$("${pkg[@]}" --modversion)" = "$(sed -n 's/^Version: //p' "$prefix/lib/pkgconfig/batchnorm.pc")" ] || die 'pkg-config'
    read -ra shared <<<"$("${pkg[@]}" --cflags --libs)"
    read -ra cflags <<<"$("${pkg[@]}" --cflags)"
else
    echo 'no pkg-config: the flags are written out'
    cflags=("-I$prefix/include")
    shared=("${cflags[@]}" "-L$prefix/lib" -lbatchnorm)
fi
gcc "${flags[@]}" -std=c99 bn-capi/examples/c/train.c "${shared[@]}" -lm -o "$prefix/train"
LD_LIBRARY_PATH=$prefix/lib "$prefix/train"
gcc "${flags[@]}" -std=c99 bn-capi/examples/c/train.c "${cflags[@]}" "$prefix/lib/libbatchnorm.a" -lpthread -ldl -lm -o "$prefix/train-static"
"$prefix/train-static" >/dev/null
g++ "${flags[@]}" -std=c++11 bn-capi/examples/cpp/inference.cpp "${shared[@]}" -o "$prefix/inference"
LD_LIBRARY_PATH=$prefix/lib "$prefix/inference"

ci/cross.sh install
firmware
firmware_example
