# `make table1` and `make test` need Python 3.11 or later and nothing else: each makes a virtual
# environment if there is none, and installs what it lacks. Both install again when pyproject.toml changes.
#
#   make table1 ARGS="--models=fcn_vgg --limit=4"       flags of the launch
#   make test ARGS="tests/test_attack.py -x"            arguments of pytest
#   make test PYTHON=python3.12 VENV=.venv312           another interpreter, beside the first
#   make figures                                        pictures of the documentation, from the runs in runs/
#   make package                                        what is released: dist/
#   make docs                                           the documentation, into site/
#   make real VOC=/data/VOCdevkit ARGS="--limit=16"     published networks on photographs of PASCAL VOC 2012

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
VOC ?= VOCdevkit
RUNS ?= runs
WEIGHTS ?= $(RUNS)/weights
FIGURES ?= docs
REAL := espnetv2_20_384,espnetv2_20_256,espnetv2_10_384,espnetv2_05_384,yolov3_nano_voc,yolo_fastest_voc

IN_VENV := $(VENV)/bin/python
INSTALL := $(IN_VENV) -m pip install --quiet --disable-pip-version-check

.PHONY: table1 real figures docs test lint format package
.NOTPARALLEL:  # two installs into one environment would disturb each other

table1: $(VENV)/.installed
	@$(IN_VENV) -m experiments.table1 $(ARGS)

real: $(VENV)/.installed | $(WEIGHTS)
	@$(IN_VENV) -m experiments.table1 --nominiature --models=$(REAL) --weights_dir=$(WEIGHTS) --dataset=voc \
		--data_dir=$(VOC) --split=voc2012_seg_val --limit=0 --workdir=runs/real $(ARGS)
	@$(IN_VENV) -m experiments.transfer --run=runs/real --weights_dir=$(WEIGHTS) --data_dir=$(VOC) \
		--black_boxes= --workdir=runs/real_transfer

# Each launch goes on from what its folder holds: images that are there are not attacked again.
figures: $(VENV)/.installed $(RUNS)/chelsea.png | $(WEIGHTS)
	@$(IN_VENV) -m experiments.table1 --limit=100 --workdir=$(RUNS)/table1_100 $(ARGS)
	@$(IN_VENV) -m experiments.table1 --split=seg11valid --limit=100 --workdir=$(RUNS)/table1_one_split $(ARGS)
	@$(IN_VENV) -m experiments.transfer --run=$(RUNS)/table1_one_split --workdir=$(RUNS)/transfer
	@$(IN_VENV) -m experiments.convergence --run=$(RUNS)/table1_100 --workdir=$(RUNS)/convergence_100
	@$(IN_VENV) -m experiments.proposals --limit=100 --margin=0 --workdir=$(RUNS)/proposals_margin_0 $(ARGS)
	@$(IN_VENV) -m experiments.shapes --workdir=$(RUNS)/shapes $(ARGS)
	@$(IN_VENV) -m experiments.variants --limit=100 --workdir=$(RUNS)/variants $(ARGS)
	@$(IN_VENV) -m experiments.figure1 --workdir=$(RUNS)/figure1
	@$(IN_VENV) -m experiments.attack_image --image=$(RUNS)/chelsea.png --models=espnetv2_20_384,yolov3_nano_voc \
		--nominiature --weights_dir=$(WEIGHTS) --method=clipped_best_other --workdir=$(RUNS)/cat
	@cp $(RUNS)/table1_100/examples.png $(FIGURES)/table1.png
	@cp $(RUNS)/transfer/transfer.png $(RUNS)/convergence_100/convergence.png $(RUNS)/proposals_margin_0/proposals.png \
		$(RUNS)/shapes/shapes.png $(RUNS)/variants/variants.png $(RUNS)/figure1/figure1.png $(FIGURES)/
	@cp $(RUNS)/cat/attack_image.png $(FIGURES)/cat.png

docs: $(VENV)/.installed-docs
	@NO_MKDOCS_2_WARNING=1 JAX_PLATFORMS=cpu $(IN_VENV) -m mkdocs build --strict $(ARGS)
	@echo "site/index.html"

test: $(VENV)/.installed-test
	@$(IN_VENV) -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/.installed-test
	@$(IN_VENV) -m ruff check .
	@$(IN_VENV) -m ruff format --check .
	@$(IN_VENV) -m mypy

format: $(VENV)/.installed-test
	@$(IN_VENV) -m ruff check --fix .
	@$(IN_VENV) -m ruff format .

package: $(VENV)/.installed-test
	@rm -rf dist
	@$(IN_VENV) -m build --outdir dist
	@$(IN_VENV) -m twine check --strict dist/*

$(WEIGHTS): | $(VENV)/.installed
	@$(IN_VENV) -m experiments.fetch_weights --networks=$(REAL) --workdir=$@

# Chelsea, by Stefan van der Walt, CC0.
$(RUNS)/chelsea.png: | $(VENV)/.installed
	@mkdir -p $(RUNS)
	@$(IN_VENV) -m pip download --quiet --no-deps --dest $(RUNS) scikit-image==0.26.0
	@$(IN_VENV) -c 'import glob, sys, zipfile; sys.stdout.buffer.write(zipfile.ZipFile(glob.glob(sys.argv[1])[0]).read("skimage/data/chelsea.png"))' \
		'$(RUNS)/scikit_image-*.whl' > $@.part
	@mv $@.part $@
	@rm $(RUNS)/scikit_image-*.whl

# pip is the last thing that venv puts in place, so a creation cut short is taken up again.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit("dag-jax needs Python 3.11 or later; this is %d.%d. Name another: make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	@echo "Installing dag-jax into $(VENV) (once; about a minute)"
	@$(INSTALL) --editable '.[experiments]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/pip
	@echo "Installing dag-jax and its test tools into $(VENV) (once; about a minute)"
	@$(INSTALL) --editable '.[test]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/pip
	@echo "Installing dag-jax and what builds its documentation into $(VENV) (once; about a minute)"
	@$(INSTALL) --editable '.[docs]'
	@touch $(VENV)/.installed $@
