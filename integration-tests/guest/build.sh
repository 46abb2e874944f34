#!/bin/sh
# Builds the test guest: OUTDIR/vmlinuz and OUTDIR/initrd.img.
#
#   build.sh OUTDIR
#
# The kernel is the distribution's own, downloaded as a package but not
# installed. KV_GUEST_KERNEL names the package to follow instead of
# linux-image-cloud-amd64 (linux-image-amd64 has drivers for more devices).
# Does nothing if OUTDIR holds what these same inputs made before; that a newer
# kernel has come out does not count, so it needs no network then.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
[ $# -eq 1 ] || { echo "usage: build.sh OUTDIR" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
meta=${KV_GUEST_KERNEL:-linux-image-cloud-amd64}
busybox=${KV_GUEST_BUSYBOX:-/bin/busybox}
# An ordinary user's PATH has no depmod.
PATH=$PATH:/usr/sbin:/sbin

# Drivers every guest loads, in this order, each after what it depends on.
# Those the kernel has built in, or lacks, are left out.
always='evdev button virtio_net virtio_blk virtio_pci virtio_console virtio_rng'
# Drivers that init, or the kernel at a mount, asks for when there is need.
demand='virtio_scsi ahci sr_mod sd_mod isofs'

die() { echo "build.sh: $*" >&2; exit 1; }

for tool in apt-get apt-cache dpkg-deb depmod cpio gzip sha256sum; do
    command -v "$tool" >/dev/null || die "$tool is missing"
done
[ -x "$busybox" ] || die "$busybox is missing: install busybox-static"
case $(LC_ALL=C ldd "$busybox" 2>&1) in
*'not a dynamic executable'* | *'statically linked'*) ;;
*) die "$busybox is not static: install busybox-static" ;;
esac

inputs() {
    echo "$meta"
    cat "$busybox" "$here/build.sh" "$here/init" "$here/kv-console" \
        "$here/kv-shell" "$here/kv-peer" "$here/power-button"
}
stamp=$(inputs | sha256sum)
if [ -s "$out/vmlinuz" ] && [ -s "$out/initrd.img" ] &&
    [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi

# The meta package depends on the image of one kernel version.
package=$(LC_ALL=C apt-cache depends "$meta" 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
[ -n "$package" ] ||
    die "apt knows no $meta: run 'apt-get update' (as root) and try again"

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
# apt, as root, downloads under a uid of its own.
chmod 755 "$tmp"
mkdir "$tmp/deb" "$tmp/kernel" "$tmp/root"
[ "$(id -u)" -ne 0 ] || chown _apt "$tmp/deb" 2>/dev/null || :
(cd "$tmp/deb" && apt-get -q download "$package" >"$tmp/log" 2>&1) || {
    cat "$tmp/log" >&2
    die "can't download $package: if apt's lists are old, run 'apt-get update' (as root)"
}
dpkg-deb -x "$tmp"/deb/*.deb "$tmp/kernel"
version=$(basename "$tmp"/kernel/boot/vmlinuz-*)
version=${version#vmlinuz-}
# Newer packages have them in /usr/lib.
[ -d "$tmp/kernel/lib" ] || ln -s usr/lib "$tmp/kernel/lib"
lib=$tmp/kernel/lib/modules/$version
# The package's own installation would have made modules.dep.
depmod -b "$tmp/kernel" "$version"

root=$tmp/root
umask 022
(cd "$root" && mkdir -p bin dev etc/acpi/PWRF lib/modules proc root run sys tmp var/log mnt)
ln -s ../run "$root/var/run"
ln -s bin "$root/sbin"
cp "$busybox" "$root/bin/busybox"
for applet in $("$busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
cp "$here/init" "$root/init"
cp "$here/kv-console" "$here/kv-shell" "$here/kv-peer" "$root/bin/"
# By this name acpid finds it.
cp "$here/power-button" "$root/etc/acpi/PWRF/00000080"
chmod 755 "$root/init" "$root/bin/"* "$root/etc/acpi/PWRF/00000080"
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"
# What mount tries, besides what the kernel has loaded already.
echo iso9660 >"$root/etc/filesystems"

# files MODULE: its file and those of what it depends on, in loading order.
files() {
    # "_" and "-" are the same in a module's name, not in its file's.
    line=$(grep -E "(^|/)$(echo "$1" | sed 's/_/[-_]/g')\\.ko(\\.[a-z0-9]+)?:" \
        "$lib/modules.dep") || return 0
    # modules.dep names the nearest dependency first.
    order=${line%%:*}
    for dep in ${line#*:}; do
        order="$dep $order"
    done
    echo "$order"
}
to=$root/lib/modules/$version
mkdir "$to"
for module in $always; do
    for file in $(files "$module"); do
        [ ! -e "$to/${file##*/}" ] || continue
        cp "$lib/$file" "$to/"
        echo "$version/${file##*/}" >>"$root/lib/modules/list"
    done
done
for module in $demand; do
    for file in $(files "$module"); do
        cp "$lib/$file" "$to/"
    done
done
chmod 644 "$to"/*
depmod -b "$root" "$version" 2>/dev/null
rm -f "$to"/modules.*.bin "$to/modules.symbols" "$to/modules.softdep" "$to/modules.devname"

# The same inputs give the same bytes. Owned by root whoever builds it.
find "$root" -exec touch -h -d @0 {} +
(cd "$root" && find . | LC_ALL=C sort |
    cpio --quiet -o -H newc -R 0:0 --reproducible) | gzip -9n >"$tmp/initrd.img"

# Each under its final name only when whole; the stamp last.
rm -f "$out/stamp"
install -m 644 "$tmp/kernel/boot/vmlinuz-$version" "$out/vmlinuz.$$"
mv "$out/vmlinuz.$$" "$out/vmlinuz"
install -m 644 "$tmp/initrd.img" "$out/initrd.img.$$"
mv "$out/initrd.img.$$" "$out/initrd.img"
chmod a+rx "$out" 2>/dev/null || :
echo "$stamp" >"$out/stamp"
echo "built $out/vmlinuz ($version) and $out/initrd.img ($(wc -c <"$out/initrd.img") bytes)"
