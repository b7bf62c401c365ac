# Stonechat on CPUs. Build: docker build -t stonechat .
# Run: docker run --rm -p 127.0.0.1:8000:8000 -v stonechat-cache:/cache stonechat MODEL

FROM debian:bookworm-slim AS build

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        ca-certificates g++ python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

# Builds of torch without CUDA, which are smaller. On Arm PyPI has them, too.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# Install the dependencies first: a change of the code does not rebuild this layer.
WORKDIR /opt/stonechat
COPY constraints.txt ./
RUN python3 -m venv /opt/venv \
    && pip install --constraint constraints.txt --extra-index-url "$TORCH_INDEX" \
        torch transformers accelerate

# The kernels are compiled here for every level of the processor, so that the image has no compiler.
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY models ./models
COPY server ./server
RUN STONECHAT_KERNELS="$(uname -m)" pip install --constraint constraints.txt \
        --extra-index-url "$TORCH_INDEX" '.[all]'


FROM debian:bookworm-slim

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        ca-certificates libstdc++6 python3 tini \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 10001 --user-group stonechat \
    && mkdir /cache \
    && chown stonechat:stonechat /cache

COPY --from=build /opt/venv /opt/venv

ENV VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/cache XDG_DATA_HOME=/cache/data HF_HOME=/cache/huggingface

USER 10001:10001
WORKDIR /home/stonechat
VOLUME /cache
EXPOSE 8000

# The server listens only after it has loaded the model. A large model takes minutes to fetch.
HEALTHCHECK --interval=15s --timeout=5s --start-period=15m --retries=4 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]

# The server listens on all addresses of the container. Only a published port can be reached.
ENTRYPOINT ["tini", "--", "stonechat", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD []
