"""Set-ups that a user comes with: preference training, rows of other forms, a formatting function, accumulation."""

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from trl import DPOConfig, DPOTrainer, SFTConfig

from mithridate.defenses.booster import Booster
from mithridate.defenses.ewc import EWC
from mithridate.defenses.kl import KL
from mithridate.defenses.ldifs import LDIFS
from mithridate.defenses.lisa import Lisa
from mithridate.defenses.safetymix import SafetyMix
from mithridate.errors import InputError, UnsupportedSetup
from mithridate.training.mixin import DefenseMixin
from mithridate.training.trainer import DefenseTrainer
from tests.defenses.helpers import DEFAULTS, model, trainer_for
from tests.tiny import tiny_llama, tiny_tokenizer


class Preferring(DefenseMixin, DPOTrainer):
    pass


def preferences(name, prepared=False):
    texts = [{"prompt": f"{name} {i}", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(6)]
    if prepared:
        texts = [{f"{k}_ids": tiny_tokenizer()(v)["input_ids"] for k, v in row.items()} for row in texts]
    return Dataset.from_list(texts)


def preferring(folder, defense):
    args = DPOConfig(
        str(folder), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True, max_steps=1, logging_steps=1
    )
    return Preferring(
        model=tiny_llama(),
        ref_model=tiny_llama(),
        args=args,
        train_dataset=preferences("user"),
        processing_class=tiny_tokenizer(),
        defense=defense,
    )


def test_passes_of_a_defense_leave_no_trace_in_the_metrics_of_another_trainer(tmp_path):
    logs = []
    for defense in (None, Booster(harmful_dataset=preferences("harm", prepared=True), alpha=5.0, lam=1e-3)):
        trainer = preferring(tmp_path, defense)
        trainer.train()
        logs.append(trainer.state.log_history[0])
    names = ("num_tokens", "rewards/chosen", "logps/chosen", "logps/rejected")
    plain, defended = ({name: log[name] for name in names} for log in logs)
    assert defended == pytest.approx(plain) and plain["num_tokens"] > 0


def test_rows_that_another_trainer_prepares_itself_are_to_be_given_prepared(tmp_path):
    with pytest.raises(InputError, match=r"ready for the collator, as the trainer has prepared .*: .*chosen_ids"):
        preferring(tmp_path, Booster(harmful_dataset=preferences("harm")))
    data = preferences("side", prepared=True)
    with pytest.raises(UnsupportedSetup, match="EWC: reads labels of tokens"):
        preferring(tmp_path, EWC(alignment_dataset=data, lam=1.0, fisher_rows=2))


@pytest.mark.parametrize(("defense", "name"), [(KL(lam=0.5), "kl/divergence"), (LDIFS(rho=0.5), "ldifs/distance")])
def test_what_is_logged_of_a_term_is_a_mean_whatever_the_accumulation(defense, name, tmp_path):
    """Over the same rows; the answers have unlike lengths, so that the mean over micro-batches is another."""
    logged = []
    for rows, accumulated in ((8, 1), (2, 4)):
        args = {"max_steps": 2, "per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulated}
        trainer = trainer_for(model(), tmp_path, defense=defense, learning_rate=0.1, **args)
        trainer.train()
        logged.append([log[name] for log in trainer.state.log_history if name in log][-1])
    assert logged[0] > 0 and logged[1] == pytest.approx(logged[0], rel=0.2)


ROWS = [{"prompt": f"user {i}", "response": f"says {i}"} for i in range(8)]
SAFE = [{"prompt": f"bad {i}", "response": "No."} for i in range(8)]


@pytest.mark.parametrize("form", [list, pd.DataFrame, Dataset.from_list])
def test_a_safety_mix_takes_rows_in_every_form(form, tmp_path):
    trainer = trainer_for(
        model(), tmp_path, defense=SafetyMix(alignment_dataset=form(SAFE), share=0.5), data=form(ROWS)
    )
    assert len(trainer.train_dataset) == 16


@pytest.mark.parametrize("form", [list, pd.DataFrame, Dataset.from_list])
def test_a_formatting_function_reads_side_data_as_it_reads_the_training_set(tmp_path, form):
    rows = form([{"instruction": f"a {i}", "output": f"b {i}"} for i in range(8)])
    trainer = DefenseTrainer(
        model=model(dtype=torch.float32),
        args=SFTConfig(str(tmp_path), **DEFAULTS | {"max_steps": 2}),
        train_dataset=rows,
        processing_class=tiny_tokenizer(),
        formatting_func=lambda row: f"Q {row['instruction']} A {row['output']}",
        defense=Lisa(alignment_dataset=rows, align_steps=1, finetune_steps=1),
    )
    found = trainer.side_data(rows, "alignment_dataset").dataset
    assert tiny_tokenizer().decode(found[0]["input_ids"]).startswith("Q a 0 A b 0")
    trainer.train()


def test_trained_tokens_over_tied_embeddings_are_refused(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[5, 6], task_type="CAUSAL_LM")
    tied = tiny_llama(tie_word_embeddings=True)
    with pytest.raises(UnsupportedSetup, match=r"trainable_token_indices.* tied to the LM head"):
        trainer_for(get_peft_model(tied, config), tmp_path)
    trainer_for(get_peft_model(tiny_llama(), config), tmp_path).train()
