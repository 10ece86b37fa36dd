"""Signatures of a model's files, and what is signed with them.

signatures  keys of people, and their signatures of a message
envelope    a list of files, signed, in the format of OpenSSF model signing
materials   the bill of materials
slsa        the statement of provenance
"""
