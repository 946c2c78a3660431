"""Floor 2: recurrent layers, cells, dropout, output heads."""
