"""`python -m ostinato`, as torchrun starts it: the command `ostinato`."""

from ostinato.cli import main

main()
