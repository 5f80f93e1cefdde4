# syntax=docker/dockerfile:1
# The one image: apiserver, agent, CLI, and the etcd beside the apiserver.
#
#     docker build -t localhost/clustermesh:0.1.0 .

# Debian 13, because its etcd is 3.5.
ARG PYTHON=python:3.11-slim-trixie

FROM ${PYTHON} AS build
# What hatch_build.py compiles with. It stays behind in this stage.
RUN apt-get update \
 && apt-get install -y --no-install-recommends clang llvm gcc libc6-dev linux-libc-dev libbpf-dev \
 && rm -rf /var/lib/apt/lists/*
RUN python -m venv --without-pip /opt/clustermesh
WORKDIR /src
# What the sources depend on changes seldom: it is a layer of its own.
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > /requirements.txt \
 && pip --python /opt/clustermesh/bin/python install --no-cache-dir --disable-pip-version-check -r /requirements.txt
COPY . .
RUN pip --python /opt/clustermesh/bin/python install --no-cache-dir --disable-pip-version-check --no-deps . \
 && find /opt/clustermesh -type d -name tests -prune -exec rm -rf {} + \
 && /opt/clustermesh/bin/python -m compileall -q /opt/clustermesh/lib

FROM ${PYTHON}
LABEL org.opencontainers.image.title="clustermesh" \
      org.opencontainers.image.description="Join Kubernetes clusters into one network, node to node, on any CNI" \
      org.opencontainers.image.licenses="Apache-2.0"
# libbpf loads the agent's programs, nft exempts the mesh from masquerading; etcd runs beside the
# apiserver, as the command of its container.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libbpf1 nftables etcd-server wireguard-go \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/clustermesh /opt/clustermesh
ENV PATH=/opt/clustermesh/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# The agent alone needs root, and gets it (with three capabilities) from its DaemonSet.
USER 65532:65532
CMD ["clustermesh", "--help"]
