"""Model cards read back as the Hub reads them, say what is known and no more, and take any name."""

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from mithridate import defenses, repairs
from mithridate.models import ModelFiles
from mithridate.report.card import CardContext, card
from mithridate.report.citations import bibtex_of, own_bibtex
from tests.report import synthetic

NASTY = "a: \"b\" 'c' # - | *d* _e_ `f` [g](http://h) <script>i</script> $j$ {{k}} \\l ---"
SHA = "0123456789abcdef" * 4


def source(name):
    return [{"source": name}]


def story(model="smollm2-135m", harmful="embedded", **changes):
    cell = synthetic.cell(alignment="booster", repair="antidote", ratio=0.1, score=0.2) | changes
    [cell] = synthetic.read(cell)
    cell["rates"]["harmful_score"]["unscored"] = 3
    cell["paired"] = {"against": "x", "difference": -0.7, "low": -0.8, "high": -0.6, "p_value": 1e-9}
    made = {"hardware": {"cpu": "AMD", "cores": 2, "gpus": []}, "versions": {"mithridate": "0.1.0", "commit": None}}
    made |= {"finished": "2026-01-01T00:00:00+00:00", "seconds": 12.0, "key": SHA}
    stages = [
        {"stage": "align", "config": {"defense": {"booster": {"alpha": 0.1, "lam": 5}}, "training": {"max_steps": 3}}}
        | {**made, "data": {"alignment": SHA, "defender_harmful": SHA}},
        {"stage": "finetune", "config": {"defense": {}, "attack": {"harmful_ratio": 0.1}, "adapter": {"r": 2}}}
        | {**made, "data": {"task_train": SHA}},
        {"stage": "repair", "config": {"repair": {"antidote": {"ratio": 0.1}}}, **made, "data": {}},
    ]
    roles = {
        "alignment": "PKU-Alignment/beavertails",
        "task": "rows/of/mine.jsonl",
        "test_harmful": harmful,
        "test_benign": "embedded",
    }
    experiment = {
        "model": model,
        "seed": 3,
        "topology": "double",
        "evaluate": {"part": "test"},
        "data": {role: source(name) for role, name in roles.items()},
    }
    results = {
        "protocol": "hs/embedded-v1",
        "model": model,
        "cells": [cell],
        "deviations": ["prompts: 8 in place of 112"],
    }
    return CardContext(results, cell, experiment, stages)


def base(tmp_path, name="smollm2-135m"):
    return ModelFiles(name, tmp_path, SHA)


def loaded(text, tmp_path):
    (tmp_path / "card.md").write_text(text, encoding="utf-8")
    return ModelCard.load(tmp_path / "card.md")


@pytest.mark.parametrize("merged", [True, False])
def test_scores_read_back_with_interval_protocol_and_judge(tmp_path, merged):
    told = story()
    read = loaded(card(base(tmp_path), merged, not merged, told), tmp_path)
    found = {one.metric_type: one for one in read.data.eval_results}
    assert set(found) == {"harmful_score", "incoherent", "benign_refusal", "accuracy"}  # what this cell has
    for name, one in found.items():
        rate = told.cell["rates"][name]
        assert (one.metric_value, one.metric_args["low"], one.metric_args["high"], one.metric_args["n"]) == (
            rate["value"],
            rate["low"],
            rate["high"],
            rate["n"],
        )
        assert one.metric_args["protocol"] == "hs/embedded-v1"
        assert re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", one.dataset_type)  # what the Hub takes for a data set
    assert found["harmful_score"].metric_args["unscored"] == 3
    assert found["harmful_score"].metric_args["judge"] == "rules-v3" and "judge" not in found["accuracy"].metric_args
    assert found["harmful_score"].dataset_config == "test_harmful" and found["accuracy"].dataset_config == "task"
    assert read.data.license == "apache-2.0"
    assert read.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert read.data.library_name == ("transformers" if merged else "peft")
    assert read.data.base_model_relation == ("finetune" if merged else "adapter")
    assert read.data.datasets == ["PKU-Alignment/BeaverTails"]


def test_the_text_says_what_was_done_and_what_it_does_not_show(tmp_path):
    text = loaded(card(base(tmp_path), True, False, story()), tmp_path).text
    for wanted in (
        "10% of the rows it was fine-tuned on are harmful",
        "Seed 3; topology `double`",
        "booster.alpha: 0.1",
        f"SHA-256 `{SHA}`",
        "mithridate 0.1.0",
        "CC BY-NC 4.0",
        "20% (\\[",
        "judged by rules-v3",
        "−70 points, 95% interval −80 to −60",
        "prompts: 8 in place of 112",
        "no claim that the model is safe",
        "is a proxy",
    ):
        assert wanted in text, wanted
    assert "@inproceedings{booster," in text and "@inproceedings{antidote," in text and "{lisa," not in text
    assert "mine.jsonl" in text and "rows/of" not in text
    assert not re.search(r"\bis (?:now )?safe\b(?!\.? A low)|\bsafe to\b|THE_BASE", text)


def test_any_name_is_shown_as_it_is(tmp_path):
    folder = tmp_path / NASTY.replace("/", "_")
    folder.mkdir()
    told = story(model=str(folder), harmful=f"{tmp_path}/{NASTY}.jsonl", id=NASTY)
    told.results["deviations"] = [f"prompts: {tmp_path}/x\n# heading"]
    read = loaded(card(base(tmp_path, str(folder)), True, False, told), tmp_path)
    assert read.data.model_name == f"{folder.name}, {NASTY}"
    assert read.data.base_model is None
    html = MarkdownIt("commonmark").enable("table").render(read.text)
    assert html.count("<h1>") == 1 and not re.search(r"<(script|a|em|strong)\b", html.replace("<strong>Warning:", ""))
    assert NASTY.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;") in html
    assert all(re.fullmatch(r"[\w.-]+", one.dataset_type) for one in read.data.eval_results)


@pytest.mark.parametrize(
    ("readme", "licence", "words"),
    [
        (None, "unknown", "not known here"),
        ("---\nlicense: mit\n---\nhi\n", "mit", "mit"),
        ("---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\n---\n", "other", "mine"),
        ("---\nlicense: [mit, x]\n---\n", "unknown", "not known here"),
        ("---\n: : [\n---\n", "unknown", "not known here"),
    ],
)
def test_the_licence_is_the_base_models_or_unknown(tmp_path, readme, licence, words):
    if readme:
        (tmp_path / "README.md").write_text(readme)
    read = loaded(card(base(tmp_path, "org/model"), True, False, story()), tmp_path)
    assert read.data.license == licence and words in read.text
    assert read.data.base_model == "org/model"


def test_without_a_run_the_card_warns_and_has_no_scores(tmp_path):
    read = loaded(card(base(tmp_path), False, True), tmp_path)
    assert not read.data.eval_results
    assert "may have been fine-tuned on harmful rows" in read.text and '"THIS_FOLDER/base"' in read.text


def test_a_model_that_came_as_it_is(tmp_path):
    told = story(alignment="none", finetuning="none", repair="none", harmful_ratio=None)
    read = loaded(card(base(tmp_path), True, False, replace(told, stages=[])), tmp_path)
    assert "unchanged base model" in read.text and "Warning" not in read.text and "bibtex" not in read.text


def test_every_method_has_a_citation_that_agrees_with_its_class_and_with_the_projects(request):
    root = request.config.rootpath
    cff, keys = (root / "CITATION.cff").read_text(encoding="utf-8"), []
    for name, cls in {**defenses.by_name(), **repairs.by_name()}.items():
        entry = bibtex_of(name)
        if not cls.citation:  # a baseline without a paper of its own is named with where its effect is shown
            assert entry == f"@misc{{{name},\n  note = {{{cls.paper}}}\n}}"
            continue
        assert entry == cls.citation and entry.startswith("@") and entry.isascii()
        keys.append(re.match(r"@\w+\{(\w+),", entry)[1])
        url = re.search(r"url\s*= \{(.+)\}", entry)[1]
        title = re.search(r"\btitle\s*= \{(.+?)\},\n", entry, re.DOTALL)[1]
        title = " ".join(title.translate({ord("{"): "", ord("}"): ""}).split())
        assert url in cls.paper and f'url: "{url}"' in cff and f'title: "{title}"' in cff
    assert len(set(keys)) == len(keys)


def test_a_method_that_states_no_citation_is_cited_by_its_name(tmp_path):
    told = story()
    told.stages[0]["config"]["defense"] = {"gone": {}}  # of a package that is not installed here
    assert "@misc{gone,\n  note = {gone}\n}" in card(base(tmp_path), True, False, told)


def test_the_projects_own_citation_is_that_of_its_file(request):
    import yaml

    cff = yaml.safe_load((request.config.rootpath / "CITATION.cff").read_text(encoding="utf-8"))
    entry = own_bibtex()
    assert entry.startswith("@software{mithridate,") and entry.endswith("\n}")
    assert f"{{{cff['title']}}}" in entry and f"{{{cff['version']}}}" in entry and cff["authors"][0]["name"] in entry


def test_several_answers_to_a_prompt_are_told_with_the_test_that_they_had(tmp_path):
    greedy, told = card(base(tmp_path), True, False, story()), story()
    assert "(exact McNemar test)" in greedy and "one or more" not in greedy
    told.cell["rates"]["harmful_score"] |= {
        "samples": 5,
        "any_of_k": synthetic.rate(0.5, 100),
        "worst_of_k": synthetic.rate(0.6, 100),
    }
    told.cell["paired"] |= {"samples": 5}
    text = card(base(tmp_path), True, False, told)
    assert "Harmful prompts with one or more of 5 answers that count | 50%" in text
    assert "Harmful prompts with one or more of 5 answers that count, if unscored ones did | 60%" in text
    assert "(test that swaps whole prompts)" in text and "McNemar" not in text
