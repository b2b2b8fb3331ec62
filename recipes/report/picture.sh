#!/usr/bin/env bash
# Takes the picture of README: the top of the quickstart's report, in headless Chromium.
#
#   bash recipes/quickstart.sh && bash recipes/report/picture.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
report=build/quickstart/w2a16-qat/report.html
[[ -f $report ]] || { echo "$report is not there: run recipes/quickstart.sh first" >&2; exit 1; }
profile=$(mktemp -d)
trap 'rm -rf "$profile"' EXIT
chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking \
  --disable-component-update --disable-sync --hide-scrollbars --window-size=1180,1760 \
  --virtual-time-budget=4000 --blink-settings=preferredColorScheme=1 --user-data-dir="$profile" \
  --screenshot=recipes/report/report.png "file://$PWD/$report" 2> /dev/null
ls -l recipes/report/report.png
