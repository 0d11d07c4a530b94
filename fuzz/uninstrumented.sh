#!/usr/bin/env bash
# For RUSTC_WRAPPER: compiles bn-core without the counters by which the fuzzer finds its way, all else with them. They
# make a build minutes longer, and tell little in a few hundred runs.
case " $* " in
    *' --crate-name bn_core '*) ;;
    *) exec "$@" ;;
esac
kept=()
for a in "$@"; do
    case $a in
        -Cpasses=sancov-module | -Cllvm-args=-sanitizer-coverage-*) ;;
        *) kept+=("$a") ;;
    esac
done
exec "${kept[@]}"
