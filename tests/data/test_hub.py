"""What a person is told when the hub is out of reach."""

from typing import Any

import pytest

from lowbit.data.hub import hub_split


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
