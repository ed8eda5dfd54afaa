"""The arithmetic of a frame, written once for whatever adds and multiplies: vectors being compiled, or test values.

A Fourier transform of 400 real samples is one of 200 complex numbers, even samples real and odd ones imaginary, whose
result is split; and 200 = 8 * 5 * 5. Each function below is one step of it, without loops or memory: those are
`backends.mel.batch`'s. Part of what config.compilation compiles, so that a change here is part of its cache's key.

Sources: J. W. Cooley and J. W. Tukey, An algorithm for the machine calculation of complex Fourier series (1965), for
the factors; W. H. Press et al., Numerical Recipes in C, section 12.3, for the split; S. L. Moshier, Cephes, logf.c, for
the logarithm.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self


class Number(Protocol):
    """What the arithmetic asks of its values."""

    def __add__(self, other: Self, /) -> Self: ...
    def __sub__(self, other: Self, /) -> Self: ...
    def __neg__(self) -> Self: ...
    def __mul__(self, other: Self | float, /) -> Self: ...

    def times_plus(self, factor: Self | float, summand: Self | float, /) -> Self:
        """The value * factor + summand, rounded once where the processor can."""
        ...


N = TypeVar("N", bound=Number)

_COS_72, _SIN_72 = math.cos(2 * math.pi / 5), math.sin(2 * math.pi / 5)
_COS_144, _SIN_144 = math.cos(4 * math.pi / 5), math.sin(4 * math.pi / 5)
_SQRT_HALF = math.sqrt(0.5)
_LOG10_OF_2 = math.log10(2)
_LOG10_OF_E = math.log10(math.e)
# log(1 + f) = f - f ** 2 / 2 + f ** 3 * P(f) for 1 + f in [sqrt(1/2), sqrt(2)), the highest power of P first.
_LOG_COEFFICIENTS = (
    *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
    *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
)


def multiply(real: N, imaginary: N, factor_real: N, factor_imaginary: N) -> tuple[N, N]:
    """The product of two complex numbers."""
    return (
        real.times_plus(factor_real, -(imaginary * factor_imaginary)),
        real.times_plus(factor_imaginary, imaginary * factor_real),
    )


def power(real: N, imaginary: N) -> N:
    """The square of the magnitude."""
    return real.times_plus(real, imaginary * imaginary)


def dft4(z: list[tuple[N, N]]) -> list[tuple[N, N]]:
    """The discrete Fourier transform of four complex numbers."""
    (ar, ai), (br, bi), (cr, ci), (dr, di) = z
    even_r, even_i, between_r, between_i = ar + cr, ai + ci, ar - cr, ai - ci
    odd_r, odd_i = br + dr, bi + di
    turned_r, turned_i = bi - di, dr - br  # (b - d) times -i
    return [
        (even_r + odd_r, even_i + odd_i),
        (between_r + turned_r, between_i + turned_i),
        (even_r - odd_r, even_i - odd_i),
        (between_r - turned_r, between_i - turned_i),
    ]


def dft8(z: list[tuple[N, N]]) -> list[tuple[N, N]]:
    """The discrete Fourier transform of eight: one of four sums, and one of four differences turned by eighths."""
    sums = [(z[k][0] + z[k + 4][0], z[k][1] + z[k + 4][1]) for k in range(4)]
    (ar, ai), (br, bi), (cr, ci), (dr, di) = [(z[k][0] - z[k + 4][0], z[k][1] - z[k + 4][1]) for k in range(4)]
    turned = [
        (ar, ai),
        ((br + bi) * _SQRT_HALF, (bi - br) * _SQRT_HALF),
        (ci, -cr),
        ((di - dr) * _SQRT_HALF, (dr + di) * -_SQRT_HALF),
    ]
    return [value for pair in zip(dft4(sums), dft4(turned), strict=True) for value in pair]


def dft5(z: list[tuple[N, N]]) -> list[tuple[N, N]]:
    """The discrete Fourier transform of five: numbers 1 and 4, and 2 and 3, share their sums and differences."""
    (zr, zi), (ar, ai), (br, bi), (cr, ci), (dr, di) = z
    outer_r, outer_i, inner_r, inner_i = ar + dr, ai + di, br + cr, bi + ci
    outer_difference_r, outer_difference_i, inner_difference_r, inner_difference_i = ar - dr, ai - di, br - cr, bi - ci
    first_r = inner_r.times_plus(_COS_144, outer_r.times_plus(_COS_72, zr))
    first_i = inner_i.times_plus(_COS_144, outer_i.times_plus(_COS_72, zi))
    second_r = inner_r.times_plus(_COS_72, outer_r.times_plus(_COS_144, zr))
    second_i = inner_i.times_plus(_COS_72, outer_i.times_plus(_COS_144, zi))
    first_turn_r = outer_difference_r.times_plus(_SIN_72, inner_difference_r * _SIN_144)
    first_turn_i = outer_difference_i.times_plus(_SIN_72, inner_difference_i * _SIN_144)
    second_turn_r = outer_difference_r.times_plus(_SIN_144, inner_difference_r * -_SIN_72)
    second_turn_i = outer_difference_i.times_plus(_SIN_144, inner_difference_i * -_SIN_72)
    return [
        (zr + outer_r + inner_r, zi + outer_i + inner_i),
        (first_r + first_turn_i, first_i - first_turn_r),
        (second_r + second_turn_i, second_i - second_turn_r),
        (second_r - second_turn_i, second_i + second_turn_r),
        (first_r - first_turn_i, first_i + first_turn_r),
    ]


def split_powers(a: tuple[N, N], b: tuple[N, N], turn: tuple[N, N]) -> tuple[N, N]:
    """Four times the powers of bins k and 200 - k of the real transform.

    `a` and `b` are bins k and 200 - k of the complex one, and `turn` is exp(-2 pi i k / 400). Twice the transform of
    the even samples is a + conj(b), of the odd ones (a - conj(b)) / i; bin k is even + turn * odd, and bin 200 - k the
    conjugate of even - turn * odd.
    """
    even_r, even_i = a[0] + b[0], a[1] - b[1]
    turned_r, turned_i = multiply(a[1] + b[1], b[0] - a[0], *turn)
    return power(even_r + turned_r, even_i + turned_i), power(even_r - turned_r, even_i - turned_i)


def log10(exponent: N, fraction: N) -> N:
    """The decimal logarithm of 2 ** exponent * (1 + fraction), for 1 + fraction in [sqrt(1/2), sqrt(2)).

    In float32 the error is at most 1e-6 for results in [-10, 15]: that of rounding the result itself.
    """
    square = fraction * fraction
    polynomial = fraction.times_plus(_LOG_COEFFICIENTS[0], _LOG_COEFFICIENTS[1])
    for coefficient in _LOG_COEFFICIENTS[2:]:
        polynomial = polynomial.times_plus(fraction, coefficient)
    natural = (polynomial * square).times_plus(fraction, square.times_plus(-0.5, fraction))
    return exponent.times_plus(_LOG10_OF_2, natural * _LOG10_OF_E)
