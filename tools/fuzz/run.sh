#!/usr/bin/env bash
# Builds the fuzz targets and runs one of them:  tools/fuzz/run.sh TARGET SECONDS [libFuzzer options]
# Target folder, corpora and findings go below FUZZ_WORK (default /tmp/lancet-fuzz); nothing is written to the repository.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
work=${FUZZ_WORK:-/tmp/lancet-fuzz}
target=${1:?a target: index trace bake quantised chat prompts direction policy}
seconds=${2:?how long, in seconds}
shift 2
mkdir -p "$work/corpus/$target" "$work/findings/$target"
cp "$repo/Cargo.lock" "$here/Cargo.lock"
# What cargo-fuzz sets, without a sanitizer: all of Lancet is safe Rust, and overflow checks are on. It builds on stable.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"
export CARGO_TARGET_DIR="$work/target"
triple=$(rustc -vV | sed -n 's/^host: //p')
cargo build --release --manifest-path "$here/Cargo.toml" --target "$triple" 1>&2
seeds=()
[ -d "$work/seeds/$target" ] && seeds=("$work/seeds/$target")
exec "$CARGO_TARGET_DIR/$triple/release/$target" "$work/corpus/$target" "${seeds[@]}" \
  -artifact_prefix="$work/findings/$target/" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
  -malloc_limit_mb=1024 -max_len=65536 -print_final_stats=1 "$@"
