"""Texts into other texts: translation, transliteration, pronunciation, summaries."""
