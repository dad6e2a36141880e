"""The command line of the benchmarks, and the form of what it writes."""

import json
import sys

from benchmarks import __main__ as command
from benchmarks import geometry
from benchmarks.figure import Figure


def test_unknown_names_are_answered_with_the_known_ones(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "nothing"])
    assert command.main() == 2
    assert "chain" in (said := capsys.readouterr().err) and "geometry" in said


def test_figures_are_written_and_a_missed_bound_fails(monkeypatch, tmp_path, capsys):
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).touch()
    figures = {
        "good": Figure(1.0, 2, "lower", "s", "as told"),
        "short": Figure(0.5, 0.7, "higher", "share", "as told"),
        "absent": Figure(None, 3, "lower", "deg", "no GPU"),
    }
    monkeypatch.setenv("DSR_WORKSPACE", str(tmp_path))
    monkeypatch.setattr(geometry, "measure", lambda workspace: figures)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "geometry"])
    assert command.main() == 1
    page = json.loads((tmp_path / "reports" / "benchmarks" / "geometry.json").read_text())
    assert page["figures"]["absent"] == {"value": None, "bound": 3, "better": "lower", "unit": "deg", "how": "no GPU"}
    lines = capsys.readouterr().out.splitlines()
    assert [("MISSED" in line) for line in lines] == [False, True, False] and "null" in lines[2]
