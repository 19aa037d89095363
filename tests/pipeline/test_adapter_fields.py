"""Fields of LoraConfig under `adapter`: which are taken, which refused with the reason, what keys are made of."""

from dataclasses import fields

import pytest
from peft import LoraConfig

from mithridate.errors import InputError
from mithridate.experiment.adapter_fields import ALLOWED_IN_ADAPTER, NOT_IN_ADAPTER
from mithridate.experiment.config import canonical, load_experiment, with_defaults

PLAIN = {"model": "m", "data": {}}
DEFAULT = {"r": 16, "lora_alpha": 32, "lora_dropout": 0, "target_modules": ["q_proj", "k_proj", "v_proj"]}


def test_what_is_refused_are_fields_of_loraconfig():
    names = {field.name for field in fields(LoraConfig)}
    assert names >= NOT_IN_ADAPTER.keys() | ALLOWED_IN_ADAPTER.keys() | DEFAULT.keys()


def test_fields_that_are_not_given_have_our_defaults_and_a_key_holds_no_others():
    assert canonical(load_experiment(PLAIN))["adapter"] == DEFAULT
    assert canonical(load_experiment(PLAIN | {"adapter": {"r": 4}}))["adapter"] == DEFAULT | {"r": 4}
    more = {"use_rslora": True, "layers_to_transform": [0], "rank_pattern": {"q_proj": 4}}
    made = with_defaults(load_experiment(PLAIN | {"adapter": more}))
    assert canonical(made)["adapter"] == DEFAULT | more
    assert LoraConfig(**made.adapter).use_rslora


@pytest.mark.parametrize(
    ("adapter", "problem"),
    [
        ({"modules_to_save": ["lm_head"]}, "adapter.modules_to_save: not here: it is trained beside the adapter"),
        ({"use_dora": True}, "adapter.use_dora: not here: only plain LoRA"),
        ({"bias": "all"}, 'adapter.bias: expected "none", got "all": it is trained beside'),
        ({"init_lora_weights": "pissa"}, 'adapter.init_lora_weights: expected true or "gaussian" or "orthogonal"'),
        ({"task_type": "CAUSAL_LM"}, "adapter.task_type: not here: the pipeline sets it"),
        ({"use_rslorra": True}, "adapter.use_rslorra: no such field; did you mean `use_rslora`?"),
        ({"use_rslora": 3}, "adapter.use_rslora: expected boolean, got 3"),
    ],
)
def test_what_an_adapter_cannot_have(adapter, problem):
    with pytest.raises(InputError) as error:
        with_defaults(load_experiment(PLAIN | {"adapter": adapter}))
    assert problem in str(error.value)
