"""Short texts that users give: a licence, and bits."""

from typing import Any

import pytest

from language_toys import bert, wordpiece
from zsaq import QuantConfig, quantize


@pytest.mark.parametrize("license", [7, -1, 1.5, True, "", "\n", "mit\nbase_model: other", "\ud800", [], {"a": 1}])
def test_a_license_is_a_line_of_text(license: Any) -> None:
    tokenizer = wordpiece()
    with pytest.raises(ValueError, match=r"license of .* is .*give a line of text"):
        quantize(bert(tokenizer), "w4a8", method="rtn", tokenizer=tokenizer, license=license)


@pytest.mark.parametrize(
    "text", ["w\uff14a8", "w4a\u0668", "w4a8b\uff132", "w4a8g\u0663\u0662", "w4a8e\u0968", "w\u00b2a8"]
)
def test_digits_of_other_scripts_are_no_bits(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantization; the form is"):
        QuantConfig.parse(text)
