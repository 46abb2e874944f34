#!/usr/bin/env bash
# Shows the four kinds of network with real guests, and checks each promise from inside them.
#
#   demo.sh [BINDIR [GUESTDIR]]     default: target/debug target/guest
#
# A "host" and a "LAN" are two network namespaces; the machine's own network is not touched, which is
# checked at the end. Needs root, /dev/net/tun, QEMU and nft. KVDEMO_ACCEL=auto uses KVM where that works.
set -euo pipefail
export LC_ALL=C

root=$(cd "$(dirname "$0")/.." && pwd)
bin=$(realpath "${1:-$root/target/debug}")
image=$(realpath "${2:-$root/target/guest}")
HOST=kvdemo-host LAN=kvdemo-lan
VMD_UID=64055  # nobody's on any system
PATIENCE=60    # seconds for anything awaited
CMDLINE='console=ttyS0 quiet net.ifnames=0 panic=-1 no_timer_check tsc=reliable cryptomgr.notests lsm=capability'

W='' finished='' token=0 GOT='' STATUS=''
declare -A IN OUT PID
declare -a checks=()
failed=0

# ---------------------------------------------------------------- telling

if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'; else bold='' dim='' red='' green='' plain=''; fi

title() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
die() { printf 'demo.sh: %s\n' "$*" >&2; exit 1; }
indent() { sed 's/^/    /'; }

# A command line as somebody would type it.
typed() {
    local word line=''
    for word; do
        case $word in *[!A-Za-z0-9_./:=,@%+-]*) word="'$word'" ;; esac
        line+=" $word"
    done
    printf '%s$%s%s\n' "$bold" "$line" "$plain"
}

# show COMMAND...: prints it and runs it.
show() {
    typed "$@"
    "$@" || die "\`$*\` failed"
}

# check NAME EXPECTED SEEN
check() {
    local verdict=ok
    [ "$2" = "$3" ] || { verdict=FAILED; failed=$((failed + 1)); }
    checks+=("$1"$'\t'"$2"$'\t'"${3:-nothing}"$'\t'"$verdict")
}

table() {
    local row
    printf '%s\n' $'CHECK\tEXPECTED\tSEEN\t' "${checks[@]}" |
        awk -F '\t' '{ for (i = 1; i <= NF; i++) { cell[NR, i] = $i; if (length($i) > width[i]) width[i] = length($i) } }
            END { for (n = 1; n <= NR; n++) printf "%-*s  %-*s  %-*s  %s\n", width[1], cell[n, 1],
                  width[2], cell[n, 2], width[3], cell[n, 3], cell[n, 4] }' |
        while IFS= read -r row; do
            case $row in
            *FAILED) echo "$red$row$plain" ;;
            *ok) echo "${row%ok}${green}ok$plain" ;;
            *) echo "$bold$row$plain" ;;
            esac
        done
}

# ---------------------------------------------------------------- waiting

# until_true WHAT COMMAND...: polls, in bounded time.
until_true() {
    local what=$1 end=$((SECONDS + PATIENCE))
    shift
    until "$@" 2>/dev/null; do
        [ $SECONDS -lt $end ] || die "waited $PATIENCE s in vain for $what"
        sleep 0.02
    done
}

alive() { [ -e "/proc/$1" ] && ! grep -q '^State:.Z' "/proc/$1/status" 2>/dev/null; }
gone() { ! alive "$1"; }

# ---------------------------------------------------------------- the two hosts

host() { ip netns exec $HOST "$@"; }
lan() { ip netns exec $LAN "$@"; }

# Everything of a network that a person could have set; $@ enters the namespace.
census() {
    # Without what changes by itself. `nodad`: an address that moved was not tried for duplicates again.
    local steady='walk(if type == "object" then del(.valid_life_time, .preferred_life_time, .expires, .nodad) else . end)'
    "$@" ip -j link | jq "$steady"
    "$@" ip -j address | jq "$steady"
    "$@" ip -j route show table all | jq "$steady"
    "$@" ip -6 -j route show table all | jq "$steady"
    "$@" ip -j rule | jq .
    "$@" nft list ruleset
    "$@" cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding
}

make_hosts() {
    ip netns add $HOST
    ip netns add $LAN
    host ip link set lo up
    lan ip link set lo up
    local n
    for n in 0 1; do
        ip -n $HOST link add up$n type veth peer name lan$n netns $LAN
        host sysctl -qw net.ipv6.conf.up$n.accept_dad=0
        lan sysctl -qw net.ipv6.conf.lan$n.accept_dad=0
        host ip link set up$n up
        lan ip link set lan$n up
        host ip address add 10.9$((9 - n)).0.2/24 dev up$n
        host ip address add 2001:db8:9$((9 - n))::2/64 dev up$n
        lan ip address add 10.9$((9 - n)).0.1/24 dev lan$n
        lan ip address add 2001:db8:9$((9 - n))::1/64 dev lan$n
    done
    host ip route add default via 10.99.0.1
    host ip -6 route add default via 2001:db8:99::1
    # Back to the routed network only: who answers a guest of another one answers the host.
    lan ip route add 10.53.0.0/24 via 10.99.0.2
    lan ip -6 route add 2001:db8:53::/64 via 2001:db8:99::2
    until_true 'the link-local addresses' eval '[ "$(host ip -6 -o address show scope link | wc -l)" = 2 ]'
    # Tells each caller its address.
    background peer ip netns exec $LAN busybox nc -ll -p 8000 -e "$W/kv-peer"
    until_true 'the listener on the LAN' listening
}
# All of it is read: cat would end by SIGPIPE, and the pipe with it.
listening() { lan cat /proc/net/tcp6 /proc/net/tcp | grep ':1F40 0*:0000 0A' >/dev/null; }

# background NAME COMMAND...: runs on, in a session of its own (Ctrl-C is for this script), output in a log.
background() {
    local name=$1
    shift
    setsid "$@" </dev/null >>"$W/$name.log" 2>&1 {lock}>&- &
    PID[$name]=$!
}

start_daemons() {
    background netd ip netns exec $HOST netd --socket "$W/netd.sock" --state-dir "$W/netd-state" \
        --run-dir "$W/netd-run" --socket-group $VMD_UID
    until_true 'netd to serve' serves netd kvmctl network list
    install -d -o $VMD_UID -g $VMD_UID "$W/vmd-state" "$W/vmd-run"
    # Where udev runs, every user may open /dev/net/tun. Here it may not be so: vmd sees a node that is.
    mknod "$W/tun" c 10 200
    chmod 666 "$W/tun"
    # shellcheck disable=SC2016 # for the inner shell
    background vmd ip netns exec $HOST sh -euc \
        'mount --bind "$1" /dev/net/tun; uid=$2; shift 2
         exec setpriv --reuid "$uid" --regid "$uid" --clear-groups "$@"' sh "$W/tun" $VMD_UID \
        "$W/bin/vmd" --socket "$W/vmd-run/vmd.sock" --netd "$KVMCTL_NETD" \
        --state-dir "$W/vmd-state" --run-dir "$W/vmd-run" --accel "${KVDEMO_ACCEL:-tcg}"
    until_true 'vmd to serve' serves vmd kvmctl vm list
}
serves() {
    alive "${PID[$1]}" || { cat "$W/$1.log" >&2; die "$1 ended"; }
    "${@:2}" >/dev/null
}

# stop_daemon NAME: as a service manager would.
stop_daemon() {
    kill -TERM "${PID[$1]}"
    until_true "$1 to end" gone "${PID[$1]}"
    local status=0
    wait "${PID[$1]}" || status=$?
    check "$1 ends with status" 0 $status
}

# ---------------------------------------------------------------- guests

# guest NAME NETWORK[,ip=ADDR...] WORD...: the command line of a test guest (see guest/README.md) goes into `guest`. The
# guest sets the addresses of its port by itself.
guest() {
    local name=$1 network=$2 option words=''
    shift 2
    for option in ${network//,/ }; do
        case $option in
        ip=*:*) words+=" kv.ip=eth0:${option#ip=}/64" ;;
        ip=*) words+=" kv.ip=eth0:${option#ip=}/24" ;;
        esac
    done
    guest=(kvmctl vm run "$name" --memory 128M --network "$network" --kernel vmlinuz --initrd initrd.img
        --cmdline "$CMDLINE kv.name=$name$words $*")
}

# run_guest ...: as `guest`, starts it in the background.
run_guest() {
    local guest
    guest "$@"
    typed "${guest[@]}"
    "${guest[@]}" >"$W/$1.run" 2>&1 {lock}>&- &
    PID[run-$1]=$!
}

# The machine is there, and its console is on two pipes.
attach() {
    local in out
    wait "${PID[run-$1]}" || { cat "$W/$1.run" >&2; tail -n 5 "$W/vmd.log" >&2; die "$1 did not start"; }
    mkfifo "$W/$1.in" "$W/$1.out"
    exec {in}<>"$W/$1.in" {out}<>"$W/$1.out"
    IN[$1]=$in OUT[$1]=$out
    # The end of its input comes when this script ends it, not before.
    setsid kvmctl vm console "$1" <"$W/$1.in" >"$W/$1.out" 2>"$W/$1.console" {lock}>&- &
}

# Not `IFS= read`: a trap that runs meanwhile would have that IFS, and bash 5.2 dies at its `exit`.

# expect NAME TEXT: reads the console up to a line that starts so.
expect() {
    local line seen='' end=$((SECONDS + PATIENCE))
    while [ $SECONDS -lt $end ] && read -r -t $((end - SECONDS + 1)) -u "${OUT[$1]}" line; do
        seen+=$line$'\n'
        [[ $line != "GUEST ERROR"* ]] || die "$1: $line"
        [[ $line != "$2"* ]] || return 0
    done
    die "$1 did not say \`$2\`, but: $seen $(cat "$W/$1.console")"
}

# send NAME COMMAND, then collect NAME: status in STATUS, output in GOT.
send() {
    token=$((token + 1))
    # Two parts, so that an echo would not be taken for the answer.
    printf '%s; echo "DO""NE:%s:$?"\n' "$2" $token >&"${IN[$1]}"
    printf '%s%s#%s %s\n' "$bold" "$1" "$plain" "${3:-$2}"
}
collect() {
    local line end=$((SECONDS + PATIENCE))
    GOT=''
    while [ $SECONDS -lt $end ] && read -r -t $((end - SECONDS + 1)) -u "${OUT[$1]}" line; do
        if [[ $line == *"DONE:$token:"* ]]; then
            GOT+=${line%%DONE:*}
            GOT=${GOT%$'\n'}
            STATUS=${line##*:}
            [ -z "$GOT" ] || indent <<<"$GOT"
            return 0
        fi
        GOT+=$line$'\n'
    done
    die "$1 did not answer, but said: $GOT"
}
# inside NAME COMMAND [SHOWN]
inside() { send "$@"; collect "$1"; }

# ping_inside NAME ADDRESS: "answers" or "silent", in GOT.
ping_inside() {
    inside "$1" "ping -q -c 2 -W 2 $2 2>&1 | grep -v '^PING\|^---\|^\$'" "ping -q -c 2 -W 2 $2"
    case $GOT in *' 0% packet loss'*) GOT=answers ;; *) GOT=silent ;; esac
}

# outside COMMAND...: on the LAN's host; output in GOT.
outside() {
    printf '%slan$%s %s\n' "$bold" "$plain" "$*"
    GOT=$(lan "$@" 2>&1 </dev/null) || :
    [ -z "$GOT" ] || indent <<<"$GOT"
}

mac() { kvmctl vm show "$1" -o json | jq -r '.status.nics[0].mac'; }

# ---------------------------------------------------------------- the end

# Machines, which are in namespaces of their own: their messages go to a file of vmd's folder.
qemus() {
    local process
    for process in /proc/[0-9]*; do
        case $(readlink "$process/fd/2") in "$W"/vmd-run/*) echo "${process#/proc/}" ;; esac
    done
}

# Again and again: a program may just be starting the next one.
emptied() {
    local pid pids
    pids=$(ip netns pids "$1")
    for pid in $pids; do kill -KILL "$pid" || :; done
    [ -z "$pids" ]
}

remove_all() {
    local name pid
    # Ours that are in no namespace: consoles, commands cut short.
    for pid in $(jobs -p); do kill -KILL "$pid" 2>/dev/null || :; done
    for pid in $(qemus); do
        kill -KILL "$pid" 2>/dev/null || :
        until_true "process $pid to end" gone "$pid"
    done
    for name in $HOST $LAN; do
        [ -e /run/netns/$name ] || continue
        until_true "$name to be empty" emptied $name
        ip netns delete $name
    done
    # Takes back the shell's notices of killed jobs, too.
    wait 2>/dev/null || :
}

leave() {
    local status=$?
    trap '' INT TERM HUP
    set +e
    remove_all
    if [ $status -ne 0 ] && [ -z "$finished" ] && [ -n "$W" ]; then
        for log in netd vmd; do
            [ ! -s "$W/$log.log" ] || { echo "--- the end of $log's log" && tail -n 15 "$W/$log.log"; } >&2
        done
    fi
    [ -z "$W" ] || rm -rf "$W"
    exit $status
}

prepare() {
    local tool file
    [ "$(id -u)" -eq 0 ] || die 'run this as root: it makes network namespaces'
    [ -c /dev/net/tun ] || die 'no /dev/net/tun: load the module tun'
    for tool in ip nft jq busybox setpriv setsid flock qemu-system-x86_64; do
        command -v $tool >/dev/null || die "$tool is missing: run \`make deps\`"
    done
    for file in "$bin"/{netd,vmd,kvmctl} "$image"/{vmlinuz,initrd.img}; do
        [ -e "$file" ] || die "$file is missing: run \`make build guest\`"
    done
    exec {lock}>/run/lock/kvdemo
    flock -n "$lock" || die 'another demo is running'
    trap leave EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    # What a killed demo left: nobody else uses these names.
    remove_all
    # vmd's user has to reach programs and images.
    W=$(mktemp -d /tmp/kvdemo.XXXXXX)
    chmod 755 "$W"
    mkdir "$W/bin"
    cp "$bin"/{netd,vmd,kvmctl} "$W/bin/"
    cp "$image"/{vmlinuz,initrd.img} "$root/integration-tests/guest/kv-peer" "$W/"
    chmod 755 "$W"/bin/* "$W/kv-peer"
    chmod 644 "$W"/{vmlinuz,initrd.img}
    cd "$W"
    export PATH="$W/bin:$PATH" KVMCTL_NETD="unix://$W/netd.sock" KVMCTL_VMD="unix://$W/vmd-run/vmd.sock"
}

# Lines that only one of two texts has.
difference() { diff <(echo "$1") <(echo "$2") | grep '^[<>]' | cut -c 1-300 | head -n 8 >&2; }
same() {
    if [ "$1" = "$2" ]; then echo unchanged; else
        difference "$1" "$2" || :
        echo changed
    fi
}

# Processes that run a program of this demo, or were started for it.
leftovers() {
    local process
    for process in /proc/[0-9]*; do
        [ "${process#/proc/}" != $$ ] && [ "${process#/proc/}" != "$BASHPID" ] || continue
        tr '\0' ' ' 2>/dev/null <"$process/cmdline" | grep -F "$W" || :
    done
}

# ---------------------------------------------------------------- the demo

networks() {
    title 'Four networks'
    show kvmctl network create lab --mode isolated --ipv4 10.51.0.1/24 --ipv6 fd51::1/64
    show kvmctl network create home --mode nat --ipv4 10.52.0.1/24 --ipv6 fd52::1/64
    # Its guests are given addresses by hand, and would make themselves others of router advertisements.
    show kvmctl network create dmz --mode routed --ipv4 10.53.0.1/24 --ipv6 2001:db8:53::1/64 --dhcp off
    # From here to the end of the demo, 100 packets a second by the NIC that is about to be bridged.
    background pings ip netns exec $HOST ping -q -i 0.01 10.98.0.1
    background pings6 ip netns exec $HOST ping -q -i 0.01 2001:db8:98::1
    until_true 'the first echoes' echoed
    show kvmctl network create office --mode bridged --uplink up1
    show kvmctl network list
}
echoed() {
    [ "$(lan awk '/^Icmp: [0-9]/ { print $10 }' /proc/net/snmp)" -gt 10 ] &&
        [ "$(lan awk '$1 == "Icmp6InEchos" { print $2 }' /proc/net/snmp6)" -gt 10 ]
}

machines() {
    title 'Six guests, all started at once'
    run_guest iso1 lab,ip=10.51.0.11,ip=fd51::11 kv.gw=eth0:10.51.0.1 kv.gw=eth0:fd51::1
    run_guest iso2 lab,ip=10.51.0.12,ip=fd51::12
    run_guest nat1 home,ip=10.52.0.11,ip=fd52::11 kv.gw=eth0:10.52.0.1 kv.gw=eth0:fd52::1 kv.listen=tcp:9000
    run_guest nat2 home,ip=10.52.0.12,ip=fd52::12 kv.gw=eth0:10.52.0.1 kv.gw=eth0:fd52::1
    run_guest routed1 dmz,ip=10.53.0.11,ip=2001:db8:53::11 kv.gw=eth0:10.53.0.1 kv.gw=eth0:2001:db8:53::1 \
        kv.listen=tcp:9000
    run_guest bridged1 office,ip=10.98.0.11,ip=2001:db8:98::11 kv.listen=tcp:9000
    local name before=$SECONDS
    for name in iso1 iso2 nat1 nat2 routed1 bridged1; do attach $name; done
    for name in iso1 iso2 nat1 nat2 routed1 bridged1; do expect $name "GUEST READY $name"; done
    echo "    all ready after $((SECONDS - before)) s"
    show kvmctl vm list
    check 'guests that run' 6 "$(kvmctl vm list -o json | jq '[.[] | select(.status.state == "running")] | length')"
}

isolated() {
    title 'Isolated: the guests of lab reach each other, and nothing else'
    ping_inside iso1 10.51.0.12
    check 'isolated guest -> its neighbour, IPv4' answers "$GOT"
    ping_inside iso2 fd51::11
    check 'isolated guest -> its neighbour, IPv6' answers "$GOT"
    # A hostile guest: what is not for its network goes to the bridge itself.
    local bridge others='10.99.0.2 10.98.0.2 10.99.0.1 10.51.0.1 10.52.0.1 10.52.0.11 10.53.0.1 10.53.0.11'
    others+=' 2001:db8:99::2 2001:db8:99::1 fd51::1 fd52::1 2001:db8:53::11'
    bridge=$(kvmctl network show lab -o json | jq -r .status.bridge)
    inside iso1 "arp -s 10.51.0.1 $(host cat "/sys/class/net/$bridge/address")"
    # shellcheck disable=SC2016 # for the guest's shell
    inside iso1 'for a in '"$others"'; do (ping -q -c 1 -W 1 $a >/dev/null 2>&1 && echo "$a answers" || echo "$a silent") & done; wait' \
        "ping $others"
    check 'isolated guest -> host, outside, other networks' '0 of 13 answer' \
        "$(grep -c answers <<<"$GOT" || :) of $(grep -c . <<<"$GOT") answer"
}

nat() {
    title 'NAT: the outside sees the host'
    ping_inside nat1 10.52.0.12
    check 'NAT guest -> its neighbour' answers "$GOT"
    inside nat1 'nc -w 5 10.99.0.1 8000'
    check 'NAT guest seen from outside as, IPv4' 'PEER 10.99.0.2' "$GOT"
    inside nat2 'nc -w 5 2001:db8:99::1 8000'
    check 'NAT guest seen from outside as, IPv6' 'PEER 2001:db8:99::2' "$GOT"
    # Even somebody who knows the way gets no new connection in.
    lan ip route add 10.52.0.0/24 via 10.99.0.2
    outside busybox nc -w 1 10.52.0.11 9000
    lan ip route delete 10.52.0.0/24
    check 'outside -> NAT guest' none "$(grep -o 'PEER.*' <<<"$GOT" || echo none)"
}

routed() {
    title 'Routed: the guest is seen with its own address'
    inside routed1 'nc -w 5 10.99.0.1 8000'
    check 'routed guest seen from outside as, IPv4' 'PEER 10.53.0.11' "$GOT"
    inside routed1 'nc -w 5 2001:db8:99::1 8000'
    check 'routed guest seen from outside as, IPv6' 'PEER 2001:db8:53::11' "$GOT"
    outside busybox nc -w 5 10.53.0.11 9000
    check 'outside -> routed guest, IPv4' 'PEER 10.99.0.1' "$GOT"
    outside busybox nc -w 5 2001:db8:53::11 9000
    check 'outside -> routed guest, IPv6' 'PEER 2001:db8:99::1' "$GOT"
}

bridged() {
    title 'Bridged: the guest is a host of the LAN'
    ping_inside bridged1 10.98.0.1
    check 'bridged guest -> host of the LAN, IPv4' answers "$GOT"
    ping_inside bridged1 2001:db8:98::1
    check 'bridged guest -> host of the LAN, IPv6' answers "$GOT"
    outside busybox nc -w 5 10.98.0.11 9000
    check 'host of the LAN -> bridged guest' 'PEER 10.98.0.1' "$GOT"
    outside ip neighbour show 10.98.0.11
    check "the LAN's neighbour entry for the guest" "$(mac bridged1)" "$(sed -n 's/.*lladdr \([0-9a-f:]*\).*/\1/p' <<<"$GOT")"
}

removal() {
    title 'The power button, and everything goes'
    local name
    show kvmctl vm stop iso1
    expect iso1 'GUEST DOWN poweroff'
    check 'guest shut itself down at `vm stop`' stopped "$(kvmctl vm show iso1 -o json | jq -r .status.state)"
    for name in iso2 nat1 nat2 routed1 bridged1; do
        typed kvmctl vm stop $name
        kvmctl vm stop $name >"$W/$name.stop" 2>&1 &
        PID[stop-$name]=$!
    done
    for name in iso2 nat1 nat2 routed1 bridged1; do
        wait "${PID[stop-$name]}" || { cat "$W/$name.stop" >&2; die "$name did not stop"; }
        expect $name 'GUEST DOWN poweroff'
    done
    show kvmctl vm list
    for name in iso1 iso2 nat1 nat2 routed1 bridged1; do show kvmctl vm delete $name; done
    for name in lab home dmz office; do show kvmctl network delete $name; done
    show kvmctl network list
    for name in pings pings6; do
        kill -INT "${PID[$name]}"
        wait "${PID[$name]}" || :
        grep transmitted "$W/$name.log" | indent
    done
    check "the host's own packets by the bridged NIC, IPv4" '0 lost, more than 100 sent' "$(lost pings)"
    check "the host's own packets by the bridged NIC, IPv6" '0 lost, more than 100 sent' "$(lost pings6)"
    stop_daemon vmd
    stop_daemon netd
    check "processes in the host's namespace" none "$(ip netns pids $HOST | grep . || echo none)"
    check 'processes of machines' none "$(qemus | grep . || echo none)"
}
lost() {
    sed -n 's/^\([0-9]*\) packets transmitted, \([0-9]*\) received.*/\1 \2/p' "$W/$1.log" | {
        read -r sent received
        echo "$((sent - received)) lost, $([ "$sent" -le 100 ] && echo "$sent" || echo 'more than 100') sent"
    }
}

main() {
    local machine before
    prepare
    machine=$(census)
    title 'A host and a LAN, in namespaces'
    make_hosts
    lan ip -brief address | indent
    echo '    ^ the LAN; v the host'
    host ip -brief address | indent
    before=$(census host)
    start_daemons
    typed export "KVMCTL_NETD=$KVMCTL_NETD" "KVMCTL_VMD=$KVMCTL_VMD"
    networks
    machines
    isolated
    nat
    routed
    bridged
    removal
    check "the host's links, addresses, routes, rules" unchanged "$(same "$before" "$(census host)")"
    remove_all
    check "this machine's links, addresses, routes, rules" unchanged "$(same "$machine" "$(census)")"
    check 'processes left' none "$(leftovers | grep . || echo none)"
    check 'namespaces left' none "$(ip netns list | grep -o 'kvdemo-[a-z]*' || echo none)"
    check 'mounts left' none "$(grep -o "$W[^ ]*\|kvdemo-[a-z]*" /proc/mounts || echo none)"
    finished=1
    title "Checks, after $SECONDS s"
    table
    if [ $failed -gt 0 ]; then
        echo "$red$failed of ${#checks[@]} checks FAILED$plain"
        exit 1
    fi
    echo "all ${#checks[@]} checks ok"
}

main
