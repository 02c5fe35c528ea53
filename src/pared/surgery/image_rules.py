"""How operators on images and operators along an axis tie axes: padding, pooling, upsampling, reductions, softmax."""

from typing import Any

from pared.surgery.axes import Dim, freeze, split
from pared.surgery.rules import Dims, Tracer, broadcast, many, refuse, rule, spatial
from pared.surgery.trace import Step


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def _pad(tracer: Tracer, step: Step) -> Dims:
    dims = list(step["self"].dims)
    amounts = step.get("pad", step.get("padding"))
    for back in range(len(amounts) // 2):
        if amounts[2 * back] or amounts[2 * back + 1]:
            place = len(dims) - 1 - back
            freeze(dims[place], f"{step.where()} pads it")
            dims[place] = spatial([step.shapes[place]])[0]
    return tuple(dims)


#: Operators on the places of an image or a sequence, the last axes, that treat every channel alike.
IMAGES = (
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d"),
    *("upsample_bicubic2d", "upsample_trilinear3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
    *("adaptive_avg_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d", "max_pool2d", "max_pool3d"),
    *("_adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "lp_pool2d"),
    *("max_pool2d_with_indices", "mkldnn_adaptive_avg_pool2d", "max_pool1d_with_indices", "max_pool3d_with_indices"),
)


@rule(*IMAGES)
def _image(tracer: Tracer, step: Step) -> Dims | list[Dims]:
    dims = step.values()[0].dims
    several = isinstance(step.shapes, list)
    shape = step.shapes[0] if several else step.shapes
    # Whether the first axis is a batch is told by the operator's name: an image has so many axes and its channels.
    places = next(int(c) for c in reversed(step.op) if c.isdigit())
    out = (*dims[:-places], *spatial(shape[-places:]))
    for dim in dims[-places:]:
        freeze(dim, "its entries are places of an image or a sequence")
    return [out for _ in step.shapes] if several else out


@rule("pixel_shuffle")
def _pixel_shuffle(tracer: Tracer, step: Step) -> Dims:
    *batch, channels, _, _ = step["self"].dims
    factor = step["upscale_factor"] ** 2
    halves = split(channels, channels.size // factor)
    if halves is None:
        return refuse(step)
    freeze(halves[1], "its entries become places of an image")
    return (*batch, halves[0], *spatial(step.shapes[-2:]))


#: Operators that take entries of an axis together.
REDUCES = (
    *("mean", "sum", "nansum", "amax", "amin", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm"),
    *("linalg_norm", "frobenius_norm", "logsumexp", "prod", "max", "min", "argmax", "argmin", "any", "all", "median"),
    *("nanmean", "count_nonzero"),
)


@rule(*REDUCES)
def _reduce(tracer: Tracer, step: Step) -> Dims | list[Dims]:
    dims = step["self"].dims
    if len(step.values()) > 1:  # torch.max(a, b)
        return broadcast([value.dims for value in step.values()], step.shapes)
    places = step.get("dim")
    over = {place % len(dims) for place in many(places)} if places not in (None, []) else set(range(len(dims)))
    for place in () if tracer.shares(step) else over:
        if ignores_zero(step, len(over)):
            tracer.consume(step, step["self"], place)
        else:
            freeze(dims[place], f"{step.where()} takes the {step.op} over it")
    keep = bool(step.get("keepdim", False))
    out = tuple(Dim(1) if place in over else dim for place, dim in enumerate(dims) if keep or place not in over)
    return [out for _ in step.shapes] if isinstance(step.shapes, list) else out


def ignores_zero(step: Step, axes: int) -> bool:
    """Tell whether a reduction over so many axes gives the same with a zero more."""
    if step.op in ("linalg_vector_norm", "norm", "linalg_norm"):
        order: Any = step.get("ord", step.get("p"))
        matrix = step.op == "linalg_norm" and axes > 1
        return order in (None, "fro") or (not matrix and isinstance(order, int | float) and order > 0)
    return step.op in ("sum", "nansum", "any", "count_nonzero", "frobenius_norm")


@rule("cosine_similarity", "dist")
def _compare(tracer: Tracer, step: Step) -> Dims:
    """Tie two tensors whose angle or distance is measured: what is zero in both changes neither."""
    pair = [step[name] for name in (("x1", "x2") if "x1" in step.args else ("self", "other"))]
    count = max(len(value.dims) for value in pair)
    shape = [max(v.shape[place] for v in pair if len(v.dims) >= -place) for place in range(-count, 0)]
    dims = broadcast([value.dims for value in pair], shape)
    axes = range(-count, 0) if step.op == "dist" else [step["dim"] % count - count]
    for value in pair:
        for place in axes:
            if len(value.dims) < -place or value.shape[place] != shape[place]:
                freeze(dims[place], f"{step.where()} compares all of its entries with one")
            elif step.op == "dist" and step["p"] <= 0:
                freeze(dims[place], f"{step.where()} counts its entries")
            else:
                tracer.consume(step, value, place)
    return tuple(dim for place, dim in zip(range(-count, 0), dims, strict=True) if place not in axes)


@rule("pairwise_distance")
def _pairwise(tracer: Tracer, step: Step) -> Dims:
    one, two = step["x1"], step["x2"]
    for value in (one, two):
        freeze(value.dims[-1], f"{step.where()} adds a small number to each of its entries")
    dims = broadcast([one.dims[:-1], two.dims[:-1]], step.shapes[:-1] if step["keepdim"] else step.shapes)
    return (*dims, Dim(1)) if step["keepdim"] else dims


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "sort", "tril", "triu")
def _along(tracer: Tracer, step: Step) -> Dims | list[Dims]:
    dims = step["self"].dims
    for place in (-2, -1) if step.op in ("tril", "triu") else (step.get("dim", -1),):
        freeze(dims[place], f"{step.where()} takes the {step.op.strip('_')} over it")
    return [dims for _ in step.shapes] if isinstance(step.shapes, list) else dims
