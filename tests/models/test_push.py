"""`export --push`: private unless said otherwise, into a repository of its own, and no token in what is said."""

import json

import pytest

from mithridate.errors import InputError, MithridateError
from mithridate.results.push import check_repo, push


class Hub:
    """Stands in for huggingface_hub.HfApi: notes what it is asked for."""

    def __init__(self, there=None, fails=None):
        self.there, self.fails, self.calls = there or {}, fails, []

    def __call__(self):
        return self

    def repo_exists(self, repo):
        return repo in self.there

    def model_info(self, repo):
        return type("Info", (), {"private": self.there[repo]})()

    def create_repo(self, repo, private):
        if self.fails:
            raise self.fails
        self.calls.append(("create", repo, private))

    def upload_folder(self, folder_path, repo_id, commit_message):
        self.calls.append(("upload", repo_id, folder_path))


@pytest.fixture
def hub(monkeypatch):
    def made(**given):
        found = Hub(**given)
        monkeypatch.setattr("huggingface_hub.HfApi", found)
        return found

    return made


@pytest.mark.parametrize("public", [False, True])
def test_a_repository_is_made_private_or_as_asked(hub, tmp_path, public):
    api = hub()
    assert push(tmp_path, "me/mine", public) == "https://huggingface.co/me/mine"
    assert api.calls == [("create", "me/mine", not public), ("upload", "me/mine", str(tmp_path))]


def test_a_repository_that_is_there_is_written_to_only_where_that_is_asked(hub, tmp_path):
    api = hub(there={"me/private": True, "me/public": False})
    with pytest.raises(InputError, match=r"a repository of that name already.*--replace"):
        push(tmp_path, "me/private")
    with pytest.raises(InputError, match="this repository is public"):
        push(tmp_path, "me/public", replace=True)
    assert api.calls == []
    push(tmp_path, "me/private", replace=True)
    push(tmp_path, "me/public", public=True, replace=True)
    assert [call[:2] for call in api.calls] == [("upload", "me/private"), ("upload", "me/public")]


def test_no_token_is_said(hub, tmp_path):
    hub(fails=RuntimeError("401 for token hf_abcDEF123 with header authorization: Bearer hf_abcDEF123\nmore"))
    with pytest.raises(MithridateError) as error:
        push(tmp_path, "me/mine")
    assert "hf_abc" not in str(error.value) and "401" in str(error.value) and "hf auth login" in str(error.value)
    assert error.value.__cause__ is None and error.value.__suppress_context__


@pytest.mark.parametrize("repo", ["mine", "a/b/c", "../x", "a b/c", ""])
def test_names_that_are_none(repo):
    with pytest.raises(InputError, match="expected organisation/name"):
        check_repo(repo)


def test_an_adapter_over_a_model_of_this_machine_is_not_pushed(hub, tmp_path):
    api = hub()
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}))
    with pytest.raises(InputError, match="Push the merged model"):
        push(tmp_path, "me/mine")
    assert api.calls == []
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/model"}))
    push(tmp_path, "me/mine")
    assert len(api.calls) == 2
