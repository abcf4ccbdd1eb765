"""Each slot lists what exists, and refuses what does not."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from quant_experts.errors import InvalidSpec
from quant_experts.fit import reconstruction, rounding, smoothing
from quant_experts.fit.fit_group import evaluate_group, fit_group
from quant_experts.spec.specification import PRESETS
from tests.quant_experts.tokens import mixture, observe, spec, weights


def test_the_slots_offer_what_the_presets_name() -> None:
    for choices in PRESETS.values():
        smoothing.get(choices["smoothing"])
        rounding.get(choices["rounding"])
        reconstruction.get(choices["reconstruction"])


@pytest.mark.parametrize("name", ["magic", "", "../rtn", "__init__", "rtn.quantize"])
def test_an_unknown_choice_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(InvalidSpec, match=r"rounding .* is not known; choose one of descent, gptq, obq, rtn"):
        rounding.get(name)


@pytest.mark.parametrize("reconstruct", reconstruction.names())
@pytest.mark.parametrize("round_", rounding.names())
@pytest.mark.parametrize("smooth", smoothing.names())
def test_every_combination_of_choices_fits(smooth: str, round_: str, reconstruct: str) -> None:
    x, vision = mixture(300)
    chosen = spec("qe", smoothing=smooth, rounding=round_, reconstruction=reconstruct, group_size=32)
    fitted = fit_group("g", weights(), observe(x, vision, weights(), chosen), chosen)
    assert fitted.smoothing.startswith(smooth) or smooth == "search"
    assert fitted.warnings == ()
    errors = evaluate_group(fitted, weights(), *mixture(200, seed=99))
    assert 0 < errors.error.routed <= errors.error.shared <= errors.error.base
    assert errors.error.routed < 0.05


def test_a_file_is_a_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """
        from quant_experts.fit.smoothing import Smoothing
        def smooth(problem): return Smoothing(None, "mine")
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(source))
    monkeypatch.setattr(smoothing, "__path__", [*smoothing.__path__, str(tmp_path)])
    assert "mine" in smoothing.names()
    assert smoothing.get("mine").smooth(None).label == "mine"  # type: ignore[arg-type]
