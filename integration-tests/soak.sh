#!/usr/bin/env bash
# The long versions of tests: `make soak`, as root. About an hour; prints every figure.
#
# The programs are those of the debug build, since only these take their steps by a plan.
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C KVMCTL_SOAK=1

status=0
for test in $(grep -l 'soak()' integration-tests/tests/*.rs integration-tests/tests/*/main.rs 2>/dev/null |
    sed 's,/main\.rs$,,; s,^.*/,,; s,\.rs$,,' | sort -u); do
    printf '\n== %s\n' "$test"
    cargo test --locked --quiet -p integration-tests --test "$test" -- --nocapture --test-threads=1 || status=1
done
exit $status
