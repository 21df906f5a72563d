#!/bin/sh
# Run inside a build: install the code in /rootfs/app and the bundled models in /rootfs/models.
#   build_app.sh SOURCE VERSION
set -eu
source="$1"
version="$2"

mkdir -p /rootfs/models
if ! mv "$source"/service/models/*.onnx /rootfs/models; then
  echo "no bundled model in service/models: create one with 'python -m export'" >&2
  exit 1
fi
rm -rf "$source/service/models"
# The code is not installed, so tell importlib.metadata, and by it --version, what it is.
mkdir "$source/deeplab-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: deeplab\nVersion: %s\n' "$version" >"$source/deeplab-$version.dist-info/METADATA"
mv "$source" /app # compile at the final path, so that tracebacks name the right files
python -m compileall -q --invalidation-mode unchecked-hash /app
chmod -R a+rX /app /rootfs
mv /app /rootfs
find /rootfs -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
