"""How far a correct kernel may be from exact arithmetic, element by element.

A running error analysis beside the reference: each value x is computed in fp64, where rounding does
not matter here, together with a bound dx >= |computed - x| that follows from the formats alone:

  rounding to a format   fl(x) = x (1 + d), |d| <= u. u = 2^-9 for bf16 (8 significant bits, to
                         nearest) and 2^-24 for fp32. Adds u (|x| + dx), and TINY where a
                         subnormal may be flushed to zero.
  weights                e4m3, e2m1 and integers are exact in bf16. Times an fp32 scale they are
                         rounded once: u of the format the GEMM takes. MXFP4's powers of two and
                         bf16 weights are exact.
  a sum of n products    in any order in fp32, with a rounding for each product and each addition
                         (dpbf16ps does both): relative gamma(2 n) = 2 n v / (1 - 2 n v), v = 2^-24,
                         of the sum of magnitudes |W| |x| (Higham, Accuracy and Stability, 3.1).
  clamp                  maps the interval [x - dx, x + dx] to an interval: its ends are clamped.
  gate * sigmoid(gate)   falls up to its one minimum and rises from there, so the image of an
                         interval lies between its ends' images and, if it is inside, the minimum.
                         Evaluated in fp32 with an error of EVALUATION of its value.
  gate times up          |s| du + |u| ds + ds du.

Nothing depends on luck, so correct code cannot exceed it, whatever the inputs. Measured, correct
code uses a tenth of it (fp8) to two thirds (mxfp4, single rows). It is no looser than it must be:
`test_operators` shows that a scale that is off by a quarter exceeds it.
"""

from dataclasses import dataclass

import torch

from actors.experts.checkpoint import ExpertTensors
from actors.experts.spec import Activation, GateActivation
from tests.actors.kernels.reference import Batch, float_expert

BF16_UNIT = 2.0**-9
FP32_UNIT = 2.0**-24
TINY = 2.0**-126
EVALUATION = 2.0**-16
"""exp by a polynomial of degree 5 or better, as vectorised libraries have it: below 2^-18."""
SILU_MINIMUM = -1.2784645
"""Where t * sigmoid(t) is least."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """Unit roundoffs of an operator. weights: of weights whose scale is no power of two; values: of
    gate, up, the activated product and the output."""

    weights: float
    values: float


IN_FP32 = Rounding(FP32_UNIT, FP32_UNIT)
IN_BF16 = Rounding(BF16_UNIT, BF16_UNIT)


@dataclass(frozen=True, slots=True)
class Bounded:
    """value: fp64; error: of the same shape, not negative."""

    value: torch.Tensor
    error: torch.Tensor

    def rounded(self, unit: float) -> "Bounded":
        return Bounded(self.value, self.error + unit * (self.value.abs() + self.error) + TINY)

    def clamped(self, low: float, high: float) -> "Bounded":
        ends = [(self.value + side * self.error).clamp(low, high) for side in (-1, 1)]
        value = self.value.clamp(low, high)
        return Bounded(value, torch.maximum(value - ends[0], ends[1] - value))

    def times(self, other: "Bounded") -> "Bounded":
        error = self.value.abs() * other.error + other.value.abs() * self.error
        return Bounded(self.value * other.value, error + self.error * other.error)


def gamma(roundings: int) -> float:
    return roundings * FP32_UNIT / (1 - roundings * FP32_UNIT)


def linear(
    weight: torch.Tensor, bias: torch.Tensor | None, x: Bounded, rounding: Rounding, inexact: bool
) -> Bounded:
    """x [n, K] times weight [N, K] plus bias [N], rounded before and after the bias."""
    products = (1 + rounding.weights * inexact) * (1 + gamma(2 * weight.shape[1])) - 1
    magnitude, spread = x.value.abs() @ weight.abs().T, x.error @ weight.abs().T
    y = Bounded(x.value @ weight.T, products * magnitude + (1 + products) * spread)
    y = y.rounded(rounding.values)
    if bias is None:
        return y
    return Bounded(y.value + bias.double(), y.error).rounded(rounding.values)


def gate_activation(gate: Bounded, alpha: float) -> Bounded:
    """gate * sigmoid(alpha * gate)."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(alpha * x)

    low, high = gate.value - gate.error, gate.value + gate.error
    least = torch.minimum(function(low), function(high))
    bottom = torch.tensor(SILU_MINIMUM / alpha, dtype=torch.float64)
    least = torch.where((low < bottom) & (bottom < high), function(bottom), least)
    most = torch.maximum(function(low), function(high))
    value = function(gate.value)
    return Bounded(value, torch.maximum(value - least, most - value)).rounded(EVALUATION)


def activate(gate: Bounded, up: Bounded, activation: Activation) -> Bounded:
    limit = float("inf") if activation.limit is None else activation.limit
    gate, up = gate.clamped(-float("inf"), limit), up.clamped(-limit, limit)
    if activation.kind is GateActivation.SILU:
        return gate_activation(gate, 1.0).times(up)
    return gate_activation(gate, activation.alpha).times(Bounded(up.value + 1, up.error))


def expert_output(
    expert: ExpertTensors, activation: Activation, rows: torch.Tensor, rounding: Rounding
) -> Bounded:
    """[n, H]: rows [n, H] through one expert."""
    inexact = expert.w13_scale is not None and expert.w13_scale.dtype is torch.float32
    w13, w2 = (weight.double() for weight in float_expert(expert))
    x = Bounded(rows.double(), torch.zeros_like(rows, dtype=torch.float64))
    both = linear(w13, expert.w13_bias, x, rounding, inexact)
    gate, up = (
        Bounded(value, error)
        for value, error in zip(both.value.chunk(2, -1), both.error.chunk(2, -1), strict=True)
    )
    product = activate(gate, up, activation).rounded(rounding.values)
    return linear(w2, expert.w2_bias, product, rounding, inexact)


def bounded_reference(
    experts: dict[int, ExpertTensors], activation: Activation, batch: Batch, rounding: Rounding
) -> Bounded:
    """[R, H]: the weighted sums of a batch (as `ExpertKernel.compute` takes it) and how far off
    they may be."""
    rows, row_index, ids, weights = batch
    sums = torch.zeros(rows.shape, dtype=torch.float64)
    errors, magnitudes = torch.zeros_like(sums), torch.zeros_like(sums)
    for number in set(ids.tolist()):
        mine = ids == number
        to = row_index[mine].long()
        output = expert_output(experts[number], activation, rows[to], rounding)
        weight = weights[mine].double().unsqueeze(1)
        output = Bounded(weight * output.value, weight * output.error).rounded(rounding.values)
        sums.index_add_(0, to, output.value)
        errors.index_add_(0, to, output.error)
        magnitudes.index_add_(0, to, output.value.abs() + output.error)
    return Bounded(sums, errors + gamma(len(ids)) * magnitudes)
