"""From a student, or a saved folder, to the Hub: everything is made and verified locally, then sent in one commit."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Final

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from transformers import PreTrainedModel

from zsaq.io.added import check_added
from zsaq.io.checksums import MANIFEST, check_manifest
from zsaq.io.loading import load
from zsaq.io.saving import save
from zsaq.report.card import Card
from zsaq.report.card_text import eval_files, readme
from zsaq.run import Results

TEXT_SUFFIXES: Final = {".json", ".jsonl", ".txt", ".md", ".yaml", ".csv", ".html", ".svg", ".jinja"}
BINARY: Final = {".safetensors", ".png", ".model", ".onnx", ".data"}
NAMED: Final = {"openvino_model.xml", "openvino_model.bin"}  # whose suffixes others use for what is not harmless
EVAL_FOLDER: Final = ".eval_results"  # written anew from the card
THEIRS: Final = ".gitattributes"  # the Hub's own
SECRET_NAME: Final = re.compile(
    r"(^|[._-])(secrets?|credentials?|passwords?|tokens?|(api|private)[_-]?keys?)[._-]", re.I
)
SECRET_TEXT: Final = re.compile(r"\bhf_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----")
TOKENIZERS: Final = {"special_tokens_map.json", "added_tokens.json"}  # tokens of a vocabulary


def contents(folder: Path) -> list[str]:
    """The files of `folder`, relative, without .eval_results and .gitattributes.

    Raises ValueError that names each file which may not be published: links, hidden files, whatever is not of a known
    harmless kind (python and pickle are not), and what looks like a secret.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give a saved student's folder, or the student")
    names, refused = [], []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if PurePosixPath(name).parts[0] in (EVAL_FOLDER, THEIRS):
            continue
        if path.is_symlink():
            refused.append(f"{name} is a link")
        elif not path.is_dir():
            if reason := _unfit(path, name):
                refused.append(f"{name} {reason}")
            names.append(name)
    if refused:
        raise ValueError(f"{folder} is not published: {'; '.join(refused)}. Remove or rename what does not belong")
    return names


def _unfit(path: Path, name: str) -> str | None:
    suffix = path.suffix.lower()
    if any(part.startswith(".") for part in PurePosixPath(name).parts):
        return "is hidden"
    if not path.is_file() or (suffix not in TEXT_SUFFIXES | BINARY and path.name not in NAMED):
        return f"is none of {', '.join(sorted(TEXT_SUFFIXES | BINARY))}"
    if path.name not in TOKENIZERS and SECRET_NAME.search(path.name):
        return "is called like a secret"
    if suffix in TEXT_SUFFIXES:
        try:
            if SECRET_TEXT.search(path.read_text(encoding="utf-8")):
                return "holds what looks like an access token or a private key"
        except UnicodeDecodeError:
            return "is not the text that its name says"
    return None


@contextmanager
def explained(repo_id: str) -> Iterator[None]:
    """Turns what the client raises into ValueError (the user's to mend) or ConnectionError (to be repeated)."""
    try:
        yield
    except OfflineModeIsEnabled:
        raise ValueError(f"{repo_id} cannot be reached: HF_HUB_OFFLINE is set; unset it and push again") from None
    except LocalTokenNotFoundError:
        raise ValueError(
            "not logged in to the Hub: run `hf auth login` with a token that may write, set HF_TOKEN, or give token"
        ) from None
    except RevisionNotFoundError as error:
        raise ValueError(f"{repo_id} has no such revision: make the branch first, or leave revision off") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise ValueError("the Hub does not know this token: run `hf auth login` again, or give another") from error
        if status in (403, 404):
            raise ValueError(
                f"no right to write to {repo_id} ({status}): use a token with write access and a namespace of yours, "
                "or create_pr=True for somebody else's repository"
            ) from error
        if status in (409, 412):
            raise ConnectionError(f"{repo_id} was changed meanwhile by somebody: look at it, push again") from error
        raise ConnectionError(f"the Hub answered {status}: {error}; {AGAIN}") from error
    except (HTTPError, OSError, RuntimeError) as error:
        raise ConnectionError(f"the upload to {repo_id} broke off: {error}; {AGAIN}") from error


AGAIN: Final = "one commit is all or nothing, so the repository is whole: push again, what arrived is not sent twice"


def ready(repo_id: str, token: str | None = None) -> HfApi:
    """A client that may speak to the Hub, to ask for before hours of work. Raises ValueError that says what to do."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r:.200} is no repository id, give 'user/name': {error}") from None
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} names no namespace: give 'user/name' or 'organization/name'")
    api = HfApi(token=token, library_name="zsaq")
    with explained(repo_id):
        api.whoami()
    return api


def push_to_hub(
    source: PreTrainedModel | str | Path,
    repo_id: str,
    card: Card,
    *,
    parts: tuple[Any, ...] = (),
    results: Results | None = None,
    files: Path | None = None,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Publish a student, or the folder of a saved one, with its card; returns the url of the one commit, or of its PR.

    `parts`, `results`, `files`: saved beside a student, as `zsaq.save` takes them; a folder holds its own. `private`:
    of a repository that is made; `revision`: a branch that exists. The repository then holds what was verified here and
    nothing else: files of an older version go in the same commit. `source` is not touched. Raises ValueError for what
    the user can mend: a repository id, login or rights, a folder that its manifest does not fit, files that may not be
    published or are of another model, a card of another model or without licence, a repository that zsaq has not
    written; and ConnectionError for an upload that may be repeated.
    """
    api = ready(repo_id, token)
    with TemporaryDirectory(prefix="zsaq-") as temporary:
        folder = Path(temporary) / "model"
        if isinstance(source, PreTrainedModel):
            save(source, folder, *parts, results=results, files=files)
        else:
            if parts or results is not None or files is not None:
                raise ValueError(f"{source} is a folder, which holds its own: save parts, results and files with it")
            contents(Path(source))
            check_manifest(source)
            shutil.copytree(source, folder, symlinks=True, ignore=shutil.ignore_patterns(EVAL_FOLDER, THEIRS))
        model = load(folder)
        (folder / "README.md").write_text(readme(card, repo_id, folder, model), encoding="utf-8")
        extra = eval_files(card)
        for name, text in extra.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        check_manifest(folder)
        check_added(folder)
        with explained(repo_id):
            return _commit(api, folder, [*contents(folder), *extra], repo_id, private, revision, create_pr)


def _commit(
    api: HfApi, folder: Path, files: list[str], repo_id: str, private: bool | None, revision: str | None, pr: bool
) -> str:
    """`create_commit` and not `upload_folder`, which cuts large folders into several commits."""
    try:
        info = api.model_info(repo_id, revision=revision)
    except RepositoryNotFoundError:
        api.create_repo(repo_id, private=private, exist_ok=True)
        info = api.model_info(repo_id, revision=revision)
    if private is not None and info.private is not None and info.private != private:
        raise ValueError(
            f"{repo_id} is {'private' if info.private else 'public'} already; change that in its settings, "
            "or leave private off"
        )
    there = {sibling.rfilename for sibling in info.siblings or ()} - {THEIRS}
    stale = sorted(there - set(files))
    if stale and MANIFEST not in there:
        raise ValueError(f"{repo_id} holds {stale[:5]} and no {MANIFEST}, so it is not ours: give a new repository")
    additions = [CommitOperationAdd(name, folder / name) for name in files]
    # An empty .gitignore: one in the repository would have files left out without a word.
    api.preupload_lfs_files(
        repo_id, additions, revision=revision, create_pr=pr, free_memory=False, gitignore_content=""
    )
    commit = api.create_commit(
        repo_id,
        [*(CommitOperationDelete(name) for name in stale), *additions],
        commit_message="Publish a student of zsaq",
        revision=revision,
        create_pr=pr,
        parent_commit=info.sha,
    )
    return commit.pr_url or commit.commit_url
