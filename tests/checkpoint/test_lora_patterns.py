"""The modules that an adapter's `alpha_pattern` names, with PEFT's own matching as the oracle."""

import json
import re

import pytest

from whisperkit_tools.checkpoint.lora import read_adapter, scaling
from whisperkit_tools.errors import CheckpointError

MODULES = (
    "encoder.layers.1.self_attn.q_proj",
    "decoder.layers.11.encoder_attn.q_proj",
    "decoder.layers.1.fc1",
    "q_proj",
)
PATTERNS = ("q_proj", "self_attn.q_proj", "layers.1.fc1", r"layers\.1\.self_attn\.q_proj", "decoder.*q_proj", ".*fc1",
            "^encoder.*", "layers.1.*q_proj", "roj", "encoder", "decoder.*attn.*proj$", "fc", ".*")  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_names_what_it_names_in_peft(module, pattern):
    """PEFT: `re.match(rf"(.*\\.)?({key})$", module)`, in `get_pattern_key`."""
    named = re.match(rf"(.*\.)?({pattern})$", module) is not None
    alpha = scaling({"lora_alpha": 4, "alpha_pattern": {pattern: 32}}, module, 1)
    assert alpha == (32 if named else 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"alpha_pattern": {"(([a-z_.0-9])+)+X": 16}}, "has the regular expression"),
        ({"alpha_pattern": {"(": 16}}, "has the regular expression"),
        ({"alpha_pattern": {"": 16}}, "has the regular expression"),
        ({"alpha_pattern": {"a|b": 16}}, "has the regular expression"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern q_proj is 'x', expected a number"),
        ({"alpha_pattern": ["q_proj"]}, "expected an object"),
        ({"lora_alpha": [8]}, r"lora_alpha is \[8\], expected a number"),
        ({"lora_alpha": True}, "lora_alpha is True, expected a number"),
        ({"base_model_name_or_path": 3}, "does not name its base"),
    ],
)
def test_what_is_refused(tmp_path, change, reason):
    config = {"peft_type": "LORA", "base_model_name_or_path": "demo", "lora_alpha": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=reason):
        read_adapter(tmp_path, allow_pickle=False)
