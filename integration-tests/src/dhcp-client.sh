#!/bin/sh
# What udhcpc and dhclient run: applies what was given out, and prints it as `key=value` lines.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
case "${1:-}" in
bound | renew)
    ip address flush dev "$interface" scope global to 0.0.0.0/0
    ip address add "$ip/$mask" dev "$interface"
    [ -z "${router:-}" ] || ip route replace default via "$router"
    [ -z "${mtu:-}" ] || ip link set "$interface" mtu "$mtu"
    for key in ip mask router dns domain search mtu hostname lease serverid; do
        eval "echo \"$key=\${$key:-}\""
    done
    ;;
esac
case "${reason:-}" in
BOUND6 | RENEW6 | REBIND6)
    ip -6 address replace "$new_ip6_address/$new_ip6_prefixlen" dev "$interface" nodad
    echo "ip=$new_ip6_address"
    echo "dns=$new_dhcp6_name_servers"
    echo "search=$new_dhcp6_domain_search"
    ;;
esac
exit 0
