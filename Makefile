# Everything below works on a fresh Debian 12 with root, make and git; each target sets up what it needs.
PYTHON ?= python3
KERNEL ?= uml
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0
PACKAGES := clang llvm gcc libc6-dev linux-libc-dev libbpf-dev libelf-dev zlib1g-dev \
            etcd-server etcd-client wireguard-go bpftool iproute2 iputils-ping ethtool iperf3 procps util-linux nftables \
            iptables ipset \
            python3 python3-dev python3-venv
VM_PACKAGES := flex bison m4 bc make xz-utils qemu-system-x86 busybox-static cpio kmod
BUILT := $(wildcard bpf/*.bpf.c bpf/lib/*.h) agent/kernel/_libbpf_build.py clustermesh/etcd/rpc.proto

.PHONY: help setup demo test test-kube test-vm bench lint clean
help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.packages $(VENV)/.installed $(VENV)/.built ## system packages, virtual environment, BPF objects
	@:

$(VENV)/.packages: WANTED = $(PACKAGES)
$(VENV)/.vm-packages: WANTED = $(VM_PACKAGES)
$(VENV)/.packages $(VENV)/.vm-packages: Makefile
	@missing=$$(for p in $(WANTED); do dpkg -s $$p >/dev/null 2>&1 || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "==> installing system packages:" $$missing; \
	  [ "$$(id -u)" = 0 ] || { echo "not root: run 'sudo make setup' once, or install them yourself" >&2; exit 1; }; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; \
	fi
	@[ -x $(BIN)/python ] || { echo "==> creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@touch $@

$(VENV)/.installed: pyproject.toml hatch_build.py $(VENV)/.packages
	@echo "==> installing clustermesh and its Python dependencies into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]' cffi setuptools grpcio-tools
	@touch $@

$(VENV)/.built: $(BUILT) $(VENV)/.installed
	@$(BIN)/python hatch_build.py
	@touch $@

demo: setup ## two clusters, one Service, one network; shows it and leaves it up to look around
	@$(BIN)/python -m clustermesh.sandbox.demo

test: setup ## lint, unit tests, BPF programs on this kernel, and every promise that needs no API server end to end
	@$(MAKE) --no-print-directory lint
	@$(PYTEST) -m "not kube"
	@echo "==> not run: what needs real API servers and helm, which make test-kube does"

# 69: they cannot be had on this machine, and the tests are skipped by name.
test-kube: setup ## what needs real API servers and helm (builds them first, 10 minutes once, with Go)
	@$(BIN)/python -m clustermesh.sandbox.kube.programs || [ $$? -eq 69 ]
	@$(PYTEST) -m kube

test-vm: setup $(VENV)/.vm-packages ## what is marked vm on another kernel: KERNEL=uml|6.1|6.12 (TESTS="e2e/test_x.py" MARK="…")
	@$(BIN)/python -m e2e.vm $(KERNEL) $(TESTS) $(if $(MARK),-m "$(MARK)")

bench: setup ## measure, and write docs/benchmarks.md with its plots
	@$(BIN)/python -m e2e.bench

lint: setup ## ruff, mypy, import-linter
	@$(BIN)/ruff format --check -q . && $(BIN)/ruff check -q . && $(BIN)/mypy && $(BIN)/lint-imports --no-cache

clean: ## take down every sandbox, remove what was built
	@[ ! -x $(BIN)/clustermesh ] || $(BIN)/clustermesh sandbox down --all
	rm -rf $(VENV) agent/kernel/objects agent/kernel/_libbpf*.so clustermesh/etcd/rpc_pb2.py*
