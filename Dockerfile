# The main job by default:  docker build -t par . && docker run --rm --user "$(id -u):$(id -g)" -v "$PWD/outputs:/par/outputs" par
# JupyterLab, with its token: docker run --rm -p 8888:8888 par jupyter lab --ip=0.0.0.0 --no-browser
# A CPU build of torch:       docker build --build-arg TORCH_INDEX=<an index of CPU wheels> -t par .
FROM python:3.11-slim

# An index that pip asks besides its usual one; name one of CPU builds of torch to save 5 GB.
ARG TORCH_INDEX=""

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*

ENV HOME=/par/home \
    PAR_CACHE=/par/cache \
    MPLCONFIGDIR=/par/home/matplotlib \
    PIP_EXTRA_INDEX_URL=${TORCH_INDEX} \
    PYTHONUNBUFFERED=1

WORKDIR /par
# The dependencies first: a change of the code then installs nothing anew.
COPY pyproject.toml README.md ./
COPY parlib/__init__.py ./parlib/
RUN pip install --no-cache-dir --editable .
COPY parlib ./parlib
COPY params ./params
COPY notebooks ./notebooks
COPY outputs/reference ./outputs/reference
RUN mkdir -p home cache && chmod -R a+rwX outputs home cache notebooks

EXPOSE 8888
USER 1000:1000
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "parlib.run", "params/small", "--only", "02_clean/finetune_badnet_stripes_s0", "02_clean/par_badnet_stripes_s0", "05_evaluate"]
