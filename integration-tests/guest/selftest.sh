#!/bin/bash
# Proves the guest image by hand-started QEMUs, without any of this project's
# programs: one guest alone, then two on a bridge in a network namespace of
# their own. Needs root, socat, jq and iproute2.
#
#   selftest.sh OUTDIR        (OUTDIR as made by build.sh)
set -eu

[ $# -eq 1 ] || { echo "usage: selftest.sh OUTDIR" >&2; exit 2; }
out=$1
tmp=$(mktemp -d)
ns=kvguest$$
pids=()
failed=0

finish() {
    local pid
    for pid in "${pids[@]}"; do
        kill "$pid" 2>/dev/null || :
    done
    wait
    ip netns del "$ns" 2>/dev/null || :
    rm -rf "$tmp"
}
trap finish EXIT
trap 'exit 1' HUP INT TERM

now() { date +%s%3N; }
# check WHAT COMMAND...: one line of the result.
check() {
    local what=$1
    shift
    if "$@"; then
        echo "ok    $what"
    else
        echo "FAIL  $what"
        failed=1
    fi
}
# until_true SECONDS COMMAND...
until_true() {
    local end=$(($(now) + $1 * 1000))
    shift
    until "$@" 2>/dev/null; do
        [ "$(now)" -lt "$end" ] || return 1
        sleep 0.02
    done
}

# start VM WORDS QEMU-OPTION...: boots a guest; its console is then file
# descriptor con[VM] for input and the file VM.log for output.
declare -A con qpid
start() {
    local vm=$1 words=$2 fd
    shift 2
    # QEMU waits for the console's reader, so that the log misses nothing.
    qemu-system-x86_64 -name "$vm" -nodefaults -display none -no-reboot \
        -accel tcg,thread=multi -cpu max -machine q35 -m 256 \
        -kernel "$out/vmlinuz" -initrd "$out/initrd.img" \
        -append "console=ttyS0 quiet net.ifnames=0 panic=-1 no_timer_check tsc=reliable cryptomgr.notests lsm=capability kv.name=$vm $words" \
        -chardev "socket,id=con,path=$tmp/$vm.con,server=on,wait=on" -serial chardev:con \
        -qmp "unix:$tmp/$vm.qmp,server=on,wait=off" "$@" 2>"$tmp/$vm.err" &
    qpid[$vm]=$!
    pids+=($!)
    until_true 5 test -S "$tmp/$vm.con"
    mkfifo "$tmp/$vm.in"
    socat - "UNIX-CONNECT:$tmp/$vm.con" <"$tmp/$vm.in" >"$tmp/$vm.log" &
    pids+=($!)
    exec {fd}>"$tmp/$vm.in"
    con[$vm]=$fd
}
ready() { until_true 60 grep -q "^GUEST READY $1" "$tmp/$1.log"; }
ended() { ! kill -0 "${qpid[$1]}" 2>/dev/null; }

# run VM COMMAND: output on stdout, the command's status as status.
token=0
run() {
    local vm=$1 t size
    token=$((token + 1))
    t=t$$.$token.$RANDOM
    size=$(stat -c %s "$tmp/$vm.log")
    printf '%s; echo "DONE:%s:$?"\n' "$2" "$t" >&"${con[$vm]}"
    until_true 60 grep -q "^DONE:$t:[0-9]" "$tmp/$vm.log" || return 99
    tail -c +$((size + 1)) "$tmp/$vm.log" | sed "/^DONE:$t:/d"
    return "$(sed -n "s/^DONE:$t:\([0-9]*\).*/\1/p" "$tmp/$vm.log")"
}
says() { [ "$(run "$1" "$2")" = "$3" ]; }
# button VM: presses the power button.
button() {
    printf '%s\n' '{"execute":"qmp_capabilities"}' '{"execute":"system_powerdown"}' |
        socat -t 1 - "UNIX-CONNECT:$tmp/$1.qmp" >/dev/null
}
# off VM WHAT: waits for the end of QEMU, however it was asked for.
off() {
    local t
    t=$(now)
    check "$1: $2 ends QEMU" until_true 10 ended "$1"
    echo "      $(($(now) - t)) ms"
    check "$1: orderly" grep -q '^GUEST DOWN' "$tmp/$1.log"
}

echo "== one guest, no network"
truncate -s 1M "$tmp/disk.img"
printf 'hello disk' | dd of="$tmp/disk.img" conv=notrunc status=none
script=$(printf 'echo ran >/tmp/ran' | base64 -w0)
t=$(now)
start solo "kv.run=$script" \
    -drive "file=$tmp/disk.img,format=raw,if=none,id=disk,readonly=on" -device virtio-blk-pci,drive=disk \
    -device virtio-scsi-pci,id=scsi \
    -drive "file=$tmp/disk.img,format=raw,if=none,id=cd,media=cdrom,readonly=on" \
    -device scsi-cd,bus=scsi.0,drive=cd
check 'ready' ready solo
echo "      $(($(now) - t)) ms to GUEST READY"
t=$(now)
check 'a command' says solo 'echo one; echo two' $'one\ntwo'
echo "      $(($(now) - t)) ms"
check 'status of a command' says solo '(exit 7); echo $?' 7
check 'long output' says solo 'seq 20000 | md5sum' "$(seq 20000 | md5sum)"
check 'long output, whole' test "$(run solo 'seq 20000' | md5sum)" = "$(seq 20000 | md5sum)"
long=$(head -c 12000 /dev/zero | tr '\0' x)
check 'long line' says solo "v=$long; echo \${#v}" 12000
check 'a command cannot eat the next' says solo 'cat' ''
check 'kv.run' says solo 'cat /tmp/ran' ran
check 'disk' says solo 'head -c 10 /dev/vda; echo' 'hello disk'
check 'cdrom' says solo 'head -c 10 /dev/sr0; echo' 'hello disk'
printf 'sleep 1000\n' >&"${con[solo]}"
sleep 0.3
printf '\003' >&"${con[solo]}"
sleep 0.3
check 'a fresh shell after ^C' says solo 'echo back' back
button solo
off solo 'power button'

echo "== two guests on a bridge"
ip netns add "$ns"
ip -n "$ns" link add br0 type bridge
ip -n "$ns" link set br0 up
ip -n "$ns" link set lo up
for tap in a0 a1 b0; do
    ip -n "$ns" tuntap add "$tap" mode tap
    ip -n "$ns" link set "$tap" up
    [ "$tap" = a1 ] || ip -n "$ns" link set "$tap" master br0
done
# The taps are in the namespace, so QEMU starts there; its sockets are files.
qemu-system-x86_64() { exec ip netns exec "$ns" qemu-system-x86_64 "$@"; }
nic() { # INDEX TAP MAC
    nics+=(-device "pcie-root-port,id=rp$1,chassis=$1,slot=$1"
        -netdev "tap,id=n$1,ifname=$2,script=no,downscript=no"
        -device "virtio-net-pci,netdev=n$1,bus=rp$1,mac=$3,romfile=")
}
t=$(now)
nics=()
nic 0 a0 52:54:00:00:00:0a
nic 1 a1 52:54:00:00:00:01
start a 'kv.ip=eth0:10.9.0.1/24 kv.ip=eth0:fd09::1/64 kv.gw=eth0:10.9.0.2 kv.gw=eth0:fd09::2 kv.dns=10.9.0.2' "${nics[@]}"
nics=()
nic 0 b0 52:54:00:00:00:0b
start b 'kv.ip=eth0:10.9.0.2/24 kv.ip=eth0:fd09::2/64 kv.ip=eth0:10.8.0.1/24 kv.listen=tcp:80' "${nics[@]}"
check 'a ready' ready a
check 'b ready' ready b
echo "      $(($(now) - t)) ms to both GUEST READY"
check 'no errors' test "$(cat "$tmp"/[ab].log | grep -c 'GUEST ERROR')" = 0
check 'NIC order' says a 'cat /sys/class/net/eth?/address' $'52:54:00:00:00:0a\n52:54:00:00:00:01'
check 'NIC without address is up' says a 'cat /sys/class/net/eth1/carrier' 1
check 'ping v4' run a 'ping -c 2 -i 0.2 -W 2 10.9.0.2 >/dev/null'
check 'ping v6' run a 'ping -6 -c 2 -i 0.2 -W 2 fd09::2 >/dev/null'
check 'ping by the v4 gateway' run a 'ping -c 1 -W 2 10.8.0.1 >/dev/null'
check 'v6 default route' says a 'ip -6 route show default | cut -d" " -f1-3' 'default via fd09::2'
check 'dns' says a 'cat /etc/resolv.conf' 'nameserver 10.9.0.2'
check 'peer v4' says a 'nc -w 3 10.9.0.2 80' 'PEER 10.9.0.1'
check 'peer v6' says a 'nc -w 3 fd09::2 80' 'PEER fd09::1'
check 'peer again' says a 'for i in 1 2 3; do nc -w 3 10.9.0.2 80; done | uniq -c | tr -s " "' ' 3 PEER 10.9.0.1'
button b
off b 'power button'
printf 'poweroff\n' >&"${con[a]}"
off a 'poweroff'

exit $failed
