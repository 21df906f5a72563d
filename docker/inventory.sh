#!/bin/sh
# Run inside a build: write the bill of materials and the licences of /opt/venv to FOLDER.
#   inventory.sh NAME FOLDER
set -eu
name="$1"
folder="$2"

mkdir -p "$folder"
/tools/bin/cyclonedx-py environment --output-reproducible --of JSON \
  --output-file "$folder/sbom-$name.cdx.json" /opt/venv/bin/python
/tools/bin/pip-licenses --python=/opt/venv/bin/python --from=mixed --order=name --format=markdown \
  --with-system --output-file="$folder/licences-$name.md"
