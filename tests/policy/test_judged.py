from __future__ import annotations

import prunec
from prunec.policy.judged import judged


def test_what_was_measured_is_of_presets_and_beside_its_controls() -> None:
    found = judged()
    assert set(found.presets) == set(found.random)
    assert set(found.presets) <= set(prunec.presets()) - {"none"}
    assert 0 < found.resize.error < 1
    assert all(0 < own.flops < 1 and own.error > 0 for own in found.presets.values())


def test_as_plain_data_each_preset_has_its_figures_and_those_of_its_controls() -> None:
    found, data = judged(), judged().as_dict()
    assert set(data) == set(found.presets)
    for name, row in data.items():
        assert row["error"] == found.presets[name].error
        assert row["random"]["error"] == found.random[name].error
        assert (row["model"], row["date"]) == (found.model, found.date)
