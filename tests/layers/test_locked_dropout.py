import pytest
import torch

from ostinato.errors import InputError
from ostinato.layers.dropout import set_mask_key
from ostinato.layers.locked_dropout import LockedDropout, WordDropout


def test_a_mask_stays_through_time_and_differs_between_rows_and_steps():
    drop = LockedDropout(0.5)
    x = torch.ones(3, 5, 40)
    set_mask_key(drop, 0, 1)
    y = drop(x)
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(y[0], y[1])
    assert torch.equal(drop(x), y)
    set_mask_key(drop, 0, 2)
    assert not torch.equal(drop(x), y)


def test_masks_follow_the_rows_and_differ_between_modules():
    one, other = LockedDropout(0.5, 0), LockedDropout(0.5, 1)
    x = torch.ones(4, 2, 64)
    for drop in (one, other):
        set_mask_key(drop, 3, 7)
    assert not torch.equal(one(x), other(x))
    rows = torch.tensor([3, 1])
    assert torch.equal(one(x[:2], rows), one(x)[rows])


def test_nothing_is_dropped_in_evaluation_or_with_probability_0():
    x = torch.randn(2, 3, 4)
    assert LockedDropout(0.9).eval()(x) is x
    assert LockedDropout(0.0)(x) is x
    assert WordDropout(0.9).eval()(x, torch.zeros(2, 3, dtype=torch.long), 5) is x
    with pytest.raises(InputError, match="probability"):
        LockedDropout(1.0)


def test_a_dropped_word_is_dropped_wherever_it_occurs():
    drop = WordDropout(0.4)
    ids = torch.arange(50).repeat(2, 3)
    y = drop(torch.ones(2, 150, 3), ids, 50)
    assert torch.equal(y[0, :50], y[1, 50:100])
    assert 0 < float((y[0, :50, 0] == 0).float().mean()) < 1
    torch.testing.assert_close(y.max(), torch.tensor(1 / 0.6))
