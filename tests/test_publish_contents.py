"""Which files may be published; each that may not is named."""

from pathlib import Path

import pytest

from zsaq.report.hub import contents


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("model.py", b"import os", "is none of"),
        ("weights.pkl", b"\x80\x04.", "is none of"),
        ("pytorch_model.bin", b"PK", "is none of"),
        ("id_rsa", b"key", "is none of"),
        (".env", b"A=1", "is hidden"),
        (".cache/x.json", b"{}", "is hidden"),
        ("token.json", b"{}", "called like a secret"),
        ("my_credentials.txt", b"", "called like a secret"),
        ("notes.txt", b"hf_" + b"a" * 34, "access token"),
        ("notes.md", b"-----BEGIN RSA PRIVATE KEY-----", "private key"),
        ("odd.json", b"\x80\x04\x95", "not the text"),
    ],
)
def test_what_may_not_be_published_is_named(tmp_path: Path, name: str, content: bytes, complaint: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        contents(tmp_path)
    assert name in str(caught.value)


def test_links_are_refused_and_tokenizers_are_not_secrets(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"):
        (tmp_path / name).write_text("{}")
    assert len(contents(tmp_path)) == 4
    (tmp_path / "link.json").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"link\.json is a link"):
        contents(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        contents(tmp_path / "nowhere")
