# syntax=docker/dockerfile:1
# The user is given by number, so that Kubernetes can see that it is not root (runAsNonRoot).
# Targets: api (no torch inside), worker (torch and the engine), keeper (the worker's code without torch).
#   docker build --target api -t quant-experts/api .

ARG PYTHON=3.12
# Empty: PyPI's torch, which brings CUDA. https://download.pytorch.org/whl/cpu makes a small CPU-only worker.
ARG TORCH_INDEX=""

FROM python:${PYTHON}-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/venv/bin:$PATH QE_HOME=/var/lib/qe
RUN useradd --system --uid 10001 --home-dir /var/lib/qe --create-home qe && python -m venv /opt/venv
WORKDIR /srv/qe

# Dependencies first, so that a change of code does not install them again.
FROM base AS service-dependencies
COPY pyproject.toml README.md constraints.txt ./
RUN mkdir quant_experts planning app worker && touch quant_experts/__init__.py planning/__init__.py app/__init__.py worker/__init__.py \
    && pip install -c constraints.txt '.[app,worker,s3,tracing]' && pip uninstall --yes quant-experts

FROM service-dependencies AS engine-dependencies
ARG TORCH_INDEX
RUN if [ -n "$TORCH_INDEX" ]; then pip install -c constraints.txt --index-url "$TORCH_INDEX" torch torchvision; \
    else pip install -c constraints.txt torch torchvision; fi \
    && pip install -c constraints.txt '.[engine]' && pip uninstall --yes quant-experts

FROM service-dependencies AS service
COPY pyproject.toml README.md ./
COPY app app
COPY worker worker
COPY quant_experts quant_experts
COPY planning planning
COPY migrations migrations
RUN pip install --no-deps .

FROM service AS api
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["uvicorn", "--factory", "app.main:create_app", "--host", "0.0.0.0", "--port", "8000", "--http", "app.kernel_copy:FileProtocol", "--no-proxy-headers", "--timeout-graceful-shutdown", "10"]

FROM service AS keeper
USER 10001
CMD ["python", "-m", "worker.keeper"]

FROM engine-dependencies AS worker
COPY pyproject.toml README.md ./
COPY app app
COPY worker worker
COPY quant_experts quant_experts
COPY planning planning
RUN pip install --no-deps .
USER 10001
CMD ["celery", "--app", "worker.celery_app:app", "worker", "--queues", "qe.jobs", "--pool", "prefork", "--concurrency", "1", "--loglevel", "INFO"]
