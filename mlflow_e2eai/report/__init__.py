"""A bundle's evidence for people: as a table, as Markdown, as one HTML page, as pictures.

All of it depends on a manifest alone, so that the same evidence gives the same page anywhere.

page       one HTML page, from templates/
sections/  the contexts of its sections
plots      the pictures, as SVG and PNG
canvas     sizes, colours and labels of the pictures
scale      logarithmic scales of pictures and signs
text       one table, for the terminal and as Markdown
description  the description of a registered version
background  the part of the registry in a decision
facts      facts on variants that every form states
formats    numbers, sizes, names and sentences for people
"""
