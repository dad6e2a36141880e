"""Traps of the ecosystem that were met once and must not come back unseen when a pin moves."""

import subprocess
import sys

import dagster as dg
import pytest


def test_string_asset_selections_survive_the_antlr_that_dvc_brings():
    @dg.asset
    def upstream():
        return None

    @dg.asset(deps=[upstream])
    def downstream():
        return None

    selection = dg.AssetSelection.from_string('key:"downstream"')
    assert selection.resolve([upstream, downstream]) == {dg.AssetKey("downstream")}


def test_dvc_parses_overrides_beside_that_antlr():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    override = OverridesParser.create().parse_override("videos.frames=16")
    assert override.value() == 16


def test_mlflow_refuses_the_file_store_so_the_uri_must_be_explicit(tmp_path, monkeypatch):
    import mlflow
    from mlflow.exceptions import MlflowException

    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(MlflowException):
        mlflow.MlflowClient(tracking_uri=f"file:{tmp_path}").create_experiment("any")


def test_the_code_location_loads_without_the_heavy_libraries():
    """Dagster imports the code location at every reload and in every step process."""
    probe = (
        "import sys, orchestration.definitions; "
        "print(sorted({'torch', 'great_expectations', 'mlflow', 'transformers', 'cv2', 'decord'} & set(sys.modules)))"
    )
    loaded = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
