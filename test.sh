#!/usr/bin/env bash
# Runs everything: format, lints, unit, doc and integration tests, against a real registry and real runtimes.
# Installs what it needs with apt-get, as root, on Debian.
set -euo pipefail
cd "$(dirname "$0")"

say() { printf '\n== %s\n' "$*"; }

# PROGRAM=PACKAGE: what the tests run, beside Rust.
needs=(cc=gcc c++=g++ docker-registry=docker-registry runc=runc mmdebstrap=mmdebstrap busybox=busybox-static
    skopeo=skopeo umoci=umoci getfattr=attr podman=podman jq=jq curl=curl zstd=zstd losetup=mount mkfs.ext4=e2fsprogs
    mkfs.btrfs=btrfs-progs xfs_io=xfsprogs fsck.erofs=erofs-utils veritysetup=cryptsetup-bin)
missing=()
for need in "${needs[@]}"; do
    command -v "${need%%=*}" >/dev/null || missing+=("${need#*=}")
done
if [ ${#missing[@]} -gt 0 ]; then
    [ "$(id -u)" = 0 ] || { echo "test.sh: install ${missing[*]}, or run as root" >&2; exit 1; }
    say "installing ${missing[*]}"
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null
fi
[ "$(id -u)" = 0 ] || { echo "test.sh: the tests mount file systems; run as root" >&2; exit 1; }

say "redis, from Debian packages"
tests/redis-rootfs.sh .cache/redis.tar

say "format"
cargo fmt --all --check
say "lints"
cargo clippy --workspace --all-targets --all-features -- -D warnings
say "each crate alone, with the fewest features"
for crate in reference content images remotes snapshot rootfs; do
    cargo check --quiet -p "windlass-$crate" --no-default-features
done
say "unit, integration and doc tests"
cargo test --workspace --all-features
say "each parser of hostile bytes, fuzzed for a moment"
fuzz/run.sh 3
say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --all-features --no-deps --quiet
say "all passed"
