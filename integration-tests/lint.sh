#!/usr/bin/env bash
# Formatting, clippy, and the rules of deny.toml.
#
# Advisories need RustSec's database from the network. Without it that one check is left out, and a line
# `SKIPPED: ...` says so.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --all --check
cargo clippy --workspace --all-targets --locked --quiet -- -D warnings

# The one on PATH, or ours.
tools=$PWD/target/tools
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin:$tools/bin"
if ! command -v cargo-deny >/dev/null; then
    echo 'building cargo-deny into target/tools, once (about three minutes)'
    cargo install cargo-deny --locked --quiet --root "$tools" --target-dir "$tools/build"
    rm -rf "$tools/build"
fi
cargo-deny --all-features check --hide-inclusion-graph bans licenses sources

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if timeout 120 cargo-deny --all-features check --hide-inclusion-graph advisories >"$log" 2>&1; then
    cat "$log"
elif grep -q 'failed to fetch advisory database' "$log"; then
    echo 'SKIPPED: cargo-deny advisories: the RustSec database cannot be fetched from here'
else
    cat "$log" >&2
    exit 1
fi
