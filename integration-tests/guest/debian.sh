#!/bin/sh
# Builds a Debian machine: OUTDIR/disk.img, OUTDIR/vmlinuz and OUTDIR/initrd.img. As root, with mmdebstrap.
#
#   debian.sh OUTDIR
#
# What matters of it is as in a stock cloud image: Debian's cloud kernel and its own initramfs, systemd, and a networkd
# that asks DHCP on each Ethernet device. It knows nothing of any network. Besides there is a shell without password on
# the serial console, for the tests.
# Does nothing if OUTDIR holds what this same script made before; that newer packages have come out does not count, so
# it needs no network then.
set -eu
export LC_ALL=C

[ $# -eq 1 ] || { echo "usage: debian.sh OUTDIR" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
suite=${KV_GUEST_SUITE:-bookworm}
PATH=$PATH:/usr/sbin:/sbin

die() { echo "debian.sh: $*" >&2; exit 1; }

stamp=$({ echo "$suite"; cat "$0"; } | sha256sum)
if [ -s "$out/disk.img" ] && [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi
[ "$(id -u)" -eq 0 ] || die "run it as root"
for tool in mmdebstrap mke2fs; do
    command -v $tool >/dev/null || die "$tool is missing"
done

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
trap 'exit 1' HUP INT TERM
root=$tmp/root
# What unpacks only costs time in an emulated machine.
mmdebstrap --quiet --mode=root --variant=minbase \
    --include=systemd-sysv,systemd-resolved,udev,kmod,iproute2,iputils-ping,linux-image-cloud-amd64 \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --setup-hook='mkdir -p "$1/etc/initramfs-tools/conf.d"; echo COMPRESS=zstd >"$1/etc/initramfs-tools/conf.d/kv"' \
    "$suite" "$root" >"$tmp/log" 2>&1 || { cat "$tmp/log" >&2; die "mmdebstrap failed"; }

# As cloud images have it.
cat >"$root/etc/systemd/network/90-ethernet.network" <<'END'
[Match]
Name=en* eth*

[Network]
DHCP=yes
END
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -sf /lib/systemd/system/systemd-networkd.service "$root/etc/systemd/system/multi-user.target.wants/"
ln -sf /run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
# Each machine is another one.
: >"$root/etc/machine-id"
echo debian >"$root/etc/hostname"
# Nothing that only a machine of long life needs.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
    fstrim.timer systemd-pstore.service getty@tty1.service serial-getty@ttyS0.service systemd-timesyncd.service; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
# For the tests: a shell without echo.
cat >"$root/etc/systemd/system/console.service" <<'END'
[Unit]
After=multi-user.target
[Service]
Type=idle
ExecStart=/bin/sh -c 'stty -echo -onlcr; echo "GUEST READY $(hostname)"; exec /bin/sh'
Environment=HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin
StandardInput=tty-force
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
Restart=always
RestartSec=0
[Install]
WantedBy=multi-user.target
END
ln -sf /etc/systemd/system/console.service "$root/etc/systemd/system/multi-user.target.wants/"
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*

cp "$root"/boot/vmlinuz-* "$tmp/vmlinuz"
cp "$root"/boot/initrd.img-* "$tmp/initrd.img"
mke2fs -q -t ext4 -L root -d "$root" "$tmp/disk.img" 1G
# Each under its final name only when whole; the stamp last.
rm -f "$out/stamp"
for file in vmlinuz initrd.img disk.img; do
    cp --sparse=always "$tmp/$file" "$out/$file.$$"
    chmod 644 "$out/$file.$$"
    mv "$out/$file.$$" "$out/$file"
done
chmod a+rx "$out"
echo "$stamp" >"$out/stamp"
echo "built $out/disk.img ($suite, $(du -m "$out/disk.img" | cut -f1) MiB)"
