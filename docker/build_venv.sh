#!/bin/sh
# Run inside a build: create /rootfs/opt/venv from a lock file, reproducible byte for byte.
#   build_venv.sh LOCK
set -eu
lock="$1"
venv=/opt/venv # the final path: the scripts contain it

python -m venv --without-pip "$venv"
python -m pip --python "$venv/bin/python" install --no-compile --no-deps --require-hashes \
  --only-binary :all: --requirement "$lock"
# Hash-based bytecode does not depend on file times. Some packages (torch) contain files for newer
# Pythons; those fail to compile and are never imported. pip ignores such errors, too.
"$venv/bin/python" -m compileall -q --invalidation-mode unchecked-hash "$venv/lib" || true
chmod -R a+rX "$venv"
mkdir -p /rootfs/opt
mv "$venv" /rootfs/opt
find /rootfs -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
