#!/usr/bin/env bash
# Run the code as on arm64, on an x86-64 Debian host: QEMU emulates the processor for one
# program. No root, no docker and no base image are needed. An example:
#   python docker/check_wheels.py /tmp/arm64/wheels --lock docker/requirements-cpu.txt
#   docker/emulate_arm64.sh /tmp/arm64 -m service doctor
# FOLDER has the wheels in FOLDER/wheels; Debian's Python for arm64 is fetched into it. $QEMU names the
# emulator: onnxruntime crashes while loading in Debian 12's 7.2, and loads in Debian 13's 10.0.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
folder="$(mkdir -p "$1" && cd "$1" && pwd)"
shift

fetch() {
  mkdir -p "$folder"/apt/state/lists/partial "$folder"/apt/cache/archives/partial "$folder"/system
  : >"$folder/apt/status"
  cat >"$folder/apt/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures "arm64";
APT::Install-Recommends "false";
Dir::State "$folder/apt/state";
Dir::State::status "$folder/apt/status";
Dir::Cache "$folder/apt/cache";
END
  export APT_CONFIG="$folder/apt/apt.conf"
  apt-get update -qq
  apt-get install -y -qq --download-only python3.11 libstdc++6
  unset APT_CONFIG
  for package in "$folder"/apt/cache/archives/*.deb; do
    dpkg -x "$package" "$folder/system"
  done
  mkdir -p "$folder/site"
  for wheel in "$folder"/wheels/*.whl; do
    unzip -qo "$wheel" -d "$folder/site"
  done
  touch "$folder/fetched"
}

[ -e "$folder/fetched" ] || fetch >&2
cd "$root"
exec env PYTHONPATH="$root:$folder/site" PYTHONHOME="$folder/system/usr" PYTHONDONTWRITEBYTECODE=1 \
  "${QEMU:-qemu-aarch64}" -cpu cortex-a76 -L "$folder/system" \
  "$folder/system/usr/bin/python3.11" "$@"
