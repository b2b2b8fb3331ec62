#!/usr/bin/env bash
# From nothing to a proven 4-bit model: installs what is missing, builds nibble, and takes the
# model that ships (recipes/examples/stories) the whole way.
#
#   bash recipes/quickstart.sh
#
# Quantizes three ways, fine-tunes with quantization in the loop, exports ONNX, validates,
# evaluates, generates, and names the report. Everything is written under build/quickstart,
# which is emptied first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

model=recipes/examples/stories
out=build/quickstart
jobs=${NIBBLE_JOBS:-$(nproc)}
step() { printf '\n== %s\n' "$*"; }
run() {
  echo "\$ nibble $*"
  build/release/nibble "$@"
}

step "Install what is missing, and build"
bash tests/setup.sh
# The tests are left out of the build here unless tests/run.sh has asked for them before.
if [[ ! -f build/release/CMakeCache.txt ]]; then
  cmake --preset release -DNIBBLE_BUILD_TESTS=OFF > build/configure.log || { cat build/configure.log; exit 1; }
fi
cmake --build --preset release -j "$jobs" --target nibble
begin=$SECONDS
rm -rf $out
mkdir -p $out

step "Text of the model's own grammar: to calibrate and train on, and held out"
run stories --seed 3 --count 2000 --output $out/train.txt
run stories --seed 2 --count 200 --output $out/heldout.txt --tokenizer $model/tokenizer.json
run inspect $model

lines=(--set data.per_line=true --set data.append_eos=true)
held_out=(--evaluation $out/heldout.txt)

step "Quantize: 8 bits, 4 bits round to nearest, 4 bits GPTQ; and 2 bits, which costs something"
run quantize $model --recipe w8a16 "${lines[@]}" "${held_out[@]}" --output $out/w8a16
run quantize $model --recipe w4a16-rtn --set group=32 "${lines[@]}" "${held_out[@]}" --output $out/w4a16-rtn
run quantize $model --recipe w4a16-gptq --set group=32 "${lines[@]}" "${held_out[@]}" \
  --calibration $out/train.txt --output $out/w4a16-gptq
two_bits=(--set bits=2 --set group=32)
run quantize $model --recipe w4a16-rtn --set name=w2a16-rtn "${two_bits[@]}" "${lines[@]}" "${held_out[@]}" \
  --output $out/w2a16-rtn

step "Fine-tune with 2-bit weights in the loop: what training wins back"
run train $model --recipe w4a16-qat --set name=w2a16-qat "${two_bits[@]}" --set train.steps=60 \
  "${lines[@]}" "${held_out[@]}" --data $out/train.txt --compare $out/w8a16 --compare $out/w4a16-rtn \
  --compare $out/w4a16-gptq --compare $out/w2a16-rtn --output $out/w2a16-qat

step "Export, validate, evaluate"
run export $out/w4a16-gptq --to onnx --output $out/onnx
for name in w8a16 w4a16-rtn w4a16-gptq w2a16-qat; do
  run validate $out/$name --reference $model --text $out/heldout.txt --per-line --append-eos
done
run evaluate $out/w4a16-gptq --text $out/heldout.txt --per-line --append-eos --reference $model

step "Generate"
run generate $out/w4a16-gptq --prompt "" --tokens 120 --seed 1

printf '\nDone in %d s after the build. Report: %s\n' $((SECONDS - begin)) "$out/w2a16-qat/report.html"
