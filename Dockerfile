# The main job by default:  docker build -t par . && docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/outputs:/par/outputs" par
# JupyterLab, with its token: docker run --rm -p 8888:8888 par jupyter lab --ip=0.0.0.0 --no-browser
# A CPU build of torch:       docker build --build-arg TORCH_INDEX=<an index of CPU wheels> -t par .
FROM python:3.11-slim

# An index of CPU builds of torch saves 5 GB. Their hashes are not in the lock: versions alone are held then.
ARG TORCH_INDEX=""

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*

ENV HOME=/par/home \
    PAR_CACHE=/par/cache \
    MPLCONFIGDIR=/par/home/matplotlib \
    PYTHONUNBUFFERED=1

WORKDIR /par
# The dependencies first: a change of the code then installs nothing anew.
COPY requirements.lock ./
RUN if [ -z "${TORCH_INDEX}" ]; then \
      pip install --no-cache-dir --require-hashes --requirement requirements.lock; \
    else \
      sed -E '/^ +--hash/d; /^(nvidia-|cuda-|triton=)/d; s/ *\\$//' requirements.lock > cpu.txt \
      && pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" --requirement cpu.txt; \
    fi
COPY pyproject.toml README.md ./
COPY parlib ./parlib
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .
COPY params ./params
COPY notebooks ./notebooks
COPY docs/templates ./docs/templates
COPY outputs/reference ./outputs/reference
COPY outputs/elsewhere ./outputs/elsewhere
RUN mkdir -p home cache && chmod -R a+rwX outputs home cache notebooks

EXPOSE 8888
USER 1000:1000
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "parlib.run", "params/small/scarce.yaml"]
