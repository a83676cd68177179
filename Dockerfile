# t2ialign with every plugin of this repository.
#
#   docker build -t t2ialign .                                       CUDA, as torch's usual Linux wheels are
#   docker build -t t2ialign:cpu --build-arg TORCH_INDEX=INDEX .     CPU: INDEX is what pytorch.org names for CPU wheels
#   docker run --rm -v "$PWD:/work" t2ialign:cpu run /opt/t2ialign/specs/quickstart.toml
#   docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" -v ~/.cache/huggingface:/cache/huggingface t2ialign run spec.toml
#
# A GPU needs the NVIDIA container toolkit on the host.
FROM python:3.12-slim
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/cache/huggingface T2IALIGN_CACHE=/cache/t2ialign
# What OpenCV, below the OCR reward, loads.
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/t2ialign
COPY requirements.txt pyproject.toml README.md LICENSE ./
COPY t2ialign t2ialign
COPY plugins plugins
# torch first, in the version that requirements.txt pins, so that one layer holds the large part.
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' requirements.txt)" \
 && pip install -r requirements.txt
COPY specs specs
RUN mkdir -p /cache/huggingface /cache/t2ialign /work && chmod -R 777 /cache && t2ialign plugins > /dev/null
WORKDIR /work
ENTRYPOINT ["t2ialign"]
CMD ["--help"]
