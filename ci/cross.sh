#!/usr/bin/env bash
# Cross builds: installs what they need, and runs cargo with a compiler that has the target.
#
#   ci/cross.sh install                      compilers, linkers and emulators (Debian; as root)
#   ci/cross.sh cargo build --target T ...   cargo, with the core library of target T
#   ci/cross.sh which T                      which compiler would build for T: rustup or debian
#
# If rustup's toolchain has the target (`rustup target add T`), that is used. Otherwise Debian's
# packages are: their compiler brings the sources of the standard library, from which cargo builds
# `core` for any target. BN_CROSS=rustup or BN_CROSS=debian decides by hand; nothing is ever
# fetched through rustup unless BN_CROSS=rustup asks for it.
set -euo pipefail

# Versions are not pinned: the archive keeps the newest only.
PACKAGES=(
    rustc-web cargo-web rust-web-src                  # a compiler with the library's sources
    qemu-user qemu-system-arm qemu-system-misc        # emulated Linux programs, Arm boards, RISC-V
    gcc-aarch64-linux-gnu libc6-dev-arm64-cross       # to link and run for 64-bit Arm
    gcc-i686-linux-gnu libc6-dev-i386-cross           # and 32-bit x86
    gcc-arm-none-eabi libnewlib-arm-none-eabi         # C firmware
    llvm-22                                           # nm and objdump that know every target
)

die() { printf 'cross: %s\n' "$*" >&2; exit 1; }

install_packages() {
    local missing=() p
    for p in "${PACKAGES[@]}"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
    done
    if [ ${#missing[@]} -gt 0 ]; then
        [ "$(id -u)" = 0 ] || die "run as root, or: apt-get install --no-install-recommends ${missing[*]}"
        echo "cross: installing ${missing[*]}"
        apt-get update -q >/dev/null
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}" >/dev/null
    fi
    command -v node >/dev/null || die "node is missing: wasm runs in it (apt-get install nodejs)"
}

# Debian's compiler is asked by its full path: rustup's stays first on PATH.
RUSTC_DEBIAN=/usr/bin/rustc
CARGO_DEBIAN=/usr/bin/cargo

which_compiler() {
    local target=$1
    case ${BN_CROSS:-} in
        rustup | debian) echo "$BN_CROSS"; return ;;
        '') ;;
        *) die "BN_CROSS is '$BN_CROSS', expected rustup or debian" ;;
    esac
    if [ -d "$(rustc --print sysroot)/lib/rustlib/$target/lib" ]; then
        echo rustup
    else
        echo debian
    fi
}

# cargo ARGS, where ARGS name one --target or several, which one compiler has to have.
cross_cargo() {
    local compiler='' targets='' previous='' a
    for a in "$@"; do
        if [ "$previous" = --target ]; then
            targets="$targets $a"
            [ "$compiler" = debian ] || compiler=$(which_compiler "$a")
        fi
        previous=$a
    done
    [ -n "$compiler" ] || die "cargo $*: no --target"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export CARGO_TARGET_I686_UNKNOWN_LINUX_GNU_LINKER=i686-linux-gnu-gcc
    case $compiler in
        rustup)
            # shellcheck disable=SC2086
            [ "${BN_CROSS:-}" != rustup ] || rustup target add $targets
            exec cargo "$@"
            ;;
        debian)
            [ -x "$RUSTC_DEBIAN" ] && [ -x "$CARGO_DEBIAN" ] || die "no compiler for$targets: ci/cross.sh install"
            # Debian ships no rust-lld, which links the bare-metal and wasm targets.
            local lld
            lld=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin
            PATH=$lld:$PATH
            command -v rust-lld >/dev/null || die "rust-lld is missing: it comes with rustup's toolchains"
            # RUSTC_BOOTSTRAP permits -Zbuild-std on a stable compiler, and nothing else is used of it.
            export RUSTC=$RUSTC_DEBIAN RUSTDOC=/usr/bin/rustdoc RUSTC_BOOTSTRAP=1
            # RUSTUP_TOOLCHAIN is for rustup's proxies alone.
            unset RUSTUP_TOOLCHAIN
            exec "$CARGO_DEBIAN" "$1" -Zbuild-std="${BN_BUILD_STD:-core}" "${@:2}"
            ;;
    esac
}

case ${1:-} in
    install) install_packages ;;
    which) which_compiler "${2:?target}" ;;
    cargo) shift; cross_cargo "$@" ;;
    *) sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
