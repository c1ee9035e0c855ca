# `make demo` and `make test` need only Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BINDINGS := $(VENV)/bindings/.ready
WHEELS := $(foreach name,gpu migraphx webgpu directml,$(VENV)/wheels/onnxruntime-$(name)/.ready)
ALL_WHEELS := $(WHEELS) $(VENV)/wheels/onnxruntime-macos/.ready
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test all-tests quick quick-tests check types readme wheels peers npm ray web graphs wheel sizes newest software-gpu emulated-arm clean

demo: $(READY)
	$(BIN)/latentc demo

test: $(READY) $(BINDINGS) $(WHEELS)
	@$(MAKE) --no-print-directory -j2 check all-tests

all-tests: $(READY)
	$(BIN)/pytest $(WORKERS)

# For every edit: lint, types, and all tests except those marked as slow (about half a second of one core, or more)
# and those that need an export of a family other than `sd1`. Types are checked in parallel with the tests.
quick: $(READY) $(BINDINGS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory -j2 types quick-tests

quick-tests: $(READY)
	$(BIN)/pytest $(WORKERS) --quick

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python tests/rooms.py

types: $(READY)
	$(BIN)/pyright

# Export scenes, and replace the graphs of it that ship without weights (scenes/exported.tar.xz), and the
# references for wheels.
graphs: $(READY)
	rm -rf $(VENV)/scenes.bundle
	$(BIN)/latentc export scenes -o $(VENV)/scenes.bundle
	$(BIN)/python tests/scenes/ship.py $(VENV)/scenes.bundle

# A wheel with the references of scenes, in dist/.
wheel: graphs
	rm -rf build
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist .

# Generate the tables of README.md and docs/ from result files and profiles.
readme: $(READY)
	$(BIN)/python tests/readme.py

# Measure what the extras install, for docs/installing.md: downloads 0.5 GB.
sizes: $(READY)
	$(BIN)/python tests/sizes.py
	$(BIN)/python tests/readme.py

# List what is behind in constraints.txt, of what is installed, and run the tests with the newest versions, in an environment of its own.
newest: $(READY)
	$(BIN)/python tests/newest.py

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("latentc needs Python 3.11 or later; use: make PYTHON=python3.x") if sys.version_info < (3, 11) else 0'
	@echo "Installing into $(VENV): about 2.9 GB, a few minutes the first time."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@mkdir -p $(VENV)/links && ln -sfn ../.. $(VENV)/links/latentc
	@touch $@

# Python bindings of two versions of TensorRT, without the library, to test the adapter: 9 MB.
$(BINDINGS): $(READY)
	@for bindings in 11:cu13-bindings==11.4.0.106 10:cu12-bindings==10.16.1.11; do \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --upgrade \
			--target $(VENV)/bindings/tensorrt-$${bindings%%:*} tensorrt-$${bindings#*:} || \
		echo "TensorRT's bindings are not available for this machine: their tests will be skipped."; done
	@mkdir -p $(@D) && touch $@

# ONNX Runtime for devices that aren't here, to check their options by the library's own parser, or by its strings: `make
# test` gets 330 MB, which are 550 MB unpacked; `make wheels` also what it couldn't get before, and Core ML's of 21 MB.
wheels: $(READY)
	@for ready in $(ALL_WHEELS); do ls -d $${ready%/*}/*.dist-info >/dev/null 2>&1 || rm -f $$ready; done
	@$(MAKE) --no-print-directory $(ALL_WHEELS)
	$(BIN)/pytest tests/profiles

$(VENV)/wheels/onnxruntime-directml/.ready: PLATFORM := --platform win_amd64
$(VENV)/wheels/onnxruntime-macos/.ready: PLATFORM := --platform macosx_14_0_arm64

$(VENV)/wheels/%/.ready: $(READY)
	@rm -rf $(@D) && mkdir -p $(@D)
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: $(PLATFORM) \
			--dest $(@D) $$(grep '^$(*:-macos=)==' constraints.txt) && \
		cd $(@D) && $(abspath $(BIN))/python -m zipfile -e *.whl . && rm *.whl || \
		echo "$* isn't available here: its options won't be checked. To try again: make wheels."
	@touch $@

# Separate environments for the baselines of `latentc bench --against`: about 3 GB.
PEERS := $(VENV)/peers
INTEL := openvino==2026.4.1 nncf==3.4.0 huggingface_hub==1.21.0 torch==2.13.0 transformers==5.5.4

peers: $(PEERS)/intel/.ready $(PEERS)/onnx/.ready
	$(BIN)/python -m pytest tests/package/test_optimum.py

# optimum-intel requires torchvision, which isn't needed here and breaks with CPU builds of torch: hence --no-deps.
$(PEERS)/intel/.ready: $(READY)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-deps $(INTEL) optimum-intel==2.2.0 optimum==2.3.0 diffusers==0.39.0 \
		"openvino-genai==2026.4.1.*"
	$(@D)/bin/python -m pip install --quiet $(INTEL) setuptools "requests<3,>=2.33" "openvino-tokenizers==2026.4.1.*" \
		"numpy<2.5" packaging pyyaml regex "tokenizers>=0.22,<=0.23.0" "typer<0.26,>=0.20" safetensors tqdm \
		importlib_metadata filelock "httpx<1" Pillow "click>=8.4" fsspec "hf-xet<2" typing-extensions openvino-telemetry \
		"networkx<=3.6.1" "ninja<1.14" psutil "pydot<=4.0.1" rich scikit-learn scipy tabulate sympy jinja2 accelerate
	@touch $@

$(PEERS)/onnx/.ready: $(READY)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet torch==2.13.0 optimum-onnx==0.1.0 optimum==2.1.0 transformers==4.57.6 \
		diffusers==0.39.0 huggingface_hub==0.36.2 onnx==1.23.2 onnxruntime==1.31.1 accelerate
	@touch $@

# The npm clients of OpenAI's and Stability's APIs, to test `latentc serve` with them: needs Node.js; 26 MB.
npm: $(PEERS)/npm/.ready
	$(BIN)/pytest tests/serving/test_npm.py

$(PEERS)/npm/.ready: $(READY)
	@command -v npm >/dev/null || { echo "npm isn't installed: it comes with Node.js."; exit 1; }
	mkdir -p $(@D)
	npm install --silent --no-audit --no-fund --prefix $(@D) openai@6 stability-ai@0.7.0
	@touch $@

# Ray beside the packages of `.venv`, to test `serve --on ray`: 0.4 GB.
RAY := $(VENV)/ray

ray: $(RAY)/.ready
	$(RAY)/bin/python -m pytest tests/serving/test_ray.py

$(RAY)/.ready: $(READY)
	$(BIN)/python -m venv $(@D)
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > $$(echo $(@D)/lib/python*/site-packages)/latentc.pth
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "$$(grep ^ray== constraints.txt)"
	@touch $@

# onnxruntime-web, to test the page of `latentc package --for web` and the profiles of browsers in Chromium, with its
# GPU in software: npm comes with Node.js; 30 MB.
web: $(VENV)/web/.ready
	LATENTC_CHROMIUM_FLAGS="--use-webgpu-adapter=swiftshader --enable-unsafe-swiftshader" $(BIN)/python -m pytest \
		tests/package/test_web.py tests/package/test_web_modules.py tests/benchmarks/test_browser.py
	LATENTC_CHROMIUM_FLAGS="--use-webgpu-adapter=swiftshader --enable-unsafe-swiftshader" $(BIN)/python -m pytest \
		tests/runtimes/test_contract.py tests/runtimes/test_onnxruntime_web.py -k onnxruntime-web

$(VENV)/web/.ready: runtimes/web_library.py $(READY)
	@command -v npm >/dev/null || { echo "npm isn't installed: it comes with Node.js."; exit 1; }
	mkdir -p $(@D)
	npm pack --silent --pack-destination $(@D) \
		onnxruntime-web@$$(sed -n 's/^NAME, VERSION.*"\(.*\)"$$/\1/p' runtimes/web_library.py)
	@touch $@

# A software GPU (SwiftShader from Debian's chromium-common) and an environment for WebGPU: about 0.5 GB.
SOFTWARE := $(VENV)/software-gpu

software-gpu: $(SOFTWARE)/.ready
	$(BIN)/pytest tests/test_software_gpu.py

$(SOFTWARE)/.ready: $(READY)
	@command -v apt-get >/dev/null && command -v dpkg >/dev/null || \
		{ echo "SwiftShader comes from Debian's package chromium-common, which needs apt-get and dpkg."; exit 1; }
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e '.[build,onnxruntime-webgpu]' pytest pytest-xdist
	cd $(@D) && apt-get download --quiet chromium-common && dpkg -x chromium-common_*.deb debian && rm chromium-common_*.deb
	@touch $@

# Profiles of Arm CPUs on an emulated one, with Debian's Python for arm64 and wheels for aarch64.
emulated-arm: $(READY)
	$(BIN)/python tests/arm.py $(VENV)/arm

clean:
	rm -rf $(VENV) demo build *.egg-info
