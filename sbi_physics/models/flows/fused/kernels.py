"""Triton kernels that take a tile of rows through all layers of a spline coupling flow in one launch.

A tile never leaves the registers between the first load and the last store: per layer one matrix product for the
linear map, the residual conditioner, and for each group of dimensions three products that give widths, heights and
derivatives, ``(rows, dimensions, bins)``.  Bins are found and chosen by comparisons and sums, without gathering.

The tile has its own order of columns: the dimensions that a coupling keeps come first, those that it moves start at
`OFFSET`, a multiple of `GROUP`, so that a group is one slice of ``(rows, WIDTH / GROUP, GROUP)``.  Everything is padded
with zeros to powers of two.  The formulas are those of `sbi_physics.models.flows.spline`.
"""

import triton
import triton.language as tl

from sbi_physics.models.flows.spline import MIN_BIN, MIN_DERIVATIVE, UNIT_DERIVATIVE

__all__ = ["affine", "find_bin", "product", "run_flow", "slope_at"]

_MIN_BIN = tl.constexpr(MIN_BIN)
_MIN_DERIVATIVE = tl.constexpr(MIN_DERIVATIVE)
_UNIT_DERIVATIVE = tl.constexpr(UNIT_DERIVATIVE)


@triton.jit
def _rounded(x):
    """Round to the 10 bits of TF32; the matrix units would cut off the rest, with several times the error."""
    bits = x.to(tl.int32, bitcast=True)
    # A NaN may not overflow into a number.
    return tl.where(x == x, ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True), x)


@triton.jit
def product(left, right, PRECISION: tl.constexpr):
    """The matrix product, in one of the precisions of `FusedFlow`."""
    if PRECISION == "tf32":
        left, right = _rounded(left), _rounded(right)
    return tl.dot(left, right, input_precision=PRECISION)


@triton.jit
def affine(rows, weights, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PRECISION: tl.constexpr):
    """Rows ``(n, ROWS)`` times the matrix at `weights`, plus the bias that lies behind it."""
    inner = tl.arange(0, ROWS)[:, None]
    outer = tl.arange(0, COLUMNS)
    matrix = tl.load(weights + inner * COLUMNS + outer[None, :])
    bias = tl.load(weights + ROWS * COLUMNS + outer)
    return product(rows, matrix, PRECISION) + bias[None, :]


@triton.jit
def _silu(x):
    return x * tl.sigmoid(x)


@triton.jit
def _condition(
    rows,
    projected,
    weights,
    saved,
    plane,
    present,
    KEPT: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCKS: tl.constexpr,
    GATED: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The last hidden units ``(n, HIDDEN)`` of the conditioner of one layer.

    `projected` points at what the context gives the layer: ``(n or 1, 1)`` pointers to the start and the gates.
    With `SAVE` the units before, between and after the two products of each block, and the last ones, go to planes
    of the rows that `saved` points at.
    """
    unit = tl.arange(0, HIDDEN)[None, :]
    hidden = tl.load(projected + unit) + tl.zeros([rows.shape[0], HIDDEN], tl.float32)
    if KEPT > 0:
        # Chosen, not multiplied by zero: an infinite moved dimension is no business of the conditioner.
        seen = tl.where(tl.arange(0, WIDTH)[None, :] < KEPT, rows, 0.0)
        matrix = tl.load(weights + tl.arange(0, WIDTH)[:, None] * HIDDEN + unit)
        hidden += product(seen, matrix, PRECISION)
    inner = weights + WIDTH * HIDDEN
    for block in range(BLOCKS):
        if SAVE:
            tl.store(saved + 3 * block * plane + unit, hidden, mask=present)
        change = affine(_silu(hidden), inner, HIDDEN, HIDDEN, PRECISION)
        inner += HIDDEN * HIDDEN + HIDDEN
        if SAVE:
            tl.store(saved + (3 * block + 1) * plane + unit, change, mask=present)
        change = affine(_silu(change), inner, HIDDEN, HIDDEN, PRECISION)
        inner += HIDDEN * HIDDEN + HIDDEN
        if SAVE:
            tl.store(saved + (3 * block + 2) * plane + unit, change, mask=present)
        if GATED:
            change = change * tl.sigmoid(tl.load(projected + (block + 1) * HIDDEN + unit))
        hidden += change
    if SAVE:
        tl.store(saved + 3 * BLOCKS * plane + unit, hidden, mask=present)
    return hidden


@triton.jit
def _softplus(x):
    small = tl.exp(-tl.abs(x))
    # The series where 1 + small would lose the digits of small.
    log = tl.where(small < 1e-2, small * (1 - small * (0.5 - small / 3)), tl.log(1 + small))
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) + log


@triton.jit
def _shares(raw, bin_, BINS: tl.constexpr):
    """Softmax over the bins of unconstrained numbers ``(n, GROUP, bins)``; zero in the padding."""
    raw = tl.where(bin_ < BINS, raw, float("-inf"))
    share = tl.exp(raw - tl.max(raw, axis=2)[:, :, None])
    return share / tl.sum(share, axis=2)[:, :, None]


@triton.jit
def find_bin(x, widths, heights, derivatives, BINS: tl.constexpr, TAIL: tl.constexpr, INVERSE: tl.constexpr):
    """The bin of each element of `x` ``(n, GROUP)``, from unconstrained parameters ``(n, GROUP, bins)``.

    Returns:
        Its left and bottom edge, width, height, the raw derivatives at its edges and its index, each ``(n, GROUP)``;
        and the shares of widths and heights ``(n, GROUP, bins)``.
    """
    bin_ = tl.arange(0, widths.shape[2])[None, None, :]
    width_shares = _shares(widths, bin_, BINS)
    height_shares = _shares(heights, bin_, BINS)
    scale: tl.constexpr = 2 * TAIL * (1 - _MIN_BIN * BINS)
    widths = tl.where(bin_ < BINS, scale * width_shares + 2 * TAIL * _MIN_BIN, 0.0)
    heights = tl.where(bin_ < BINS, scale * height_shares + 2 * TAIL * _MIN_BIN, 0.0)
    clamped = tl.clamp(x, -TAIL, TAIL, propagate_nan=tl.PropagateNan.ALL)
    right_edges = tl.cumsum(heights if INVERSE else widths, axis=2) - TAIL
    passed = (clamped[:, :, None] >= right_edges) & (bin_ < BINS - 1)
    index = tl.sum(passed.to(tl.int32), axis=2)
    here = bin_ == index[:, :, None]
    left = tl.sum(tl.where(passed, widths, 0.0), axis=2) - TAIL
    bottom = tl.sum(tl.where(passed, heights, 0.0), axis=2) - TAIL
    width = tl.sum(tl.where(here, widths, 0.0), axis=2)
    height = tl.sum(tl.where(here, heights, 0.0), axis=2)
    # The derivative at the right edge of bin k stands at k.  The outer edges find zero, which gives a slope of one.
    raw0 = tl.sum(tl.where(bin_ + 1 == index[:, :, None], derivatives, 0.0), axis=2)
    raw1 = tl.sum(tl.where(here & (bin_ < BINS - 1), derivatives, 0.0), axis=2)
    return left, bottom, width, height, raw0, raw1, index, width_shares, height_shares


@triton.jit
def slope_at(raw):
    """Derivative of the spline at a knot."""
    return _softplus(raw + _UNIT_DERIVATIVE) + _MIN_DERIVATIVE


@triton.jit
def _spline(x, widths, heights, derivatives, BINS: tl.constexpr, TAIL: tl.constexpr, INVERSE: tl.constexpr):
    """Splines of `x` ``(n, GROUP)`` from unconstrained parameters ``(n, GROUP, bins)``: outputs and log-derivatives."""
    left, bottom, width, height, raw0, raw1, _, _, _ = find_bin(x, widths, heights, derivatives, BINS, TAIL, INVERSE)
    clamped = tl.clamp(x, -TAIL, TAIL, propagate_nan=tl.PropagateNan.ALL)
    d0, d1 = slope_at(raw0), slope_at(raw1)
    slope = height / width
    curvature = d0 + d1 - 2 * slope
    if INVERSE:
        rise = tl.maximum(clamped - bottom, 0.0, propagate_nan=tl.PropagateNan.ALL)
        bend = rise * curvature
        linear = height * d0 - bend
        discriminant = linear * linear + 4 * (height * (slope - d0) + bend) * slope * rise
        # Clamped: rounding may push the discriminant of a monotonic spline below zero.
        root = tl.sqrt(tl.maximum(discriminant, 1e-30, propagate_nan=tl.PropagateNan.ALL))
        xi = tl.clamp(2 * slope * rise / (linear + root), 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    else:
        xi = tl.clamp((clamped - left) / width, 0.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
    mixed = xi * (1 - xi)
    denominator = slope + curvature * mixed
    moved = left + xi * width if INVERSE else bottom + height * (slope * xi * xi + d0 * mixed) / denominator
    numerator = d1 * xi * xi + 2 * slope * mixed + d0 * (1 - xi) * (1 - xi)
    log_derivative = tl.log(slope * slope * numerator / (denominator * denominator))
    inside = tl.abs(x) <= TAIL
    log_derivative = tl.where(inside, -log_derivative if INVERSE else log_derivative, 0.0)
    return tl.where(inside, moved, x), log_derivative


@triton.jit
def _move(
    rows,
    hidden,
    weights,
    FEATURES: tl.constexpr,
    KEPT: tl.constexpr,
    OFFSET: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    HIDDEN: tl.constexpr,
    BINS: tl.constexpr,
    PADDED_BINS: tl.constexpr,
    TAIL: tl.constexpr,
    INVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Transform the moved dimensions of the rows, group by group: rows and the sum of the log-derivatives."""
    TILE: tl.constexpr = rows.shape[0]
    COLUMNS: tl.constexpr = GROUP * PADDED_BINS
    slices = tl.arange(0, WIDTH // GROUP)[None, :, None]
    member = tl.arange(0, GROUP)[None, :]
    ladj = tl.zeros([TILE], tl.float32)
    for group in range((FEATURES - KEPT + GROUP - 1) // GROUP):
        widths = affine(hidden, weights, HIDDEN, COLUMNS, PRECISION)
        weights += HIDDEN * COLUMNS + COLUMNS
        heights = affine(hidden, weights, HIDDEN, COLUMNS, PRECISION)
        weights += HIDDEN * COLUMNS + COLUMNS
        derivatives = affine(hidden, weights, HIDDEN, COLUMNS, PRECISION)
        weights += HIDDEN * COLUMNS + COLUMNS
        here = slices == OFFSET // GROUP + group
        sliced = tl.reshape(rows, [TILE, WIDTH // GROUP, GROUP])
        before = tl.sum(tl.where(here, sliced, 0.0), axis=1)
        after, log_derivative = _spline(
            before,
            tl.reshape(widths, [TILE, GROUP, PADDED_BINS]),
            tl.reshape(heights, [TILE, GROUP, PADDED_BINS]),
            tl.reshape(derivatives, [TILE, GROUP, PADDED_BINS]),
            BINS,
            TAIL,
            INVERSE,
        )
        real = group * GROUP + member < FEATURES - KEPT
        ladj += tl.sum(tl.where(real, log_derivative, 0.0), axis=1)
        after = tl.where(real, after, 0.0)
        rows = tl.reshape(tl.where(here, after[:, None, :], sliced), [TILE, WIDTH])
    return rows, ladj


@triton.jit
def run_flow(
    inputs,
    outputs,
    ladj,
    projected,
    mixes,
    constant,
    weights,
    states,
    saved,
    count,
    context_stride,
    FEATURES: tl.constexpr,
    KEPT: tl.constexpr,
    OFFSET: tl.constexpr,
    WIDTH: tl.constexpr,
    GROUP: tl.constexpr,
    HIDDEN: tl.constexpr,
    BLOCKS: tl.constexpr,
    BINS: tl.constexpr,
    PADDED_BINS: tl.constexpr,
    LAYERS: tl.constexpr,
    TAIL: tl.constexpr,
    LAYER_WEIGHTS: tl.constexpr,
    GATED: tl.constexpr,
    SHARED_CONTEXT: tl.constexpr,
    INVERSE: tl.constexpr,
    SAVE: tl.constexpr,
    PRECISION: tl.constexpr,
    MIX_PRECISION: tl.constexpr,
    TILE: tl.constexpr,
):
    """All layers for rows ``(count, FEATURES)``: outputs of the same shape and the log-determinants ``(count,)``.

    Args:
        inputs: data, or noise if `INVERSE`.
        outputs: noise, or data if `INVERSE`.
        ladj: logarithm of the determinant of the map that was applied.
        projected: ``(count or 1, LAYERS, 1 + BLOCKS, HIDDEN)``, what the context adds to the first hidden units and
            the logits of the gates.
        mixes: ``(LAYERS, WIDTH + 1, WIDTH)``, matrices of the linear maps and their biases.
        constant: the log-determinant of all linear maps together, one number.
        weights: ``(LAYERS, LAYER_WEIGHTS)``, per layer the first matrix ``(WIDTH, HIDDEN)``; for each block two
            matrices ``(HIDDEN, HIDDEN)`` with their biases; for each group three matrices ``(HIDDEN, GROUP *
            PADDED_BINS)`` with their biases.
        states: with `SAVE`, ``(LAYERS, 2, count, WIDTH)``, the rows of each layer before and after its linear map.
        saved: with `SAVE`, ``(LAYERS, 3 BLOCKS + 1, count, HIDDEN)``, the hidden units.
        count: rows.
        context_stride: from one row of `projected` to the next.
    """
    row = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, WIDTH)[None, :]
    feature = tl.where(column < OFFSET, column, column - OFFSET + KEPT)
    real = (column < KEPT) | ((column >= OFFSET) & (column < OFFSET + FEATURES - KEPT))
    present = row[:, None] < count
    mask = present & real
    rows = tl.load(inputs + row[:, None] * FEATURES + feature, mask=mask, other=0.0)
    if SHARED_CONTEXT:
        context = projected + tl.zeros([1, 1], tl.int64)
    else:
        # Rows beyond the last read the context of the last.
        context = projected + tl.minimum(row, count - 1)[:, None] * context_stride
    # In 64 bits, as `row` is: there may be more hidden units than 32 bits count.
    plane = tl.zeros([TILE, 1], tl.int64) + count
    total = tl.zeros([TILE], tl.float32) + tl.load(constant)
    for step in range(LAYERS):
        layer = LAYERS - 1 - step if INVERSE else step
        own = weights + layer * LAYER_WEIGHTS
        mix = mixes + layer * (WIDTH + 1) * WIDTH
        if SAVE:
            tl.store(states + (2 * layer * plane + row[:, None]) * WIDTH + column, rows, mask=present)
        if FEATURES > 1 and not INVERSE:
            rows = affine(rows, mix, WIDTH, WIDTH, MIX_PRECISION)
        if SAVE:
            tl.store(states + ((2 * layer + 1) * plane + row[:, None]) * WIDTH + column, rows, mask=present)
        hidden = _condition(
            rows,
            context + layer * (1 + BLOCKS) * HIDDEN,
            own,
            saved + (layer * (3 * BLOCKS + 1) * plane + row[:, None]) * HIDDEN,
            plane * HIDDEN,
            present,
            KEPT,
            WIDTH,
            HIDDEN,
            BLOCKS,
            GATED,
            SAVE,
            PRECISION,
        )
        rows, change = _move(
            rows,
            hidden,
            own + WIDTH * HIDDEN + 2 * BLOCKS * (HIDDEN * HIDDEN + HIDDEN),
            FEATURES,
            KEPT,
            OFFSET,
            WIDTH,
            GROUP,
            HIDDEN,
            BINS,
            PADDED_BINS,
            TAIL,
            INVERSE,
            PRECISION,
        )
        total += change
        if FEATURES > 1 and INVERSE:
            rows = affine(rows, mix, WIDTH, WIDTH, MIX_PRECISION)
    tl.store(outputs + row[:, None] * FEATURES + feature, rows, mask=mask)
    tl.store(ladj + row, total, mask=row < count)
