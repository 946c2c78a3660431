"""The first program of every course on recurrent networks: sequences in, one number out.

1000 sequences of 10 steps, a network of 50 units and a dense layer, Adam, mean squared error, ten epochs in
batches of 32. The number to learn is a sum over the whole sequence, so the network has to remember.
"""

import numpy as np

import ostinato as ot


def main() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1000, 10, 1))
    y = X.sum(axis=(1, 2))

    model = ot.SequenceRegressor(cell="rnn", hidden_size=50, epochs=10, batch_size=32)
    model.fit(X[:800], y[:800])
    print("first five, said:", model.predict(X[800:805]).round(2))
    print("first five, true:", y[800:805].round(2))

    scores = model.evaluate(X[800:], y[800:])
    for name, values in {**scores["model"], **scores["baselines"]}.items():
        print(f"{name:>7}: " + ", ".join(f"{metric} {value:.3f}" for metric, value in values.items()))


if __name__ == "__main__":
    main()
