"""Puts an exported model on the Hugging Face Hub: into a repository of its own, private unless said otherwise."""

from __future__ import annotations

import json
import re
from pathlib import Path

from mithridate.errors import InputError, MithridateError, first_line

_REPO = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_TOKEN = re.compile(r"\bhf_\w+|(?i:bearer)\s+\S+")


def push(folder: Path, repo: str, public: bool = False, replace: bool = False) -> str:
    """Uploads what `export` wrote. The token is that of `hf auth login` (or HF_TOKEN) and is nowhere shown or kept.

    Args:
        folder: the exported model.
        repo: "organisation/name".
        public: whether a repository that is made for it can be seen by all.
        replace: whether files of a repository that is there already may be overwritten.

    Returns:
        The address of the repository.

    Raises:
        InputError: no such name of a repository, one that is there already, or an adapter whose base model would be
            missing there.
        MithridateError: the Hub refused it or could not be reached.
    """
    check_repo(repo)
    config = folder / "adapter_config.json"
    base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path") if config.exists() else None
    if base and Path(base).is_absolute():
        raise InputError(
            f"--push {repo}: the adapter's base model lies on this machine only, so nobody could load it from the "
            "Hub. Push the merged model (--merged)"
        )
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    api = HfApi()
    try:
        if api.repo_exists(repo):
            if not replace:
                raise InputError(
                    f"--push {repo}: there is a repository of that name already. Give another name, or --replace to "
                    "write into it"
                )
            if not public and not api.model_info(repo).private:
                raise InputError(
                    f"--push {repo}: this repository is public. Give --public to publish the model there, or another "
                    "name"
                )
        else:
            api.create_repo(repo, private=not public)
        api.upload_folder(folder_path=str(folder), repo_id=repo, commit_message="Model exported by Mithridate")
    except InputError:
        raise
    except HFValidationError as error:
        raise InputError(f"--push {repo}: {_said(error)}") from error
    except Exception as error:  # the client raises its own, its HTTP library's and OSError
        # `from None`: a request in the chain may hold its headers
        raise MithridateError(
            f"--push {repo}: the model is not on the Hub ({_said(error)}). Log in with `hf auth login`, check the "
            "name and that you may write there, and push again"
        ) from None
    return f"https://huggingface.co/{repo}"


def check_repo(repo: str) -> None:
    """Raises InputError where it is no name of a repository; before anything is exported."""
    if not _REPO.fullmatch(repo):
        raise InputError(f"--push {repo}: expected organisation/name")


def _said(error: Exception) -> str:
    line = first_line(error)
    return _TOKEN.sub("***", line)
