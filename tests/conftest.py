"""Fixtures that several files of tests use."""

import pytest
import torch


@pytest.fixture
def exact_arithmetic(monkeypatch):
    """fp32 wherever this machine would choose half precision, and the same random numbers in every test."""
    monkeypatch.setenv("GPTCORE_PRECISION", "fp32")
    torch.manual_seed(0)
