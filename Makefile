.PHONY: lab test notebooks bench

PYTHON ?= python3

.venv/ready: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable ".[test]"
	touch $@

lab: .venv/ready  ## open the course
	.venv/bin/jupyter lab notebooks/00_welcome.ipynb

test: .venv/ready  ## style, unit tests, every notebook, that each was run
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/python -m pytest tests
	.venv/bin/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=3600 notebooks
	.venv/bin/python tools/check_notebooks.py

notebooks: .venv/ready  ## write badges and set-up cells, run every notebook and store its outputs
	.venv/bin/python tools/prepare_notebooks.py
	.venv/bin/python tools/execute_notebooks.py

bench: .venv/ready  ## measure; by hand, with nothing else running (about two and a half hours)
	for script in time_to_quality ablation decoder_parts training_tricks machine_share generation_speed ppo_speed growth scaling finetuning_control reward_comparisons ppo_reuse weak_judge ppo_gain alignment_comparison chain_cost; do \
		.venv/bin/python tests/benchmarks/$$script.py || exit 1; \
	done
