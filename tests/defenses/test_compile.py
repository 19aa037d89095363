"""torch.compile: a run through it does what the same run does without it.

`aot_eager` traces forward and backward as every backend gets them, and runs torch's own kernels: float32 rounding is
all that may differ. `inductor` makes kernels of its own, where a compiler is there.
"""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from mithridate.defenses.booster import Booster
from mithridate.defenses.ewc import EWC
from mithridate.defenses.fewersteps import FewerSteps
from mithridate.defenses.lisa import Lisa
from mithridate.defenses.vaccine import Vaccine
from tests.conformance.methods import example
from tests.defenses.helpers import error, model, rows, trainer_for, update, weights

USER, HARMFUL, SAFE = rows("user"), rows("harmful!"), rows("careful")
OURS = ("vaccine", "booster", "lisa")
PLAIN = (
    "lowerlr",
    "fewersteps",
    "safetymix",
    "filter",
    "ewc",
    "tvaccine",
    "ctrap",
    "panacea",
    "deepenedrefusals",
    "kl",
    "ldifs",
    "asft",
    "safegrad",
    "constrainedsft",
)
EAGER = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
TRACED = EAGER | {"torch_compile_backend": "eager"}  # takes least time: the graphs alone


def defended(name):
    own = {
        "vaccine": Vaccine(rho=1.5),
        "booster": Booster(harmful_dataset=HARMFUL, alpha=0.3, lam=2.0),
        "lisa": Lisa(alignment_dataset=SAFE, align_steps=1, finetune_steps=2, rho=0.5, proximal_start=0.0),
        "fewersteps": FewerSteps(share=0.5),  # 2 of 3
        "ewc": EWC(alignment_dataset=SAFE, lam=2.0, fisher_rows=4),
    }
    return own[name] if name in own else example("defenses", name)


@pytest.fixture(autouse=True)
def forgotten():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def net(name, kind):
    """One layer: each takes the compiler as long again. Two for Vaccine, whose sites are between graphs."""
    return model(kind, torch.float32, num_hidden_layers=2 if name == "vaccine" else 1)


def both_ways(name, kind, folder, compiler, **args):
    args = {"max_steps": 3, "learning_rate": 0.1} | args
    plain = update(net(name, kind), folder, defense=defended(name), data=USER, **args)
    torch.compiler.reset()
    compiled = update(net(name, kind), folder, defense=defended(name), data=USER, **args, **compiler)
    return error(compiled, plain), plain


@pytest.mark.shows("compile", "exact")
@pytest.mark.parametrize(
    ("name", "kind"),
    [("lisa", "lora")]
    + [pytest.param(name, "lora", marks=pytest.mark.slow) for name in OURS if name != "lisa"]
    + [pytest.param(name, "full", marks=pytest.mark.slow) for name in OURS]
    + [pytest.param(name, "lora", marks=pytest.mark.slow) for name in PLAIN]
    + [pytest.param("kl", "full", marks=pytest.mark.slow)],  # whose start is a copy of the model
)
def test_a_compiled_run_is_the_same_run(name, kind, tmp_path):
    counters.clear()
    off, plain = both_ways(name, kind, tmp_path, EAGER if name in OURS else TRACED)
    assert off < 1e-5
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 2 * 2 if name == "vaccine" else graphs > 0  # Vaccine: graphs before and after each layer's site
    undefended = update(net(name, kind), tmp_path, data=USER, max_steps=3, learning_rate=0.1)
    assert error(undefended, plain) > 1e-3  # and the method did something: a hundred times what is allowed


@pytest.mark.slow
@pytest.mark.shows("compile", "exact", methods=["sbr"])
def test_a_pass_that_returns_hidden_states_is_the_same_pass(tmp_path):
    off, plain = both_ways("sbr", "lora", tmp_path, TRACED, max_steps=2)  # many graphs, for two kinds of pass
    assert off < 1e-5 and counters["stats"]["unique_graphs"] > 1
    undefended = update(net("sbr", "lora"), tmp_path, data=USER, max_steps=2, learning_rate=0.1)
    assert error(undefended, plain) > 1e-2


@pytest.mark.slow
def test_vaccine_under_checkpointing_and_compilation(tmp_path):
    off, _ = both_ways("vaccine", "lora", tmp_path, EAGER, gradient_checkpointing=True, max_steps=1)
    assert off < 1e-5


@pytest.mark.slow
def test_a_term_of_the_loss_sees_its_pass_after_others_were_traced(tmp_path):
    """Booster's passes have no such term."""

    def both():
        return [defended("booster"), example("defenses", "kl")]

    args = {"data": USER, "max_steps": 2, "learning_rate": 0.1}
    plain = update(net("kl", "lora"), tmp_path, defense=both(), **args)
    assert error(update(net("kl", "lora"), tmp_path, defense=both(), **args, **TRACED), plain) < 1e-5
    assert error(update(net("kl", "lora"), tmp_path, defense=defended("booster"), **args), plain) > 1e-3


@pytest.mark.slow
def test_a_model_that_was_compiled_before_is_traced_anew(tmp_path):
    """A first training without a defense leaves graphs that have no hooks."""
    net = model("lora", torch.float32)
    trainer_for(net, tmp_path, data=USER, **EAGER).train()
    before = weights(net)
    trainer_for(net, tmp_path, defense=defended("vaccine"), data=USER, **EAGER).train()
    compiled = [before[n] - w for n, w in weights(net).items()]
    plain = model("lora", torch.float32)
    with torch.no_grad():
        for n, p in plain.named_parameters():
            if n in before:
                p.copy_(before[n])
    assert error(compiled, update(plain, tmp_path, defense=defended("vaccine"), data=USER)) < 1e-5
    assert not any(module._forward_hooks for module in net.modules())  # and none is left


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("name", ["vaccine", "booster", "lisa"])
def test_with_inductor(name, tmp_path):
    """3e-6 measured, as of plain training. One step of Booster: three make 2e-4 of a rounding of 2e-7 alone."""
    compiler = {"torch_compile": True, "torch_compile_backend": "inductor"}
    off, _ = both_ways(name, "lora", tmp_path, compiler, max_steps=3 if name == "lisa" else 1)
    assert off < 1e-5
