#!/usr/bin/env bash
# The whole measurement, in one command: fetches oneDNN with pip into a temporary directory, measures, prints the
# tables, and writes the record and the plots to benches/record. Arguments go to `compare run`.
#
#   benches/run.sh                        the OpenMP build of oneDNN (40 MB): about 10 minutes
#   BN_ONEDNN_TBB=1 benches/run.sh        also the newer SYCL/TBB build (2 GB with what it needs)
#   BN_CANDLE=1 benches/run.sh            also candle-nn
#   benches/run.sh --rounds 3 --shapes 32x64x56x56,32x512x7x7 --out short/run.csv
#
# Results mean little on a machine that does anything else meanwhile.
set -euo pipefail
cd "$(dirname "$0")/.."

fetched=$(mktemp -d)
trap 'rm -rf "$fetched"' EXIT

features=half
[ -z "${BN_CANDLE:-}" ] || features+=,candle
cargo build --release -p bn-benches --bin compare --features "$features"

libraries=()
pip download -q --no-deps -d "$fetched" onednn-cpu-gomp==2023.2.0
python3 -m zipfile -e "$fetched"/onednn_cpu_gomp-*.whl "$fetched/omp"
libraries+=(--onednn-nhwc "$(echo "$fetched"/omp/*.data/data/lib/libdnnl.so.3)")
if [ -n "${BN_ONEDNN_TBB:-}" ]; then
    python3 -m venv "$fetched/tbb"
    "$fetched/tbb/bin/pip" install -q onednn==2026.1.0
    libraries+=(--onednn-nchw "$fetched/tbb/lib/libdnnl.so.3")
fi

"${CARGO_TARGET_DIR:-target}/release/compare" run "${libraries[@]}" "$@"
