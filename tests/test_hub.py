"""What a person is told when the hub is out of reach."""

import socket
from typing import Any

import pytest

from lowbit.hub import hub_split, leave_unreachable_hub


@pytest.mark.parametrize(
    ("error", "told"), [(ConnectionError("no route\nto the host"), "no route"), (TimeoutError(), "TimeoutError")]
)
def test_a_hub_out_of_reach_is_told_with_both_remedies(error: Exception, told: str, monkeypatch: pytest.MonkeyPatch):
    import datasets

    def load(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match="some/data, one, train at revision abc") as caught:
        hub_split("some/data", "one", split="train", revision="abc", root="DIR", files=["a.tsv", "b.tsv"], choice="one")
    assert f"({told})" in str(caught.value)
    assert "Run `lowbit fetch data=one` once with network access, or put the official" in str(caught.value)
    assert "files at DIR/a.tsv and DIR/b.tsv and" in str(caught.value)
    assert str(caught.value).endswith("set data.source=folder data.dir=DIR")


@pytest.mark.parametrize(
    ("answers", "proxy", "offline"), [(True, "", False), (False, "", True), (False, "http://p", False)]
)
def test_a_hub_that_does_not_answer_is_not_asked_again(answers, proxy, offline, monkeypatch: pytest.MonkeyPatch):
    """Issue: its clients retried for half a minute per file, three minutes for one `lowbit check`."""
    import datasets.config
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        if not answers:
            server.close()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        if proxy:
            monkeypatch.setenv("http_proxy", proxy)
        leave_unreachable_hub.__wrapped__()
    assert all(module.HF_HUB_OFFLINE is offline for module in (constants, datasets.config))
