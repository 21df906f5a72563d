# The image for training and export on GPU hosts: torch with its CUDA wheels, and ONNX Runtime
# to verify exports. Run in the root of the repository:
#
#   docker build -f docker/train.Dockerfile -t deeplab:train .
#   docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" \
#       -v "$PWD/data:/data:ro" -v "$PWD/runs:/runs" deeplab:train \
#       -m model.train efficientnet-lite0-voc --data /data --out /runs/light
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD/runs:/runs" \
#       --entrypoint python deeplab:train -m export /runs/light/NAME -o /runs/NAME.onnx
#
# Options of torchrun come before -m. --shm-size: the data loader's workers pass images through
# /dev/shm.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS venv
ARG SOURCE_DATE_EPOCH=315532800
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY docker/build_venv.sh docker/requirements-train.txt /build/
RUN --mount=type=cache,target=/root/.cache/pip sh /build/build_venv.sh /build/requirements-train.txt

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="deeplab-train" \
      org.opencontainers.image.description="DeepLabv3+: training and export to ONNX" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="the deeplab authors" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# LOGNAME: torch names its cache folders by user, and this user is not in /etc/passwd.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    LOGNAME=deeplab \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=venv /rootfs /
COPY LICENSE NOTICE /app/
COPY annotations /app/annotations
COPY pixels /app/pixels
COPY postprocess /app/postprocess
COPY model /app/model
COPY export /app/export
COPY service /app/service
WORKDIR /app
USER 10001:10001
ENTRYPOINT ["torchrun", "--standalone"]
CMD ["-m", "model.train", "--help"]
