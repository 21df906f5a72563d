#!/bin/sh
# Inside a build: the service's code to APP, its bundled models to MODELS.
#   build_app.sh SOURCE APP MODELS
set -eu
source="$1"
app="$2"
models="$3"

mkdir -p "$models"
if ! mv "$source"/service/models/*.onnx "$models"; then
  echo "no bundled model in service/models: make one with 'python -m export'" >&2
  exit 1
fi
rm -rf "$source/service/models"
mv "$source" "$app"
cd "$app" # so that tracebacks name files as they lie in the image
python -m compileall -q --invalidation-mode unchecked-hash .
chmod -R a+rX "$app" "$models"
find "$app" "$models" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
