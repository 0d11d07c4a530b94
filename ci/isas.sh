#!/usr/bin/env bash
# The tests with each instruction set by force, with AVX-512 emulated, under the address sanitizer,
# and under valgrind.
#
#   ci/isas.sh                    all of it
#   ci/isas.sh forced|emulated|asan|valgrind
#
# Needs an x86-64 with AVX2, a nightly toolchain, and valgrind (apt-get install valgrind); what
# ci/emulate.sh needs. By force AVX-512 is left out, and that is said, where the CPU has none.
set -euo pipefail
cd "$(dirname "$0")/.."

HOST=x86_64-unknown-linux-gnu
step() { printf '\n== %s\n' "$*"; }
die() { printf 'isas: %s\n' "$*" >&2; exit 1; }

# bn-std with all its features; of the whole workspace, and with `--test header`, or bn-core is built once more (Cargo.toml).
bn_std() { cargo test --workspace --features bn-std/half,bn-std/ndarray,bn-std/serde "$@"; }

# The instructions that a layer gets: a line isa=NAME, or refused=NAME.
report() { bn_std --quiet --test header --test isa -- --exact report --nocapture --test-threads=1; }

# bn-core takes its instructions from its caller, and its tests go through all of them; bn-std reads BN_ISA.
forced() {
    local isa answer
    for isa in portable avx2 avx512; do
        answer=$(BN_ISA=$isa report)
        case $answer in
            *"isa=$isa"*)
                step "bn-std, BN_ISA=$isa"
                BN_ISA=$isa bn_std --test header --test arrays --test bits --test isa --test layer --test links --test rayon --test state
                ;;
            *"refused=$isa"*)
                [ "$isa" = avx512 ] || die "this CPU has no $isa"
                step "BN_ISA=$isa: left out, this CPU has none"
                ;;
            *) die "BN_ISA=$isa: $answer" ;;
        esac
    done
}

# Those tests of bn-core that compare instruction sets and do little else: an emulated CPU takes its time.
emulated() {
    ci/emulate.sh install || die 'the emulator cannot be had'
    step 'emulated AVX-512: bn-core'
    CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=$PWD/ci/emulate.sh cargo test --workspace \
        --test extremes --test fusions --test limits --test strides -- --test-threads=1
}

asan() {
    step 'address sanitizer: bn-core, bn-std'
    # Tests ask for more memory than there is, and want to be told; and one leaks an executor on purpose.
    export ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=0
    # In a directory of its own: other flags, another compiler. No doctests, which would want the flags for rustdoc too.
    RUSTFLAGS=-Zsanitizer=address cargo +nightly test --target "$HOST" --target-dir target/asan \
        -p bn-core --features half --lib --tests
    RUSTFLAGS=-Zsanitizer=address cargo +nightly test --target "$HOST" --target-dir target/asan \
        -p bn-std --all-features --lib --tests
}

memcheck() {
    command -v valgrind >/dev/null || die 'valgrind is missing: apt-get install valgrind'
    # It has no AVX-512 and says so to programs, so the best that they find is AVX2.
    export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER='valgrind --quiet --error-exitcode=9'
    step 'valgrind: the instructions it has'
    local answer
    answer=$(report)
    case $answer in *isa=avx2*) echo 'avx2' ;; *) die "not AVX2 under valgrind: $answer" ;; esac
    step 'valgrind: the sizes of bn-core'
    cargo test -p bn-core --features half --test sizes
}

case ${1:-all} in
    forced) forced ;;
    emulated) emulated ;;
    asan) asan ;;
    valgrind) memcheck ;;
    all) forced; emulated; asan; memcheck ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
