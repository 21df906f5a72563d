#!/usr/bin/env bash
# Lock the dependencies of the images and of the development environment with hashes, from
# pyproject.toml. Run it after every change there, and to take updates: docker/lock.sh --upgrade
# Needs `uv` on the path (pip install uv); whatever index it is set up with is not written down.
set -euo pipefail
cd "$(dirname "$0")/.."

lock() { # FILE INPUT [OPTIONS]
  local file="$1" input="$2"
  shift 2
  uv pip compile --quiet "$input" --output-file "$file" --python-version 3.11 \
    --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
    --custom-compile-command docker/lock.sh "$@"
}

image() { # NAME INPUT [OPTIONS]
  lock "docker/requirements-$1.txt" "${@:2}" --python-platform x86_64-manylinux_2_28
}

arm64="$(mktemp)"
trap 'rm -f "$arm64"' EXIT

both() { # NAME INPUT [OPTIONS]
  # One lock for x86-64 and arm64: uv writes the hashes of all files of a version, and both need
  # the same versions.
  image "$@"
  cp "docker/requirements-$1.txt" "$arm64" # the versions to keep
  lock "$arm64" "${@:2}" --python-platform aarch64-manylinux_2_28
  if ! cmp --silent "docker/requirements-$1.txt" "$arm64"; then
    echo "arm64 needs other packages than docker/requirements-$1.txt:" >&2
    diff "docker/requirements-$1.txt" "$arm64" >&2 || true
    exit 1
  fi
}

both cpu pyproject.toml --extra cpu "$@"
# The cpu image's versions, HEIC and gRPC beside them.
both cpu-extras pyproject.toml --extra cpu --extra heic --extra grpc \
  --constraint docker/requirements-cpu.txt "$@"
image gpu pyproject.toml --extra gpu "$@"
# CUDA 12, for older drivers; else the cpu image's versions.
image gpu-cu12 pyproject.toml --extra gpu-cu12 --constraint docker/requirements-cpu.txt "$@"
# The cpu image's versions, and OpenVINO beside them.
image openvino pyproject.toml --extra openvino --constraint docker/requirements-cpu.txt "$@"
image train pyproject.toml --extra train --extra gpu "$@"
image sbom docker/requirements-sbom.in "$@"
# What `make bench` compares with, each in an environment of its own.
for rival in service/bench/rivals/*.in; do
  lock "${rival%.in}.txt" "$rival" --constraint docker/requirements-cpu.txt \
    --python-platform x86_64-manylinux_2_28 "$@"
done
# The tests run the versions that the cpu image ships. Other platforms and Pythons are resolved
# too, but only Linux on x86-64 with Python 3.11 is tried.
lock requirements-dev.txt pyproject.toml --extra dev --universal \
  --constraint docker/requirements-cpu.txt "$@"
