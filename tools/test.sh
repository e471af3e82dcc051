#!/usr/bin/env bash
# Sets up a virtual environment and runs the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
exec python -m pytest -q "$@"
