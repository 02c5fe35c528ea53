"""What operators on images make of constants: pooling, upsampling, padding, channels that become places."""

import torch
from torch import Tensor

from pared.surgery.constants import Constants, Known, each, each_of, full, handler, rerun
from pared.surgery.image_rules import IMAGES
from pared.surgery.trace import Step


@handler(*IMAGES)
def _pool(constants: Constants, step: Step) -> Known | list[Known | None] | None:
    source = step["self"] if "self" in step.args else step.values()[0]
    known = constants.of(source)
    places = next(int(c) for c in reversed(step.op) if c.isdigit())
    if known is None or any(size != 1 for size in full(known.values, len(source.dims)).shape[-places:]):
        return None
    scaled = step.get("divisor_override") is not None or step.op.startswith("lp_pool")
    padded = step.op.startswith("avg") and any(each(step["padding"], places)) and step["count_include_pad"]
    if scaled or padded:
        known = Known(known.values, known.mask & (known.values == 0))
    return [known, *[None] * (len(step.out) - 1)] if isinstance(step.out, list) else known  # indices are none


@handler("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def _pad(constants: Constants, step: Step) -> Known | None:
    known, source = constants.of(step["self"]), step["self"]
    amounts = step.get("pad", step.get("padding"))
    if known is None:
        return None
    fills = step.op in ("pad", "constant_pad_nd") and step.get("mode", "constant") == "constant"
    filler = float(step.get("value") or 0.0)
    sides = {len(source.dims) - 1 - back: amounts[2 * back : 2 * back + 2] for back in range(len(amounts) // 2)}
    sides = {axis: pair for axis, pair in sides.items() if any(pair)}
    values, mask = full(known.values, len(source.dims)), full(known.mask, len(source.dims))
    if any(values.shape[axis] != 1 or mask.shape[axis] != 1 for axis in sides):
        shape = [source.shape[axis] if axis in sides else size for axis, size in enumerate(values.shape)]
        values, mask = (tensor.expand(shape) for tensor in (values, mask.expand(values.shape)))
        if not fills:
            return Known(rerun(step, values), rerun(step, mask.double()).bool())
        padded = [torch.nn.functional.pad(t, amounts, value=v) for t, v in ((values, filler), (mask.double(), 1.0))]
        return Known(padded[0], padded[1].bool())
    grows = fills and any(amount > 0 for pair in sides.values() for amount in pair)
    return Known(values, mask & (values == filler)) if grows else known


@handler("pixel_shuffle")
def _pixel_shuffle(constants: Constants, step: Step) -> Known | None:
    """A channel is made of several, side by side: a constant where these are the same."""
    factor, source = step["upscale_factor"], step["self"]
    known = constants.of(source)
    if known is None:
        return None
    values, mask = full(known.values, len(source.dims)), full(known.mask, len(source.dims))
    values, mask = torch.broadcast_tensors(values, mask)
    if values.shape[-2:] != (1, 1):
        return None
    if values.shape[-3] == 1:
        return known

    def by_channel(tensor: Tensor) -> Tensor:
        return tensor.unflatten(-3, (-1, factor * factor))

    values, mask = by_channel(values), by_channel(mask)
    same = mask.all(-3) & (values == values[..., :1, :, :]).all(-3)
    return Known(values[..., 0, :, :], same)


@handler("pixel_unshuffle", "channel_shuffle", "native_channel_shuffle")
def _moved(constants: Constants, step: Step) -> Known | None:
    """Channels that come apart or change places, with the constants that they are."""
    source = step["self"]

    def change(tensor: Tensor) -> Tensor:
        tensor = full(tensor, len(source.dims))
        if step.op == "pixel_unshuffle":
            if tensor.shape[-2:] == (1, 1):
                return tensor if tensor.shape[-3] == 1 else tensor.repeat_interleave(step["downscale_factor"] ** 2, -3)
            whole = [*tensor.shape[:-3], *source.shape[-3:]]
            return rerun(step, tensor.expand(whole).double()).to(tensor.dtype)
        return tensor if tensor.shape[1] == 1 else rerun(step, tensor.double()).to(tensor.dtype)

    return each_of(constants.of(source), change)
