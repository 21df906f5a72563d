#!/usr/bin/env bash
# Lock the images' dependencies with hashes, from pyproject.toml. To be run after
# every change there, and to take updates: docker/lock.sh --upgrade
# Needs `uv` on the path (pip install uv); whatever index it is set up with is not written down.
set -euo pipefail
cd "$(dirname "$0")/.."

lock() { # NAME INPUT [OPTIONS]
  local name="$1" input="$2"
  shift 2
  uv pip compile --quiet "$input" --output-file "docker/requirements-$name.txt" \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
    --custom-compile-command docker/lock.sh "$@"
}

lock cpu pyproject.toml --extra cpu "$@"
lock gpu pyproject.toml --extra gpu "$@"
lock train pyproject.toml --extra train --extra gpu "$@"
lock sbom docker/requirements-sbom.in "$@"
