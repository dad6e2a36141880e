"""The pages of a workspace on the loopback interface: its clips, each clip's scene record in 3D, the benchmark report.

Pages are made when they are asked for, from what lies in the workspace at that moment. No path is ever built from what
a request or a table says: a clip is 64 hexadecimal digits, a shard one of the ledger's.
"""

from __future__ import annotations

import difflib
import os
import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assets.geometry.scene_page import SHOWN_FIELDS, ScenePageError, plain, policy, scene_page
from assets.videos.shards import CLIP
from assets.workspace import Workspace, WorkspaceError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

ROWS = 100
COLUMNS = ("clip", "shard", "name", "estimator", "status", "reason", "objects", "moving")
# Clips whose names are compared when somebody asks for one that does not exist.
MAX_COMPARED = 50_000
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
# Of pages without a script.
STILL = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


class PagesError(ValueError):
    """Nothing can be shown of a clip: there is no such clip, or a file of it is damaged."""


class UnknownClip(PagesError):
    """No clip of the workspace is called so."""


@dataclass(frozen=True)
class Listing:
    """A page of the list of clips: rows of scenes.parquet, how many pages there are, and what could not be read."""

    rows: list[dict[str, Any]]
    page: int
    pages: int
    clips: int
    damaged: list[str]


def render_scene(workspace: Workspace, clip: str) -> str:
    """The page of a clip, by its identity.

    Raises:
        UnknownClip: no shard of the ledger holds a record of it.
        PagesError: its record or its frames are damaged; the message names the file.
    """
    from assets.geometry.record import RecordError, load, verify

    shard = _shard_of(workspace, clip)
    path = workspace.geometry(shard) / f"{clip}.safetensors"
    where = os.path.relpath(path, workspace.root)
    frames, name = _frames(workspace, shard, clip), _name(workspace, shard, clip)
    try:
        verify(path)
        return scene_page(load(path, SHOWN_FIELDS), frames, name, clip)
    except (RecordError, ScenePageError) as error:
        raise PagesError(f"{where}: {str(error).replace(str(path), '').lstrip(': ')}") from error
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise PagesError(
            f"{where}: the record contradicts itself ({type(error).__name__}); delete it and estimate the clip again"
        ) from error


def find_clip(workspace: Workspace, asked: str) -> str:
    """Identity of the clip that a person means: its identity, the first eight or more digits of it, or its name.

    Raises:
        UnknownClip: none or several are meant; the message says which come near.
    """
    if CLIP.fullmatch(asked):
        _shard_of(workspace, asked)
        return asked
    names: dict[str, list[str]] = {}
    by_digits = []
    for shard in workspace.shards():
        for row in _read(workspace, shard, ("clip", "name")):
            names.setdefault(row["name"], []).append(row["clip"])
            if len(asked) >= 8 and row["clip"].startswith(asked):
                by_digits.append(row["clip"])
    found = names.get(asked) or by_digits
    if len(found) == 1:
        return found[0]
    if found:
        raise UnknownClip(f"{plain(asked)!r}: {len(found)} clips are called so, name one of {', '.join(found[:4])}")
    near = [name for name in names if asked and asked.lower() in name.lower()][:3]
    near = near or difflib.get_close_matches(asked, list(names)[:MAX_COMPARED], n=3, cutoff=0.4)
    hint = f"near it: {', '.join(repr(plain(name)) for name in near)}" if near else f"{len(names)} clips are known"
    raise UnknownClip(f"{plain(asked)!r}: no clip of this workspace; {hint}")


def write_scene(workspace: Workspace, clip: str, out: Path | None) -> Path:
    """Write a clip's page to ``out`` (default: reports/scenes/<clip>.html) and return where it lies."""
    page = render_scene(workspace, clip)
    path = out or workspace.root / "reports" / "scenes" / f"{clip}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def list_clips(workspace: Workspace, shard: str | None = None, page: int = 1) -> Listing:
    """One page of the clips of a shard, or of all shards in their order; only the tables it needs are read.

    Raises:
        UnknownClip: ``shard`` is none of the ledger's.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = workspace.shards()
    if shard is not None and shard not in known:
        raise UnknownClip(f"{plain(shard)!r} is no shard of this workspace")
    sizes, damaged = {}, []
    for key in known if shard is None else [shard]:
        table = workspace.geometry(key) / "scenes.parquet"
        if not table.exists():
            continue
        try:
            sizes[key] = pq.read_metadata(table).num_rows
        except (OSError, pa.ArrowException):
            damaged.append(f"{os.path.relpath(table, workspace.root)} is damaged: make geometry of {key} again")
    total = sum(sizes.values())
    pages = max(1, -(-total // ROWS))
    page = min(max(page, 1), pages)
    skip, rows = (page - 1) * ROWS, []
    for key, size in sizes.items():
        if skip < size and len(rows) < ROWS:
            rows += _read(workspace, key, COLUMNS)[skip : skip + ROWS - len(rows)]
        skip = max(0, skip - size)
    return Listing(rows, page, pages, total, damaged)


def build_app(workspace: Workspace) -> Starlette:
    """The pages as an application: GET only, for requests that name the loopback interface as their host."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.routing import Route

    def index(request: Request) -> Response:
        asked = request.query_params.get("page", "1")
        page = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else 1
        shard = request.query_params.get("shard")
        listing = list_clips(workspace, shard, page)
        return _page(_render("index", listing=listing, shard=shard, has_report=_report(workspace).exists()))

    def scene(request: Request) -> Response:
        return _page(render_scene(workspace, request.path_params["clip"]), policy())

    def report(request: Request) -> Response:
        if not _report(workspace).exists():
            return _said("There is no report yet: make the benchmark first.", 404)
        return _page(_report(workspace).read_text(encoding="utf-8"))

    def unknown(request: Request, error: Exception) -> Response:
        return _said(str(error), 404)

    def damaged(request: Request, error: Exception) -> Response:
        return _said(str(error), 500)

    routes = [("/", index), ("/scenes/{clip}", scene), ("/report", report)]
    return Starlette(
        routes=[Route(path, endpoint, methods=["GET"]) for path, endpoint in routes],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])],
        exception_handlers={
            404: lambda request, error: _said("There is no such page.", 404),
            405: lambda request, error: _said("These pages can only be read.", 405),
            UnknownClip: unknown,
            PagesError: damaged,
            WorkspaceError: damaged,
        },
    )


def serve(workspace: Workspace, port: int) -> None:
    """Serve the pages on the loopback interface until interrupted."""
    import uvicorn

    uvicorn.run(build_app(workspace), host="127.0.0.1", port=port, log_level="warning", server_header=False)


def _shard_of(workspace: Workspace, clip: str) -> str:
    if not CLIP.fullmatch(clip):
        raise UnknownClip("A clip is asked for by the 64 hexadecimal digits of its identity.")
    for shard in workspace.shards():
        if (workspace.geometry(shard) / f"{clip}.safetensors").is_file():
            return shard
    raise UnknownClip(f"No shard of this workspace holds a scene record of clip {clip}.")


def _frames(workspace: Workspace, shard: str, clip: str):
    """(T, H, W, 3) u8 sampled frames, None for a log without pictures."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = workspace.videos(shard) / "frames" / f"{clip}.safetensors"
    if not path.exists():
        return None
    try:
        return load_file(path)["frames"]
    except (OSError, SafetensorError, KeyError) as error:
        where = os.path.relpath(path, workspace.root)
        raise PagesError(f"{where}: damaged, make videos of {shard} again") from error


def _name(workspace: Workspace, shard: str, clip: str) -> str:
    """What people call a clip; the head of its identity where the table is not there."""
    if not (workspace.geometry(shard) / "scenes.parquet").exists():
        return clip[:12]
    names = {row["clip"]: row["name"] for row in _read(workspace, shard, ("clip", "name"))}
    return names.get(clip, clip[:12])


def _read(workspace: Workspace, shard: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Rows of a shard's scenes.parquet; none where it is not there yet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = workspace.geometry(shard) / "scenes.parquet"
    if not path.exists():
        return []
    try:
        return pq.read_table(path, columns=list(columns)).to_pylist()
    except (OSError, pa.ArrowException) as error:
        where = os.path.relpath(path, workspace.root)
        raise PagesError(f"{where}: damaged or of another version, make geometry of {shard} again") from error


def _report(workspace: Workspace) -> Path:
    return workspace.benchmark / "report.html"


def _render(page: str, **values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["plain"] = plain
    template = files("orchestration").joinpath("pages.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(page=page, **values)


def _page(html: str, content_policy: str = STILL, status: int = 200) -> Response:
    from starlette.responses import HTMLResponse

    # A frame of another site is the one thing that a policy inside a page cannot forbid.
    headers = {**HEADERS, "Content-Security-Policy": f"{content_policy}; frame-ancestors 'none'"}
    return HTMLResponse(html, status, headers)


def _said(sentence: str, status: int) -> Response:
    return _page(_render("said", sentence=plain(sentence, 400)), status=status)


if __name__ == "__main__":
    serve(Workspace.find(), int(sys.argv[1]))
