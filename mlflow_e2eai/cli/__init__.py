"""The command line.

main        the command, its errors and exit codes, and `entry_point` for scripts
verbs       the verbs: what each calls, takes and prints
arguments   the options of the verbs
registry_arguments  those of verbs about a registered model
types       options as click's
results     results as lines
registry_results  those of verbs about a registered model
clean_verb  `clean` of a model or of a file
run_verb    `run`: the whole way in one call
readers     `inspect`, `report` and `targets`
listings    results of `list`, `compare`, `targets` and `gates` as tables
doctor      what this machine can do
show        a graph in Netron
"""
