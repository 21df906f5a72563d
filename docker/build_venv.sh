#!/bin/sh
# Inside a build: a virtual environment from a lock file, byte for byte the same for the same lock.
#   build_venv.sh LOCK VENV
set -eu
lock="$1"
venv="$2"

python -m venv --without-pip "$venv"
python -m pip --python "$venv/bin/python" install --no-compile --no-deps --require-hashes \
  --only-binary :all: --requirement "$lock"
# Hash-based, so that no compiled file depends on when it was made.
"$venv/bin/python" -m compileall -q --invalidation-mode unchecked-hash "$venv/lib"
chmod -R a+rX "$venv"
find "$venv" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
