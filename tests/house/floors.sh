#!/usr/bin/env bash
# The floors of the house: which folder may include which, read from the #include lines.
#
#   floors.sh ROOT
#
# Prints one line a violation, FILE:LINE: what is wrong, and exits 1 if there is any.
#
#   kernels <- export                       kernels <- ptq <- qat      recipes sees all of them
#   base <- scheme <- packing <- ops <- program <- artifact <- runtime;  tokenizer, hardware, cuda on base
#   LibTorch: ptq (but plan), qat, recipes/torch (but pipeline.h, no_torch.cpp), also through headers
#   MPI: in the .cpp files of ptq/distributed only
#   nlohmann, protobuf and yaml-cpp: in .cpp files only; recipes/models: in recipes only
#   *_read.cpp of export reach no header of kernels/packing: a reader proves the writer from outside
set -euo pipefail
cd "$1"

find kernels export ptq qat recipes -name '*.h' -o -name '*.cpp' -o -name '*.inc' -o -name '*.cu' \
  | sort | xargs -r grep -nHE '^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"]' | awk '
function fail(what) { print what; failed = 1 }
function floor_of(path,   parts) {  # kernels/<folder>, else the top folder
  split(path, parts, "/")
  return parts[1] == "kernels" ? parts[1] "/" parts[2] : parts[1]
}
function torch_free(path) {  # files that must build on a machine without LibTorch
  if (path ~ /^(kernels|export)\//) return 1
  if (path ~ /^ptq\/plan\.(h|cpp)$/) return 1
  # Two of the examples are about training; they are programs of their own.
  if (path ~ /^recipes\/examples\/(add_method|train_own_dataset|train_own_module)\.cpp$/) return 0
  if (path ~ /^recipes\/torch\//) return path ~ /\/(pipeline\.h|no_torch\.cpp)$/
  return path ~ /^recipes\//
}
BEGIN {
  order["base"] = 1; order["scheme"] = 2; order["packing"] = 3; order["ops"] = 4
  order["program"] = 5; order["artifact"] = 6; order["runtime"] = 7
  on_base["tokenizer"]; on_base["hardware"]; on_base["cuda"]
  sees["export"] = "kernels export"; sees["ptq"] = "kernels ptq"
  sees["qat"] = "kernels ptq qat"; sees["recipes"] = "kernels export ptq qat recipes"
  sees["kernels"] = "kernels"
}
{
  match($0, /^[^:]*:[0-9]*:/)
  place = substr($0, 1, RLENGTH - 1)
  file = place; sub(/:[0-9]*$/, "", file)
  rest = substr($0, RLENGTH + 1)
  match(rest, /[<"][^>"]*[>"]/)
  quoted = substr(rest, RSTART, 1) == "\""
  target = substr(rest, RSTART + 1, RLENGTH - 2)
  split(file, parts, "/"); top = parts[1]

  if (target ~ /(^|\/)\.\.?\//) fail(place ": includes are written from the root; found \"" target "\"")
  if (target ~ /^(torch|ATen|c10)\//) {
    if (torch_free(file)) fail(place ": LibTorch (" target ") in a file that must build without it")
    reaches_torch[file] = place
  }
  if (target == "mpi.h" && file !~ /^ptq\/distributed\/[^\/]*\.cpp$/)
    fail(place ": MPI belongs in the .cpp files of ptq/distributed")
  if (file ~ /\.(h|inc)$/ && target ~ /^(nlohmann|google\/protobuf|yaml-cpp)\/|\.pb\.h$/ &&
      target != "nlohmann/json_fwd.hpp" &&  # which only declares names
      file != "kernels/base/json.h")        # which .cpp files include in its place
    fail(place ": " target " belongs in .cpp files only")
  if (file ~ /\.(h|inc)$/ && target == "kernels/base/json.h")
    fail(place ": " target " belongs in .cpp files only")
  if (target !~ /^(kernels|export|ptq|qat|recipes|tests)\//) {
    if (quoted && target !~ /\.pb\.h$/) fail(place ": not written from the root: \"" target "\"")
    next
  }
  split(target, parts, "/"); target_top = parts[1]
  if (index(" " sees[top] " ", " " target_top " ") == 0)
    fail(place ": " top " may not include " target_top "; found " target)
  if (top == "kernels" && target_top == "kernels") {
    from = floor_of(file); to = floor_of(target)
    sub(/kernels\//, "", from); sub(/kernels\//, "", to)
    if (from != to) {
      if (from in on_base) {
        if (to != "base") fail(place ": kernels/" from " stands on base alone; found " target)
      } else if (!(to in order) || order[to] >= order[from]) {
        if (!(to in on_base) || from == "base")
          fail(place ": kernels/" from " may not look up to " target)
      }
    }
  }
  edges[file] = edges[file] " " target
}
# The headers that a file reaches.
function reach(file, seen,   list, n, i) {
  if (file in seen) return
  seen[file] = 1
  n = split(edges[file], list, " ")
  for (i = 1; i <= n; ++i) reach(list[i], seen)
}
END {
  for (file in edges) {
    if (torch_free(file)) {
      delete seen
      reach(file, seen)
      for (other in seen)
        if (other != file && other in reaches_torch)
          fail(file ":1: reaches LibTorch through " reaches_torch[other])
    }
    if (file ~ /^export\/.*_read\.cpp$/) {
      delete seen
      reach(file, seen)
      for (other in seen)
        if (other ~ /^kernels\/packing\//)
          fail(file ":1: a reader proves the packing from outside; it reaches " other)
    }
  }
  exit failed
}'
