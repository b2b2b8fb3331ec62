#!/usr/bin/env bash
# floors.sh must fail, and name the line, on a small tree that breaks every rule once.
#
#   floors_catch.sh FLOORS_SCRIPT
set -euo pipefail
floors=$1
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
cd "$root"
mkdir -p kernels/base kernels/scheme kernels/packing kernels/ops/linear kernels/tokenizer \
  export/formats ptq qat recipes/models recipes/torch recipes/cli

put() { printf '%s\n' "${@:2}" > "$1"; }
put kernels/base/status.h '#include <string>'
put kernels/scheme/scheme.h '#include "kernels/base/status.h"'
put kernels/packing/packed.h '#include "kernels/scheme/scheme.h"'
put ptq/tensor.h '#include <torch/torch.h>'
if ! bash "$floors" . > clean.txt; then
  echo "a tree without fault must pass; found:"; cat clean.txt; exit 1
fi

put kernels/base/up.h '' '#include "kernels/scheme/scheme.h"'
put kernels/ops/linear/side.cpp '#include "recipes/models/model.h"'
put kernels/tokenizer/bpe.h '#include "kernels/scheme/scheme.h"'
put kernels/base/text.h '#include <nlohmann/json.hpp>'
put kernels/base/view.h '#include "kernels/base/json.h"'
put kernels/base/relative.cpp '#include "../scheme/scheme.h"'
put kernels/base/near.cpp '#include "status.h"'
put export/formats/through.h '#include "kernels/packing/packed.h"'
put export/formats/x_read.cpp '#include "export/formats/through.h"'
put export/formats/up.cpp '#include "ptq/tensor.h"'
put ptq/up.cpp '#include "qat/trainer.h"'
put ptq/ranks.cpp '#include <mpi.h>'
put ptq/plan.cpp '#include "ptq/tensor.h"'
put recipes/cli/verb.cpp '#include <ATen/ATen.h>'
put recipes/torch/pipeline.h '#include "ptq/tensor.h"'

if bash "$floors" . > found.txt; then echo "a tree full of faults passed"; exit 1; fi
expect() {
  grep -qF -- "$1" found.txt || { echo "not reported: $1"; echo "reported:"; cat found.txt; exit 1; }
}
expect 'kernels/base/up.h:2: kernels/base may not look up to kernels/scheme/scheme.h'
expect 'kernels/ops/linear/side.cpp:1: kernels may not include recipes; found recipes/models/model.h'
expect 'kernels/tokenizer/bpe.h:1: kernels/tokenizer stands on base alone'
expect 'kernels/base/text.h:1: nlohmann/json.hpp belongs in .cpp files only'
expect 'kernels/base/view.h:1: kernels/base/json.h belongs in .cpp files only'
expect 'kernels/base/relative.cpp:1: includes are written from the root'
expect 'kernels/base/near.cpp:1: not written from the root: "status.h"'
expect 'export/formats/x_read.cpp:1: a reader proves the packing from outside; it reaches kernels/packing/packed.h'
expect 'export/formats/up.cpp:1: export may not include ptq'
expect 'export/formats/up.cpp:1: reaches LibTorch through ptq/tensor.h:1'
expect 'ptq/up.cpp:1: ptq may not include qat'
expect 'ptq/ranks.cpp:1: MPI belongs in the .cpp files of ptq/distributed'
expect 'ptq/plan.cpp:1: reaches LibTorch through ptq/tensor.h:1'
expect 'recipes/cli/verb.cpp:1: LibTorch (ATen/ATen.h) in a file that must build without it'
expect 'recipes/torch/pipeline.h:1: reaches LibTorch through ptq/tensor.h:1'
echo "every fault was reported"
