#!/usr/bin/env bash
# Unpacks images with dist, on each driver, and with umoci, and prints what differs: types, modes, owners, times, links and
# their groups, devices, attributes, content. Ends nonzero if anything does. As root, since it mounts.
#
#   tests/umoci-compare.sh [-d DRIVER]... IMAGE...
#
#   -d DRIVER    as `dist --snapshotter` takes it; may be given again (default: overlay native)
#   IMAGE        127.0.0.1:5000/name:tag, of a registry that speaks plain HTTP, or oci:PATH:TAG
#
# $DIST says which dist, else it is built. Everything is made in $TMPDIR, and removed.
set -euo pipefail
export LC_ALL=C

drivers=()
while getopts d: opt; do
    case $opt in
    d) drivers+=("$OPTARG") ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -gt 0 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[ ${#drivers[@]} -gt 0 ] || drivers=(overlay native)
for need in umoci=umoci skopeo=skopeo getfattr=attr jq=jq; do
    command -v "${need%%=*}" >/dev/null || { echo "umoci-compare.sh: install ${need#*=}" >&2; exit 1; }
done
if [ -z "${DIST:-}" ]; then
    cd "$(dirname "$0")/.."
    cargo build --quiet --release --all-features --example dist
    DIST=$PWD/target/release/examples/dist
fi

work=$(mktemp -d)
mounted=
trap '[ -z "$mounted" ] || umount "$mounted"; rm -rf "$work"' EXIT

# describe DIR: one line for each path below DIR, in order, with all that is compared but content.
describe() (
    cd "$1"
    # A path that has several names is known by the first of them.
    find . -printf '%D:%i\t%n\t%y\t%m\t%U:%G\t%T@\t%s\t%p\t%l\0' | sort -z -t$'\t' -k8 | tr '\n\0' '\001\n' |
        awk -F'\t' '{ line[NR] = $8 " " $9 " " $3 " " $4 " " $5 " " $6 " " (($3 == "f") ? $7 : ""); inode[NR] = $1
                if (!($1 in first)) first[$1] = $8
                names[$1]++ }
            END { for (at = 1; at <= NR; at++)
                print line[at], (names[inode[at]] > 1) ? "same as " first[inode[at]] : "" }'
    find . \( -type c -o -type b \) -print0 | sort -z | xargs -0r stat -c '%n device %t:%T'
    find . -print0 | sort -z | xargs -0r getfattr -h -d -m - -e hex -- 2>/dev/null | grep -v '^# file: \.$' || true
)

# contents DIR: the digest of each file below DIR, in order.
contents() (
    cd "$1"
    find . -type f -print0 | sort -z | xargs -0r sha256sum -z | tr '\n\0' '\001\n'
)

# same WHAT LEFT RIGHT: says what differs between two files.
same() {
    diff -U0 "$2" "$3" >"$work/diff" && return
    echo "$1 differs: umoci (-), dist (+)"
    grep -v '^@@\|^---\|^+++' "$work/diff" | head -40
    failed=1
}

failed=0
for image in "$@"; do
    rm -rf "$work"/{layout,bundle}
    case $image in
    oci:*) skopeo copy -q "$image" "oci:$work/layout:image" ;;
    *) skopeo copy -q --src-tls-verify=false "docker://$image" "oci:$work/layout:image" ;;
    esac
    umoci unpack --image "$work/layout:image" "$work/bundle" >/dev/null 2>&1
    describe "$work/bundle/rootfs" >"$work/want"
    contents "$work/bundle/rootfs" >"$work/want-contents"
    for driver in "${drivers[@]}"; do
        dist=("$DIST" --root "$work/root-$driver" --snapshotter "$driver")
        name=$("${dist[@]}" pull --json "$image" | jq -r 'select(.event == "resolved").name')
        chain=$("${dist[@]}" images inspect "$name" | jq -r '.layers[-1].chainID')
        mkdir -p "$work/mnt"
        "${dist[@]}" rootfs prepare "$chain" compare --target "$work/mnt" >"$work/mount"
        sh -e "$work/mount"
        mounted=$work/mnt
        describe "$work/mnt" >"$work/got"
        contents "$work/mnt" >"$work/got-contents"
        umount "$work/mnt"
        mounted=
        before=$failed
        failed=0
        same "$image on $driver" "$work/want" "$work/got"
        same "the content of $image on $driver" "$work/want-contents" "$work/got-contents"
        [ $failed = 1 ] || echo "$image on $driver: $(wc -l <"$work/want-contents") files, all the same"
        failed=$((before | failed))
        # What is read-only is not removed file by file.
        [ "$driver" != btrfs ] || btrfs -q subvolume delete "$work/root-$driver"/snapshots/btrfs/snapshots/*/fs
        rm -rf "$work/root-$driver"
    done
done
exit $failed
