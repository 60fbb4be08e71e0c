"""Every method composes for a windowed vision model, or says why it makes no sense there."""

import pytest

from lowbit.config import compose as C
from lowbit.config.problems import ConfigError
from lowbit.config.validate import load

with C.hydra_session():
    METHODS = C.choices("method")
HOME = {"finetune": "none", "binarybert": "binarybert", "bit_chain": "bit_chain", "sdq_ipq": "sdq_ipq"}
REFUSED = {
    "binarybert": ["student=narrow", "there is no rule for halving it"],
    "xtc_layers": ["method.layer_map=[1, 3]", "layers cannot be chosen"],
}


@pytest.mark.parametrize("method", METHODS)
def test_method_composes_on_swin_or_says_why_not(method: str):
    choices = ["model=swin_tiny", f"method={method}", f"quantizer={HOME.get(method, 'w2a8')}"]
    choices.append("budget={steps: 400, epochs: null}")
    if method not in REFUSED:
        assert load(choices)[1].method.name == method
        return
    with pytest.raises(ConfigError) as refused:
        load(choices)
    (problem,) = refused.value.problems
    assert "model=swin_tiny" in problem
    assert all(words in problem for words in REFUSED[method])
