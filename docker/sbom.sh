#!/usr/bin/env bash
# The bill of materials (CycloneDX) and the licences of an image's Python packages.
#   docker/sbom.sh cpu|gpu [FOLDER [BUILD OPTIONS]]
# writes FOLDER/sbom-cpu.cdx.json and FOLDER/licences-cpu.md; FOLDER is out/ by default.
# ENGINE is docker by default; podman takes the same options.
# The base image's Debian packages are not listed: a scanner of whole images does that.
set -euo pipefail
cd "$(dirname "$0")/.."

target="${1:?cpu or gpu}"
folder="${2:-out}"
mkdir -p "$folder"
"${ENGINE:-docker}" build -f docker/serve.Dockerfile --target "sbom-$target" --output "$folder" \
  "${@:3}" .
