#!/usr/bin/env bash
# Installs what building, testing and the demo need from Debian's packages.
#
#   deps.sh                 installs what is missing; says nothing if all is there
#   deps.sh --fresh-lists   fetches apt's package lists, whatever there is
#
# Rust is not among it: rustup installs it as its own documentation says.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

packages=(
    qemu-system-x86 seabios                        # machines
    nftables iproute2 dnsmasq-base                 # networks
    busybox-static cpio kmod                       # the test guest
    mmdebstrap e2fsprogs zstd xz-utils             # the Debian machines
    uidmap                                         # machines' own users
    iputils-ping tcpdump util-linux jq strace procps  # tests and demo
    libfaketime                                    # a wall clock that jumps
    isc-dhcp-client bind9-dnsutils                 # guests' own programs, in tests
    gcc libc6-dev make git                         # the build
)
# Other programs that make networks and rules: tests run them in namespaces.
neighbours=(
    docker.io iptables
    firewalld dbus-daemon
    libvirt-daemon libvirt-clients dnsmasq-base
)
packages+=("${neighbours[@]}")
# build.sh of the test guest downloads a kernel of it.
guest_kernel=linux-image-cloud-amd64

die() { echo "deps.sh: $*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

# quietly COMMAND...: its output only if it fails.
quietly() {
    local log
    log=$("$@" 2>&1) || { echo "$log" >&2; return 1; }
}

version() {
    dpkg-query -W -f '${db:Status-Status} ${Version}' "$1" 2>/dev/null | sed -n 's/^installed //p'
}

candidate() { apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: //p' | grep -vx '(none)' || :; }

fresh_lists() { quietly as_root apt-get -q update || die "apt-get update failed: is there a network?"; }

# An installed qemu-utils of another release (backports) breaks every qemu-system-x86 but its own:
# "held broken packages". It then gets the same version.
matching_qemu_utils() {
    local wanted
    wanted=$(version qemu-system-x86)
    [ -n "$wanted" ] || wanted=$(candidate qemu-system-x86)
    case $(version qemu-utils) in
    '' | "$wanted") ;;
    *) echo "qemu-utils=$wanted" ;;
    esac
}

# None of the neighbours may start on this machine: not now, by Debian's own switch for that, nor at its next boot.
POLICY=/usr/sbin/policy-rc.d
held=
hold_services() {
    [ ! -e $POLICY ] || return 0
    held=1
    printf '#!/bin/sh\nexit 101\n' | as_root tee $POLICY >/dev/null
    as_root chmod 755 $POLICY
}
# release_services PACKAGE...: the packages that were installed.
release_services() {
    local units=()
    [ -z "$held" ] || as_root rm -f $POLICY
    [ -d /run/systemd/system ] || return 0
    case " $* " in *' docker.io '*) units+=(docker.service docker.socket containerd.service) ;; esac
    case " $* " in *' firewalld '*) units+=(firewalld.service) ;; esac
    [ ${#units[@]} -eq 0 ] || quietly as_root systemctl disable "${units[@]}"
}

install() {
    local utils=''
    case " $* " in *' qemu-system-x86 '*) utils=$(matching_qemu_utils) ;; esac
    # shellcheck disable=SC2086 # no word when empty
    as_root apt-get -q install -y --no-install-recommends \
        ${utils:+--allow-downgrades} "$@" $utils 2>&1
}

if [ "${1:-}" = --fresh-lists ]; then
    fresh_lists
    exit 0
fi

command -v cargo >/dev/null || [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ] ||
    die "cargo is missing: install Rust, see https://rustup.rs"
command -v apt-get >/dev/null || die "no apt-get: install by hand what this needs: ${packages[*]}"

missing=()
for package in "${packages[@]}"; do
    [ -n "$(version "$package")" ] || missing+=("$package")
done
unknown=
for package in "${missing[@]}" "$guest_kernel"; do
    [ -n "$(candidate "$package")" ] || unknown=1
done

[ ${#missing[@]} -gt 0 ] || [ -n "$unknown" ] || exit 0
[ "$(id -u)" -eq 0 ] || sudo -n true 2>/dev/null ||
    die "missing: ${missing[*]:-package lists of apt}. Run \`make deps\` as root"
[ -z "$unknown" ] || fresh_lists
[ ${#missing[@]} -gt 0 ] || exit 0

echo "installing ${missing[*]}"
trap 'release_services "${missing[@]}"' EXIT
hold_services
# Old lists name files that are gone; with fresh ones it works, or the fault is another.
if ! log=$(install "${missing[@]}"); then
    fresh_lists
    log=$(install "${missing[@]}") || { echo "$log" >&2; die "apt-get could not install ${missing[*]}"; }
fi
