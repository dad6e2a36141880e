"""The networks of the foundation estimator: which weights they have, and how they come into this process, once.

What fails here is the machine or the configuration. It is raised as ``SetupError``, for as a clip's failure it would
refuse every clip of the shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

from assets.geometry.estimators import SetupError
from assets.geometry.parameters import WEIGHTS, FoundationParameters
from assets.workspace import WorkspaceError

if TYPE_CHECKING:
    from models.grounded_sam import GroundedSam
    from models.orient_anything import OrientAnything
    from models.pi3 import Pi3
    from models.weights import Weights


@dataclass(frozen=True)
class Networks:
    """The loaded networks."""

    reconstruction: Pi3
    detection: GroundedSam
    orientation: OrientAnything


@lru_cache(maxsize=1)
def load_networks(options: FoundationParameters, max_objects: int) -> Networks:
    """All networks, loaded once per process and set of parameters.

    Raises:
        models.weights.WeightsError: weights are missing, damaged or of another network.
    """
    import torch

    from models.grounded_sam import load_grounded_sam
    from models.orient_anything import load_orient_anything
    from models.pi3 import load_pi3

    if options.device != "cpu" and not torch.cuda.is_available():
        raise SetupError(f"geometry.foundation.device: {options.device}, but torch sees no card here; set it to cpu")
    where = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    reconstruction, _ = load_pi3(options.pi3, **where)
    detection, _ = load_grounded_sam(
        options.detector,
        options.segmenter,
        **where,
        box_threshold=options.box_threshold,
        text_threshold=options.text_threshold,
        nms_iou=options.nms_iou,
        redetect_every=options.redetect_every,
        max_objects=max_objects,
    )
    orientation, _ = load_orient_anything(options.orientation, **where)
    return Networks(reconstruction, detection, orientation)


def libraries() -> str:
    """Names and versions of what runs the networks, without the build of the machine."""
    return " ".join(f"{name}/{version(name).partition('+')[0]}" for name in ("torch", "transformers"))


def weights_hashes(options: FoundationParameters) -> dict[str, str]:
    """SHA-256 of the weights of each network, read once per process.

    Raises:
        SetupError: weights are missing.
    """
    return {name: weights.sha256 for name, weights in _weights(options).items()}


@lru_cache(maxsize=1)
def fingerprint(options: FoundationParameters) -> str:
    """SHA-256 over all weights and the settings (configuration, vocabulary) that lie beside them.

    Raises:
        SetupError: weights are missing.
    """
    digest = hashlib.sha256()
    for name, weights in sorted(_weights(options).items()):
        digest.update(f"{name}:{weights.sha256};".encode())
        for path in sorted((*weights.folder.glob("*.json"), *weights.folder.glob("*.txt"))):
            digest.update(f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()};".encode())
    return digest.hexdigest()


@lru_cache(maxsize=1)
def _weights(options: FoundationParameters) -> dict[str, Weights]:
    from models.grounded_sam import FILES
    from models.orient_anything import checkpoint_of
    from models.weights import WeightsError, locate, open_weights

    try:
        places = {
            "pi3": options.pi3,
            "detector": locate(options.detector, FILES),
            "segmenter": locate(options.segmenter, FILES),
            "orientation": checkpoint_of(options.orientation),
        }
        return {name: open_weights(str(places[name])) for name in WEIGHTS}
    except (WeightsError, OSError) as error:
        raise SetupError(f"geometry.foundation: {error}") from error


@contextmanager
def machine_answers_for_failures() -> Iterator[None]:
    """Name failures of weights, card and endpoint as what they are, or every clip would be refused for them."""
    import torch

    from models.endpoint import EndpointError
    from models.weights import WeightsError

    try:
        yield
    except (WeightsError, EndpointError, WorkspaceError) as error:
        raise SetupError(f"geometry.foundation: {error}") from error
    except torch.OutOfMemoryError as error:
        raise SetupError(
            "geometry.foundation: the card's memory is too small; lower geometry.foundation.max_pixels or videos.frames"
        ) from error
    except torch.AcceleratorError as error:
        first = str(error).splitlines()[0]
        raise SetupError(f"geometry.foundation: the card failed ({first}); restart it, then run again") from error


@contextmanager
def one_thread() -> Iterator[None]:
    """On a processor the last bits of a sum depend on the number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
