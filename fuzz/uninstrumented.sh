#!/usr/bin/env bash
# For RUSTC_WRAPPER: compiles bn-core without the counters by which the fuzzer finds its way, all else with them. They make
# three quarters of the time that a build takes, and tell little in a few hundred runs.
name='' previous=''
kept=()
for a in "$@"; do
    [ "$previous" != --crate-name ] || name=$a
    previous=$a
done
for a in "$@"; do
    case $a in
        -Cpasses=sancov-module | -Cllvm-args=-sanitizer-coverage-*) ;;
        *) kept+=("$a") ;;
    esac
done
[ "$name" = bn_core ] || kept=("$@")
exec "${kept[@]}"
