#!/bin/sh
# Inside a build: /rootfs/opt/venv from a lock file, byte for byte the same for the same lock.
#   build_venv.sh LOCK
set -eu
lock="$1"
venv=/opt/venv # where it will lie in the image: its scripts name this path

python -m venv --without-pip "$venv"
python -m pip --python "$venv/bin/python" install --no-compile --no-deps --require-hashes \
  --only-binary :all: --requirement "$lock"
# Hash-based, so that no compiled file depends on when it was made. Some packages (torch) carry
# files for newer Pythons, which fail here and are never imported; pip passes over them as well.
"$venv/bin/python" -m compileall -q --invalidation-mode unchecked-hash "$venv/lib" || true
chmod -R a+rX "$venv"
mkdir -p /rootfs/opt
mv "$venv" /rootfs/opt
find /rootfs -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
