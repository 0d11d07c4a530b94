#!/usr/bin/env bash
# Runs an x86-64 Linux program on an emulated CPU with AVX-512, for machines that have none. The
# program makes no threads.
#
#   ci/emulate.sh install               fetches the emulator; fails where it cannot be had
#   ci/emulate.sh PROGRAM [ARGUMENT...] runs it, about 200 times as slow as it is
#
# The emulator is Bochs's CPU, as PyPI's bochscpu-python has it (Debian's bochs is built without
# AVX); it needs Python 3.10 or newer and a C compiler.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

dir=${CARGO_TARGET_DIR:-$here/../target/cross}/emulator
export PYTHONPATH=$dir BN_EMULATOR_SHIM=$dir/shim.so

usable() {
    [ -e "$BN_EMULATOR_SHIM" ] && python3 - 2>/dev/null <<'PYTHON'
import ctypes, os
ctypes.CDLL(os.environ["BN_EMULATOR_SHIM"], ctypes.RTLD_GLOBAL)
import bochscpu._bochscpu
PYTHON
}

install_emulator() {
    usable && return
    mkdir -p "$dir"
    # The wheel asks for two functions by the names of glibc 2.38.
    cc -shared -fPIC -o "$BN_EMULATOR_SHIM" -x c - <<'C'
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
unsigned long long __isoc23_strtoull(const char *text, char **end, int base) { return strtoull(text, end, base); }
int __isoc23_sscanf(const char *text, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int read = vsscanf(text, format, list);
    va_end(list);
    return read;
}
C
    python3 -m pip install --quiet --root-user-action=ignore --no-deps --only-binary :all: --require-hashes --target "$dir" --upgrade -r /dev/stdin <<'REQUIREMENTS'
bochscpu-python==0.4.0 \
    --hash=sha256:9f1259e8d6b34f478fe3ed889ad2d810a8f5ec63289c8fba63e3af33fa17d1c8 \
    --hash=sha256:08297de4c657fcda712c66745388cf81cd056e01083473c44868b96f6ea020ad \
    --hash=sha256:b37d30611b7e4ffc00a111fe0a6b5b253a102c233fd6dc083f5cb0918ee2a1ae
REQUIREMENTS
    usable
}

case ${1:-} in
    install) install_emulator ;;
    '' | -*) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    *) exec python3 "$here/emulate.py" "$@" ;;
esac
