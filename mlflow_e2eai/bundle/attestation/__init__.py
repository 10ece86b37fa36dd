"""Signatures of a model's files.

signatures  keys of people, and their signatures of a message
envelope    a list of files, signed, in the format of OpenSSF model signing
"""
