"""Encoder–decoders: single steps equal the loss, batches equal single rows, copying adds up, options act."""

import itertools

import pytest
import torch
from safetensors.torch import load, save

from ostinato.errors import InputError, SizeError
from ostinato.layers.cells import Cell
from ostinato.layers.dropout import set_mask_key
from ostinato.models.decoding import beam_search, greedy
from ostinato.models.seq2seq import EncoderDecoder, OneToMany
from ostinato.types import Batch, State, map_state

SOURCE, TARGET = 19, 23
LENGTHS, TARGET_LENGTHS = [5, 3, 0, 7], [4, 6, 1, 2]
SMALL = {"embedding_size": 6, "hidden_size": 8}

KINDS = [
    {"attention": attention, "feeding": feeding, "copying": copying}
    for attention, feeding, copying in itertools.product(
        ("additive", "dot", "general", "local"), ("none", "output", "context"), (False, True)
    )
]
KINDS += [
    {"attention": "none"},
    {"attention": "none", "feeding": "output", "decoder_layers": 2, "encoder_layers": 2},
    {"attention": "additive", "coverage": True},
    {"attention": "additive", "coverage": True, "copying": True, "feeding": "output", "decoder_layers": 3},
    {"attention": "general", "decoder_layers": 2, "encoder_layers": 2, "cell": "gru"},
    {"attention": "local", "window": 2, "decoder_layers": 2, "cell": "mingru", "tie": "none"},
    {"attention": "general", "cell": "lstm", "layer": {"proj_size": 3, "peephole": True}},
    {"attention": "monotonic"},
    {"attention": "monotonic", "decoder_layers": 2, "encoder_layers": 2, "cell": "gru", "tie": "none"},
]


def make(cls=EncoderDecoder, sizes=(SOURCE, TARGET), **options):
    return cls(*sizes, **{**SMALL, **options}).double()


def batch_for(options, **more):
    """Of pairs that a network with these options takes."""
    is_monotonic = options.get("attention") == "monotonic"
    return batch(copying=options.get("copying", False), is_monotonic=is_monotonic, **more)


def batch(*, copying=False, is_monotonic=False, extra_steps=0, seed=3):
    """Four pairs; in the padding stand ids that a model could take for tokens."""
    told = LENGTHS if is_monotonic else TARGET_LENGTHS
    generator = torch.Generator().manual_seed(seed)

    def ids(low, high, lengths):
        shape = (4, max(lengths) + extra_steps)
        padding = torch.randint(high, shape, generator=torch.Generator().manual_seed(extra_steps))
        real = torch.randint(low, high, (4, max(lengths)), generator=generator)
        for row, n in enumerate(lengths):
            padding[row, :n] = real[row, :n]
        return padding

    made = Batch(
        source=ids(2, SOURCE, LENGTHS),
        source_lengths=torch.tensor(LENGTHS),
        target_in=ids(2, TARGET, told),
        target_out=ids(2, TARGET, told),
        target_lengths=torch.tensor(told),
    )
    if copying:
        extended = made["source"].clone()
        extended[0, 1], extended[3, 2], extended[3, 5], extended[3, 6] = TARGET, TARGET, TARGET + 1, TARGET
        made["source_extended"], made["extra"] = extended, torch.tensor([1, 0, 0, 2])
        made["target_out"][0, 2] = made["target_in"][0, 3] = TARGET
        made["target_out"][3, 0] = TARGET + 1
    return made


def log_probs(model, given, encoded=None):
    """(B, T, V) step by step, and the attention."""
    encoded = encoded or model.encode(given)
    state, said, read = encoded.state, [], []
    for tokens in given["target_in"].unbind(1):
        scores, state, *attention = encoded.step(tokens, state)
        said.append(scores.log_softmax(1))
        read += attention
    return torch.stack(said, dim=1), torch.stack(read, dim=1) if read else None


def likelihood(said, given):
    """-log P of the targets, of each row."""
    real = torch.arange(said.shape[1]) < given["target_lengths"].unsqueeze(1)
    wanted = given["target_out"].clamp(max=said.shape[2] - 1)
    return -said.gather(2, wanted.unsqueeze(2)).squeeze(2).masked_fill(~real, 0.0).sum(1)


def row(given, i):
    """One pair without padding."""
    one = Batch({name: value[i : i + 1] for name, value in given.items()})
    for name in ("source", "source_extended"):
        if name in one:
            one[name] = one[name][:, : LENGTHS[i]]
    for name in ("target_in", "target_out"):
        one[name] = one[name][:, : int(given["target_lengths"][i])]
    return one


# Laws ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_steps_equal_the_loss_and_the_batch_equals_its_rows(options):
    model, given = make(**options).eval(), batch_for(options)
    with torch.no_grad():
        loss = model.loss(given)
        said, read = log_probs(model, given)
        torch.testing.assert_close(said.exp().sum(2), torch.ones(said.shape[:2], dtype=torch.float64))
        torch.testing.assert_close(likelihood(said, given).sum(), loss.total)
        assert int(loss.count) == int(given["target_lengths"].sum())
        singles = [model.loss(row(given, i)).total for i in range(4)]
        torch.testing.assert_close(torch.stack(singles), likelihood(said, given))
        wider = model.loss(batch_for(options, extra_steps=2))
        torch.testing.assert_close(wider.total, loss.total)
    assert (read is None) == (options["attention"] == "none")
    if read is not None:
        for i, n in enumerate(LENGTHS):
            assert not read[i, :, n:].any()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_every_parameter_gets_a_gradient(options):
    model, given = make(**options), batch_for(options)
    model.loss(given).total.backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("options", [KINDS[i] for i in (1, 5, 6, 10, 15, 23, 25, 27, 28, 31, 32)], ids=str)
def test_sequences_may_be_repeated_reordered_and_dropped_between_steps(options):
    model, given = make(**options).eval(), batch_for(options)
    encoded = model.encode(given)
    choices = [
        torch.arange(4).repeat_interleave(3),  # as a beam
        torch.tensor([3, 3, 0, 0]),  # two sources that are left
        torch.tensor([2, 0, 0, 3, 1]),  # in no order
        torch.tensor([1]),
    ]
    with torch.no_grad():
        first = encoded.step(given["target_in"][:, 0], encoded.state)
        second = encoded.step(given["target_in"][:, 1], first[1])
        for rows in choices:
            chosen = map_state(lambda leaf, rows=rows: leaf[rows], first[1])
            again = encoded.step(given["target_in"][rows, 1], chosen)
            for one, other in zip(again, second, strict=True):
                if isinstance(one, State):
                    torch.testing.assert_close(one.row, other.row[rows])
                else:
                    torch.testing.assert_close(one, other[rows])


@pytest.mark.parametrize("options", [KINDS[i] for i in (1, 9, 24, 26, 27, 32)], ids=str)
def test_gradients(options):
    model = make(**{**options, "embedding_size": 3, "hidden_size": 4})
    given = batch_for(options)
    names, values = zip(*model.named_parameters(), strict=True)

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            set_mask_key(model, 3, 1)
            return model.loss(given).total

    def run(*parameters):
        replaced = {f"model.{name}": value for name, value in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Loss(), replaced, ())

    assert torch.autograd.gradcheck(run, values, fast_mode=True)


@pytest.mark.parametrize("options", [KINDS[1], KINDS[4], KINDS[24]], ids=str)
def test_a_beam_finds_the_same_whether_sources_come_together_or_alone(options):
    model, given = make(**options).eval(), batch_for(options)
    start, call = torch.full((4,), 2), {"end": 3, "max_length": 9}
    with torch.no_grad():
        encoded = model.encode(given)
        found = beam_search(encoded.step, encoded.state, start, beam=4, n_best=2, **call)
        one = beam_search(encoded.step, encoded.state, start, beam=1, **call)
        assert one.best() == greedy(encoded.step, encoded.state, start, **call).best()
        for i in range(4):
            alone = model.encode(row(given, i))
            other = beam_search(alone.step, alone.state, start[:1], beam=4, n_best=2, **call)
            assert found.sequences()[i] == other.sequences()[0]
            torch.testing.assert_close(found.log_probs[i], other.log_probs[0])


def test_a_monotonic_answer_is_as_long_as_its_source_and_beams_find_the_best():
    """All answers to sources of up to two tokens, beside a beam as wide as they are many."""
    model = make(sizes=(SOURCE, 4), attention="monotonic").eval()
    source, lengths = torch.tensor([[5, 3], [7, 0], [0, 0]]), torch.tensor([2, 1, 0])
    with torch.no_grad():
        encoded = model.encode(Batch(source=source, source_lengths=lengths))
        start, wide = torch.zeros(3, dtype=torch.long), {"beam": 16, "n_best": 16}
        found = beam_search(encoded.step, encoded.state, start, end=4, max_length=3, **wide)
        for i, n in enumerate(lengths.tolist()):
            every = torch.tensor(list(itertools.product(range(4), repeat=n)), dtype=torch.long)
            B = 4**n
            given = Batch(
                source=source[i, :n].repeat(B, 1), source_lengths=torch.full((B,), n), target_out=every,
                target_in=torch.cat([torch.zeros(B, 1, dtype=torch.long), every], 1)[:, :n],
                target_lengths=torch.full((B,), n),
            )  # fmt: skip
            read = model.encode(given)
            p = (
                likelihood(log_probs(model, given, read)[0], given)
                if n
                else torch.zeros(1, dtype=torch.float64)
            )
            order = p.argsort()
            assert found.sequences()[i][:B] == every[order].tolist()
            torch.testing.assert_close(-found.log_probs[i, :B], p[order])
            assert bool(found.ended[i, :B].all())


# Copying ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["additive", "local"])
def test_copying_equals_its_equation(attention):
    model, given = make(attention=attention, copying=True).eval(), batch(copying=True)
    with torch.no_grad():
        said, read = log_probs(model, given)
        encoded = model.encode(given)
        steps = model.decoder(
            model.target_embedding(given["target_in"].masked_fill(given["target_in"] >= TARGET, 1)) * 6**0.5,
            encoded.state, encoded.memory,
        )  # fmt: skip
        logits = steps.readout @ model.target_embedding.weight.T + model.output.words.bias
        gates = torch.sigmoid(model.output.gate(steps.features)).squeeze(2)
    assert said.shape == (4, 6, TARGET + 2)
    for i, n in enumerate(LENGTHS):
        for t in range(6):
            p = torch.zeros(TARGET + 2, dtype=torch.float64)
            g = gates[i, t] if n else 1.0
            p[:TARGET] = g * torch.softmax(logits[i, t], 0)
            for s in range(n):
                p[given["source_extended"][i, s]] += (1 - g) * read[i, t, s] / read[i, t].sum()
            torch.testing.assert_close(said[i, t].exp(), p)
    # A word that no source of the row has, and that the vocabulary lacks.
    assert bool((said[1, :, TARGET:] == -torch.inf).all())


def test_copied_words_are_fed_back_as_unknown():
    model, given = make(copying=True).eval(), batch(copying=True)
    encoded = model.encode(given)
    tokens = torch.tensor([TARGET, 5, 6, TARGET + 1])
    with torch.no_grad():
        scores, _, _ = encoded.step(tokens, encoded.state)
        unknown, _, _ = encoded.step(tokens.masked_fill(tokens >= TARGET, 1), encoded.state)
    assert torch.equal(scores, unknown)


# Options ---------------------------------------------------------------------------------------------

CHANGES = [
    {"dropout_embedding": 0.5},
    {"dropout_between": 0.5},
    {"dropout_output": 0.5},
    {"word_dropout": 0.4},
    {"label_smoothing": 0.2},
    {"scheduled_sampling": 0.7},
    {"coverage_weight": 1.0},
    {"layer": {"dropout_recurrent": 0.4}},
    {"layer": {"weight_drop": 0.4}},
]
PLAIN = {"dropout_embedding": 0.0, "dropout_between": 0.0, "dropout_output": 0.0, "label_smoothing": 0.0}


REGULARISED = [({"attention": "general"}, changed) for changed in CHANGES]
REGULARISED += [({"attention": "none"}, changed) for changed in CHANGES if "coverage_weight" not in changed]


@pytest.mark.parametrize(("kind", "changed"), REGULARISED, ids=str)
def test_what_regularises_acts_in_training_alone_and_depends_on_the_key(kind, changed):
    plain, given = make(**PLAIN, **kind), batch()
    model = make(**{**PLAIN, **changed}, **kind)
    model.load_state_dict(plain.state_dict())

    def loss(model, step):
        set_mask_key(model, 5, step)
        return model.loss(given).total.detach()

    base = loss(plain, 1)
    assert abs(float(loss(model, 1) - base)) > 1e-6
    assert torch.equal(loss(model, 1), loss(model, 1))
    if not {"label_smoothing", "coverage_weight"} & set(changed):
        assert not torch.equal(loss(model, 1), loss(model, 2))
    torch.testing.assert_close(loss(model.eval(), 1), base)


@pytest.mark.parametrize(
    "changed",
    [
        {"attention": "dot"},
        {"attention": "local"},
        {"attention": "local", "window": 1},
        {"attention": "additive"},
        {"attention": "none"},
        {"feeding": "output"},
        {"feeding": "context"},
        {"copying": True},
        {"tie": "none"},
        {"cell": "gru"},
        {"encoder_layers": 2},
        {"decoder_layers": 2},
        {"embedding_size": 4},
        {"hidden_size": 10},
        {"layer": {"norm": "layer"}},
    ],
    ids=str,
)
def test_what_shapes_the_network_changes_the_output(changed):
    given = batch(copying=True)
    for name in ("target_in", "target_out"):
        given[name] = given[name].clamp(max=TARGET - 1)
    losses = []
    for options in ({}, changed):
        torch.manual_seed(7)
        losses.append(make(**options).eval().loss(given).total.item())
    assert abs(losses[0] - losses[1]) > 1e-9


@pytest.mark.parametrize("copying", [False, True])
def test_label_smoothing_spreads_a_share_over_the_vocabulary(copying):
    model, given = make(**{**PLAIN, "label_smoothing": 0.3}, copying=copying), batch(copying=copying)
    with torch.no_grad():
        smoothed, plain = model.loss(given).total, model.eval().loss(given).total
        encoded = model.encode(given)
        steps = model._decode(model._known(given["target_in"]), encoded)
        words = model.output.words if copying else model.output
        said = words.scores(steps.readout, model.target_embedding.weight).log_softmax(2)
        real = torch.arange(6) < given["target_lengths"].unsqueeze(1)
        spread = -said.mean(2)[real].sum()
    torch.testing.assert_close(smoothed, 0.7 * plain + 0.3 * spread)


@pytest.mark.parametrize("options", [{}, {"feeding": "output"}, {"copying": True}], ids=str)
def test_scheduled_sampling_feeds_what_a_first_pass_says(options):
    copying = options.get("copying", False)
    plain, given = make(**PLAIN, **options), batch(copying=copying)
    model = make(**PLAIN, **options, scheduled_sampling=1 - 1e-9, scheduled_sampling_steps=10)
    model.load_state_dict(plain.state_dict())
    none = make(**PLAIN, **options, scheduled_sampling=0.0)
    none.load_state_dict(plain.state_dict())
    with torch.no_grad():
        said, _ = log_probs(plain.eval(), given)
        own = Batch(given)
        own["target_in"] = torch.cat([given["target_in"][:, :1], said.argmax(2)[:, :-1]], dim=1)
        for step, expected in ((0, given), (10, own), (15, own)):
            set_mask_key(model, 1, step)
            torch.testing.assert_close(model.loss(given).total, plain.loss(expected).total)
        assert torch.equal(none.loss(given).total, plain.train().loss(given).total)
        set_mask_key(model, 1, 5)
        halfway = model.loss(given).total
        assert all(abs(float(halfway - plain.loss(one).total)) > 1e-9 for one in (given, own))
    assert model.choose_own.now == pytest.approx(0.5)


def test_without_attention_the_source_acts_through_the_first_state_alone():
    model, given = make(attention="none").eval(), batch()
    other = batch(seed=8)
    other["target_in"], other["target_out"] = given["target_in"], given["target_out"]
    with torch.no_grad():
        assert abs(float(model.loss(given).total - model.loss(other).total)) > 1e-6
        assert model.encode(given).memory is None
        model.decoder.bridge.weight.zero_()
        assert torch.equal(model.loss(given).total, model.loss(other).total)


def test_a_batch_of_empty_sources_is_read_as_zeros():
    for options in ({}, {"attention": "local"}, {"attention": "additive", "coverage": True}):
        model, given = make(**options), batch()
        given["source_lengths"] = torch.zeros(4, dtype=torch.int64)
        expected = model.eval().loss(given).total
        given["source"] = given["source"][:, :0]
        torch.testing.assert_close(model.loss(given).total, expected)
        model.loss(given).total.backward()
        assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_tied_embeddings_are_stored_once():
    sizes = {}
    for tie in ("none", "output", "all"):
        model = make(sizes=(TARGET, TARGET), tie=tie)
        sizes[tie] = sum(p.numel() for p in model.parameters())
        other = make(sizes=(TARGET, TARGET), tie=tie)
        other.load_state_dict(load(save(model.state_dict())))
        assert torch.equal(model.eval().loss(batch()).total, other.eval().loss(batch()).total)
    assert sizes["none"] - sizes["output"] == sizes["output"] - sizes["all"] == TARGET * 6


class Leaky(Cell):
    """A user's cell."""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.state_shapes = {"h": (hidden_size,), "slow": (2,)}
        self.linear = torch.nn.Linear(input_size + hidden_size + 2, hidden_size)

    def step(self, x_t, state):
        h = torch.tanh(self.linear(torch.cat([x_t, state.h, state.slow], dim=1)))
        slow = 0.9 * state.slow + 0.1 * h[:, :2]
        return h, State(h=h, slow=slow)


@pytest.mark.parametrize("feeding", ["none", "output", "context"])
def test_takes_a_users_cell(feeding):
    model, given = make(cell=Leaky, feeding=feeding, decoder_layers=2), batch()
    model.loss(given).total.backward()
    assert all(p.grad.any() for p in model.parameters())
    with torch.no_grad():
        said, _ = log_probs(model.eval(), given)
        torch.testing.assert_close(likelihood(said, given).sum(), model.loss(given).total)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"feeding": "output", "decoder_layers": 2},
        {"feeding": "context", "attention": "additive", "coverage": True},
        {"attention": "local", "copying": True},
    ],
    ids=str,
)
def test_trains_in_half_precision(options):
    given = batch_for(options)
    model = EncoderDecoder(SOURCE, TARGET, **SMALL, **options)
    results = []
    for is_half in (False, True):
        set_mask_key(model, 1, 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            loss = model.loss(given)
        loss.total.backward()
        results.append([loss.total.detach(), *(p.grad.clone() for p in model.parameters())])
        model.zero_grad()
    for one, other in zip(*results, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).abs().max()) <= 0.05 * float(one.abs().max()) + 0.05


# One to many -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"feeding": "output", "decoder_layers": 2, "cell": "gru"}], ids=str)
def test_a_vector_becomes_a_sequence(options):
    model, given = make(OneToMany, (5, TARGET), **options), batch()
    given = Batch(x=torch.randn(4, 5, dtype=torch.float64), **given)
    model.loss(given).total.backward()
    assert all(p.grad.any() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        said, read = log_probs(model, given)
        assert read is None
        torch.testing.assert_close(likelihood(said, given).sum(), model.loss(given).total)
        encoded = model.encode(given)
        assert len(greedy(encoded.step, encoded.state, torch.full((4,), 2), end=3, max_length=5).best()) == 4


# Refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atention": "dot"}, r"unknown option 'atention'; did you mean 'attention'\?"),
        ({"attention": "cosine"}, r"attention='cosine' is unknown; known: 'additive'"),
        ({"feeding": "both"}, r"feeding='both' is unknown; known: 'none', 'output', 'context'"),
        ({"tie": "both"}, r"tie='both' is unknown"),
        ({"cell": "gnu"}, r"'gnu' is unknown"),
        ({"tie": "all"}, r"needs one vocabulary, and the sizes are 19 and 23"),
        ({"hidden_size": 7}, r"hidden_size=7 must be even"),
        ({"attention": "none", "copying": True}, r"copying=True needs an attention"),
        ({"attention": "none", "feeding": "context"}, r"feeding='context' needs an attention"),
        ({"attention": "none", "coverage_weight": 1.0}, r"coverage_weight=1.0 needs an attention"),
        (
            {"attention": "monotonic", "feeding": "context"},
            r"feeding='context' needs an attention that chooses",
        ),
        (
            {"attention": "monotonic", "feeding": "output"},
            r"feeding='output' needs an attention that chooses",
        ),
        ({"coverage": True}, r"acts on kind='additive'"),
        ({"window": 3}, r"acts on kind='local'"),
        ({"coverage_weight": -1.0}, r"coverage_weight=-1.0, expected a finite number"),
        ({"dropout_output": 1.0}, r"dropout_output: expected a probability"),
        ({"scheduled_sampling_steps": 5}, r"needs scheduled_sampling above 0"),
        ({"layer": {"bidirectional": True}}, r"layer: bidirectional is decided"),
        ({"layer": {"zoneout": 0.1}}, r"unknown option 'zoneout'"),
        ({"unknown": 50}, r"unknown=50, expected an id below"),
        ({"embedding_size": 0}, r"embedding_size=0"),
    ],
    ids=str,
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_bad_batches_are_refused():
    model, given = make(copying=True), batch(copying=True)
    with pytest.raises(InputError, match="no state is carried"):
        model.loss(given, State())
    with pytest.raises(InputError, match=r"copying=True needs extra in the batch; it has: source, "):
        model.encode(Batch({name: value for name, value in given.items() if name != "extra"}))
    with pytest.raises(SizeError, match=r"source_extended \(4, 6\), expected that of source, \(4, 7\)"):
        model.encode(Batch({**given, "source_extended": given["source_extended"][:, :6]}))
    with pytest.raises(SizeError, match=r"target_in \(4, 5\) and target_out \(4, 6\)"):
        model.loss(Batch({**given, "target_in": given["target_in"][:, :5]}))
    with pytest.raises(SizeError, match=r"source \(4, 7\) and source_lengths \(3,\)"):
        model.encode(Batch({**given, "source_lengths": given["source_lengths"][:3]}))
    with pytest.raises(SizeError, match="target_lengths are others than source_lengths"):
        make(attention="monotonic").loss(batch())
    with pytest.raises(SizeError, match=r"x has shape \(4, 3\), expected \(B, 5\)"):
        make(OneToMany, (5, TARGET)).encode(Batch(x=torch.zeros(4, 3)))
    with pytest.raises(InputError, match="unknown option 'attention'"):
        make(OneToMany, (5, TARGET), attention="dot")
    with pytest.raises(InputError, match="dropout_between acts between layers"):
        make(OneToMany, (5, TARGET), dropout_between=0.1)
    with pytest.raises(InputError, match="there is none; use 'output'"):
        make(OneToMany, (5, TARGET), tie="all")
