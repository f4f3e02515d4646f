#!/usr/bin/env bash
# Builds one fuzz target and runs it:  tools/fuzz/run.sh TARGET SECONDS [libFuzzer options]
# or gives it one file, a finding:     tools/fuzz/run.sh TARGET FILE [libFuzzer options]
# Target folder, corpora and findings go below FUZZ_WORK (default /tmp/lancet-fuzz); the repository gets no file but
# tools/fuzz/Cargo.lock, which git ignores. Where ORT_DYLIB_PATH names ONNX Runtime, `bake` and `quantised` load and run
# with it what they published.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
work=${FUZZ_WORK:-/tmp/lancet-fuzz}
target=${1:?a target: index trace bake quantised chat prompts direction policy}
what=${2:?how long, in seconds, or a file to try}
shift 2
mkdir -p "$work/corpus/$target" "$work/findings/$target"
[ "$here/Cargo.lock" -nt "$repo/Cargo.lock" ] || cp "$repo/Cargo.lock" "$here/Cargo.lock"
# What cargo-fuzz sets, without a sanitizer: all of Lancet is safe Rust, and overflow checks are on. It builds on stable.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"
triple=$(rustc -vV | sed -n 's/^host: //p')
CARGO_TARGET_DIR="$work/target" cargo build --release --manifest-path "$here/Cargo.toml" --target "$triple" --bin "$target" 1>&2
# The run keeps a copy of the program, so that a later build does not change it half-way, and its scratch files beside it.
memory=/dev/shm
[ -d "$memory" ] || memory=${TMPDIR:-/tmp}
FUZZ_SCRATCH=$(mktemp -d "$memory/lancet-fuzz-$target-XXXXXX")
export FUZZ_SCRATCH
trap 'rm -rf "$FUZZ_SCRATCH"' EXIT
cp "$work/target/$triple/release/$target" "$FUZZ_SCRATCH/$target"
limits=(-timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=1024 -artifact_prefix="$work/findings/$target/")
if [ -f "$what" ]; then
  "$FUZZ_SCRATCH/$target" "$what" "${limits[@]}" "$@"
  exit
fi
seeds=()
[ -d "$work/seeds/$target" ] && seeds=("$work/seeds/$target")
nice -n 19 "$FUZZ_SCRATCH/$target" "$work/corpus/$target" ${seeds[@]+"${seeds[@]}"} "${limits[@]}" \
  -max_total_time="$what" -max_len=131072 -print_final_stats=1 "$@"
