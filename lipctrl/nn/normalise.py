"""Fold observation normalisation and action scaling into a plain network, so that it is the deployed map."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lipctrl.files import UserError
from lipctrl.nn.plain import PlainNet

Array = NDArray[np.float64]


def deployed(
    net: PlainNet,
    *,
    mean: Array,
    scale: Array,
    output_offset: Array,
    output_scale: Array,
    low: Array | None = None,
    high: Array | None = None,
) -> PlainNet:
    """clip(output_offset + output_scale * net((x - mean) / scale), low, high) as one plain network; None: no limits.

    Multipliers are rescaled to the output; they stay a hint.

    Raises:
        UserError: a scale that is not positive, or a network with limits, which scaling would move.
    """
    if not ((scale > 0).all() and (output_scale > 0).all()):
        raise UserError(f"scales must be positive; found {scale} for the input, {output_scale} for the output")
    if net.low is not None or net.high is not None:
        raise UserError("the network already has output limits; expected one without")
    rows = [dict(row) for row in net.blocks]
    biases = [bias.copy() for bias in net.biases]
    for k, row in enumerate(rows):
        if 0 in row:
            row[0] = row[0] / scale
            biases[k] = biases[k] - row[0] @ mean
    rows[-1] = {j: output_scale[:, None] * block for j, block in rows[-1].items()}
    biases[-1] = output_scale * biases[-1] + output_offset
    factor = float(np.max(output_scale**2))
    return replace(
        net,
        blocks=tuple(rows),
        biases=tuple(biases),
        low=low,
        high=high,
        input_mean=mean,
        input_scale=scale,
        multipliers=None if net.multipliers is None else tuple(m * factor for m in net.multipliers),
    )
