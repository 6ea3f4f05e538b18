#!/usr/bin/env bash
# old-kernel.sh [TEST...]: runs test programs on Debian's own kernel (6.1 on bookworm) in a virtual machine, without KVM.
#
# The machine has this one's files, to be read only, and a disk of its own (an ext4) as /tmp. Without arguments it runs the tests of
# `windlass-snapshot`, and those of `windlass-rootfs` that mount images: what EROFS, overlayfs and mounts do elsewhere. Takes
# some ten minutes, root, and: apt-get install qemu-system-x86 busybox-static cpio kmod e2fsprogs jq
set -euo pipefail
cd "$(dirname "$0")/.."
for need in qemu-system-x86_64=qemu-system-x86 busybox=busybox-static cpio=cpio depmod=kmod mkfs.ext4=e2fsprogs jq=jq; do
    command -v "${need%%=*}" >/dev/null || { echo "old-kernel.sh: install ${need#*=}" >&2; exit 1; }
done
# Not in /tmp, where the machine has its own.
work=$(mktemp -d -p /var/tmp)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

# The test programs, each with the folder of its package.
if [ $# = 0 ]; then
    cargo test --no-run --message-format=json -p windlass-snapshot -p windlass-rootfs --all-features |
        jq -r 'select(.profile.test and .executable) | "\(.manifest_path | rtrimstr("/Cargo.toml")) \(.executable)"' |
        grep -E '/(windlass_snapshot|overlay|native|erofs|probe|damage|limits|user_namespace|image|unpack|random|sharing)-[^/]*$' >"$work/tests"
else
    printf "$PWD %s\n" "$@" >"$work/tests"
fi

# Debian's kernel, not installed.
package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
(cd "$work" && apt-get -qq -o APT::Sandbox::User=root download "$package" && dpkg -x ./*.deb kernel)
version=${package#linux-image-}
version=${version%-unsigned}
modules="$work/kernel/lib/modules/$version"
[ -d "$modules" ] || { mkdir -p "$work/kernel/lib" && mv "$work"/kernel/usr/lib/modules "$work/kernel/lib/"; }
depmod -b "$work/kernel" "$version"

# A first file system that mounts the files of this machine, and goes there.
mkdir -p "$work"/first/{bin,proc,sys,dev,host,modules}
cp "$(command -v busybox)" "$work/first/bin/busybox"
for module in virtio_pci virtio_blk 9pnet_virtio 9p ext4; do
    modprobe -d "$work/kernel" -S "$version" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
done | awk '!seen[$0]++' | while read -r module; do
    cp "$module" "$work/first/modules/"
    basename "$module" >>"$work/first/modules/order"
done
cat >"$work/first/init" <<'INIT'
#!/bin/busybox sh
run() { /bin/busybox "$@"; }
run mount -t proc proc /proc; run mount -t sysfs sysfs /sys; run mount -t devtmpfs dev /dev
for module in $(run cat /modules/order); do run insmod "/modules/$module"; done
run mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,ro,cache=loose host /host
run mount -t proc proc /host/proc; run mount -t sysfs sysfs /host/sys; run mount -t devtmpfs dev /host/dev
run mkdir -p /dev/pts /dev/shm
run mount -t devpts pts /host/dev/pts; run mount -t tmpfs shm /host/dev/shm; run mount -t tmpfs run /host/run
run mount -t ext4 /dev/vda /host/tmp
run ip link set lo up
# Not chroot: from there nobody makes user namespaces.
run umount /proc; run umount /sys; run umount /dev
exec /bin/busybox switch_root /host /bin/sh /run-tests
INIT
sed -i "s|/run-tests|$work/run-tests|" "$work/first/init"
chmod +x "$work/first/init"
(cd "$work/first" && find . | cpio --quiet -o -H newc | gzip -1) >"$work/first.gz"

cat >"$work/run-tests" <<TESTS
exec <>/dev/console >&0 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp PROPTEST_CASES=16 WINDLASS_FS_VERITY=1
for module in overlay loop erofs btrfs dm-verity; do modprobe -d "$work/kernel" -S "$version" \$module; done
echo "Linux \$(uname -r)"
while read -r folder test; do
    echo "== \$test"
    cd "\$folder" && "\$test" --test-threads 2 || echo "FAILED \$test"
done <"$work/tests"
echo "ended"
sync
busybox poweroff -f
TESTS
truncate -s 8G "$work/disk" && mkfs.ext4 -q -O verity -b 4096 "$work/disk"

qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m 6G -smp 2 -nographic -no-reboot -nic none \
    -kernel "$work/kernel/boot/vmlinuz-$version" -initrd "$work/first.gz" -append "console=ttyS0 quiet loglevel=3 panic=-1" \
    -drive "file=$work/disk,format=raw,if=virtio,cache=unsafe" \
    -virtfs local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap </dev/null |
    tee "$work/output"
grep -aq '^ended' "$work/output" && ! grep -aq '^FAILED ' "$work/output"
