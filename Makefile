.PHONY: help lab style test unit format notebooks bench models records pictures costs everything
.DEFAULT_GOAL := help
.NOTPARALLEL:

PYTHON ?= python3

# What chapters read of the benchmarks; the other scripts are for README.md and EXPERIMENTS.md alone.
RECORDS = decoder_parts training_tricks ablation growth scaling finetuning_control loss_mask reward_comparisons votes_of_one ppo_reuse ppo_parts over_optimisation leaning_voters alignment_comparison verifiable_rewards
OTHERS = time_to_quality machine_share generation_speed ppo_speed ppo_gain chain_cost dashboard_cost

# A processor with AMX that computes as one with AVX2 alone: the laptop profile.
HELD_BACK = ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 ATEN_CPU_CAPABILITY=avx2

# Files of tests, and notebooks, side by side: small models leave a second core idle half of the time.
EACH_ON_ITS_CORE = PYTHONPATH=tools .venv/bin/python -m pytest -p own_core -n 2 --dist loadfile --no-loadscope-reorder

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable ".[test]"
	touch $@

help:  ## say what can be made
	@sed -n 's/^\([a-z]*\):.*##  *\(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '%-12s%s\n' "$$name" "$$text"; \
	done

lab: .venv/ready  ## open the course
	.venv/bin/jupyter lab notebooks/00_welcome.ipynb

style: .venv/ready  ## the style of the code, and whether its annotations are true (pyright)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright --project pyproject.toml

unit: style  ## style, and the tests that are not marked slow (under three minutes)
	.venv/bin/python -m pytest -m "not slow" tests

format: .venv/ready  ## mend the style of the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

test: style  ## style, all tests, every notebook, that each was run
	$(EACH_ON_ITS_CORE) tests
	$(EACH_ON_ITS_CORE) --nbval-lax --nbval-current-env --nbval-cell-timeout=3600 $$(ls -r notebooks/*.ipynb)  # the last chapters take longest
	.venv/bin/python tools/check_notebooks.py

notebooks: .venv/ready  ## write what notebooks have from elsewhere, run each and store its outputs (15 to 25 minutes)
	.venv/bin/python tools/prepare_notebooks.py
	.venv/bin/python tools/execute_notebooks.py
	.venv/bin/python tools/prepare_notebooks.py  # again: their heads state what they have just cost

bench: .venv/ready  ## measure; by hand, with nothing else running (about two and a half hours)
	for script in $(RECORDS) $(OTHERS); do \
		.venv/bin/python tests/benchmarks/$$script.py || exit 1; \
	done

# The rest is for a changed recipe: CONTRIBUTING.md says when. With nothing else running, on a machine with AMX.

everything: no_own_run models records pictures notebooks costs  ## after a change of the recipe, all that follows from it (about four hours)

models: .venv/ready  ## train the chain with the shipped seed and ship it (14 minutes)
	rm -rf runs/shipped
	.venv/bin/python -m gptcore train --seed 0 --out runs/shipped
	.venv/bin/python tools/ship_models.py runs/shipped

records: .venv/ready no_own_run  ## what chapters show beside their own runs, and the PPO lab (two and three quarter hours; on one core without AMX four)
	for script in $(RECORDS); do \
		.venv/bin/python tests/benchmarks/$$script.py --out assets/benchmarks || exit 1; \
	done
	mkdir -p runs/benchmarks
	mv assets/benchmarks/growth.png runs/benchmarks/
	rm -f assets/ppo_lab.json  # or the old runs would be kept
	.venv/bin/python tools/record_ppo_lab.py

pictures: .venv/ready  ## the README's pictures of the chain and of the views (4 minutes; needs Chromium)
	.venv/bin/python tools/draw_chain.py
	GPTCORE_BROWSER=required .venv/bin/python -m pytest tests/test_browser.py
	.venv/bin/python tools/draw_views.py

costs: .venv/ready no_own_run  ## what the chain and the chapters take on the laptop profile (from three quarters of an hour)
	rm -rf runs/laptop
	$(HELD_BACK) .venv/bin/python -m gptcore train --seed 0 --out runs/laptop
	$(HELD_BACK) .venv/bin/python tools/ship_models.py --only-seconds runs/laptop
	$(HELD_BACK) .venv/bin/python tools/execute_notebooks.py --measure
	.venv/bin/python tools/prepare_notebooks.py

# Chapters and benchmarks prefer the reader's own models to the shipped ones.
.PHONY: no_own_run
no_own_run:
	@test ! -e runs/chain || { echo "runs/chain holds a run of your own, which would be used: move it elsewhere"; exit 1; }
