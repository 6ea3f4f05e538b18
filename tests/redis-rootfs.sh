#!/usr/bin/env bash
# redis-rootfs.sh TAR: makes a root file system with Debian's redis-server in it, as a tar, unless TAR is there.
set -euo pipefail
out=$1
[ -s "$out" ] && exit 0
mkdir -p "$(dirname "$out")"
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
# This machine's own package sources, whatever they are.
mapfile -t sources < <(find /etc/apt/sources.list /etc/apt/sources.list.d \( -name '*.list' -o -name '*.sources' \) -size +0 2>/dev/null)
mmdebstrap --quiet --mode=root --variant=minbase --format=tar --include=redis-server \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/*' \
    "$suite" "$out.tmp" "${sources[@]}"
mv "$out.tmp" "$out"
