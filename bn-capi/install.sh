#!/usr/bin/env bash
# Installs the header, the libraries that `cargo build --release -p bn-capi` has built, and batchnorm.pc.
#
#   bn-capi/install.sh PREFIX        e.g. /usr/local; DESTDIR is put in front of it
#
# BATCHNORM_LIBRARIES is where they are, if elsewhere.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
prefix=${1:?usage: install.sh PREFIX}
built=${BATCHNORM_LIBRARIES:-${CARGO_TARGET_DIR:-$here/../target}/release}
to=${DESTDIR:-}$prefix

[ -f "$built/libbatchnorm.so" ] && [ -f "$built/libbatchnorm.a" ] || {
    echo "install: no libraries in $built: cargo build --release -p bn-capi" >&2
    exit 1
}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$here/../Cargo.toml")

install -d "$to/include" "$to/lib/pkgconfig"
install -m 644 "$here/include/batchnorm.h" "$to/include/"
install -m 644 "$built/libbatchnorm.a" "$to/lib/"
install -m 755 "$built/libbatchnorm.so" "$to/lib/libbatchnorm.so.$version"
# The SONAME, as build.rs makes it: what fits the same programs.
fits=${version%%.*}
[ "$fits" != 0 ] || fits=${version%.*}
ln -sf "libbatchnorm.so.$version" "$to/lib/libbatchnorm.so.$fits"
ln -sf "libbatchnorm.so.$fits" "$to/lib/libbatchnorm.so"
sed -e "s|@PREFIX@|$prefix|" -e "s|@VERSION@|$version|" "$here/batchnorm.pc.in" >"$to/lib/pkgconfig/batchnorm.pc"
echo "installed batchnorm $version in $to"
