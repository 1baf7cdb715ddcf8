# vitp, on the CPU or on CUDA. tools/image_check.py builds and tries it where there is no Docker daemon.
#   docker build -t vitp .
#   docker build -t vitp:cuda --build-arg VARIANT=cuda .
#   docker run --rm vitp                                        the demo
ARG BASE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

# vitp's own wheel: what it is built with, and the sources, stay in this stage
FROM ${BASE} AS wheel
COPY container/build.lock /tmp/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --requirement /tmp/build.lock
COPY . /src
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /wheels /src

FROM ${BASE}
ENV PATH=/opt/vitp/bin:$PATH
# OpenCV, which mmcv imports, wants these
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 libxcb1 \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 1000 --create-home vitp \
 && mkdir /work && chmod 1777 /work /home/vitp \
 && python3 -m venv /opt/vitp

# Three layers, from the one that changes least to the one that changes most: torch, the other packages, vitp.
# On the CPU torch comes from an index of its own, since PyPI's Linux wheels load CUDA's libraries even there.
ARG VARIANT=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements.lock container/cuda.lock /opt/vitp/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    torch=$(grep -E '^torch(vision)?==' /opt/vitp/requirements.lock) \
 && case "$VARIANT" in \
      cpu) pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" $(printf '%s+cpu ' $torch) ;; \
      cuda) pip install --no-cache-dir --constraint /opt/vitp/requirements.lock --constraint /opt/vitp/cuda.lock $torch ;; \
      *) echo "VARIANT is cpu or cuda, not '$VARIANT'" >&2; exit 2 ;; \
    esac
COPY pyproject.toml container/wanted.py /opt/vitp/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    python /opt/vitp/wanted.py /opt/vitp/pyproject.toml export hf openmmlab report s3 > /tmp/wanted.txt \
 && pip install --no-cache-dir --constraint /opt/vitp/requirements.lock --requirement /tmp/wanted.txt \
 && rm /tmp/wanted.txt
COPY container/entry.sh /usr/local/bin/vitp-entry
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-deps --no-index /wheels/*.whl && pip check

LABEL org.opencontainers.image.title="vitp" \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.description="Classify the masks of a frozen segmentation model with a point-prompted ViT" \
      org.opencontainers.image.licenses="MIT"
# caches of matplotlib, mmengine and the hubs, whoever runs it (--user, also of a number that has no name)
ENV HOME=/home/vitp PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["vitp-entry"]
CMD ["demo"]
