#!/usr/bin/env bash
# Runs each fuzz target for some seconds (default 60), or those that are named: fuzz/run.sh 600 challenge link
#
# It needs no more than stable Rust and a C++ compiler: the flags are those of `cargo fuzz run --sanitizer none`. Inputs
# that were found are kept in fuzz/corpus and fuzz/artifacts.
set -euo pipefail
cd "$(dirname "$0")"

seconds=${1:-60}
shift || true
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    mapfile -t targets < <(sed -n 's/^name = "\(.*\)"$/\1/p' Cargo.toml | tail -n +2)
fi
export RUSTFLAGS="--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
# The flags are for the targets; build scripts and macros go without them only if a target is named.
host=$(rustc -vV | sed -n 's/^host: //p')
cargo build --release --quiet --target "$host"
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    echo "fuzzing $target for $seconds s"
    log=$(mktemp)
    "target/$host/release/$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="artifacts/$target/" "corpus/$target" >"$log" 2>&1 || { cat "$log"; exit 1; }
    grep '^Done' "$log"
    rm "$log"
done
