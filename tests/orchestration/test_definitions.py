"""The graph: what Dagster shows, and that DVC has the same one."""

import os

import dagster as dg
import pytest

from assets.identity import Identity
from assets.workspace import Workspace
from orchestration.definitions import build_definitions
from orchestration.run import chain

EDGES = {
    "raw_videos": set(),
    "videos": {"raw_videos"},
    "quarantine": {"videos"},
    "geometry": {"raw_videos", "videos"},
    "candidates": {"videos", "geometry"},
    "questions": {"videos", "candidates"},
    "splits": {"questions", "videos", "geometry"},
    "checkpoint": {"splits"},
    "benchmark": {"checkpoint", "splits"},
}

# What judges an artifact and makes no bytes of its own: Dagster and MLflow keep it, DVC has nothing to keep.
JUDGES = {"promotion": {"benchmark"}}


@pytest.fixture
def definitions(workspace):
    return build_definitions(Workspace(workspace))


def dagster_edges(definitions) -> dict[str, set[str]]:
    graph = definitions.resolve_asset_graph()
    return {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys}
        for key in graph.get_all_asset_keys()
    }


def dvc_edges(workspace) -> dict[str, set[str]]:
    identity = Identity(workspace)
    edges: dict[str, set[str]] = {}
    makers = {identity.output(name): name.split("@")[0] for name in identity.names()}
    for name in identity.names():
        inputs = [dep.fs_path for dep in identity._stage(name).deps]
        parents = {
            maker
            for out, maker in makers.items()
            for path in inputs
            if str(out) == path or str(out).startswith(path + os.sep)
        }
        edges.setdefault(name.split("@")[0], set()).update(parents)
    return edges


def test_the_asset_graph_is_the_chain(definitions):
    assert dagster_edges(definitions) == EDGES | JUDGES


def test_dvc_has_the_same_graph_but_for_what_makes_no_bytes(definitions, workspace):
    assert dvc_edges(workspace) == {
        asset: parents for asset, parents in dagster_edges(definitions).items() if asset not in JUDGES
    }


def test_what_only_judges_is_no_link_and_goes_stale_with_what_it_judges(definitions, workspace):
    links = {asset for asset, _ in chain(definitions, Workspace(workspace))}
    assert links == set(EDGES)
    codes = {spec.key.to_user_string(): spec.code_version for spec in definitions.resolve_all_asset_specs()}
    assert codes["promotion"] == codes["benchmark"] != codes["checkpoint"]


def test_every_asset_says_what_it_is_who_owns_it_and_how_it_is_made(definitions):
    for spec in definitions.resolve_all_asset_specs():
        assert spec.description, spec.key
        assert spec.owners, spec.key
        assert spec.kinds, spec.key
        assert spec.code_version, spec.key
        assert spec.group_name.startswith("link_"), spec.key


def test_groups_stand_in_chain_order(definitions, workspace):
    graph = definitions.resolve_asset_graph()
    groups = [graph.get(dg.AssetKey(asset)).group_name for asset, _ in chain(definitions, Workspace(workspace))]
    for asset, parents in EDGES.items():
        for parent in parents:
            assert graph.get(dg.AssetKey(parent)).group_name <= graph.get(dg.AssetKey(asset)).group_name
    assert len(set(groups)) == 6


def test_checks_that_guard_the_data_sets_block(definitions):
    graph = definitions.resolve_asset_graph()
    blocking = {(key.asset_key.to_user_string(), key.name) for key in graph.asset_check_keys if graph.get(key).blocking}
    tables = {(asset, "must_hold") for asset in ("videos", "geometry", "questions", "splits")}
    assert blocking == {*tables, ("questions", "blind_audit")}


def test_a_code_change_changes_the_code_version_of_its_link_and_of_no_other(workspace):
    before = {asset: Identity(workspace).code_version(asset) for asset in EDGES}
    rule = workspace / "assets" / "questions" / "wording.py"
    rule.write_text(rule.read_text() + "\n# another rule\n")
    after = {asset: Identity(workspace).code_version(asset) for asset in EDGES}
    assert {asset for asset in EDGES if before[asset] != after[asset]} == {"candidates", "questions"}
