#!/usr/bin/env bash
# Sets up a virtual environment and runs the main job on an embedded default: nothing but packages is downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
exec python -m ppsr2q.workflow.quickstart "$@"
