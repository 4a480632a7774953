"""The demo's packages and features for them."""

import pytest
import torch

from whisperkit_tools.contract import MODEL_COMPONENTS


@pytest.fixture(scope="session")
def packages(demo_bundle):
    return {name: demo_bundle / f"{name}.mlpackage" for name in MODEL_COMPONENTS}


@pytest.fixture(scope="session")
def noise_features():
    """Features `[1, n_mels, 1, frames]` of seeded noise."""
    return torch.randn(1, 80, 1, 3000, generator=torch.Generator().manual_seed(0)) * 0.3
