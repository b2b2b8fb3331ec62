#!/usr/bin/env bash
# Runs the examples and looks at what they say; each is under 60 lines.
#
#   examples_run.sh SOURCE_FOLDER EXAMPLES_FOLDER WITH_TORCH
set -euo pipefail
source=$1 examples=$2 with_torch=$3
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fail() { echo "examples: $*" >&2; exit 1; }
expect() {  # expect PATTERN COMMAND...: its output matches
  local pattern=$1
  shift
  "$@" > "$scratch/output" 2>&1 || { cat "$scratch/output"; fail "$1 failed"; }
  cat "$scratch/output"
  grep -qE "$pattern" "$scratch/output" || fail "$1: expected a line like '$pattern'"
}

for file in "$source"/recipes/examples/*.cpp; do
  lines=$(wc -l < "$file")
  ((lines <= 60)) || fail "$file has $lines lines; at most 60"
done

expect '^int4/g128@f16: 4\.125 bits.*within [0-9]+\.[0-9]+ %' "$examples/quantize_matrix"
expect '^nf4/f64@f32: 4\.500 bits' "$examples/quantize_matrix" nf4/f64@f32
"$examples/quantize_matrix" int99 > /dev/null 2>&1 && fail "quantize_matrix int99 should fail"
expect '\.$' "$examples/run_artifact" "$source/recipes/examples/stories" "One day"
if [[ $with_torch != ON ]]; then exit 0; fi
expect '^stochastic: 0\.[0-9]+' "$examples/add_method" "$source/recipes/examples/stories" "$scratch/own"
# What the example says about its method: nearest is closer.
"$examples/add_method" "$source/recipes/examples/stories" "$scratch/own" |
  awk -F'[ ,]' '{ error[$1] = $2 } END { exit !(error["rtn:"] > 0 && error["rtn:"] < error["stochastic:"]) }' ||
  fail "add_method: stochastic rounding should be worse than nearest"
expect '\.$' "$examples/run_artifact" "$scratch/own-stochastic" "One day"
expect 'right on (9[0-9]|100)\.[0-9] %' "$examples/train_own_module" "$scratch/stripes"
"$examples/run_artifact" "$source/recipes/examples/stories" "One day" > "$scratch/story.txt"
for ((i = 0; i < 7; ++i)); do cat "$scratch/story.txt" "$scratch/story.txt" > "$scratch/more.txt"
  mv "$scratch/more.txt" "$scratch/story.txt"; done
expect '^loss [0-9.]+ at step 10, [0-9.]+ at step 60$' \
  "$examples/train_own_dataset" "$source/recipes/examples/stories" "$scratch/story.txt" "$scratch/fitted"
awk '{ exit !($6 < 0.7 * $2) }' "$scratch/output" || fail "train_own_dataset: the loss should fall"
expect '\.$' "$examples/run_artifact" "$scratch/fitted" "One day"
