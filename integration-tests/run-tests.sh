#!/usr/bin/env bash
# Everything that has to be true before a change goes in: `make test`.
#
# Prints what the tests print, without the output of tests that passed; all of it is in target/test-logs. The last
# line is `N passed, N failed, N skipped`. A step that is no test (the lint, a build) counts only when it fails.
# A test that could not do all of its work prints `SKIPPED: why`; it counts as skipped and is listed by name.
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}"

logs=$PWD/target/test-logs
rm -rf "$logs"
mkdir -p "$logs"
tmp=$(mktemp -d)
# Per test binary: "BINARY PASSED FAILED IGNORED"; per skip and failure: its name and reason.
: >"$logs/results" >"$logs/skipped" >"$logs/failed"
completed=''

summary() {
    local status=$?
    trap - EXIT
    rm -rf "$tmp"
    [ -n "$completed" ] || [ -s "$logs/failed" ] || echo "the run ended early (status $status)" >>"$logs/failed"
    local passed failed skipped tests
    passed=$(awk '{ n += $2 } END { print n + 0 }' "$logs/results")
    # Those that failed among the tests have a name in the list, as failed steps have.
    failed=$(sort -u "$logs/failed" | grep -c . || :)
    skipped=$(sort -u "$logs/skipped" | grep -c . || :)
    # The harness takes a test that skipped its work for one that passed.
    tests=$(sed -n 's/^\([^ ]*::[^ ]*\): .*/\1/p' "$logs/skipped" | sort -u | grep -c . || :)
    echo
    echo "== Summary, after $((SECONDS / 60)) min $((SECONDS % 60)) s; everything printed is in target/test-logs"
    sort -u "$logs/skipped" | sed 's/^/SKIPPED: /'
    sort -u "$logs/failed" | sed 's/^/FAILED: /'
    echo "$((passed - tests)) passed, $failed failed, $skipped skipped"
    [ "$failed" -eq 0 ] || exit 1
    exit $status
}
trap summary EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

title() { printf '\n== %s\n' "$*"; }

# step NAME COMMAND...: shown and kept; its status.
step() {
    local name=$1 begin=$SECONDS status=0
    shift
    title "$name: $*"
    "$@" 2>&1 | tee "$logs/$name.log" || status=$?
    sed -n 's/^SKIPPED: //p' "$logs/$name.log" >>"$logs/skipped"
    [ $status -eq 0 ] || echo "$name (status $status)" >>"$logs/failed"
    echo "-- $name: $((SECONDS - begin)) s"
    return $status
}

# The lines of a test run without what successful tests printed.
readable() {
    awk '/^successes:$/ { hide = 1; next } /^(failures:|test result:)/ { hide = 0 } !hide { print; fflush() }' | cat -s
}

# tests NAME ARGUMENT...: a run of `cargo test` into the results.
tests() {
    local name=$1 begin=$SECONDS status=0 before
    shift
    title "$name: cargo test $*"
    before=$(wc -l <"$logs/failed")
    timeout --kill-after=30 1800 cargo test --locked --no-fail-fast "$@" 2>&1 |
        tee "$logs/$name.log" | readable || status=$?
    awk -v results="$logs/results" -v skipped="$logs/skipped" -v failures="$logs/failed" '
        / Running .*\(.*\)$/ { binary = $NF; gsub(/^.*\/|-[0-9a-f]*\)$/, "", binary) }
        / Doc-tests / { binary = "doc-tests-" $NF }
        /^---- .* stdout ----$/ { test = $2; next }
        /^successes:$|^failures:$|^test result:/ { test = "" }
        test != "" && sub(/^.*SKIPPED: */, "") { print binary "::" test ": " $0 >>skipped }
        /^test .* \.\.\. ignored/ { print binary "::" $2 ": ignored" >>skipped; ignored++ }
        /^test .* \.\.\. FAILED$/ { print binary "::" $2 >>failures }
        /^test result:/ { print binary, $4, $6, $8 >>results }' "$logs/$name.log"
    # A test program that did not get to its end, or was not built.
    [ $status -eq 0 ] || [ "$(wc -l <"$logs/failed")" -gt "$before" ] || echo "$name (status $status)" >>"$logs/failed"
    echo "-- $name: $((SECONDS - begin)) s"
}

# What the tests cannot do without, and never skip.
capabilities() {
    local bad='' tool
    [ "$(id -u)" -eq 0 ] || { echo 'not root: the tests make network namespaces and taps'; bad=1; }
    [ -c /dev/net/tun ] && : <>/dev/net/tun || { echo '/dev/net/tun cannot be opened'; bad=1; }
    unshare --net nft list ruleset || { echo 'no network namespace, or no nftables in it'; bad=1; }
    for tool in qemu-system-x86_64 ip jq strace tcpdump busybox setpriv dnsmasq dhclient dig newuidmap; do
        command -v $tool >/dev/null || { echo "$tool is missing"; bad=1; }
    done
    [ -z "$bad" ]
}

# What is committed is all that it takes.
fresh_clone() {
    local changes
    [ -z "$(git status --porcelain 2>/dev/null)" ] || echo 'note: what is not committed is not in the clone'
    git clone --quiet "file://$PWD" "$tmp/clone" || return
    (cd "$tmp/clone" && CARGO_TARGET_DIR=$tmp/clone-target cargo build --workspace --locked --quiet) || return
    changes=$(git -C "$tmp/clone" status --porcelain)
    [ -z "$changes" ] || { echo "the build changed files of the checkout: $changes"; return 1; }
}

# A checkout may belong to another user than the one who tests it.
cat ~/.gitconfig >"$tmp/gitconfig" 2>/dev/null || :
printf '[safe]\n\tdirectory = *\n' >>"$tmp/gitconfig"
export GIT_CONFIG_GLOBAL=$tmp/gitconfig

step deps integration-tests/deps.sh
step capabilities capabilities
step lint integration-tests/lint.sh || :
step build cargo build --workspace --locked --quiet
step guest make --no-print-directory guest
step debian integration-tests/guest/debian.sh target/guest/debian || :
# insta is not to write new snapshots here.
export INSTA_UPDATE=no INSTA_FORCE_PASS=0
tests unit --workspace --exclude integration-tests -- --show-output
# Real guests need the processors.
tests integration -p integration-tests -- --show-output --test-threads=2
step fresh-clone fresh_clone || :
completed=1
