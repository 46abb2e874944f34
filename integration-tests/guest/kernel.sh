#!/bin/sh
# Builds a machine without disk that has the kernel, nft and dnsmasq of one Debian release: OUTDIR/vmlinuz and
# OUTDIR/initrd.img. As root, with mmdebstrap.
#
#   kernel.sh OUTDIR SUITE
#
# It runs /test, which an archive appended to the initramfs brings along, and ends.
# Does nothing if OUTDIR holds what this same script made before; that newer packages have come out does not count, so
# it needs no network then.
set -eu
export LC_ALL=C

[ $# -eq 2 ] || { echo "usage: kernel.sh OUTDIR SUITE" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
suite=$2
PATH=$PATH:/usr/sbin:/sbin

die() { echo "kernel.sh: $*" >&2; exit 1; }

stamp=$({ echo "$suite"; cat "$0"; } | sha256sum)
if [ -s "$out/initrd.img" ] && [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
[ "$(id -u)" -eq 0 ] || die "run it as root"
for tool in mmdebstrap depmod cpio gzip xz; do
    command -v $tool >/dev/null || die "$tool is missing"
done

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
root=$tmp/root
mmdebstrap --quiet --mode=root --variant=extract \
    --include=linux-image-cloud-amd64,nftables,dnsmasq-base,busybox-static,libgcc-s1 \
    "$suite" "$root" >"$tmp/log" 2>&1 || { cat "$tmp/log" >&2; die "mmdebstrap failed"; }
cp "$root"/boot/vmlinuz-* "$tmp/vmlinuz"

# Unpacked only, so what a maintainer's script would have joined may still be apart.
for folder in bin sbin lib lib64; do
    if [ -d "$root/$folder" ] && [ ! -L "$root/$folder" ]; then
        mkdir -p "$root/usr/$folder"
        cp -a "$root/$folder/." "$root/usr/$folder/"
        rm -rf "${root:?}/$folder"
    fi
done
kernel=$(ls "$root/usr/lib/modules")
new=$tmp/new
modules=$new/usr/lib/modules/$kernel
mkdir -p "$new/proc" "$new/sys" "$new/dev" "$new/etc" "$new/run" "$new/tmp" "$new/var/lib" "$new/usr/bin" \
    "$new/usr/sbin" "$modules"
for folder in bin sbin lib lib64; do
    ln -s usr/$folder "$new/$folder"
done
cp -a "$root/usr/lib64" "$root/usr/lib" "$tmp/"
rm -rf "$tmp/lib/modules"
mkdir -p "$new/usr/lib/x86_64-linux-gnu"
cp -a "$tmp/lib/x86_64-linux-gnu"/*.so* "$new/usr/lib/x86_64-linux-gnu/"
cp -a "$tmp/lib64" "$new/usr/"
cp "$root/usr/bin/busybox" "$new/usr/bin/"
cp "$root/usr/sbin/nft" "$root/usr/sbin/dnsmasq" "$new/usr/sbin/"
(cd "$root/usr/lib/modules/$kernel" &&
    find kernel/net kernel/lib kernel/crypto kernel/arch kernel/drivers/net/tun.ko* -name '*.ko*' |
    cpio --quiet -pdm "$modules" && cp modules.order modules.builtin* "$modules/")
find "$modules" -name '*.xz' -exec xz -d {} +
depmod -b "$new/usr" "$kernel" 2>"$tmp/log" || depmod -b "$new" "$kernel"
# busybox's modprobe reads the text.
rm -f "$modules"/modules.*.bin

cat >"$new/etc/passwd" <<'EOF'
root:x:0:0::/:/bin/sh
dnsmasq:x:200:200::/:/bin/sh
nobody:x:65534:65534::/:/bin/sh
EOF
cat >"$new/etc/group" <<'EOF'
root:x:0:
dnsmasq:x:200:
nogroup:x:65534:
EOF
cat >"$new/init" <<'EOF'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/sbin:/usr/bin
ln -s /bin/busybox /sbin/modprobe
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ip link set lo up
modprobe tun
modprobe bridge
sh /test
poweroff -f
EOF
chmod +x "$new/init"
(cd "$new" && find . | cpio --quiet -o -H newc -R 0:0) | gzip -1n >"$tmp/initrd.img"

# Each under its final name only when whole; the stamp last.
rm -f "$out/stamp"
for file in vmlinuz initrd.img; do
    cp "$tmp/$file" "$out/$file.$$"
    chmod 644 "$out/$file.$$"
    mv "$out/$file.$$" "$out/$file"
done
echo "$stamp" >"$out/stamp"
echo "built $out/initrd.img ($suite, Linux $kernel, $(du -m "$out/initrd.img" | cut -f1) MiB)"
