"""Low-rank adapters on the language model, through peft."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from models.geometric_qwen import GeometricQwen
from models.parameters import ParameterError, TrainingParameters
from models.weights import HUB_ID

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER = "adapter"
"""Folder of the adapter inside a checkpoint."""
MARK = "lora_"
"""What the names of an adapter's weights contain, as peft gives them."""


def add_lora(model: GeometricQwen, parameters: TrainingParameters) -> PeftModel:
    """Put adapters into the decoder layers of a model, in place.

    Returns:
        peft's view of the same model, for saving and merging; training goes on with the model itself.

    Raises:
        ParameterError: if no matrix of a decoder layer has one of the targets' names.
    """
    from peft import LoraConfig, get_peft_model

    lora = parameters.lora
    # peft matches whole names. Without the prefix the geometry module and the vision tower would get adapters too.
    names = "|".join(map(re.escape, lora.targets))
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=rf"model\.language_model\.layers\.\d+\..*\.({names})",
    )
    try:
        view = get_peft_model(model, config)
    except ValueError as error:
        raise ParameterError(
            f"lora.targets = {', '.join(lora.targets)}: no matrix of a decoder layer is called so"
        ) from error
    # peft notes where the base was loaded from; a local path would tell of one machine.
    hub = parameters.base and HUB_ID.fullmatch(parameters.base) and not os.path.exists(parameters.base)
    view.peft_config["default"].base_model_name_or_path = parameters.base if hub else ""
    view.peft_config["default"].revision = parameters.revision
    return view


def save_adapter(view: PeftModel, folder: Path) -> None:
    """Write the adapter as peft reads it: `PeftModel.from_pretrained(base, folder)`."""
    view.save_pretrained(folder / ADAPTER)
    # peft adds a card of its own, empty but for headings.
    (folder / ADAPTER / "README.md").unlink(missing_ok=True)


def merged(view: PeftModel) -> GeometricQwen:
    """The plain model, with each adapter's product added to its matrix; the view is of no use afterwards."""
    return view.merge_and_unload()
