"""Labelled sequences: texts, letters, arrays, documents and trees to classes; tokens to tags."""
