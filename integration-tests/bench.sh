#!/usr/bin/env bash
# Measures kvmctl beside bare QEMU and libvirt, in one run, and prints a table. It reports; it fails on no time.
#
#   bench.sh [BINDIR [GUESTDIR]]     default: target/release target/guest
#
# `cargo build --release --workspace` builds what it needs, guest/build.sh the guest. Needs root.
# KVBENCH_REPETITIONS=15: how often each thing is measured. KVBENCH_PORTS=1000: the upper number of ports.
# KVBENCH_NETWORKS=100: how many networks with DHCP are there at a time.
#
# netd and vmd run in one network namespace and libvirt in another, with a /run, a /dev and state of its own, so
# that nothing of the machine's is touched. Without libvirt its columns stay empty; it is installed only where no
# service manager runs that would start it. How to read the table: BENCHMARKS.md.
set -euo pipefail
export LC_ALL=C

root=$(cd "$(dirname "$0")/.." && pwd)
bin=$(realpath "${1:-$root/target/release}")
image=$(realpath "${2:-$root/target/guest}")
repetitions=${KVBENCH_REPETITIONS:-15}
ports=${KVBENCH_PORTS:-1000}
networks=${KVBENCH_NETWORKS:-100}
OURS=kvbench-kvmctl THEIRS=kvbench-libvirt
VMD_UID=64055 # nobody's on any system
PATIENCE=30   # seconds for anything awaited
packages='libvirt-daemon-system libvirt-clients libvirt-daemon-driver-qemu iptables'

W=''

die() { echo "bench.sh: $*" >&2; exit 1; }

until_true() {
    local what=$1 end=$((SECONDS + PATIENCE))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || { tail -n 20 "$W"/*.log >&2 || :; die "waited $PATIENCE s in vain for $what"; }
        sleep 0.05
    done
}

# Machines of vmd, which are in namespaces of their own: their messages go to a file of its folder.
machines() {
    local process
    for process in /proc/[0-9]*; do
        case $(readlink "$process/fd/2") in "$W"/vmd-run/*) echo "${process#/proc/}" ;; esac
    done
}

remove_all() {
    local name pid
    [ -z "$W" ] || for pid in $(machines); do kill -KILL "$pid" 2>/dev/null || :; done
    for name in $OURS $THEIRS; do
        [ -e /run/netns/$name ] || continue
        for pid in $(ip netns pids $name); do kill -KILL "$pid" 2>/dev/null || :; done
        until_true "$name to be empty" eval "[ -z \"\$(ip netns pids $name)\" ]"
        ip netns delete $name
    done
}

leave() {
    local status=$?
    trap '' INT TERM HUP
    set +e
    if [ $status -ne 0 ] && [ -n "$W" ]; then
        for log in "$W"/*.log; do [ ! -s "$log" ] || { echo "--- $log" && tail -n 15 "$log"; } >&2; done
    fi
    remove_all
    [ -z "$W" ] || rm -rf "$W"
    exit $status
}

# A namespace with an uplink that has a default route, as a host has.
make_host() {
    ip netns add "$1"
    ip -n "$1" link set lo up
    ip -n "$1" link add up0 type veth peer name lan0
    ip -n "$1" address add 10.99.0.2/24 dev up0
    ip -n "$1" link set up0 up
    ip -n "$1" link set lan0 up
    ip -n "$1" route add default via 10.99.0.1
}

# Where udev runs, every user may open /dev/net/tun. Here it may not be so: vmd, and bare QEMU, see a node that is.
with_tun='mount --bind "$1" /dev/net/tun; shift; exec "$@"'

start_ours() {
    make_host $OURS
    ip netns exec $OURS "$W/bin/netd" --socket "$W/netd.sock" --state-dir "$W/netd-state" --run-dir "$W/netd-run" \
        --socket-group $VMD_UID </dev/null >"$W/netd.log" 2>&1 &
    netd=$!
    disown # The shell has no words to lose about its end.
    until_true 'netd to serve' "$W/bin/kvmctl" --netd "unix://$W/netd.sock" network list
    install -d -o $VMD_UID -g $VMD_UID "$W/vmd-state" "$W/vmd-run"
    ip netns exec $OURS sh -euc "$with_tun" sh "$W/tun" setpriv --reuid $VMD_UID --regid $VMD_UID --clear-groups \
        "$W/bin/vmd" --socket "$W/vmd-run/vmd.sock" --netd "unix://$W/netd.sock" --state-dir "$W/vmd-state" \
        --run-dir "$W/vmd-run" --accel tcg </dev/null >"$W/vmd.log" 2>&1 &
    vmd=$!
    disown
    until_true 'vmd to serve' "$W/bin/kvmctl" --vmd "unix://$W/vmd-run/vmd.sock" vm list
}

# The tests of neighbours install libvirt without QEMU's driver and its folders.
have_libvirt() {
    command -v libvirtd >/dev/null && command -v virsh >/dev/null && command -v virtlogd >/dev/null &&
        [ -d /var/lib/libvirt ] && [ -d /etc/libvirt ]
}

no_libvirt() {
    printf '\n!!! %s\n!!! The comparison with libvirt is LEFT OUT.\n\n' "$*" >&2
    return 1
}

get_libvirt() {
    ! have_libvirt || return 0
    [ ! -d /run/systemd/system ] ||
        no_libvirt "libvirt is not installed, and installing it would start it here. If you want that:
!!! apt-get install --no-install-recommends $packages" || return 1
    echo 'bench.sh: installing libvirt' >&2
    # shellcheck disable=SC2086 # a list
    DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $packages >"$W/apt.log" 2>&1 ||
        no_libvirt "libvirt cannot be installed: $(tail -n 2 "$W/apt.log")" || return 1
    have_libvirt || no_libvirt 'libvirt was installed but is not there'
}

# Debian's own settings but for these: no polkit and no writable cgroups here, which only makes it faster.
# /dev is made anew without /dev/kvm: where it is there but does not work, libvirt probes QEMU at each start.
# shellcheck disable=SC2016 # for the inner shell
libvirt_alone='
    w=$1
    for dir in etc/libvirt var/lib/libvirt var/cache/libvirt var/log/libvirt; do mount --bind "$w/$dir" "/$dir"; done
    mount --bind "$w/run" /run
    mount -t tmpfs -o mode=755 none "$w/dev"
    mkdir "$w/dev/net" "$w/dev/pts" "$w/dev/shm"
    for node in null zero full random urandom tty; do cp -a /dev/$node "$w/dev/"; done
    mknod -m 666 "$w/dev/net/tun" c 10 200
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$w/dev/pts"
    mount -t tmpfs none "$w/dev/shm"
    ln -s pts/ptmx "$w/dev/ptmx"
    umount -l /dev
    mount --move "$w/dev" /dev
    ! mountpoint -q /sys/fs/cgroup || mount -t tmpfs none /sys/fs/cgroup
    virtlogd -p /run/virtlogd.pid >"$w/../virtlogd.log" 2>&1 &
    exec libvirtd -p /run/libvirtd.pid >"$w/../libvirtd.log" 2>&1'

start_theirs() {
    get_libvirt || return 0
    local user lv=$W/libvirt
    user=$(id -un libvirt-qemu 2>/dev/null) || user=root
    make_host $THEIRS
    mkdir -p "$lv"/{dev,run,etc/libvirt/qemu,var/lib/libvirt/{qemu,dnsmasq},var/cache/libvirt/qemu,var/log/libvirt/qemu}
    chown "$user" "$lv/var/lib/libvirt/qemu"
    printf '%s\n' 'auth_unix_ro = "none"' 'auth_unix_rw = "none"' >"$lv/etc/libvirt/libvirtd.conf"
    printf '%s\n' 'cgroup_controllers = []' "user = \"$user\"" >"$lv/etc/libvirt/qemu.conf"
    setsid ip netns exec $THEIRS sh -euc "$libvirt_alone" sh "$lv" </dev/null >"$W/libvirt-start.log" 2>&1 &
    disown
    libvirt=qemu+unix:///system?socket=$lv/run/libvirt/libvirt-sock
    until_true 'libvirtd to serve' virsh -q -c "$libvirt" list
    libvirt_pids="$(cat "$lv/run/libvirtd.pid"),$(cat "$lv/run/virtlogd.pid")"
}

[ "$(id -u)" -eq 0 ] || die 'run this as root: it makes network namespaces'
for tool in ip nft setpriv qemu-system-x86_64; do
    command -v $tool >/dev/null || die "$tool is missing: run \`make deps\`"
done
for file in "$bin"/{netd,vmd,kvmctl,bench} "$image"/{vmlinuz,initrd.img}; do
    [ -e "$file" ] || die "$file is missing: run \`cargo build --release --workspace\` and \`make guest\`"
done
exec {lock}>/run/lock/kvbench
flock -n "$lock" || die 'another benchmark is running'
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
remove_all
W=$(mktemp -d /tmp/kvbench.XXXXXX)
chmod 755 "$W"
mkdir "$W/bin"
cp "$bin"/{netd,vmd,kvmctl,bench} "$W/bin/"
cp "$image"/{vmlinuz,initrd.img} "$W/"
chmod 644 "$W"/{vmlinuz,initrd.img}
mknod -m 666 "$W/tun" c 10 200
netd='' vmd='' libvirt='' libvirt_pids=''
start_ours
start_theirs
# In kvmctl's namespace, since bare QEMU opens a tap of it; the daemons are reached by their sockets.
printf '%s, %s CPUs%s, Linux %s, %s\n' "$(date -I)" "$(nproc)" "$(sed -n 's/^model name[^:]*: /, /p;T;q' /proc/cpuinfo)" \
    "$(uname -r)" "$(qemu-system-x86_64 --version | head -n 1)"
[ -z "$libvirt" ] || echo "libvirt $(libvirtd --version | sed 's/.* //')"
uptime | sed 's/.*load average/load average before/'
echo
KVBENCH_DIR=$W KVBENCH_NETD=$netd KVBENCH_VMD=$vmd KVBENCH_UID=$VMD_UID KVBENCH_REPETITIONS=$repetitions \
    KVBENCH_PORTS=$ports KVBENCH_NETWORKS=$networks KVBENCH_LIBVIRT=$libvirt KVBENCH_LIBVIRT_PIDS=$libvirt_pids \
    ip netns exec $OURS sh -euc "$with_tun" sh "$W/tun" "$W/bin/bench"
