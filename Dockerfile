# Targets, each with only the packages that it needs; all install the same wheel:
#   api      HTTP, and migrations; no torch
#   keeper   the keeper; no torch
#   worker   supervisor and runner, with torch for the CPU, or for NVIDIA GPUs with --build-arg TORCH=cuda
# docs/deployment.md says what their images are called. deploy/requirements/ is what they install (`make lock`).

ARG PYTHON=3.12
ARG TORCH=cpu

FROM python:${PYTHON}-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# tini: a process with number 1 and no handler ignores SIGTERM, so a stop while Python still imports would not be heard.
RUN apt-get update && apt-get install --yes --no-install-recommends tini && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
# The venv is ours alone, so the wheel's directory of the service may be on its path (docs/adr/0026-one-name-in-site-packages.md).
RUN useradd --system --uid 10001 --home-dir /var/lib/qe --create-home qe \
    && python -m venv --without-pip /opt/venv \
    && cd /opt/venv/lib/python3.*/site-packages && echo quant_experts_service > quant_experts_service.pth
ENV PATH=/opt/venv/bin:$PATH QE_HOME=/var/lib/qe QE_HEARTBEAT_FILE=/tmp/heartbeat
# Every process touches this file while it lives: a look at its age costs milliseconds, a request or a ping of Celery seconds.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD test -n "$(find "$QE_HEARTBEAT_FILE" -mmin -1)"
WORKDIR /srv/qe
ENTRYPOINT ["tini", "--"]
LABEL org.opencontainers.image.title="Quant Experts" \
      org.opencontainers.image.description="Post-training quantization of vision-language models as a service" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM base AS wheel
COPY deploy/requirements/build.txt /tmp/
RUN python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r /tmp/build.txt
COPY . .
RUN /opt/build/bin/hatchling build -t wheel -d /dist

# Dependencies before code, so that a change of code does not install them again. Each stage removes what no process of
# ours loads: Arrow's Flight and S3 clients, and botocore's descriptions of every service but object storage.
FROM base AS api-packages
COPY deploy/requirements/api.txt deploy/requirements/slim.sh /tmp/
RUN pip --python /opt/venv/bin/python install --require-hashes -r /tmp/api.txt && sh /tmp/slim.sh

FROM base AS keeper-packages
COPY deploy/requirements/keeper.txt deploy/requirements/slim.sh /tmp/
RUN pip --python /opt/venv/bin/python install --require-hashes -r /tmp/keeper.txt && sh /tmp/slim.sh

FROM base AS torch-cpu
COPY deploy/requirements/worker.txt deploy/requirements/torch.txt deploy/requirements/slim.sh /tmp/
RUN pip --python /opt/venv/bin/python install --require-hashes -r /tmp/worker.txt && sh /tmp/slim.sh
# This index holds torch and torchvision; what they need is there by now. Empty: PyPI's.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip --python /opt/venv/bin/python install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r /tmp/torch.txt

FROM base AS torch-cuda
COPY deploy/requirements/worker-cuda.txt deploy/requirements/slim.sh /tmp/
RUN pip --python /opt/venv/bin/python install --require-hashes -r /tmp/worker-cuda.txt && sh /tmp/slim.sh

# The user is given by number, so that Kubernetes can see that it is not root (runAsNonRoot).
FROM api-packages AS api
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist pip --python /opt/venv/bin/python install --no-deps --no-index /dist/*.whl
USER 10001
EXPOSE 8000
CMD ["uvicorn", "--factory", "app.main:create_app", "--host", "0.0.0.0", "--port", "8000", "--http", "app.web.kernel_copy:FileProtocol", "--no-proxy-headers", "--timeout-graceful-shutdown", "10"]
ARG VERSION=unknown REVISION=unknown
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION

FROM keeper-packages AS keeper
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist pip --python /opt/venv/bin/python install --no-deps --no-index /dist/*.whl
USER 10001
CMD ["python", "-m", "worker.keeper"]
ARG VERSION=unknown REVISION=unknown
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION

FROM torch-${TORCH} AS worker
RUN --mount=type=bind,from=wheel,source=/dist,target=/dist pip --python /opt/venv/bin/python install --no-deps --no-index /dist/*.whl
USER 10001
CMD ["qe", "worker"]
ARG VERSION=unknown REVISION=unknown
LABEL org.opencontainers.image.version=$VERSION org.opencontainers.image.revision=$REVISION
