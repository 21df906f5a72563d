# The images of the service, one target each. Run in the root of the repository:
#
#   docker build -f docker/serve.Dockerfile --target cpu -t deeplab:cpu .
#   docker build -f docker/serve.Dockerfile --target cpu-extras -t deeplab:cpu-extras .
#   docker build -f docker/serve.Dockerfile --target openvino -t deeplab:openvino .
#   docker build -f docker/serve.Dockerfile --target gpu -t deeplab:gpu .
#   docker build -f docker/serve.Dockerfile --target gpu-cu12 -t deeplab:gpu-cu12 .
#
# cpu and cpu-extras are for x86-64 and arm64 (--platform linux/arm64), the others for x86-64.
# cpu-extras also reads HEIC photos and answers gRPC.
# gpu is for CUDA 13 and drivers from 580, gpu-cu12 for CUDA 12 and drivers from 525. They need no
# CUDA base image: ONNX Runtime, CUDA and cuDNN are wheels, locked together in
# requirements-gpu.txt and requirements-gpu-cu12.txt. docs/deploy.md says how to run the images.
ARG BASE=python:3.11-slim-bookworm

# The build stages assemble all files below /rootfs, world-readable and with one date, so that
# the same inputs give the same layers. Only /rootfs is shipped.
FROM ${BASE} AS builder
ARG SOURCE_DATE_EPOCH=315532800
ENV SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
COPY docker/build_venv.sh docker/build_app.sh /build/

FROM builder AS venv-cpu
COPY docker/requirements-cpu.txt /build/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip sh /build/build_venv.sh /build/requirements.txt

FROM builder AS venv-cpu-extras
COPY docker/requirements-cpu-extras.txt /build/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip sh /build/build_venv.sh /build/requirements.txt

FROM builder AS venv-openvino
COPY docker/requirements-openvino.txt /build/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip sh /build/build_venv.sh /build/requirements.txt

FROM builder AS venv-gpu
COPY docker/requirements-gpu.txt /build/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip sh /build/build_venv.sh /build/requirements.txt

FROM builder AS venv-gpu-cu12
COPY docker/requirements-gpu-cu12.txt /build/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip sh /build/build_venv.sh /build/requirements.txt

FROM builder AS app
COPY LICENSE NOTICE /build/app/
COPY docker/healthcheck.py docker/check_gpu.py /build/app/docker/
COPY annotations /build/app/annotations
COPY pixels /build/app/pixels
COPY postprocess /build/app/postprocess
COPY service /build/app/service
ARG VERSION=0.1.0
RUN sh /build/build_app.sh /build/app "$VERSION"

# Settings of all targets; these instructions create no layers.
FROM ${BASE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="deeplab" \
      org.opencontainers.image.description="DeepLabv3+ semantic segmentation over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.vendor="the deeplab authors" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    DEEPLAB_HOST=0.0.0.0 \
    DEEPLAB_PORT=8000 \
    DEEPLAB_MODELS=/models
# A numeric user lets Kubernetes check runAsNonRoot without reading the image.
USER 10001:10001
EXPOSE 8000 9464
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "docker/healthcheck.py"]
# The service is process 1: on SIGTERM it drains and exits with 0.
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "service"]

FROM runtime AS cpu
COPY --from=venv-cpu /rootfs /
COPY --from=app /rootfs /
WORKDIR /app

FROM runtime AS cpu-extras
COPY --from=venv-cpu-extras /rootfs /
COPY --from=app /rootfs /
WORKDIR /app
EXPOSE 8001

FROM runtime AS openvino
COPY --from=venv-openvino /rootfs /
COPY --from=app /rootfs /
WORKDIR /app

FROM runtime AS runtime-gpu
# NVIDIA's container runtime provides all GPUs, the driver's libcuda and nvidia-smi.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime-gpu AS gpu
COPY --from=venv-gpu /rootfs /
COPY --from=app /rootfs /
WORKDIR /app

FROM runtime-gpu AS gpu-cu12
COPY --from=venv-gpu-cu12 /rootfs /
COPY --from=app /rootfs /
WORKDIR /app

# The bill of materials, see docker/sbom.sh.
FROM builder AS sbom-tools
COPY docker/requirements-sbom.txt /build/requirements.txt
RUN --mount=type=cache,target=/root/.cache/pip python -m venv /tools \
    && /tools/bin/pip install --require-hashes --only-binary :all: --requirement /build/requirements.txt
COPY docker/inventory.sh /build/

FROM sbom-tools AS inventory-cpu
COPY --from=venv-cpu /rootfs /
RUN sh /build/inventory.sh cpu /inventory

FROM sbom-tools AS inventory-cpu-extras
COPY --from=venv-cpu-extras /rootfs /
RUN sh /build/inventory.sh cpu-extras /inventory

FROM sbom-tools AS inventory-openvino
COPY --from=venv-openvino /rootfs /
RUN sh /build/inventory.sh openvino /inventory

FROM sbom-tools AS inventory-gpu
COPY --from=venv-gpu /rootfs /
RUN sh /build/inventory.sh gpu /inventory

FROM sbom-tools AS inventory-gpu-cu12
COPY --from=venv-gpu-cu12 /rootfs /
RUN sh /build/inventory.sh gpu-cu12 /inventory

FROM scratch AS sbom-cpu
COPY --from=inventory-cpu /inventory /

FROM scratch AS sbom-cpu-extras
COPY --from=inventory-cpu-extras /inventory /

FROM scratch AS sbom-openvino
COPY --from=inventory-openvino /inventory /

FROM scratch AS sbom-gpu
COPY --from=inventory-gpu /inventory /

FROM scratch AS sbom-gpu-cu12
COPY --from=inventory-gpu-cu12 /inventory /
