# vitp on the CPU, or on CUDA where the host offers it (torch's Linux wheels carry both).
#   docker build -t vitp .
#   docker run --rm vitp                                        the demo
#   docker run --rm --gpus all -v $PWD:/work vitp generate-proposals camvid --data-root data/camvid --out runs/camvid
FROM python:3.11-slim-bookworm

# OpenCV, which mmcv imports, wants these two
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
 && rm -rf /var/lib/apt/lists/*

# the pinned packages are a layer of their own: a change of code does not load them again
COPY requirements.lock /tmp/requirements.lock
RUN pip install --no-cache-dir -r /tmp/requirements.lock && rm /tmp/requirements.lock

COPY . /opt/vitp
RUN pip install --no-cache-dir --no-deps /opt/vitp

RUN useradd --create-home vitp && mkdir /work && chown vitp /work
USER vitp
WORKDIR /work
ENTRYPOINT ["vitp"]
CMD ["demo"]
