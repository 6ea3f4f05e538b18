#!/usr/bin/env bash
# compare.sh REF...: pulls and unpacks each image, cold, with windlass and with skopeo + umoci, in turn, from the same registry,
# and prints the medians of wall time, CPU time and peak memory.
#
#   RUNS=5     how often each
#   DIR=…      where to unpack to (a fresh folder on the same disk for each run)
#
# Needs root, skopeo, umoci and GNU time; REF is on a registry that speaks plain HTTP, such as 127.0.0.1:5000/python:latest.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${RUNS:-5}
dir=$(mktemp -d -p "${DIR:-${TMPDIR:-/tmp}}")
trap 'rm -rf "$dir"' EXIT
for program in skopeo umoci /usr/bin/time; do
    command -v "$program" >/dev/null || { echo "compare.sh: $program is missing: apt-get install skopeo umoci time" >&2; exit 1; }
done
cargo build --release --quiet --example dist
dist=$PWD/target/release/examples/dist

windlass() { exec "$dist" --root "$dir/out" pull "$1"; }
skopeo_umoci() {
    skopeo copy -q --src-tls-verify=false "docker://$1" "oci:$dir/out:it" &&
        umoci unpack --image "$dir/out:it" "$dir/out-bundle"
}
export -f windlass skopeo_umoci
export dist dir

# measure TOOL REF FILE: one cold run, its figures added to FILE.
measure() {
    rm -rf "$dir/out" "$dir/out-bundle"; sync
    /usr/bin/time -a -o "$3" -f '%e %U %S %M' bash -c '"$@"' _ "$1" "$2" >/dev/null 2>"$dir/log" || { cat "$dir/log" >&2; exit 1; }
}
# median FILE EXPRESSION: of an awk expression over the lines.
median() { awk "{print $2}" "$1" | sort -n | awk '{v[NR]=$1} END {print v[int((NR+1)/2)]}'; }

printf '%-40s %-14s %8s %8s %9s\n' image tool 'wall s' 'CPU s' 'peak MB'
for ref; do
    # The first round warms the registry's cache and is not counted.
    for tool in windlass skopeo_umoci; do measure "$tool" "$ref" "$dir/warm"; done
    for ((run = 0; run < runs; run++)); do
        for tool in windlass skopeo_umoci; do measure "$tool" "$ref" "$dir/$tool"; done
    done
    for tool in windlass skopeo_umoci; do
        printf '%-40s %-14s %8.2f %8.2f %9.0f\n' "$ref" "$tool" "$(median "$dir/$tool" '$1')" \
            "$(median "$dir/$tool" '$2+$3')" "$(median "$dir/$tool" '$4/1024')"
        rm "$dir/$tool"
    done
done
