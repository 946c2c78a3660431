"""The tagging networks: padding, losses by hand, one by one against a batch, decoding, bad input."""

import pytest
import torch
from torch.nn import functional as F

from ostinato.errors import InputError, SizeError
from ostinato.models.tagger import JointTagger, TaggerNetwork
from ostinato.types import Batch

SIZES = {"words": 30, "vectors": [0, 0], "characters": 12, "shapes": [9, 7], "columns": [6]}
TAGS = ("O", "B-x", "I-x", "B-y", "I-y")
TOKENS = {"word_size": 7, "spelling_size": 6, "character_size": 4, "shape_size": 5, "column_size": 3}
LENGTHS = [6, 1, 4]
VALID = [[1, 2, 2, 0, 3, 4], [0], [3, 1, 0, 1]]


def make(kind=TaggerNetwork, **options):
    torch.manual_seed(1)
    classes = (3,) if kind is JointTagger else ()
    options = {"hidden_size": 5, "tokens": TOKENS} | options
    network = kind(SIZES, TAGS, *classes, **options)
    network.tokens.set_word_counts(torch.arange(30))
    for name, parameter in network.named_parameters():
        if name.startswith("crf"):
            torch.nn.init.normal_(parameter)
    return network.double()


def make_batch(lengths=LENGTHS, rows=VALID, seed=0, extra=1):
    """Sentences of random numbers, each the same in any company; garbage as tags in the padding."""
    T = max(lengths) + extra
    batch = {name: torch.zeros(len(lengths), T, dtype=torch.int64) for name in ("words", "spelled")}
    batch["columns"] = torch.zeros(len(lengths), T, 1, dtype=torch.int64)
    batch["lengths"] = torch.tensor(lengths)
    batch["y"] = torch.full((len(lengths), T), 99)
    U = 8
    generator = torch.Generator().manual_seed(seed)
    batch["spellings"] = torch.randint(1, 12, (U, 5), generator=generator)
    batch["spelling_lengths"] = torch.tensor([0, 5, 3, 1, 4, 5, 2, 2])
    batch["spellings"][torch.arange(5) >= batch["spelling_lengths"][:, None]] = 0
    batch["shapes"] = torch.randint(1, 7, (U, 2), generator=generator)
    batch["shapes"][0] = 0
    for row, n in enumerate(lengths):
        generator = torch.Generator().manual_seed(sum(rows[row]) + n)
        batch["words"][row, :n] = torch.randint(2, 30, (n,), generator=generator)
        batch["spelled"][row, :n] = torch.randint(1, U, (n,), generator=generator)
        batch["columns"][row, :n, 0] = torch.randint(1, 6, (n,), generator=generator)
        batch["y"][row, :n] = torch.tensor(rows[row])
    batch["label"] = torch.arange(len(lengths)) % 3
    return Batch(batch)


def gap(a, b):
    return (a - b).detach().abs().max().item()


CASES = [
    (TaggerNetwork, {"scheme": "bio"}),
    (TaggerNetwork, {"output": "softmax", "cell": "gru", "num_layers": 2}),
    (JointTagger, {"scheme": "bio", "cell": "mingru"}),
    (JointTagger, {"pooling": "max", "bidirectional": False, "class_weight": 0.3}),
]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_a_batch_equals_its_sentences_one_by_one(kind, options):
    """Loss, gradients, tags and probabilities."""
    network = make(kind, **options).eval()
    batch = make_batch()
    total = network.loss(batch)
    assert total.count == 3
    total.total.backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    said = network.predict(batch)
    assert torch.equal(said.tags, network.decode(batch))
    assert gap(said.probabilities, network.marginals(batch)) == 0
    summed = 0.0
    for row, n in enumerate(LENGTHS):
        alone = make_batch([n], [VALID[row]], extra=0)
        alone["label"] = batch["label"][row : row + 1]
        loss = network.loss(alone).total
        loss.backward()
        summed += loss.item()
        own = network.predict(alone)
        assert torch.equal(said.tags[row, :n], own.tags[0])
        assert not said.tags[row, n:].any()
        assert gap(said.probabilities[row, :n], own.probabilities[0]) < 1e-10
        assert not said.probabilities[row, n:].any()
        if kind is JointTagger:
            assert gap(said.class_probabilities[row], own.class_probabilities[0]) < 1e-10
    assert abs(total.total.item() - summed) < 1e-9
    for name, parameter in network.named_parameters():
        assert gap(gradients[name], parameter.grad) < 1e-9, name
        assert parameter.grad.any(), name


def test_the_losses_by_hand():
    batch = make_batch()
    real = batch["y"] != 99
    network = make(output="softmax").eval()
    by_hand = F.cross_entropy(network(batch)[real], batch["y"][real], reduction="sum")
    assert gap(network.loss(batch).total, by_hand) < 1e-10
    chain = make(scheme="bio").eval()
    by_hand = -chain.crf(chain(batch), batch["y"], lengths=LENGTHS).sum()
    assert gap(chain.loss(batch).total, by_hand) < 1e-10
    joint = make(JointTagger, scheme="bio", class_weight=0.7).eval()
    emissions, logits = joint(batch)
    by_hand = -joint.crf(emissions, batch["y"], lengths=LENGTHS).sum()
    by_hand = by_hand + 0.7 * F.cross_entropy(logits, batch["label"], reduction="sum")
    assert gap(joint.loss(batch).total, by_hand) < 1e-10


def test_tags_keep_the_scheme_whatever_the_emissions():
    network = make(scheme="bio").eval()
    with torch.no_grad():
        network.head.bias[4] = 50.0  # I-y everywhere, if it could
    for row, n in zip(network.decode(make_batch()), LENGTHS, strict=True):
        assert network.crf.constraints.violations(row[:n].tolist()) == 0


def test_dropout_acts_in_training_alone_and_follows_the_key():
    from ostinato.layers.dropout import set_mask_key

    network, batch = make(scheme="bio", dropout=0.5), make_batch()
    losses = []
    for step in (0, 0, 1):
        set_mask_key(network, 3, step)
        losses.append(network.loss(batch).total.item())
    assert losses[0] == losses[1] != losses[2]
    network.eval()
    assert network.loss(batch).total.item() == network.loss(batch).total.item() not in losses


def test_it_learns_the_tags_and_classes_of_a_few_sentences():
    network = make(JointTagger, scheme="bio", dropout=0.1).float()
    batch = make_batch()
    optimizer = torch.optim.Adam(network.parameters(), 0.03)
    for _ in range(40):
        optimizer.zero_grad()
        network.loss(batch).total.backward()
        optimizer.step()
    said = network.eval().predict(batch)
    real = batch["y"] != 99
    assert torch.equal(said.tags[real], batch["y"][real])
    assert torch.equal(said.class_probabilities.argmax(1), batch["label"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "argmax"}, "output='argmax' is unknown; known: 'crf', 'softmax'"),
        ({"scheme": "bio", "output": "softmax"}, "scheme='bio' limits sequences"),
        ({"scheme": "bioe"}, "scheme='bioe' is unknown"),
        ({"cell": "lstn"}, "cell='lstn' is unknown"),
        ({"hidden_size": 0}, "hidden_size=0, expected an integer of at least 1"),
        ({"kind": JointTagger, "pooling": "middle"}, "pooling='middle' is unknown"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


@pytest.mark.parametrize("output", ["crf", "softmax"])
def test_bad_tags_are_named(output):
    network, batch = make(output=output), make_batch()
    with pytest.raises(SizeError, match=r"\(3, 7\)"):
        network.loss(Batch({**batch, "y": batch["y"][:, :5]}))


@pytest.mark.parametrize(("kind", "options"), CASES[:3])
def test_an_empty_sentence_changes_nothing_for_the_others(kind, options):
    network = make(kind, **options).eval()
    with_empty = make_batch([6, 0, 1, 4], [VALID[0], [], *VALID[1:]])
    others = [0, 2, 3]
    rows = {name: value[others] for name, value in with_empty.items() if len(value) == 4}
    without = Batch({**with_empty, **rows})
    said, alone = network.predict(with_empty), network.predict(without)
    assert torch.equal(said.tags[others], alone.tags)
    assert gap(said.probabilities[others], alone.probabilities) < 1e-12
    assert not said.tags[1].any()
    assert not said.probabilities[1].any()
    together, rest = network.loss(with_empty), network.loss(without)
    assert (together.count, rest.count) == (4, 3)
    if kind is TaggerNetwork:
        assert gap(together.total, rest.total) < 1e-9
    together.total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters())
