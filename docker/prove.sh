#!/usr/bin/env bash
# Tries the image and compose.yaml without a registry, without compose and without touching the host's network.
#
#   prove.sh [BINDIR [GUESTDIR [BASE.tar]]]     default: target/release target/guest, and mmdebstrap makes the base
#
# An engine of its own runs in a network and a mount namespace, with its data in a temporary folder. The image is the
# Dockerfile's `prebuilt`. Containers get the options of compose.yaml, translated to `docker run` (run_options.py).
# Then kvmctl, outside, makes a nat network and boots the test guest; vmd is killed and takes the guest over; the
# container is stopped and the guest is shut down by it. Needs root, Debian's docker.io, python3-yaml, nft.
set -euo pipefail
export LC_ALL=C

root=$(cd "$(dirname "$0")/.." && pwd)
bin=$(realpath "${1:-$root/target/release}")
image=$(realpath "${2:-$root/target/guest}")
base=${3:-}
NS=kvdock
CMDLINE='console=ttyS0 quiet net.ifnames=0 panic=-1 no_timer_check tsc=reliable cryptomgr.notests lsm=capability'
engine='' W=''

die() { echo "prove.sh: $*" >&2; exit 1; }
say() { printf '== %s\n' "$*"; }
docker() { /usr/bin/docker --host "unix://$W/docker.sock" "$@"; }
until_true() {
    local what=$1 end=$((SECONDS + 60))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || die "waited in vain for $what"
        sleep 0.1
    done
}

leave() {
    local status=$?
    trap '' INT TERM
    set +e
    if [ -n "$engine" ]; then
        if [ $status -ne 0 ]; then
            for name in netd vmd; do echo "--- $name"; docker logs --tail 20 "$name"; done
            tail -n 15 "$W/dockerd.log"
        fi
        docker kill netd vmd >/dev/null 2>&1
        docker rm -f netd vmd >/dev/null 2>&1
        kill -TERM "$engine"
        wait "$engine" 2>/dev/null
        for pid in $(ip netns pids $NS); do kill -KILL "$pid"; done
    fi
    ip netns delete $NS 2>/dev/null
    # Its cgroups, empty by now.
    find /sys/fs/cgroup -depth -type d -path "*/$NS*" -exec rmdir {} + 2>/dev/null
    [ -z "$W" ] || rm -rf "$W"
    exit $status
} >&2

[ "$(id -u)" -eq 0 ] || die 'run this as root'
command -v dockerd >/dev/null || die 'dockerd is missing: apt-get install docker.io'
! [ -e /run/netns/$NS ] || die "there is a namespace $NS: another one runs"
trap leave EXIT
trap 'exit 130' INT TERM
W=$(mktemp -d /tmp/kvdock.XXXXXX)
chmod 755 "$W"
ip netns add $NS
ip -n $NS link set lo up
ip -n $NS link add up0 type veth peer name lan0
ip -n $NS address add 10.99.0.2/24 dev up0
ip -n $NS link set up0 up
ip -n $NS link set lan0 up
ip -n $NS route add default via 10.99.0.1

say 'engine'
# `ip netns exec` would hide the cgroups. The node is 0666, as udev makes it, and /run is empty, in this mount
# namespace only.
mknod -m 666 "$W/tun" c 10 200
# shellcheck disable=SC2016 # for the inner shell
nsenter --net=/run/netns/$NS unshare --mount sh -euc 'mount --bind "$1/tun" /dev/net/tun
    mount -t tmpfs -o mode=755 none /run
    exec /usr/sbin/dockerd --data-root "$1/data" --exec-root "$1/exec" --pidfile "$1/dockerd.pid" \
        --host "unix://$1/docker.sock" --iptables=false --ip6tables=false --bridge=none --cgroup-parent '$NS \
    sh "$W" </dev/null >"$W/dockerd.log" 2>&1 &
engine=$!
until_true 'the engine' docker version
docker version --format 'engine {{.Server.Version}}, client {{.Client.Version}}'

say 'image'
if [ -z "$base" ]; then
    base=$W/base.tar
    mmdebstrap --quiet --variant=minbase --include=qemu-system-x86,nftables,tcpdump,dnsmasq-base bookworm "$base"
fi
docker import "$base" kvmctl-base >/dev/null
mkdir -p "$W/context/prebuilt"
cp -r "$root/docker" "$W/context/"
cp "$bin"/{netd,vmd,kvmctl} "$W/context/prebuilt/"
DOCKER_BUILDKIT=0 docker build --quiet --network host --build-arg BASE_IMAGE=kvmctl-base --target prebuilt -t kvmctl \
    -f "$W/context/docker/Dockerfile" "$W/context"

say 'containers, with the options of compose.yaml'
mkdir "$W/images"
cp "$image"/{vmlinuz,initrd.img} "$W/images/"
chmod 644 "$W/images"/*
export KVMCTL_IMAGES=$W/images
start() {
    local options
    mapfile -t options < <(python3 "$root/docker/run_options.py" "$root/docker/compose.yaml" "$1")
    printf '  docker run'; printf ' %q' "${options[@]}"; echo
    docker run --detach "${options[@]}" >/dev/null
}
health() { [ "$(docker inspect -f '{{.State.Health.Status}}' "$1")" = healthy ]; }
start netd
run=$(docker volume inspect -f '{{.Mountpoint}}' kvmctl_run)
export KVMCTL_NETD="unix://$run/netd.sock" KVMCTL_VMD="unix://$run/vmd.sock"
kvmctl() { "$bin/kvmctl" "$@"; }
until_true 'netd' kvmctl network list
start vmd
until_true 'vmd' kvmctl vm list
kvmctl host show
for name in netd vmd; do
    say "what $name may do (process 1's child or itself)"
    docker exec "$name" sh -c 'for p in /proc/[0-9]*; do
        case "$(tr "\0" " " <$p/cmdline)" in "'"$name"' "*) grep -E "^(Name|Uid|Groups|Cap(Eff|Prm|Amb)|NoNewPrivs)" $p/status;; esac; done'
done

say 'a network and a guest'
kvmctl network create lan --mode nat --ipv4 10.61.0.1/24
kvmctl network list
kvmctl vm run web --memory 128M --network lan,ip=10.61.0.2 --kernel /var/lib/kvmctl/images/vmlinuz \
    --initrd /var/lib/kvmctl/images/initrd.img \
    --cmdline "$CMDLINE kv.name=web kv.ip=eth0:10.61.0.2/24 kv.gw=eth0:10.61.0.1"
ready() { kvmctl vm log web | grep -q '^GUEST READY web'; }
until_true 'the guest' ready
kvmctl vm log web | grep '^GUEST READY'
nsenter --net=/run/netns/$NS ping -q -c 2 -W 2 10.61.0.2 | grep received
# The console's history holds the earlier answers: each has a token.
answer() (
    set +o pipefail # `timeout` ends a console that would go on
    token=$RANDOM$RANDOM
    printf 'ping -q -c 1 -W 2 10.61.0.1 >/dev/null; echo "PING:%s:$?"\n' $token |
        timeout 4 "$bin/kvmctl" vm console web | grep -q "PING:$token:0"
)
answer || die 'the guest does not reach its gateway'
echo 'guest -> gateway: answers'

say 'vmd is killed: the guest goes on and the next vmd takes it over'
pid_before=$(kvmctl vm show web -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)["status"]["pid"])')
docker exec vmd sh -c 'for p in /proc/[0-9]*; do case "$(tr "\0" " " <$p/cmdline)" in "vmd "*) kill -KILL "${p#/proc/}";; esac; done'
until_true 'the next vmd' kvmctl vm list
kvmctl vm list
pid_after=$(kvmctl vm show web -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)["status"]["pid"])')
[ "$pid_before" = "$pid_after" ] || die "QEMU was $pid_before and is $pid_after"
until_true 'an answer of the guest' answer
echo 'guest -> gateway: answers, same QEMU'

say 'netd is restarted: the network stays'
docker restart netd >/dev/null
until_true 'netd' kvmctl network list
until_true 'an answer of the guest' answer
echo 'guest -> gateway: answers'
until_true 'a healthy netd' health netd
until_true 'a healthy vmd' health vmd
echo 'both healthy'

say 'the container is stopped: its guest is shut down'
before=$SECONDS
docker stop --time 60 vmd >/dev/null
echo "stopped after $((SECONDS - before)) s"
docker logs vmd 2>&1 | tail -n 5
docker start vmd >/dev/null
until_true 'vmd' kvmctl vm list
kvmctl vm list
kvmctl vm show web -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)["status"])'
kvmctl vm log web | grep -q '^GUEST DOWN poweroff' || die 'the guest was not shut down in order'
kvmctl vm delete web
kvmctl network delete lan
echo 'all as it should be'
