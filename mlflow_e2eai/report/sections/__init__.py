"""The contexts of the page's sections, one file each.

decision      the verdict, the gates, and every variant in one line
changes       the version before, and the history of its aliases
doubts        failures and doubts
measurements  latency, error against latency, parity
intervals     small pictures of ratios
steps         errors step by step
precision     conversions
surgery       the graph before and after
serving       cold start and throughput
provenance    files, lineage, environment, commands
"""
