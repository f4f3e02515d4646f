#!/usr/bin/env bash
# Checks the oldest Rust that Cargo.toml promises (`rust-version`).
#   tools/msrv.sh           no dependency asks for a newer one; then builds everything with it (needs rustup)
#   tools/msrv.sh declared  only what the dependencies say, in a second
set -euo pipefail
cd "$(dirname "$0")/.."
promised=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
needed=$(cargo metadata --format-version 1 --locked | grep -o '"rust_version":"[^"]*"' | cut -d '"' -f 4 |
  sort -V | tail -n 1)
if [ "$(printf '%s\n%s\n' "${needed%.0}" "$promised" | sort -V | tail -n 1)" != "$promised" ]; then
  echo "Cargo.toml promises Rust $promised, and a dependency needs $needed" >&2
  exit 1
fi
echo "Rust $promised is promised, $needed is the newest that a crate asks for"
[ "${1:-}" = declared ] && exit
rustup run "$promised" rustc --version || rustup toolchain install "$promised" --profile minimal
rustup run "$promised" cargo check --locked --all-targets --target-dir target/msrv
