#!/usr/bin/env bash
# Prepare an x86-64 Debian host to build and run images for arm64 without a registry: let QEMU run
# programs for arm64, and make a base image for podman that stands in for python:3.11-slim-bookworm.
# Needs root, apt, debootstrap and podman. Takes about six minutes, and 0.5 GB in FOLDER.
#   docker/arm64_base.sh FOLDER         print the base image's name
#   docker/arm64_base.sh FOLDER remove  undo it: the image, QEMU's entry in the kernel and FOLDER
# QEMU 10 comes from Debian 13: ONNX Runtime crashes while loading in Debian 12's QEMU 7.2.
set -euo pipefail
folder="$(mkdir -p "$1" && cd "$1" && pwd)"
mirror="${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
image=localhost/deeplab-test:base-arm64
binfmt=/proc/sys/fs/binfmt_misc
entry=deeplab-aarch64

remove() {
  if [ -e "$binfmt/$entry" ]; then echo -1 >"$binfmt/$entry"; fi
  podman image rm --force "$image" >/dev/null
  rm -rf "$folder"
}

# Download QEMU from Debian 13 without installing it: only its one static program is needed.
fetch_qemu() {
  local apt="$folder/apt"
  mkdir -p "$apt"/state/lists/partial "$apt"/cache/archives/partial
  : >"$apt/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$apt/sources.list"
  cat >"$apt/apt.conf" <<END
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Sandbox::User "root";
END
  (cd "$apt" && export APT_CONFIG="$apt/apt.conf" && apt-get update -qq && apt-get download -qq qemu-user)
  dpkg -x "$apt"/qemu-user_*.deb "$folder/qemu"
  rm -rf "$apt"
}

# Make the kernel start programs for arm64 with QEMU. F: opened now, so that it also works in containers.
register_qemu() {
  mountpoint -q "$binfmt" || mount -t binfmt_misc none "$binfmt"
  if grep -qs aarch64 "$binfmt"/*aarch64*; then return; fi
  local magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
  local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
  echo ":$entry:M::$magic:$mask:$folder/qemu/usr/bin/qemu-aarch64:F" >"$binfmt/register"
}

# Debian 12's own Python 3.11, at the places where the official image has it.
make_image() {
  local root="$folder/root" name
  debootstrap --arch=arm64 --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
    bookworm "$root" "$mirror"
  rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
  for name in python python3; do ln -sf /usr/bin/python3 "$root/usr/local/bin/$name"; done
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
  tar -C "$root" -c . | podman import --quiet --arch arm64 --os linux \
    --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'ENV LANG=C.UTF-8' - "$image"
  rm -rf "$root"
}

if [ "${2:-}" = remove ]; then remove; exit; fi
[ -x "$folder/qemu/usr/bin/qemu-aarch64" ] || fetch_qemu >&2
register_qemu >&2
podman image exists "$image" || make_image >&2
echo "$image"
