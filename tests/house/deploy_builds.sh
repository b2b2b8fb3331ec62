#!/usr/bin/env bash
# The deploy preset builds, and its `nibble` passes deploy_links_no_torch.sh.
#
#   deploy_builds.sh SOURCE_FOLDER JOBS
set -euo pipefail
cd "$1"
cmake --preset deploy > /dev/null
cmake --build --preset deploy -j "$2" > build/deploy/build.log 2>&1 || { tail -40 build/deploy/build.log; exit 1; }
exec bash tests/house/deploy_links_no_torch.sh "$PWD" build/deploy/nibble
