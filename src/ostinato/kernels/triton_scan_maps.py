"""Affine maps h -> P h + A inside a Triton kernel, and how they travel between programs.

What a stretch of a linear recurrence does to the state is such a map, unit by unit; two stretches join into
one.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
from triton import language as tl

# A word that says "not yet written": the pattern of two NaNs that no arithmetic gives.
EMPTY = tl.constexpr(-1)


# Affine maps h -> P h + A -----------------------------------------------------------------------------


@triton.jit
def times(P, keep):
    """P · keep, where a coefficient of zero forgets: also a product that is infinite."""
    return tl.where(keep == 0.0, 0.0, P * keep)


@triton.jit
def applied(P, A, h):
    """P h + A, where a state of zero stays zero: also times a product that is infinite."""
    return tl.where(h == 0.0, A, P * h + A)


@triton.jit
def _joined(P_1, A_1, P_2, A_2):
    # A reset is a coefficient of zero, and what overflowed before it does not matter.
    return times(P_1, P_2), tl.where(P_2 == 0.0, A_2, applied(P_2, A_2, A_1))


@triton.jit
def last_row(tile, seg, S: tl.constexpr):
    """Row S - 1 of a tile (S, HB)."""
    return tl.sum(tl.where((seg == S - 1)[:, None], tile, 0.0), 0)


@triton.jit
def _joined_twice(E_1, F_1, P_1, A_1, E_2, F_2, P_2, A_2):
    E, F = _joined(P_1, A_1, E_2, F_2)
    P, A = _joined(P_1, A_1, P_2, A_2)
    return E, F, P, A


@triton.jit
def scanned(P, A, S: tl.constexpr, HB: tl.constexpr):
    """The joined maps of all segments before each one, and those up to and with it.

    Both come from one scan, of pairs: to shift what a scan gave by a segment takes a trip through memory.
    """
    one, zero = tl.full((S, HB), 1.0, tl.float32), tl.zeros((S, HB), tl.float32)
    return tl.associative_scan((one, zero, P, A), 0, _joined_twice)


# Look-back --------------------------------------------------------------------------------------------


@triton.jit
def packed(high, low):
    """Two numbers in one word that is not EMPTY."""
    bits = high.to(tl.int32, bitcast=True).to(tl.int64) << 32
    word = bits | (low.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF)
    # The same two NaNs, other bits.
    return tl.where(word == EMPTY, 0x7FC000007FC00000, word)


@triton.jit
def _high(word):
    return (word >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _low(word):
    return word.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def turn(words, n_chains):
    """(chunk, chain) of this program: turns are taken in the order in which programs start.

    Hence whoever a program waits for has started before it, and never waits for it.
    """
    started = (tl.atomic_add(words, 1, sem="relaxed", scope="gpu") + 1).to(tl.int32)
    return started // n_chains, started % n_chains


@triton.jit
def publish(words, place, word):
    """Write words for other programs to see, each whole."""
    tl.atomic_xchg(words + place, word, sem="relaxed", scope="gpu")


@triton.jit
def carried(maps, states, chunk, at, begin, HB: tl.constexpr, WINDOW: tl.constexpr):
    """The state before `chunk`, whose words are at `at`: decoupled look-back (Merrill and Garland 2016).

    Looks at the WINDOW chunks before this one until, behind one whose state is known, all have told their
    map; then applies those maps one after the other. From whichever state it starts, that is the same chain
    of operations, so the bits do not depend on timing. A word of 64 bits holds a whole message and says
    itself whether it is written, so no fence is needed; polling looks at one unit's words, and the others are
    checked when they are read.
    """
    lane = tl.arange(0, HB)
    i = tl.arange(0, WINDOW)
    first = chunk - WINDOW
    # Of the oldest chunk looked at, which need not exist.
    oldest = at - WINDOW * HB
    is_chunk = first + i >= 0
    state = begin
    is_done = chunk < 0
    while not is_done:
        is_told = tl.load(maps + oldest + i * HB, mask=is_chunk, other=EMPTY, volatile=True) != EMPTY
        is_known = tl.load(states + oldest + i * HB, mask=is_chunk, other=EMPTY, volatile=True) != EMPTY
        # What lies before chunk 0 is the start.
        known = tl.max(tl.where(is_known | (first + i == -1), i, -1))
        untold = tl.max(tl.where(is_told, -1, i))
        is_usable = (known >= 0) & (known >= untold)
        is_stored = first + known >= 0
        here = (lane >= 0) & is_usable & is_stored
        word = tl.load(states + oldest + known * HB + lane, mask=here, other=0, volatile=True)
        is_whole = word != EMPTY
        state = tl.where(is_stored, _high(word), begin)
        for j in tl.static_range(WINDOW):
            is_later = is_usable & (j > known)
            word = tl.load(maps + oldest + j * HB + lane, mask=(lane >= 0) & is_later, other=0, volatile=True)
            is_whole = is_whole & (word != EMPTY)
            state = tl.where(is_later, applied(_high(word), _low(word), state), state)
        is_done = is_usable & (tl.min(is_whole.to(tl.int32)) > 0)
    return state
