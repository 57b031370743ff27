# syntax=docker/dockerfile:1
#
#   docker build --target server  --tag nvisa-server:0.1.0 .
#   docker build --target server  --tag nvisa-server:0.1.0-gpu --build-arg RUNTIME=gpu .
#   docker build --target trainer --tag nvisa-trainer:0.1.0 .
#
# The server image has no torch. Both run as user 10001 and write nowhere but to /tmp and what is mounted.

ARG PYTHON=3.11

# What both images stand on. The shell of the base image is sh; every RUN is one && chain.
FROM python:${PYTHON}-slim-bookworm AS base
# As process 1, a program without a handler of its own would not notice SIGTERM: tini passes it on.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini=0.19.* \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 nvisa \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin nvisa
# Since 1.29 ONNX Runtime sends usage data to its maker, hashes of the model among them, unless told not to.
ENV PATH=/opt/nvisa/bin:$PATH \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# The package itself, built once for both.
FROM base AS wheel
WORKDIR /src
COPY pyproject.toml README.md ./
COPY serving serving
COPY training training
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /wheels .

FROM base AS server-packages
# cpu or gpu: which build of ONNX Runtime. Never both, they overwrite each other.
ARG RUNTIME=cpu
COPY constraints.txt /constraints.txt
COPY --from=wheel /wheels /wheels
RUN --mount=type=cache,target=/root/.cache/pip \
    case "${RUNTIME}" in cpu|gpu) ;; *) echo "RUNTIME is ${RUNTIME}; use cpu or gpu" >&2; exit 2 ;; esac \
    && python -m venv /opt/nvisa \
    && for wheel in /wheels/nvisa-*.whl; do \
         pip install --constraint /constraints.txt "${wheel}[serving,tracing,${RUNTIME}]" || exit 1; \
       done \
    && rm /opt/nvisa/bin/nvisa-train \
    && if python -c "import torch" 2>/dev/null; then echo "torch is in the server image" >&2; exit 1; fi

FROM base AS trainer-packages
COPY constraints.txt /constraints.txt
COPY --from=wheel /wheels /wheels
RUN --mount=type=cache,target=/root/.cache/pip \
    python -m venv /opt/nvisa \
    && for wheel in /wheels/nvisa-*.whl; do \
         pip install --constraint /constraints.txt "${wheel}[training,serving,cpu]" || exit 1; \
       done

FROM base AS trainer
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nvisa-trainer" \
      org.opencontainers.image.description="Fits NVISA on unlabelled data and exports the assigner as an ONNX bundle" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=trainer-packages /opt/nvisa /opt/nvisa
# Matplotlib wants a place for its font cache, and numba, which UMAP runs on, one for what it compiled.
ENV MPLCONFIGDIR=/tmp/matplotlib \
    NUMBA_CACHE_DIR=/tmp/numba
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["tini", "--", "nvisa-train"]
CMD ["--help"]

# Last, so that a plain `docker build .` gives the server.
FROM base AS server
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nvisa-server" \
      org.opencontainers.image.description="Serves NVISA bundles over gRPC, and labels data sets offline" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=server-packages /opt/nvisa /opt/nvisa
# The default address, the loopback, could not be reached from outside the container.
ENV NVISA_SERVE_HOST=0.0.0.0 \
    NVISA_SERVE_MODEL_REPOSITORY=/models \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + os.environ.get('NVISA_SERVE_METRICS_PORT', '8002') + '/readyz', timeout=3)"]
ENTRYPOINT ["tini", "--", "nvisa-serve"]
