"""A bundle's evidence for people: as a table, as Markdown, as one HTML page, as pictures.

All of it is made from a manifest alone, so that the same evidence gives the same page anywhere.
"""
