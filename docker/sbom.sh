#!/usr/bin/env bash
# Write the bill of materials (CycloneDX) and the licences of an image's Python packages.
#   docker/sbom.sh cpu|cpu-extras|openvino|gpu|gpu-cu12 [FOLDER [BUILD OPTIONS]]
# writes, for example, FOLDER/sbom-cpu.cdx.json and FOLDER/licences-cpu.md (FOLDER: out/).
# Set ENGINE=podman to use podman instead of docker.
# Debian packages of the base image are not listed; use an image scanner for them.
set -euo pipefail
cd "$(dirname "$0")/.."

target="${1:?cpu, cpu-extras, openvino, gpu or gpu-cu12}"
folder="${2:-out}"
mkdir -p "$folder"
"${ENGINE:-docker}" build -f docker/serve.Dockerfile --target "sbom-$target" --output "$folder" \
  "${@:3}" .
